"""What the constants of an OpenVINO graph stand for: quantised weights as float32 again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import openvino

PASSED = ("Convert", "Reshape")
"""What stands between a stored weight and the scale, or the scale and the reader."""


def values(graph: openvino.Model) -> Iterator[np.ndarray]:
    """The data of every constant; of quantised weights ``scale * (stored - zero_point)``.

    Scales, zero points and the ranges of activations are no data of their own. A weight has the
    shape in which the layer reads it, without the axis that groups add.
    """
    constants = [node for node in graph.get_ordered_ops() if node.get_type_name() == "Constant"]
    scaled = {}
    auxiliary = set()
    for node in constants:
        scale = _scale(node)
        if scale is not None:
            scaled[node.get_friendly_name()] = scale
            auxiliary |= {name for name in _parameters(scale) if name != node.get_friendly_name()}
    for node in constants:
        name = node.get_friendly_name()
        if name in scaled:
            yield _dequantised(node, scaled[name])
        elif name not in auxiliary and not _is_range(node):
            yield np.array(node.data)


def _reader(node: openvino.Node) -> openvino.Node | None:
    readers = [reader.get_node() for reader in node.output(0).get_target_inputs()]
    return readers[0] if len(readers) == 1 else None


def _scale(node: openvino.Node) -> openvino.Node | None:
    """The Multiply that widens a stored weight, or None when ``node`` is none."""
    kind = node.get_element_type()
    if not kind.is_integral_number() or kind.bitwidth > 8:
        return None
    current = _reader(node)
    while current is not None and current.get_type_name() in (*PASSED, "Subtract"):
        if current.get_type_name() == "Subtract" and _source(current, 0) != _name(node):
            return None  # a zero point: it comes second
        current = _reader(current)
    is_scale = current is not None and current.get_type_name() == "Multiply"
    return current if is_scale and current is not None else None


def _name(node: openvino.Node) -> str:
    return str(node.get_friendly_name())


def _source(node: openvino.Node, index: int) -> str:
    """The name of what an operator takes, behind conversions."""
    source = node.input_value(index).get_node()
    while source.get_type_name() in PASSED:
        source = source.input_value(0).get_node()
    return _name(source)


def _parameters(scale: openvino.Node) -> set[str]:
    """The names of the constants that a Multiply's two sides come from."""
    found = {_source(scale, 1)}
    left = scale.input_value(0).get_node()
    while left.get_type_name() in PASSED:
        left = left.input_value(0).get_node()
    if left.get_type_name() == "Subtract":
        found |= {_source(left, 0), _source(left, 1)}
    return found


def _number(port: openvino.Output) -> np.ndarray:
    """The float32 numbers of a constant behind conversions; 4 bits are unpacked."""
    node = port.get_node()
    while node.get_type_name() in PASSED:
        node = node.input_value(0).get_node()
    return np.array(node.get_data(dtype=np.float32), np.float32)


def _dequantised(node: openvino.Node, scale: openvino.Node) -> np.ndarray:
    numbers = np.array(node.get_data(dtype=np.float32), np.float32)
    left = scale.input_value(0).get_node()
    if left.get_type_name() == "Subtract":
        numbers = numbers - _number(left.input_value(1))
    numbers = numbers * _number(scale.input_value(1))
    reader = _reader(scale)
    if reader is not None and reader.get_type_name() == "Reshape":
        numbers = numbers.reshape(reader.get_output_shape(0))
    result: np.ndarray = numbers
    return result


def _is_range(node: openvino.Node) -> bool:
    """Whether a constant bounds a quantiser of activations and nothing else."""
    readers = [reader.get_node() for reader in node.output(0).get_target_inputs()]
    return bool(readers) and all(r.get_type_name() == "FakeQuantize" for r in readers)
