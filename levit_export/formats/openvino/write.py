"""Write a :class:`~levit_export.core.network.Network` as an OpenVINO graph.

Each kind is a few nodes of opset 13, the newest that changed an operator used here for the better:
later ones add operators, and to pooling a way of rounding that no network here has. Every
OpenVINO that this project takes reads it.

The node that gives a value is called as the value is, ``stem_0``; nodes before it and constants
that no tensor is have the value's name and a role, ``stem_0/Convolution``, ``pool/axes``. No name
comes from OpenVINO's counter, which goes on from one export of a process to the next.

The forms are those that the CPU plug-in fuses: a bias as ``Add`` behind ``MatMul`` or
``Convolution``, activations as one node, a transposed factor as ``MatMul``'s flag. Products of
attention stay apart from the softmax: as ``ScaledDotProductAttention`` they would be as fast, and
scores and softmax, by which a fault is found, would have no value.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from levit_export.core import packages
from levit_export.core.network import Network, Op, is_within
from levit_export.core.values import FLOAT16_MAX

if TYPE_CHECKING:
    import openvino

SMALLEST_HALF = float(np.finfo(np.float16).smallest_subnormal)


def write(
    network: Network, name: str, *, half: bool = False, keep: Collection[str] = ()
) -> openvino.Model:
    """The graph of ``network``, called ``name``.

    With ``half`` constants are rounded to float16 and widened again when the file is loaded, but
    for those of the blocks ``keep``.
    """
    openvino = packages.openvino()

    writer = _Writer(network, openvino.opset13, half, keep)
    for value in network.inputs:
        shape = openvino.PartialShape([-1 if side is None else side for side in value.shape])
        made = writer.opset.parameter(shape, np.dtype(value.dtype), name=value.name)
        writer.ports[value.name] = made.output(0)
    for op in network.ops:
        _FUNCTIONS[op.kind](writer, op, *op.inputs, **op.attributes)
    ends = [
        writer.opset.result(writer.port(each), name=f"{each}/result") for each in network.outputs
    ]
    starts = [value.name for value in network.inputs]
    for each in (*starts, *network.outputs):
        writer.ports[each].get_tensor().set_names({each})
    return openvino.Model(ends, [writer.ports[each].get_node() for each in starts], name)


def main_node(op: Op) -> str:
    """What the product or convolution of a linear layer or a convolution is called."""
    inner = {"convolution": "Convolution", "linear": "MatMul"}
    has_bias = len(op.inputs) > 2
    return f"{op.output.name}/{inner[op.kind]}" if has_bias else op.output.name


@dataclass
class _Writer:
    """Makes nodes; ``ports`` are the values and constants that there are so far."""

    network: Network
    opset: Any
    half: bool
    keep: Collection[str]
    ports: dict[str, openvino.Output] = field(default_factory=dict)

    def port(self, name: str) -> openvino.Output:
        """Where a value comes out."""
        if name not in self.ports:
            self.constant(name, self.network.constants[name])
        return self.ports[name]

    def constant(self, name: str, array: np.ndarray) -> openvino.Output:
        """A constant of that name, made once; in float16 where that was asked for."""
        if name not in self.ports:
            small = self._is_half(name, array)
            stored = array.astype(np.float16) if small else array
            stored = np.asarray(stored, order="C")  # which leaves a scalar one
            made = self.opset.constant(stored, name=f"{name}/float16" if small else name)
            if small:
                made = self.opset.convert(made, "f32", name=name)
            self.ports[name] = made.output(0)
        return self.ports[name]

    def weight(self, name: str, shape: Sequence[int]) -> openvino.Output:
        """A constant of the network in another shape."""
        return self.constant(name, self.network.constants[name].reshape(shape))

    def whole(self, op: Op, role: str, numbers: int | Sequence[int]) -> openvino.Output:
        """Whole numbers that a node takes as an input."""
        return self.constant(f"{op.outputs[0].name}/{role}", np.array(numbers, np.int64))

    def give(self, op: Op, node: openvino.Node) -> None:
        """``node`` is what ``op`` computes."""
        node.set_friendly_name(op.outputs[0].name)
        for index, value in enumerate(op.outputs):
            self.ports[value.name] = node.output(index)

    def _is_half(self, name: str, array: np.ndarray) -> bool:
        if not self.half or array.dtype != np.float32:
            return False
        readers = self.network.readers.get(name, ())
        return not any(is_within(op.block, self.keep) for op in readers) and _fits(array)


def _fits(array: np.ndarray) -> bool:
    """Whether float16 can hold all numbers, and most of them as something else than zero."""
    sizes = np.abs(array)
    is_lost = (sizes > 0) & (sizes < SMALLEST_HALF)
    return bool((sizes <= FLOAT16_MAX).all() and is_lost.mean() <= 1 / 2)


# A function for each kind: the writer, the operator, its inputs, and its attributes by name.


def _convolution(
    w: _Writer,
    op: Op,
    x: str,
    weight: str,
    bias: str = "",
    *,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
) -> None:
    sides = stride, padding, padding, dilation
    o, i, *window = w.network.constants[weight].shape
    if groups == 1:
        node = w.opset.convolution(w.port(x), w.port(weight), *map(list, sides))
    else:
        filters = w.weight(weight, (groups, o // groups, i, *window))
        node = w.opset.group_convolution(w.port(x), filters, *map(list, sides))
    if bias:
        node.set_friendly_name(main_node(op))
        node = w.opset.add(node, w.weight(bias, (1, o, 1, 1)))
    w.give(op, node)


def _linear(w: _Writer, op: Op, x: str, weight: str, bias: str = "") -> None:
    node = w.opset.matmul(w.port(x), w.port(weight), transpose_a=False, transpose_b=True)
    if bias:
        node.set_friendly_name(main_node(op))
        node = w.opset.add(node, w.port(bias))
    w.give(op, node)


def _matmul(w: _Writer, op: Op, a: str, b: str, *, transpose_a: bool, transpose_b: bool) -> None:
    w.give(op, w.opset.matmul(w.port(a), w.port(b), transpose_a, transpose_b))


def _one(factory: str) -> Function:
    """A kind that is one node of opset 13 with the same inputs in the same order."""

    def function(w: _Writer, op: Op, *inputs: str) -> None:
        w.give(op, getattr(w.opset, factory)(*map(w.port, inputs)))

    return function


def _gelu(w: _Writer, op: Op, x: str, *, tanh: bool) -> None:
    w.give(op, w.opset.gelu(w.port(x), "tanh" if tanh else "erf"))


def _softmax(w: _Writer, op: Op, x: str, *, axis: int) -> None:
    w.give(op, w.opset.softmax(w.port(x), axis))


def _batch_norm(w: _Writer, op: Op, *inputs: str, epsilon: float) -> None:
    w.give(op, w.opset.batch_norm_inference(*map(w.port, inputs), epsilon))


def _layer_norm(w: _Writer, op: Op, x: str, scale: str, shift: str, *, epsilon: float) -> None:
    name = op.output.name
    axes = w.whole(op, "axes", [-1])
    node = w.opset.mvn(w.port(x), axes, True, epsilon, "INSIDE_SQRT", name=f"{name}/MVN")
    node = w.opset.multiply(node, w.port(scale), name=f"{name}/Multiply")
    w.give(op, w.opset.add(node, w.port(shift)))


def _mean(w: _Writer, op: Op, x: str, *, axes: tuple[int, ...], keep: bool) -> None:
    w.give(op, w.opset.reduce_mean(w.port(x), w.whole(op, "axes", axes), keep))


def _max_pool(
    w: _Writer,
    op: Op,
    x: str,
    *,
    window: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
) -> None:
    ones = [1, 1]
    sides = list(stride), ones, list(padding), list(padding), list(window)
    w.give(op, w.opset.max_pool(w.port(x), *sides))


def _average_pool(
    w: _Writer,
    op: Op,
    x: str,
    *,
    window: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
) -> None:
    sides = list(stride), list(padding), list(padding), list(window)
    w.give(op, w.opset.avg_pool(w.port(x), *sides, exclude_pad=True))


def _reshape(w: _Writer, op: Op, x: str, *, shape: tuple[int, ...]) -> None:
    w.give(op, w.opset.reshape(w.port(x), w.whole(op, "shape", shape), special_zero=False))


def _transpose(w: _Writer, op: Op, x: str, *, axes: tuple[int, ...]) -> None:
    w.give(op, w.opset.transpose(w.port(x), w.whole(op, "axes", axes)))


def _slice(
    w: _Writer,
    op: Op,
    x: str,
    *,
    axes: tuple[int, ...],
    starts: tuple[int, ...],
    stops: tuple[int, ...],
    steps: tuple[int, ...],
) -> None:
    given = {"starts": starts, "stops": stops, "steps": steps, "axes": axes}
    w.give(op, w.opset.slice(w.port(x), *(w.whole(op, *each) for each in given.items())))


def _select(w: _Writer, op: Op, x: str, *, axis: int, index: int) -> None:
    places = w.whole(op, "index", index), w.whole(op, "axis", axis)
    w.give(op, w.opset.gather(w.port(x), *places))


def _split(w: _Writer, op: Op, x: str, *, axis: int, sizes: tuple[int, ...]) -> None:
    given = w.whole(op, "axis", axis), w.whole(op, "sizes", sizes)
    w.give(op, w.opset.variadic_split(w.port(x), *given))


def _concatenate(w: _Writer, op: Op, *parts: str, axis: int) -> None:
    w.give(op, w.opset.concat([w.port(part) for part in parts], axis))


def _pad(w: _Writer, op: Op, x: str, *, before: tuple[int, ...], after: tuple[int, ...]) -> None:
    sides = w.whole(op, "before", before), w.whole(op, "after", after)
    zero = w.constant(f"{op.output.name}/zero", np.zeros((), w.network.values[x].dtype))
    w.give(op, w.opset.pad(w.port(x), *sides, "constant", zero))


def _gather(w: _Writer, op: Op, table: str, index: str, *, axis: int) -> None:
    w.give(op, w.opset.gather(w.port(table), w.port(index), w.whole(op, "axis", axis)))


def _cast(w: _Writer, op: Op, x: str, *, dtype: str) -> None:
    w.give(op, w.opset.convert(w.port(x), np.dtype(dtype)))


Function = Callable[..., None]

_FUNCTIONS: Mapping[str, Function] = {
    "convolution": _convolution,
    "linear": _linear,
    "matmul": _matmul,
    "add": _one("add"),
    "subtract": _one("subtract"),
    "multiply": _one("multiply"),
    "divide": _one("divide"),
    "relu": _one("relu"),
    "hardswish": _one("hswish"),
    "silu": _one("swish"),
    "sigmoid": _one("sigmoid"),
    "gelu": _gelu,
    "softmax": _softmax,
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "mean": _mean,
    "max_pool": _max_pool,
    "average_pool": _average_pool,
    "reshape": _reshape,
    "transpose": _transpose,
    "slice": _slice,
    "select": _select,
    "split": _split,
    "concatenate": _concatenate,
    "pad": _pad,
    "gather": _gather,
    "cast": _cast,
}
