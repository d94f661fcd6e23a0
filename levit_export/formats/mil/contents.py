"""What a program computes with, followed backwards from its outputs.

As in :mod:`levit_export.formats.onnx.read`. A program that was read is already folded: what its
ops take is either a value that depends on the input or a constant, decompressed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from levit_export.core.constants import Constant
from levit_export.formats.mil.binding import Node
from levit_export.formats.mil.elements import TensorType
from levit_export.formats.mil.graph import Graph

LAYERS = {
    "conv": ("weight",),
    "conv_transpose": ("weight",),
    "linear": ("weight",),
    "matmul": ("x", "y"),
    "einsum": ("values",),
}
"""The parameters of layers whose constants of two axes and more are weights."""
PASSIVE = ("reshape", "transpose", "squeeze", "expand_dims", "slice_by_index", "split", "identity")
"""Ops that move numbers and change none."""
COMPUTING = ("add", "sub", "mul", "real_div", "floor_div", "pow", "maximum", "minimum", "select")
"""Ops that may join whole numbers with others by value; elsewhere they are shapes and indices."""


def contents(graph: Graph) -> tuple[Constant, ...]:
    """The numbers that the outputs of a program depend on."""
    makers = {name: node for node in graph.nodes for name, _ in node.outputs}
    found = [
        each
        for node in _live(graph)
        if not _keeps_a_grid(node, makers)
        for each in _joined(node, graph, makers)
    ]
    for name in graph.outputs:
        value = graph.constants.get(name)
        if isinstance(value, np.ndarray):
            found.append(Constant(value, graph.bits[name]))
    return tuple(found)


def classes(graph: Graph) -> tuple[str, ...]:
    """The labels of a classifier's classes, in the order of its probabilities; else nothing."""
    for node in graph.nodes:
        if node.op.labels and node.op.labels in node.operands:
            (operand,) = node.operands[node.op.labels]
            return tuple(map(str, operand.constant))  # type: ignore[arg-type]
    return ()


def _live(graph: Graph) -> list[Node]:
    """The ops that the outputs depend on, in order."""
    needed = set(graph.outputs)
    live = []
    for node in reversed(graph.nodes):
        if not needed.isdisjoint(name for name, _ in node.outputs):
            live.append(node)
            needed |= node.names
    return live[::-1]


def _joined(node: Node, graph: Graph, makers: Mapping[str, Node]) -> Iterable[Constant]:
    """The constants that ``node`` joins with what depends on the input."""
    on_grid = any(
        (maker := _behind(name, makers)) is not None and maker.type == "dequantize"
        for name in node.names
    )
    for parameter, many in node.operands.items():
        for operand in many:
            value, declared = operand.constant, operand.declared
            if not isinstance(value, np.ndarray) or not isinstance(declared, TensorType):
                continue
            if declared.element.kind != "f" and node.type not in COMPUTING:
                continue
            is_weight = parameter in LAYERS.get(node.type, ()) and value.ndim > 1
            bits = graph.bits.get(operand.name, declared.element.bits)
            yield Constant(value, bits, is_weight, on_grid)


def _behind(name: str, makers: Mapping[str, Node]) -> Node | None:
    """What made a value, behind ops that only move numbers."""
    node = makers.get(name)
    while node is not None and node.type in PASSIVE:
        (operand,) = node.operands["x"]
        node = makers.get(operand.name)
    return node


def _keeps_a_grid(node: Node, makers: Mapping[str, Node]) -> bool:
    """Whether ``node`` rounds a value to 8 bits, or takes it back with the same scale.

    The scales and offsets of such a pair are not numbers of the network: they cancel out.
    """
    if node.type == "quantize":
        return True  # judged where it is taken back
    if node.type != "dequantize":
        return False
    (taken,) = node.operands["input"]
    rounding = _behind(taken.name, makers)
    if rounding is None or rounding.type != "quantize":
        return False
    return all(_constant(node, name, 0) == _constant(rounding, name, 0) for name in PAIR)


PAIR = ("scale", "zero_point", "axis")


def _constant(node: Node, parameter: str, default: float) -> list[float]:
    """A parameter's numbers; [NaN], which equals nothing, if it is not constant."""
    if parameter not in node.operands:
        return [default]
    value = node.operands[parameter][0].constant
    return np.ravel(value).tolist() if isinstance(value, np.ndarray) else [float("nan")]
