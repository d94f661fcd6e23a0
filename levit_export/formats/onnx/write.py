"""A :class:`~levit_export.core.network.Network` as an ONNX graph.

One function of a few lines for each kind of operator, in ``WRITERS``. What they write is lean:
every constant is there once, in the form in which it is read, and nothing computes a shape. The
forms are those that ONNX Runtime fuses or has kernels for.

float16 is decided operator by operator. Given ``y = f(x, w)`` in float32, the result in float16 is
``y = f(Cast(x), w)`` with ``w`` rounded once, and a Cast wherever float16 and float32 meet. So a
run of operators that are to stay in float32 stays there from end to end, and inputs and outputs
of the network do as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from levit_export._version import __version__
from levit_export.core.errors import ExportFailedError
from levit_export.core.network import Network, Op, Shape, Value, is_within
from levit_export.core.values import FLOAT16_MAX

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto

TO_INFINITY = FLOAT16_MAX + 16
"""Half a step above the largest number: what is as large or larger is rounded to infinity."""

MATRIX = 2
"""The rank of what ``Gemm`` takes."""

GELU_SINCE = 20
"""The opset that has a ``Gelu``; before it is the pattern that ONNX Runtime takes for one."""


@dataclass(frozen=True)
class Written:
    """A graph, and the operator that each of its nodes is part of, by the node's name."""

    model: ModelProto
    ops: Mapping[str, Op]


def write(
    network: Network,
    *,
    opset: int,
    name: str,
    half: bool = False,
    keep: Collection[str] = (),
    in_rows: bool = False,
) -> Written:
    """``network`` as a graph called ``name``.

    With ``half`` it computes in float16; with ``in_rows`` linear layers of more than rows are
    products of matrices, ``Reshape(Gemm(Reshape(x, (-1, C)), w, b), (-1, N, D))``. The blocks
    ``keep`` are left out of both. Raises ``ExportFailedError`` for a weight that float16 cannot
    hold.
    """
    import onnx

    model = onnx.ModelProto(producer_name="levit-export", producer_version=__version__)
    imports = [onnx.helper.make_operatorsetid("", opset)]
    model.opset_import.extend(imports)
    model.ir_version = onnx.helper.find_min_ir_version_for(imports)
    model.graph.name = name
    writer = _Writer(network, model.graph, opset, keep, half=half, in_rows=in_rows)
    writer.write()
    return Written(model, writer.ops)


def refuse_infinity(what: str, largest: float, block: str) -> None:
    """Raise where ``largest`` would be rounded to infinity in float16."""
    if largest < TO_INFINITY:
        return
    keep = f"Keep {block} in float32 (--keep {block}), or export" if block else "Export"
    raise ExportFailedError(
        f"{what} {largest:.3g}, float16 ends at {FLOAT16_MAX:.0f}",
        remedy=f"{keep} with --precision fp32.",
    )


class _Writer:
    """Writes one operator after the other; ``op`` is the one that is being written."""

    op: Op

    def __init__(
        self,
        network: Network,
        graph: GraphProto,
        opset: int,
        keep: Collection[str],
        *,
        half: bool,
        in_rows: bool,
    ) -> None:
        self.network, self.graph, self.opset = network, graph, opset
        self.keep, self.half, self.in_rows = keep, half, in_rows
        self.ops: dict[str, Op] = {}
        self.stored: set[str] = set()
        self.renamed: dict[str, str] = {}
        self.matrices: dict[str, str] = {}
        self.types = {value.name: value.dtype for value in network.inputs}
        self.shapes = {value.name: value.shape for value in network.inputs}
        self.swapped = _swapped_at_their_source(network)

    def write(self) -> None:
        """Write all of the network."""
        self.graph.input.extend(map(_described, self.network.inputs))
        for op in self.network.ops:
            self.op = op
            WRITERS[op.kind](self, op)
        outputs = (self.network.values[name] for name in self.network.outputs)
        self.graph.output.extend(map(_described, outputs))

    # What the functions for the kinds are written with.

    @property
    def dtype(self) -> str:
        """The type in which the operator computes, if it computes with floats."""
        is_half = self.half and not is_within(self.op.block, self.keep)
        return "float16" if is_half else "float32"

    def node(self, kind: str, inputs: Sequence[str], *outputs: Value, **attributes: Any) -> str:
        """A node that computes in the operator's type; the name of its first output.

        ``inputs`` are values, by the names that they have in the network or that a node before
        gave, and constants. ``outputs`` are the operator's unless others are given.
        """
        read = [self._in(self.dtype, name) for name in inputs]
        made = [self._made(value) for value in outputs or self.op.outputs]
        self._add(kind, read, made, **attributes)
        for value, name in zip(outputs or self.op.outputs, made, strict=True):
            if name != value.name:  # an output of the network, which stays float32
                self._add("Cast", [name], [value.name], to=_element(value.dtype))
                self.types[value.name] = value.dtype
        return made[0]

    def part(self, suffix: str, shape: Shape | None = None) -> Value:
        """A value between two nodes of the operator; its shape is that of the output, or given."""
        made = self.op.outputs[0]
        return Value(f"{made.name}_{suffix}", made.shape if shape is None else shape)

    def operands(self) -> list[str]:
        """The operator's inputs, its constants stored in its type."""
        known = self.network.constants
        return [self.weight(name) if name in known else name for name in self.op.inputs]

    def weight(self, name: str, *, transposed: bool = False) -> str:
        """A constant of the network in the operator's type."""
        array = self.network.constants[name]
        if transposed:
            # Some other layer may read the matrix as it is.
            readers = self.network.readers[name]
            name = name if all(map(self.reads_transposed, readers)) else f"{name}_transposed"
            array = array.T
        return self.number(name, array) if array.dtype == np.float32 else self.whole(name, array)

    def reads_transposed(self, op: Op) -> bool:
        """Whether an operator is a layer of more than rows: MatMul has no transposed matrix."""
        return op.kind == "linear" and len(self.network.shape(op.inputs[0])) > MATRIX

    def number(self, name: str, array: np.ndarray | float) -> str:
        """Constant floats in the operator's type. In float16 they are rounded once."""
        array = np.asarray(array, np.float32)
        if self.dtype == "float16":
            largest = float(np.abs(array).max(initial=0))
            refuse_infinity(f"the weight {name} holds", largest, self.op.block)
            array = array.astype(np.float16)
        elif self.half:
            name = f"{name}_float32"
        return self._store(name, array)

    def whole(self, name: str, values: np.ndarray | Sequence[int] | int) -> str:
        """Constant whole numbers."""
        return self._store(name, np.asarray(values, np.int64))

    def sizes(self, kind: str, sizes: Sequence[int | None]) -> str:
        """A list of whole numbers that is called after what it is and what it holds."""
        sides = [-1 if size is None else size for size in sizes]
        said = "_".join("any" if side == -1 else str(side) for side in sides)
        return self.whole(f"{kind}_{said}", sides)

    def rows(self, x: str, width: int) -> str:
        """``x (…, width)`` as a matrix, once for all that read it."""
        if x not in self.matrices:
            made = Value(f"{x}_rows", (None, width))
            shape = self.sizes("rows", (-1, width))
            self.matrices[x] = self.node("Reshape", [self.renamed.get(x, x), shape], made)
        return self.matrices[x]

    def is_in_rows(self, op: Op) -> bool:
        """Whether an operator is a layer that is written as a product of matrices."""
        return self.in_rows and self.reads_transposed(op) and not is_within(op.block, self.keep)

    def is_only_reshaped(self, name: str) -> bool:
        """Whether all readers of a value reshape it first; not of an output or a tap."""
        asked = (*self.network.outputs, *self.network.taps.values())
        readers = self.network.readers.get(name, ())
        return name not in asked and all(
            op.kind == "reshape" or self.is_in_rows(op) for op in readers
        )

    # How that is done.

    def _store(self, name: str, array: np.ndarray) -> str:
        if name not in self.stored:
            self.stored.add(name)
            tensor = self.graph.initializer.add(name=name, dims=array.shape)
            tensor.data_type = _element(str(array.dtype))
            tensor.raw_data = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
        return name

    def _in(self, dtype: str, name: str) -> str:
        """What a value is called in a float type; a Cast makes it where it is not there yet."""
        held = self.types.get(name, "constant")
        if not held.startswith("float") or held == dtype:
            return name
        cast = f"{name}_as_{dtype}"
        if cast not in self.types:
            self._described(Value(cast, self.shapes[name], dtype))
            self._add("Cast", [name], [cast], to=_element(dtype))
        return cast

    def _made(self, value: Value) -> str:
        """What a value is called where a node makes it."""
        held = self.dtype if value.dtype == "float32" else value.dtype
        if value.name not in self.network.outputs:
            self._described(Value(value.name, value.shape, held))
            return value.name
        self.types[value.name], self.shapes[value.name] = held, value.shape
        if held == value.dtype:
            return value.name
        rounded = Value(f"{value.name}_{held}", value.shape, held)
        self._described(rounded)
        return rounded.name

    def _described(self, value: Value) -> None:
        self.types[value.name], self.shapes[value.name] = value.dtype, value.shape
        self.graph.value_info.append(_described(value))

    def _add(
        self, kind: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any
    ) -> None:
        from onnx.helper import make_node

        name = f"node_{outputs[0]}"
        self.graph.node.append(make_node(kind, inputs, outputs, name, **attributes))
        self.ops[name] = self.op


def _swapped_at_their_source(network: Network) -> frozenset[str]:
    """The transposed values that only a product reads, and transposes again."""
    transposed = {op.output.name for op in network.ops if op.kind == "transpose"}
    return frozenset(
        name
        for op in network.ops
        if op.kind == "matmul"
        for name, flag in zip(op.inputs, ("transpose_a", "transpose_b"), strict=True)
        if op.attributes[flag]
        and name in transposed - set(network.outputs)
        and network.readers[name] == (op,)
        and op.inputs.count(name) == 1
    )


def _element(dtype: str) -> int:
    import onnx

    return int(onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


def _described(value: Value) -> Any:
    import onnx

    known = list(value.shape)
    shape = ["batch" if axis == 0 and side is None else side for axis, side in enumerate(known)]
    return onnx.helper.make_tensor_value_info(value.name, _element(value.dtype), shape)


def _swap(sides: Sequence[Any]) -> tuple[Any, ...]:
    """The last two exchanged."""
    *outer, rows, columns = sides
    return (*outer, columns, rows)


# A function for each kind of operator.

Rule = Callable[[_Writer, Op], object]


def _plain(kind: str) -> Rule:
    """An operator whose inputs and attributes are ONNX's."""
    return lambda w, op: w.node(kind, w.operands(), **op.attributes)


def _convolution(w: _Writer, op: Op) -> None:
    w.node(
        "Conv",
        w.operands(),
        kernel_shape=w.network.shape(op.inputs[1])[2:],
        strides=op.attributes["stride"],
        pads=op.attributes["padding"] * 2,
        dilations=op.attributes["dilation"],
        group=op.attributes["groups"],
    )


def _linear(w: _Writer, op: Op) -> None:
    x, weight, *bias = op.inputs
    biases = [w.weight(name) for name in bias]
    if not w.reads_transposed(op):
        w.node("Gemm", [x, w.weight(weight), *biases], transB=1)
        return
    matrix = w.weight(weight, transposed=True)
    if w.is_in_rows(op):
        outputs, inputs = w.network.constants[weight].shape
        product = w.part("gemm", (None, outputs))
        w.node("Gemm", [w.rows(x, inputs), matrix, *biases], product)
        w.matrices[op.output.name] = product.name
        if w.is_only_reshaped(op.output.name):
            w.renamed[op.output.name] = product.name
            return
        tokens = (-1, *op.output.shape[1:])
        w.node("Reshape", [product.name, w.sizes("shape", tokens)])
    elif biases:
        w.node("Add", [w.node("MatMul", [x, matrix], w.part("matmul")), *biases])
    else:
        w.node("MatMul", [x, matrix])


def _matmul(w: _Writer, op: Op) -> None:
    factors = []
    for name, flag in zip(w.operands(), ("transpose_a", "transpose_b"), strict=True):
        factor = name
        if name in w.swapped:
            factor = f"{name}_swapped"
        elif op.attributes[flag]:
            shape = w.network.shape(name)
            made = Value(f"{name}_swapped", _swap(shape))
            if made.name not in w.types:
                w.node("Transpose", [name], made, perm=_swap(range(len(shape))))
            factor = made.name
        factors.append(factor)
    w.node("MatMul", factors)


def _transpose(w: _Writer, op: Op) -> None:
    axes, made = op.attributes["axes"], op.output
    if made.name in w.swapped:
        axes, made = _swap(axes), Value(f"{made.name}_swapped", _swap(made.shape), made.dtype)
    w.node("Transpose", w.operands(), made, perm=axes)


def _silu(w: _Writer, op: Op) -> None:
    (x,) = op.inputs
    w.node("Mul", [x, w.node("Sigmoid", [x], w.part("sigmoid"))])


def _gelu(w: _Writer, op: Op) -> None:
    (x,), tanh = op.inputs, op.attributes["tanh"]
    if w.opset >= GELU_SINCE:
        w.node("Gelu", [x], approximate="tanh" if tanh else "none")
        return
    if tanh:
        cube = w.node("Pow", [x, w.number("three", 3)], w.part("cube"))
        small = w.node("Mul", [cube, w.number("gelu_cubic", 0.044715)], w.part("cubic"))
        inner = w.node("Add", [x, small], w.part("inner"))
        scale = w.number("gelu_scale", math.sqrt(2 / math.pi))
        scaled = w.node("Mul", [inner, scale], w.part("scaled"))
        share = w.node("Tanh", [scaled], w.part("tanh"))
    else:
        scaled = w.node("Div", [x, w.number("root_of_two", math.sqrt(2))], w.part("scaled"))
        share = w.node("Erf", [scaled], w.part("erf"))
    raised = w.node("Add", [share, w.number("one", 1)], w.part("raised"))
    doubled = w.node("Mul", [x, raised], w.part("doubled"))
    w.node("Mul", [doubled, w.number("half", 0.5)])


def _mean(w: _Writer, op: Op) -> None:
    axes = w.sizes("axes", op.attributes["axes"])
    w.node("ReduceMean", [*w.operands(), axes], keepdims=int(op.attributes["keep"]))


def _pool(kind: str, **more: Any) -> Rule:
    def rule(w: _Writer, op: Op) -> None:
        w.node(
            kind,
            w.operands(),
            kernel_shape=op.attributes["window"],
            strides=op.attributes["stride"],
            pads=op.attributes["padding"] * 2,
            **more,
        )

    return rule


def _slice(w: _Writer, op: Op) -> None:
    parts = [w.sizes(part, op.attributes[part]) for part in ("starts", "stops", "axes", "steps")]
    w.node("Slice", [*w.operands(), *parts])


def _select(w: _Writer, op: Op) -> None:
    index = op.attributes["index"]
    w.node("Gather", [*w.operands(), w.whole(f"index_{index}", index)], axis=op.attributes["axis"])


def _split(w: _Writer, op: Op) -> None:
    sizes = w.sizes("sizes", op.attributes["sizes"])
    w.node("Split", [*w.operands(), sizes], axis=op.attributes["axis"])


def _reshape(w: _Writer, op: Op) -> None:
    (x,) = (w.renamed.get(name, name) for name in w.operands())
    if w.in_rows and w.is_only_reshaped(op.output.name):
        w.renamed[op.output.name] = x
    else:
        w.node("Reshape", [x, w.sizes("shape", op.attributes["shape"])])


def _pad(w: _Writer, op: Op) -> None:
    sides = (*op.attributes["before"], *op.attributes["after"])
    w.node("Pad", [*w.operands(), w.sizes("pads", sides)])


def _cast(w: _Writer, op: Op) -> None:
    wanted = op.attributes["dtype"]
    w.node("Cast", w.operands(), to=_element(w.dtype if wanted == "float32" else wanted))


WRITERS: Mapping[str, Rule] = {
    "convolution": _convolution,
    "linear": _linear,
    "matmul": _matmul,
    "add": _plain("Add"),
    "subtract": _plain("Sub"),
    "multiply": _plain("Mul"),
    "divide": _plain("Div"),
    "relu": _plain("Relu"),
    "hardswish": _plain("HardSwish"),
    "silu": _silu,
    "sigmoid": _plain("Sigmoid"),
    "gelu": _gelu,
    "softmax": _plain("Softmax"),
    "batch_norm": _plain("BatchNormalization"),
    "layer_norm": _plain("LayerNormalization"),
    "mean": _mean,
    "max_pool": _pool("MaxPool"),
    "average_pool": _pool("AveragePool", count_include_pad=0),
    "reshape": _reshape,
    "transpose": _transpose,
    "slice": _slice,
    "select": _select,
    "split": _split,
    "concatenate": _plain("Concat"),
    "pad": _pad,
    "gather": _plain("Gather"),
    "cast": _cast,
}
"""How each kind of operator is written."""
