"""What an OpenVINO graph computes with, followed backwards from its results.

As in :mod:`levit_export.formats.onnx.read`: what is computed from constants alone (compressed
weights above all) is computed, bodies of control flow are entered, and numbers are seen as the
operator sees them that first joins them with the input.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from levit_export.core import packages
from levit_export.core.constants import Constant
from levit_export.core.errors import ArtifactError
from levit_export.core.quiet import last_line

if TYPE_CHECKING:
    import openvino

LAYERS = ("Convolution", "GroupConvolution", "ConvolutionBackpropData", "MatMul", "Einsum")
"""Operators whose constants of two axes and more are weights."""
PASSIVE = (
    "Reshape",
    "Transpose",
    "Squeeze",
    "Unsqueeze",
    "Slice",
    "StridedSlice",
    "VariadicSplit",
)
"""Operators that move numbers and change none."""
STRUCTURAL = (
    *PASSIVE,
    *("Split", "Gather", "GatherElements", "GatherND", "Broadcast", "Tile", "Pad", "Interpolate"),
    *("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2"),
    *("TopK", "Range", "OneHot", "ShapeOf", "Concat", "ScatterUpdate", "CumSum", "NonZero"),
)
"""Operators whose whole numbers are shapes, axes and indices."""
BODIES = {
    "If": ("get_then_body", "get_else_body"),
    "Loop": ("get_function",),
    "TensorIterator": ("get_body", "get_function"),
}
"""How control flow gives out its bodies."""
GRID = 256
"""Most levels of a quantiser of 8 bits."""


@dataclass
class _Reading:
    found: list[Constant] = field(default_factory=list)
    known: dict[tuple[str, int], Constant] = field(default_factory=dict)

    def read(self, graph: openvino.Model) -> None:
        """Everything that the results of ``graph`` depend on."""
        for node in graph.get_ordered_ops():
            kind = node.get_type_name()
            if kind == "Parameter":
                continue
            if kind == "Constant":
                self.known[_key(node.output(0))] = _stored(node)
                continue
            bodies = list(_bodies(node, kind))
            sources = node.input_values()
            inputs = [self.known.get(_key(source)) for source in sources]
            known = [each for each in inputs if each is not None]
            if len(known) == len(inputs) and kind != "Result" and not bodies:
                self._compute(node, known)
                continue
            for body in bodies:
                self.read(body)
            self._join(node, kind, sources, inputs)

    def _compute(self, node: Any, inputs: Sequence[Constant]) -> None:
        values = _evaluated(node, [each.numbers for each in inputs])
        spent = sum(each.bits * each.numbers.size for each in inputs)
        levels = node.get_attributes().get("levels")
        for index, value in enumerate(values):
            bits = spent / max(value.size, 1)
            if levels:
                bits = min(bits, math.log2(levels))
            self.known[_key(node.output(index))] = Constant(value, bits)

    def _join(
        self, node: Any, kind: str, sources: Sequence[Any], inputs: Sequence[Constant | None]
    ) -> None:
        """The constants that ``node`` joins with what depends on the input."""
        self.found += [Constant(np.array(n, np.float32), 32) for n in _attributes(node)]
        if kind == "FakeQuantize" and _keeps_a_grid(node, inputs):
            return
        on_grid = any(
            known is None and _is_on_grid(source)
            for source, known in zip(sources, inputs, strict=True)
        )
        for known in inputs:
            if known is None:
                continue
            if known.numbers.dtype.kind in "biu" and kind in STRUCTURAL:
                continue
            is_weight = kind in LAYERS and known.numbers.ndim > 1
            self.found.append(replace(known, is_weight=is_weight, on_grid=on_grid))


def contents(graph: openvino.Model) -> tuple[Constant, ...]:
    """The numbers that the results of a model depend on.

    Raises ``ArtifactError`` where what is computed from constants alone cannot be computed here.
    """
    reading = _Reading()
    reading.read(graph)
    return tuple(reading.found)


def _key(port: Any) -> tuple[str, int]:
    """A value's unique name: friendly ones may repeat, also in a body."""
    return port.get_node().get_name(), port.get_index()


def _stored(node: Any) -> Constant:
    """A constant's numbers; 4 bits are unpacked."""
    kind = node.get_element_type()
    if kind.bitwidth < 8 or kind.get_type_name() in ("bf16", "f8e4m3", "f8e5m2"):
        return Constant(np.array(node.get_data(dtype=np.float32), np.float32), kind.bitwidth)
    return Constant(np.array(node.data), kind.bitwidth)


def _bodies(node: Any, kind: str) -> Iterable[openvino.Model]:
    if kind not in BODIES:
        return
    given = [getattr(node, name)() for name in BODIES[kind] if hasattr(node, name)]
    if not given:
        raise ArtifactError(
            f"the body of {kind} {node.get_friendly_name()!r} is not given out",
            remedy="Export a model without loops and conditions.",
        )
    yield from given


def _attributes(node: Any) -> Iterable[float]:
    """The fractional numbers that an operator carries itself."""
    for value in node.get_attributes().values():
        many = value if isinstance(value, list | tuple) else [value]
        yield from (each for each in many if isinstance(each, float))


def _evaluated(node: Any, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The outputs of a node whose inputs are all known, decompression in float32."""
    kind = node.get_type_name()
    if kind == "Convert":
        return [inputs[0].astype(_dtype(node))]
    if kind == "Subtract":
        return [_float(inputs[0]) - _float(inputs[1])]
    if kind == "Multiply":
        return [_float(inputs[0]) * _float(inputs[1])]
    if kind == "Reshape":
        return [inputs[0].reshape(tuple(node.get_output_shape(0)))]
    return _run(node)


def _float(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32) if array.dtype.kind in "fiu" else array


def _dtype(node: Any) -> np.dtype[Any]:
    """A conversion's type; a float16 that is only on the way to float32 loses nothing there."""
    kind = node.get_output_element_type(0)
    wanted = np.dtype(np.float32 if kind.is_real() and kind.bitwidth < 32 else kind.to_dtype())
    source = node.get_input_element_type(0)
    is_rounded = kind.is_real() and source.is_real() and kind.bitwidth < source.bitwidth
    return np.dtype(np.float16) if is_rounded else wanted


def _run(node: Any) -> list[np.ndarray]:
    """What OpenVINO itself makes of a node that depends on no input."""
    openvino = packages.openvino()
    try:
        graph = openvino.Model([node.output(i) for i in range(node.get_output_size())], [])
        compiled = openvino.Core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        results = compiled([])
    except Exception as error:
        raise ArtifactError(
            f"what {node.get_type_name()} {node.get_friendly_name()!r} makes of constants cannot "
            f"be computed: {last_line(error)}",
            remedy="Fold constants when the file is written.",
        ) from error
    return [np.array(results[i]) for i in range(len(compiled.outputs))]


def _keeps_a_grid(node: Any, inputs: Sequence[Constant | None]) -> bool:
    """Whether a quantiser of activations gives back the range that it takes, in 8 bits."""
    if inputs[0] is not None or any(known is None for known in inputs[1:]):
        return False
    low, high, low_again, high_again = (known.numbers for known in inputs[1:] if known is not None)
    is_fine = node.get_attributes()["levels"] <= GRID
    same = np.array_equal(low, low_again) and np.array_equal(high, high_again)
    return bool(is_fine and same)


def _is_on_grid(source: Any) -> bool:
    """Whether a value comes from a quantiser of 8 bits, behind what only moves numbers."""
    node = source.get_node()
    while node.get_type_name() in PASSIVE:
        node = node.input_value(0).get_node()
    is_quantiser = node.get_type_name() == "FakeQuantize"
    return is_quantiser and bool(node.get_attributes()["levels"] <= GRID)
