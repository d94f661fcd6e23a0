"""Write a :class:`~levit_export.core.network.Network` as an ML Program.

Each kind of operator is a function of a few lines on coremltools' MIL ``Builder``, and none of
coremltools' optimisations runs afterwards. Values are called as they are in the network. What
computes in float16 is decided here: an operator takes its numbers in its own type, a value that is
needed in the other type is cast once, and inputs and outputs are float32.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from levit_export.core import packages
from levit_export.core.network import Network, Op
from levit_export.core.values import PROBABILITIES

HALF, SINGLE, WHOLE = np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.int32)
MIL_TYPES = {HALF: "fp16", SINGLE: "fp32", WHOLE: "int32"}
SMALLEST_STEP = float(np.finfo(HALF).smallest_normal)

Var = Any
"""A value of coremltools' Builder."""

Range = tuple[float, float]
"""The least and the largest number of a value."""


def program(
    network: Network,
    opset: Any,
    *,
    half: bool = False,
    keep: Collection[str] = (),
    grids: Mapping[str, Range] | None = None,
) -> Any:
    """``network`` as a MIL ``Program`` in the ops of ``opset``, a ``coremltools.target``.

    With ``half`` all but the blocks of ``keep`` computes in float16. ``grids`` names values that
    go into layers, each with its range: what a layer reads of it is rounded to 8 bits over that
    range first, for which the ops came with iOS 17.
    """
    mil = packages.coremltools("converters.mil.mil")
    placeholders = {
        value.name: mil.Builder.placeholder(shape=value.shape) for value in network.inputs
    }
    made = mil.Program()
    with mil.Function(placeholders, opset) as function:
        writer = _Writer(mil.Builder, network, half=half, keep=keep, grids=grids or {})
        writer.vars.update({(name, SINGLE): var for name, var in function.inputs.items()})
        for op in network.ops:
            writer.write(op)
        function.set_outputs([writer.value(name, SINGLE) for name in network.outputs])
    made.add_function("main", function)
    return made


def from_image(network: Network) -> Network:
    """A network of bytes ``(1, H, W, 3)`` as one of float32 ``(1, 3, H, W)``.

    The second is the form in which Core ML hands over an image; its numbers go from 0 to 255 too.
    """
    (image,) = network.inputs
    turn, cast = network.ops[:2]
    if (turn.kind, cast.kind, cast.inputs) != ("transpose", "cast", (turn.output.name,)):
        raise ValueError("the network does not begin with a transpose and a cast of its image")
    taken = replace(cast.output, name=image.name)
    names = {cast.output.name: image.name}
    ops = (replace(op, inputs=tuple(names.get(n, n) for n in op.inputs)) for op in network.ops[2:])
    return replace(network, inputs=(taken,), ops=tuple(ops))


def to_probabilities(network: Network) -> Network:
    """A network whose only output are the probabilities: all that a Core ML classifier gives.

    They may be its first output already. The output of a distillation head is left out.
    """
    first = network.outputs[0]
    ops = network.ops
    if first != PROBABILITIES:
        given = network.values[first]
        (block,) = (op.block for op in ops if given in op.outputs)
        axis = {"axis": len(given.shape) - 1}
        end = Op("softmax", (first,), (replace(given, name=PROBABILITIES),), axis, block)
        ops = (*ops, end)
    needed = {PROBABILITIES}
    for op in reversed(ops):
        if any(value.name in needed for value in op.outputs):
            needed.update(op.inputs)
    return Network(
        network.inputs,
        (PROBABILITIES,),
        tuple(op for op in ops if any(value.name in needed for value in op.outputs)),
        {name: array for name, array in network.constants.items() if name in needed},
        {tap: name for tap, name in network.taps.items() if name in needed},
    )


@dataclass(frozen=True)
class _Call:
    """Adds MIL ops to the function that is open, called ``name``, with numbers of ``dtype``."""

    builder: Any
    dtype: np.dtype[Any]
    name: str

    def __call__(self, kind: str, **given: Any) -> Var:
        """Add an op.

        All that it is given gets a name of its own here: those that the Builder would make up are
        numbered by a counter of the whole process.
        """
        made = {key: self._constant(f"{self.name}_{key}", value) for key, value in given.items()}
        return getattr(self.builder, kind)(name=self.name, **made)

    def before(self, label: str) -> _Call:
        """For an op that goes before the last of a kind that takes several."""
        return replace(self, name=f"{self.name}_{label}")

    def _constant(self, name: str, value: Any) -> Var:
        var = packages.coremltools("converters.mil.mil").Var
        if isinstance(value, var) or (isinstance(value, tuple) and isinstance(value[0], var)):
            return value
        if isinstance(value, float):
            # An epsilon does not become 0.
            smallest = np.finfo(self.dtype).smallest_subnormal
            value = self.dtype.type(value) or (smallest if value else self.dtype.type(0))
        elif isinstance(value, tuple):
            value = np.array(value, bool if isinstance(value[0], bool) else np.int32)
        return self.builder.const(val=value, name=name)


@dataclass
class _Writer:
    """Adds the ops of ``network``; ``vars`` are the values so far, by name and type."""

    builder: Any
    network: Network
    half: bool
    keep: Collection[str]
    grids: Mapping[str, Range]
    rounded: dict[str, Var] = field(default_factory=dict)
    vars: dict[tuple[str, np.dtype[Any]], Var] = field(default_factory=dict)
    labels: set[str] = field(default_factory=set)

    def write(self, op: Op) -> None:
        """Add ``op`` in the type that it computes in."""
        dtype = HALF if self.half and self.network.is_half(op, self.keep) else SINGLE
        inputs = [self.value(name, dtype) for name in op.inputs]
        if op.outputs[0].name in self.grids and dtype == HALF:
            inputs[0] = self.on_grid(op.inputs[0], self.grids[op.outputs[0].name])
        half = dtype == HALF
        names = [name_in(self.network, value.name, half=half) for value in op.outputs]
        made = WRITERS[op.kind](_Call(self.builder, dtype, names[0]), *inputs, **op.attributes)
        parts = made if isinstance(made, list | tuple) else (made,)
        for value, name, var in zip(op.outputs, names, parts, strict=True):
            var.name = name
            self.vars[value.name, _stored(value.dtype, dtype)] = var

    def value(self, name: str, dtype: np.dtype[Any]) -> Var:
        """A value or constant in ``dtype``, whole numbers as they are; each cast is made once."""
        if (name, WHOLE) in self.vars:
            return self.vars[name, WHOLE]
        if (name, dtype) not in self.vars:
            if name in self.network.constants:
                return self.constant(name, dtype)
            x = self.vars[name, SINGLE if dtype == HALF else HALF]
            kind = MIL_TYPES[dtype]
            label = name if name in self.network.outputs else f"{name}_to_{kind}"
            cast = _Call(self.builder, dtype, label)("cast", x=x, dtype=kind)
            self.vars[name, dtype] = cast
        return self.vars[name, dtype]

    def on_grid(self, name: str, within: Range) -> Var:
        """A float16 value rounded to int8 and back: ``s (q - z)``, ``q = round(x / s) + z``.

        The steps s and the place z of zero follow from the range, which is widened to hold zero.
        """
        if name not in self.rounded:
            low, high = min(within[0], 0.0), max(within[1], 0.0)
            step = HALF.type(max((high - low) / 255, SMALLEST_STEP))
            zero = np.int8(np.clip(np.rint(-128 - low / float(step)), -128, 127))
            call = _Call(self.builder, HALF, f"{name}_rounded")
            grid = {"scale": step, "zero_point": zero}
            whole = call.before("int8")(
                "quantize", input=self.value(name, HALF), **grid, output_dtype="int8"
            )
            self.rounded[name] = call("dequantize", input=whole, **grid)
        return self.rounded[name]

    def constant(self, name: str, dtype: np.dtype[Any]) -> Var:
        """A constant of the network, once in each type that something needs it in."""
        array = self.network.constants[name]
        stored = _stored(str(array.dtype), dtype)
        label = re.sub(r"\W", "_", name)
        while label in self.labels or label in self.network.values:
            label += "_"
        self.labels.add(label)
        with np.errstate(over="ignore"):  # see network.INFINITE
            made = self.builder.const(val=array.astype(stored), name=label)
        self.vars[name, stored] = made
        return made


def name_in(network: Network, name: str, *, half: bool) -> str:
    """What a value of ``network`` is called in a program, as float16 or else as float32.

    An output bears its own name as float32 only.
    """
    return f"{name}_fp16" if half and name in network.outputs else name


def _stored(dtype: str, floating: np.dtype[Any]) -> np.dtype[Any]:
    """The type of a value in a program: MIL has no 64-bit numbers."""
    return floating if np.dtype(dtype).kind == "f" else WHOLE


# The writers: a call that adds an op, the inputs, and the kind's attributes.


def _convolution(
    call: _Call,
    x: Var,
    weight: Var,
    bias: Var | None = None,
    *,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
) -> Var:
    biased = {} if bias is None else {"bias": bias}
    return call(
        "conv",
        x=x,
        weight=weight,
        **biased,
        strides=stride,
        **_padding(padding),
        dilations=dilation,
        groups=groups,
    )


def _padding(padding: tuple[int, int]) -> dict[str, Any]:
    rows, columns = padding
    kind = "custom" if any(padding) else "valid"
    return {"pad_type": kind, "pad": (rows, rows, columns, columns)}


def _linear(call: _Call, x: Var, weight: Var, bias: Var | None = None) -> Var:
    bias = np.zeros(weight.shape[0], call.dtype) if bias is None else bias
    return call("linear", x=x, weight=weight, bias=bias)


def _matmul(call: _Call, a: Var, b: Var, *, transpose_a: bool, transpose_b: bool) -> Var:
    return call("matmul", x=a, y=b, transpose_x=transpose_a, transpose_y=transpose_b)


def _pair(kind: str) -> Writer:
    return lambda call, a, b: call(kind, x=a, y=b)


def _single(kind: str) -> Writer:
    return lambda call, x: call(kind, x=x)


def _hardswish(call: _Call, x: Var) -> Var:
    gate = call.before("gate")("sigmoid_hard", x=x, alpha=1 / 6, beta=0.5)
    return call("mul", x=x, y=gate)


def _gelu(call: _Call, x: Var, *, tanh: bool) -> Var:
    return call("gelu", x=x, mode="TANH_APPROXIMATION" if tanh else "EXACT")


def _batch_norm(call: _Call, x: Var, *numbers: Var, epsilon: float) -> Var:
    named = dict(zip(("gamma", "beta", "mean", "variance"), numbers, strict=True))
    if x.rank > 2:
        return call("batch_norm", x=x, **named, epsilon=epsilon)
    # MIL's takes no (N, C); computed beforehand, its numbers would be others than the network's.
    wide = call.before("wide")("expand_dims", x=x, axes=(2,))
    normal = call.before("normal")("batch_norm", x=wide, **named, epsilon=epsilon)
    return call("squeeze", x=normal, axes=(2,))


def _layer_norm(call: _Call, x: Var, scale: Var, shift: Var, *, epsilon: float) -> Var:
    last = (x.rank - 1,)
    return call("layer_norm", x=x, axes=last, gamma=scale, beta=shift, epsilon=epsilon)


def _pool(kind: str, **more: bool) -> Writer:
    def writer(
        call: _Call,
        x: Var,
        *,
        window: tuple[int, int],
        stride: tuple[int, int],
        padding: tuple[int, int],
    ) -> Var:
        sizes = {"kernel_sizes": window, "strides": stride, **_padding(padding)}
        return call(kind, x=x, **sizes, ceil_mode=False, **more)

    return writer


def _slice(
    call: _Call,
    x: Var,
    *,
    axes: tuple[int, ...],
    starts: tuple[int, ...],
    stops: tuple[int, ...],
    steps: tuple[int, ...],
    gone: int | None = None,
) -> Var:
    begin, end, stride = [0] * x.rank, list(x.shape), [1] * x.rank
    for axis, *place in zip(axes, starts, stops, steps, strict=True):
        begin[axis], end[axis], stride[axis] = place
    return call(
        "slice_by_index",
        x=x,
        begin=tuple(begin),
        end=tuple(end),
        stride=tuple(stride),
        begin_mask=(False,) * x.rank,
        end_mask=(False,) * x.rank,
        squeeze_mask=tuple(axis == gone for axis in range(x.rank)),
    )


def _select(call: _Call, x: Var, *, axis: int, index: int) -> Var:
    place = {"axes": (axis,), "starts": (index,), "stops": (index + 1,), "steps": (1,)}
    return _slice(call, x, **place, gone=axis)


def _pad(call: _Call, x: Var, *, before: tuple[int, ...], after: tuple[int, ...]) -> Var:
    sides = tuple(side for pair in zip(before, after, strict=True) for side in pair)
    return call("pad", x=x, pad=sides, mode="constant", constant_val=0.0)


def _gather(call: _Call, table: Var, index: Var, *, axis: int) -> Var:
    if table.val is not None and index.val is not None:
        return call.builder.const(val=np.take(table.val, index.val, axis), name=call.name)
    return call("gather", x=table, indices=index, axis=axis)


def _cast(call: _Call, x: Var, *, dtype: str) -> Var:
    return call("cast", x=x, dtype=MIL_TYPES[_stored(dtype, call.dtype)])


Writer = Callable[..., Var]
WRITERS: Mapping[str, Writer] = {
    "convolution": _convolution,
    "linear": _linear,
    "matmul": _matmul,
    "add": _pair("add"),
    "subtract": _pair("sub"),
    "multiply": _pair("mul"),
    "divide": _pair("real_div"),
    "relu": _single("relu"),
    "hardswish": _hardswish,
    "silu": _single("silu"),
    "sigmoid": _single("sigmoid"),
    "gelu": _gelu,
    "softmax": lambda call, x, *, axis: call("softmax", x=x, axis=axis),
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "mean": lambda call, x, *, axes, keep: call("reduce_mean", x=x, axes=axes, keep_dims=keep),
    "max_pool": _pool("max_pool"),
    "average_pool": _pool("avg_pool", exclude_padding_from_average=True),
    "reshape": lambda call, x, *, shape: call("reshape", x=x, shape=shape),
    "transpose": lambda call, x, *, axes: call("transpose", x=x, perm=axes),
    "slice": _slice,
    "select": _select,
    "split": lambda call, x, *, axis, sizes: call("split", x=x, split_sizes=sizes, axis=axis),
    "concatenate": lambda call, *parts, axis: call(
        "concat", values=parts, axis=axis, interleave=False
    ),
    "pad": _pad,
    "gather": _gather,
    "cast": _cast,
}
"""A function for each kind of operator (``core.network.KINDS``)."""
