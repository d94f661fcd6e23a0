"""Write a :class:`~levit_export.core.network.Network` as a Core AI program.

Each kind is a few operations of Core AI's dialect, which its authors give out below ``_compiler``
until they are part of ``coreai.authoring``
(https://apple.github.io/coreai-torch/main/coreai-core/tutorials/construct-a-graph.html). Every
operation says in its location what value of the network it belongs to; the last one of a name
gives that value. A location that is not given would be the file and the line of whoever called, so
no operation is without one. Weights bear the names of tensors, because names that Core AI makes up
differ from process to process.

What computes in float16 is decided here, as for Core ML: an operator takes its numbers in its own
type, a value that is needed in the other type is cast once, and inputs and outputs are float32.

Weights that ``formats.compressed`` names are stored as whole numbers of 8 bits on a symmetric grid
for each output channel (``w8``), or as places in palettes (``w6``, ``w4``), and an operation of
the dialect makes float16 of them, so that whatever runs a program decides when it does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from inspect import Parameter, Signature
from typing import Annotated, Any

import numpy as np

from levit_export.core.network import Network, Op
from levit_export.core.precisions import PRECISIONS, Precision
from levit_export.formats import compressed

HALF, SINGLE = np.dtype(np.float16), np.dtype(np.float32)
WHOLE = np.dtype(np.int32)
"""Core AI has no whole numbers of 64 bits."""
PIXELS = np.dtype(np.uint8)
MAIN = "main"
"""What the one function of a program is called."""

Value = Any
"""A value of a program."""


def write(network: Network, precision: str = "fp32", keep: Collection[str] = ()) -> Any:
    """``network`` as an ``AIProgram``.

    It computes in float16, but for the blocks ``keep``, unless ``precision`` is ``fp32``.
    """
    from coreai import authoring
    from coreai._compiler.dialects import coreai as dialect

    def main(*inputs: Value) -> tuple[Value, ...]:
        writer = _Writer(network, PRECISIONS[precision], keep)
        for value, given in zip(network.inputs, inputs, strict=True):
            writer.values[value.name, np.dtype(value.dtype)] = given
        for op in network.ops:
            writer.write(op)
        return tuple(writer.value(name, _type_of(network, name)) for name in network.outputs)

    main.__signature__ = Signature(  # type: ignore[attr-defined]
        [Parameter(value.name, Parameter.POSITIONAL_ONLY) for value in network.inputs]
    )
    main.__annotations__ = {v.name: _described(v.name, v.shape, v.dtype) for v in network.inputs}
    outputs = (network.values[name] for name in network.outputs)
    given = tuple(_described(v.name, v.shape, _type_of(network, v.name)) for v in outputs)
    main.__annotations__["return"] = tuple[given]  # type: ignore[valid-type]
    with authoring.Context(), authoring.DebugInfo.unknown().activate():
        module = authoring.Module.create()
        # ``with module`` would rewrite the program as it ends, and add constants to one another:
        # the 3 of a Hardswish to the bias before it, so that the file holds that bias no more.
        # https://apple.github.io/coreai-torch/main/coreai-core/api/coreai.html
        with module._block_context():  # noqa: SLF001 - no public name leaves that out
            dialect.graph(main)
    return authoring.AIProgram(module)


def _type_of(network: Network, name: str) -> np.dtype[Any]:
    return _stored(network.values[name].dtype, SINGLE)


def _described(name: str, shape: Sequence[int | None], dtype: Any) -> Any:
    from coreai import authoring
    from coreai._compiler import ir

    spec = authoring.TensorSpec(shape=list(shape), dtype=np.dtype(dtype).type, name=name)
    return Annotated[ir.Value, spec]


@dataclass
class _Writer:
    """Adds the operations of ``network``; ``values`` are those so far, by name and type."""

    network: Network
    precision: Precision
    keep: Collection[str]
    values: dict[tuple[str, np.dtype[Any]], Value] = field(default_factory=dict)
    plain: dict[tuple[str, bytes], Value] = field(default_factory=dict)
    compressed: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        found = compressed.layers(self.network, self.keep) if self.precision.bits else ()
        # A layer with a number that float16 cannot hold stays in float32 whole.
        half = {op.outputs[0].name for op in self.network.ops if self._is_half(op)}
        self.compressed = frozenset(layer.weight for layer in found if layer.name in half)

    def _is_half(self, op: Op) -> bool:
        return self.precision.name != "fp32" and self.network.is_half(op, self.keep)

    def write(self, op: Op) -> None:
        """Add ``op`` in the type that it computes in."""
        from coreai import authoring

        dtype = HALF if self._is_half(op) else SINGLE
        changed = _changed(op, self.network.constants)
        inputs = [None if n in changed else self.value(n, dtype) for n in op.inputs]
        shapes = tuple(self.network.shape(name) for name in op.inputs)
        constants, small = self.network.constants, self.compressed.intersection(op.inputs)
        call = _Call(dtype, op.inputs, shapes, constants, self.plain, self.precision, small)
        names = [value.name for value in op.outputs]
        with authoring.DebugInfo.metadata_only(names).activate():
            made = WRITERS[op.kind](call, *inputs, **op.attributes)
        parts = made if isinstance(made, list) else [made]
        for value, part in zip(op.outputs, parts, strict=True):
            self.values[value.name, _stored(value.dtype, dtype)] = part

    def value(self, name: str, dtype: np.dtype[Any]) -> Value:
        """A value or constant in ``dtype``, whole numbers as they are; each cast is made once."""
        from coreai import authoring

        for whole in (WHOLE, PIXELS):
            if (name, whole) in self.values:
                return self.values[name, whole]
        if (name, dtype) in self.values:
            return self.values[name, dtype]
        if name in self.network.constants:
            array = self.network.constants[name]
            stored = _stored(str(array.dtype), dtype)
            with authoring.DebugInfo.metadata_only([name]).activate():
                if name in self.compressed and dtype == HALF:
                    made = shrunk(array, name, self.precision, 0)
                else:
                    made = constant(array, stored, name)
            self.values[name, stored] = made
            return made
        label = name if name in self.network.outputs else f"{name}_to_{dtype}"
        with authoring.DebugInfo.metadata_only([label]).activate():
            other = self.values[name, HALF if dtype == SINGLE else SINGLE]
            made = _operation("cast")(other, dtype.type)
        self.values[name, dtype] = made
        return made


def _operation(name: str) -> Callable[..., Value]:
    """What adds an operation to the program that is open."""
    from coreai._compiler.dialects import coreai as dialect

    return getattr(dialect, name)  # type: ignore[no-any-return]


def constant(numbers: Any, dtype: Any, name: str = "") -> Value:
    """A constant of the program, one of the network's by its ``name``.

    It may say infinity where float16 ends before a number does.
    """
    from coreai._compiler import ir

    with np.errstate(over="ignore"):  # see network.INFINITE
        array = np.asarray(numbers).astype(dtype, order="C")
    if not name or array.dtype.kind != "f" or not array.shape:  # which would crash below
        return _operation("constant")(array)
    element = ir.F16Type.get() if array.dtype == HALF else ir.F32Type.get()
    return _resource(array, name, element, array.shape)


def shrunk(weight: np.ndarray, name: str, precision: Precision, axis: int) -> Value:
    """What makes a weight in float16 of what is stored for it; ``axis`` is its output channels'.

    A symmetric grid has a step for each channel, ``s = max|w| / (2**(bits - 1) - 1)`` rounded to
    float16. A palette is that of 16 channels where its colours cost no more than a bit for each
    number, and else that of the whole weight.
    """
    from coreai._compiler import ir

    w = weight.astype(HALF)
    if not precision.is_palette:
        others = tuple(each for each in range(w.ndim) if each != axis)
        largest = np.abs(w).max(axis=others, keepdims=True).astype(np.float64)
        most = 2 ** (precision.bits - 1) - 1
        steps = (largest / most).astype(HALF)
        steps[steps == 0] = 1
        grid = np.clip(np.round(w / steps.astype(np.float64)), -most, most)
        kind = ir.IntegerType.get_signed(precision.bits)
        zeros = (_splat(steps.shape, each) for each in (kind, ir.F16Type.get()))
        stored = _resource(grid.astype(np.int8), name, kind, w.shape)
        scale = _resource(steps, f"{name}.step", ir.F16Type.get(), steps.shape)
        return _operation("blockwise_shift_scale")(stored, scale, *zeros)
    channels, colours = w.shape[axis], 2**precision.bits
    is_whole = channels % compressed.GROUP or w.size // channels < colours
    groups = 1 if is_whole else channels // compressed.GROUP
    paint = compressed.palette(precision.bits)
    tables, places = [], []
    for part in np.split(w, groups, axis):
        table, found = paint(part)
        tables.append(table)
        places.append(found.reshape(part.shape))
    shape = [groups if each == axis else 1 for each in range(w.ndim)]
    kind = ir.IntegerType.get_unsigned(precision.bits)
    stored = _resource(_packed(np.concatenate(places, axis), precision.bits), name, kind, w.shape)
    shape = [*shape, colours, 1]
    palettes = np.array(tables, HALF).reshape(shape)
    table = _resource(palettes, f"{name}.palette", ir.F16Type.get(), shape)
    return _operation("lut_to_dense")(stored, table, constant(0, np.int16))


def _packed(numbers: np.ndarray, bits: int) -> np.ndarray:
    """Whole numbers of so many bits one after the other, the lowest bit first."""
    each = np.unpackbits(numbers.reshape(-1, 1), axis=1, count=bits, bitorder="little")
    return np.packbits(each.reshape(-1), bitorder="little")


def _resource(array: np.ndarray, name: str, element: Any, shape: Sequence[int]) -> Value:
    from coreai._compiler import ir

    kind = ir.RankedTensorType.get(list(shape), element)
    array = np.ascontiguousarray(array)
    held = ir.DenseResourceElementsAttr.get_from_buffer(array, name, kind)
    return _operation("ConstantOp")(value=held).result


def _splat(shape: Sequence[int], element: Any) -> Value:
    """Zeros, of which one is stored."""
    from coreai._compiler import ir

    zero = ir.IntegerAttr if ir.IntegerType.isinstance(element) else ir.FloatAttr
    kind = ir.RankedTensorType.get(list(shape), element)
    held = ir.DenseElementsAttr.get_splat(kind, zero.get(element, 0))
    return _operation("ConstantOp")(value=held).result


def _stored(dtype: str, floating: np.dtype[Any]) -> np.dtype[Any]:
    """The type of a value in a program."""
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return floating
    return kind if kind == PIXELS else WHOLE


@dataclass(frozen=True)
class _Call:
    """What a function for a kind computes in, and what is known of the operator's inputs.

    ``plain`` are the nameless constants so far, shapes and single numbers, each written once.
    ``compressed`` are those of the inputs that are stored as ``precision`` says.
    """

    dtype: np.dtype[Any]
    names: tuple[str, ...]
    shapes: tuple[tuple[int | None, ...], ...]
    constants: Mapping[str, np.ndarray]
    plain: dict[tuple[str, bytes], Value]
    precision: Precision
    compressed: Collection[str]

    def __getattr__(self, name: str) -> Callable[..., Value]:
        """An operation of Core AI's."""
        return _operation(name)

    def number(self, number: float) -> Value:
        """A single number in the operator's type; an epsilon does not become 0."""
        value = self.dtype.type(number)
        if number and not value:
            value = np.finfo(self.dtype).smallest_subnormal
        return self.whole(value, self.dtype)

    def whole(self, numbers: Any, dtype: Any = np.int32) -> Value:
        """Shapes, axes and places."""
        array = np.asarray(numbers, dtype)
        key = f"{array.dtype}{array.shape}", array.tobytes()
        if key not in self.plain:
            self.plain[key] = constant(array, dtype)
        return self.plain[key]

    def changed(self, place: int, change: Callable[[np.ndarray], np.ndarray]) -> Value:
        """A constant input in another form."""
        name = self.names[place]
        return constant(change(self.constants[name]), self.dtype, name)

    def transposed(self, place: int) -> Value:
        """The weight of a linear layer ``(C_out, C_in)``, turned."""
        name = self.names[place]
        if name in self.compressed and self.dtype == HALF:
            return shrunk(self.constants[name].T, name, self.precision, 1)
        return self.changed(place, np.transpose)


def _changed(op: Op, constants: Mapping[str, np.ndarray]) -> Collection[str]:
    """The constants that a function for a kind asks for in another form, with ``changed``."""
    if op.kind == "gather":
        return op.inputs if all(name in constants for name in op.inputs) else ()
    first, last = CHANGED.get(op.kind, (0, 0))
    return op.inputs[first:last]


CHANGED = {"convolution": (2, 3), "linear": (1, 2), "batch_norm": (1, 5)}


# The writers: a call, the inputs, and the kind's attributes.


def _convolution(
    call: _Call,
    x: Value,
    weight: Value,
    _: None = None,
    *,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
) -> Value:
    x = _padded(call, x, padding, 0.0)
    sides = (call.whole(each, np.uint32) for each in (stride, dilation, groups))
    made = call.conv2d(x, weight, *sides)
    for place in range(2, len(call.names)):  # the bias, if there is one
        made = call.broadcasting_add(made, call.changed(place, lambda n: n.reshape(1, -1, 1, 1)))
    return made


def _padded(call: _Call, x: Value, padding: tuple[int, int], number: float) -> Value:
    """``(B, C, H, W)`` with ``number`` on both ends of the last two axes."""
    if not any(padding):
        return x
    sides = call.whole((0, 0, 0, 0, *np.repeat(padding, 2)), np.uint32)
    return call.pad(x, sides, call.number(number))


def _linear(call: _Call, x: Value, _: None, bias: Value | None = None) -> Value:
    made = call.broadcasting_batch_matmul(x, call.transposed(1))
    return made if bias is None else call.broadcasting_add(made, bias)


def _matmul(call: _Call, a: Value, b: Value, *, transpose_a: bool, transpose_b: bool) -> Value:
    factors = []
    for factor, shape, is_turned in zip(
        (a, b), call.shapes, (transpose_a, transpose_b), strict=True
    ):
        *outer, rows, columns = range(len(shape))
        turned = call.whole((*outer, columns, rows), np.uint32)
        factors.append(call.transpose(factor, turned) if is_turned else factor)
    return call.broadcasting_batch_matmul(*factors)


def _pair(name: str) -> Writer:
    return lambda call, a, b: getattr(call, name)(a, b)


def _single(name: str) -> Writer:
    return lambda call, x: getattr(call, name)(x)


def _hardswish(call: _Call, x: Value) -> Value:
    """``x min(max(x + 3, 0), 6) / 6``."""
    shifted = call.broadcasting_add(x, call.number(3))
    gate = call.broadcasting_maximum(shifted, call.number(0))
    gate = call.broadcasting_minimum(gate, call.number(6))
    return call.broadcasting_mul(x, call.broadcasting_divide(gate, call.number(6)))


def _gelu(call: _Call, x: Value, *, tanh: bool) -> Value:
    return call.gelu(x, approximate="tanh" if tanh else "none")


def _softmax(call: _Call, x: Value, *, axis: int) -> Value:
    return call.softmax(x, call.whole(axis))


def _batch_norm(call: _Call, x: Value, *_: None, epsilon: float) -> Value:
    """``(x - mean) / sqrt(variance + epsilon) scale + shift``."""
    shape = (1, -1, *(1,) * (len(call.shapes[0]) - 2))
    scale, shift, mean, variance = (
        call.changed(place, lambda n: n.reshape(shape)) for place in range(1, 5)
    )
    deviation = call.sqrt(call.broadcasting_add(variance, call.number(epsilon)))
    normal = call.broadcasting_divide(call.broadcasting_sub(x, mean), deviation)
    return call.broadcasting_add(call.broadcasting_mul(normal, scale), shift)


def _layer_norm(call: _Call, x: Value, scale: Value, shift: Value, *, epsilon: float) -> Value:
    """In float32 throughout: a sum of squares leaves the range of float16 early."""
    single = replace(call, dtype=SINGLE)
    x, scale, shift = (call.cast(each, np.float32) for each in (x, scale, shift))
    last = call.whole((len(call.shapes[0]) - 1,))
    centred = call.broadcasting_sub(x, call.reduce_mean(x, last))
    variance = call.reduce_mean(call.broadcasting_mul(centred, centred), last)
    inverse = call.rsqrt(call.broadcasting_add(variance, single.number(epsilon)))
    normal = call.broadcasting_mul(centred, inverse)
    made = call.broadcasting_add(call.broadcasting_mul(normal, scale), shift)
    return call.cast(made, call.dtype.type)


def _mean(call: _Call, x: Value, *, axes: tuple[int, ...], keep: bool) -> Value:
    made = call.reduce_mean(x, call.whole(axes))
    return made if keep else call.shrink_dims(made, call.whole(axes))


def _max_pool(
    call: _Call,
    x: Value,
    *,
    window: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
) -> Value:
    from coreai._compiler import ir

    x = _padded(call, x, padding, -math.inf)
    batch, channels, *sides = call.shapes[0]
    places = zip(sides, window, stride, padding, strict=True)
    shape = [batch, channels, *(((n or 0) + 2 * p - w) // s + 1 for n, w, s, p in places)]
    kind = ir.RankedTensorType.get(shape, x.type.element_type)
    given = (call.whole(each, np.uint32) for each in (window, stride, (1, 1)))
    return call.maxpool2d(kind, x, *given, call.whole(False, np.bool_))


def _average_pool(
    call: _Call,
    x: Value,
    *,
    window: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
) -> Value:
    """Sums over windows, each divided by how many numbers of the map it holds."""
    given = (call.whole(each, np.uint32) for each in (window, stride, (1, 1)))
    sums = call.sumpool2d(_padded(call, x, padding, 0.0), *given)
    rows, columns = (
        _counts(n or 0, *each)
        for n, *each in zip(call.shapes[0][2:], window, stride, padding, strict=True)
    )
    counts = np.outer(rows, columns)
    if (counts == counts.flat[0]).all():
        return call.broadcasting_divide(sums, call.number(counts.flat[0]))
    return call.broadcasting_divide(sums, call.whole(counts[None, None], call.dtype))


def _counts(length: int, window: int, stride: int, padding: int) -> list[int]:
    """How many places of an axis lie in each window."""
    starts = range(-padding, length + padding - window + 1, stride)
    return [min(start + window, length) - max(start, 0) for start in starts]


def _reshape(call: _Call, x: Value, *, shape: tuple[int, ...]) -> Value:
    return call.reshape(x, call.whole(shape))


def _transpose(call: _Call, x: Value, *, axes: tuple[int, ...]) -> Value:
    return call.transpose(x, call.whole(axes, np.uint32))


def _slice(
    call: _Call,
    x: Value,
    *,
    axes: tuple[int, ...],
    starts: tuple[int, ...],
    stops: tuple[int, ...],
    steps: tuple[int, ...],
) -> Value:
    shape = call.shapes[0]
    begin, end, stride = [0] * len(shape), list(shape), [1] * len(shape)
    for axis, *place in zip(axes, starts, stops, steps, strict=True):
        begin[axis], end[axis], stride[axis] = place
    return call.slice_(x, *map(call.whole, (begin, end, stride)))


def _select(call: _Call, x: Value, *, axis: int, index: int) -> Value:
    place = {"axes": (axis,), "starts": (index,), "stops": (index + 1,), "steps": (1,)}
    return call.shrink_dims(_slice(call, x, **place), call.whole((axis,)))


def _split(call: _Call, x: Value, *, axis: int, sizes: tuple[int, ...]) -> list[Value]:
    return list(call.split(x, call.whole(sizes, np.uint32), call.whole(axis)))


def _concatenate(call: _Call, *parts: Value, axis: int) -> Value:
    return call.concat(call.whole(axis), list(parts))


def _pad(call: _Call, x: Value, *, before: tuple[int, ...], after: tuple[int, ...]) -> Value:
    sides = [side for pair in zip(before, after, strict=True) for side in pair]
    return call.pad(x, call.whole(sides, np.uint32), call.number(0))


def _gather(call: _Call, table: Value | None, index: Value | None, *, axis: int) -> Value:
    """Core AI gathers along the first axis: the table is turned, and the result turned back.

    What is gathered from one constant by another is a constant.
    """
    if table is None:
        places = call.constants[call.names[1]]
        return call.changed(0, lambda numbers: np.take(numbers, places, axis))
    ranks = len(call.shapes[0]), len(call.shapes[1])
    order = [axis, *(each for each in range(ranks[0]) if each != axis)]
    turned = call.transpose(table, call.whole(order, np.uint32))
    rows = call.gather_nd(turned, call.expand_dims(index, call.whole((ranks[1],))))
    back = [*range(ranks[1], ranks[1] + axis), *range(ranks[1])]
    back += range(ranks[1] + axis, sum(ranks) - 1)
    return call.transpose(rows, call.whole(back, np.uint32))


def _cast(call: _Call, x: Value, *, dtype: str) -> Value:
    return call.cast(x, _stored(dtype, call.dtype).type)


Writer = Callable[..., Any]
WRITERS: Mapping[str, Writer] = {
    "convolution": _convolution,
    "linear": _linear,
    "matmul": _matmul,
    "add": _pair("broadcasting_add"),
    "subtract": _pair("broadcasting_sub"),
    "multiply": _pair("broadcasting_mul"),
    "divide": _pair("broadcasting_divide"),
    "relu": _single("relu"),
    "hardswish": _hardswish,
    "silu": _single("silu"),
    "sigmoid": _single("sigmoid"),
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
"""A function for each kind of operator (``core.network.KINDS``)."""
