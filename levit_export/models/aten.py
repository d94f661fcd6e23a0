"""What PyTorch's own operators (ATen's) are in a network: a rule for each, in one literal table.

This is the one place that knows them. The networks of this project need some 30. Any other
operator is refused, naming its block: there is no definition that a writer could be tested
against. What changes nothing, such as a dropout, becomes no operator.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from levit_export.core.errors import ExportFailedError
from levit_export.core.network import Network, Op, Shape, Value

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import Node

LARGEST_BATCH = 65535
"""Upper bound that is declared for an open batch."""


def operators_of(
    program: ExportedProgram, blocks: Mapping[str, str], model: str
) -> CapturedNetwork:
    """A captured program, operator by operator; values have the names of ``torch.export``.

    ``blocks`` are public names by module path, ``model`` is what errors call the model. Raises
    ``ExportFailedError`` for an operator that is not known, or is used in an unknown way.
    """
    return _Reader(program, blocks, model).read()


@dataclass(frozen=True)
class CapturedNetwork:
    """A network whose values have ``torch.export``'s names, and the module path of each op."""

    network: Network
    paths: Mapping[str, tuple[str, ...]]
    """By the first output of an op: the modules that it came from, the outermost first."""


@dataclass
class _Reader:
    """Goes through a program once; ``names`` are the values and constants that nodes stand for."""

    program: ExportedProgram
    blocks: Mapping[str, str]
    model: str
    names: dict[Node, str] = field(default_factory=dict)
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    ops: list[Op] = field(default_factory=list)
    paths: dict[str, tuple[str, ...]] = field(default_factory=dict)
    inputs: list[Value] = field(default_factory=list)

    def read(self) -> CapturedNetwork:
        stored = _stored(self.program)
        for node in self.program.graph.nodes:
            if node.op == "placeholder":
                self._placeholder(node, stored)
            elif node.op == "call_function":
                self._call(node)
        (output,) = (node for node in self.program.graph.nodes if node.op == "output")
        outputs = tuple(self.names[node] for node in output.args[0])
        read = {name for op in self.ops for name in op.inputs}
        constants = {name: array for name, array in self.constants.items() if name in read}
        network = Network(tuple(self.inputs), outputs, tuple(self.ops), constants)
        return CapturedNetwork(network, self.paths)

    def _placeholder(self, node: Node, stored: Mapping[str, tuple[str, np.ndarray]]) -> None:
        if node.name in stored:
            self.names[node], array = stored[node.name]
            self.constants[self.names[node]] = array
        else:
            self.names[node] = node.name
            self.inputs.append(_value(node))

    def _call(self, node: Node) -> None:
        name = _operator(node)
        if name in IGNORED:
            return
        if name == "getitem":
            split, index = node.args
            self._rename_part(split, index, node)
            return
        rule = RULES.get(name)
        if rule is None:
            raise self._unknown(node, "is not known to this toolchain")
        try:
            found = rule(self, node, *node.args, **node.kwargs)
        except (TypeError, ValueError) as error:
            raise self._unknown(
                node, f"is used in a way that is not supported: {error}"
            ) from error
        if isinstance(found, str):
            self.names[node] = found  # it changes nothing

    def _rename_part(self, split: Any, index: Any, node: Node) -> None:
        """A part of a split: its values exist already, by the number of the part."""
        (op,) = (op for op in self.ops if op.outputs[0].name == self.names[split])
        self.names[node] = op.outputs[index].name

    def _unknown(self, node: Node, why: str) -> ExportFailedError:
        block = block_of(_paths(node), self.blocks) or "no block"
        return ExportFailedError(
            f"{self.model} uses the operator {_operator(node)} (in {block}), which {why}",
            remedy="Report the model; leave out a pass (--skip-pass) if one brought it in.",
        )

    # What rules are written with.

    def name(self, argument: Any) -> str:
        """The value of an operand: another node's, or a number's."""
        if isinstance(argument, torch.fx.Node):
            return self.names[argument]
        if isinstance(argument, bool | int | float):
            return self.constant(f"scalar_{float(argument):g}", np.array(argument, np.float32))
        raise ValueError(f"{argument!r} is not an operand")

    def constant(self, name: str, array: np.ndarray) -> str:
        """A constant that no tensor of the module is, under its name; each is there once."""
        known = self.constants.setdefault(name, array)
        if not np.array_equal(known, array):
            return self.constant(f"{name}_", array)
        return name

    def op(self, node: Node, kind: str, *inputs: Any, **attributes: Any) -> None:
        """The node is one operator with one output."""
        names = tuple(each if isinstance(each, str) else self.name(each) for each in inputs)
        made = _value(node)
        self.ops.append(Op(kind, names, (made,), attributes, block_of(_paths(node), self.blocks)))
        self.names[node] = made.name
        self.paths[made.name] = _paths(node)

    def split(self, node: Node, x: Node, sizes: Sequence[int], axis: int) -> None:
        """The node is a split; its users pick parts by number."""
        parts = tuple(
            Value(f"{node.name}_{number}", _shape(value), _dtype(value))
            for number, value in enumerate(node.meta["val"])
        )
        attributes = {"axis": axis % _rank(x), "sizes": tuple(sizes)}
        block = block_of(_paths(node), self.blocks)
        self.ops.append(Op("split", (self.name(x),), parts, attributes, block))
        self.names[node] = parts[0].name
        self.paths[parts[0].name] = _paths(node)

    def reshape(self, node: Node) -> str | None:
        """The node gives its operand another shape; nothing, if that is its shape already."""
        (x, *_) = node.args
        shape = _shape(node.meta["val"])
        if shape == _shape(_operand(x).meta["val"]):
            return self.name(x)
        if any(side is None for side in shape[1:]):
            raise ValueError("an axis behind the first depends on the batch")
        # With a fixed batch all numbers are known, and no runtime has to work one out.
        self.op(node, "reshape", x, shape=tuple(-1 if side is None else side for side in shape))
        return None


def _stored(program: ExportedProgram) -> dict[str, tuple[str, np.ndarray]]:
    """The tensors of the module by the placeholder that stands for each: path and numbers."""
    from levit_export.models.graph_ends import NETWORK

    found = {}
    tensors = {**program.state_dict, **program.constants}
    for spec in program.graph_signature.input_specs:
        if spec.target is not None and isinstance(tensors.get(spec.target), torch.Tensor):
            array = tensors[spec.target].detach().numpy()
            name = spec.target.removeprefix(f"{NETWORK}.")
            found[str(spec.arg.name)] = (name, array)
    return found


def _operator(node: Node) -> str:
    """``softmax.int``; ``getitem`` for the part of a result."""
    if node.target is operator.getitem:
        return "getitem"
    return str(node.target).removeprefix("aten.")


def _paths(node: Node) -> tuple[str, ...]:
    """The paths of the modules that a value came from, the outermost first."""
    stack: Mapping[str, Any] = node.meta.get("nn_module_stack") or {}
    return tuple(path for path, _ in stack.values())


def block_of(paths: Sequence[str], blocks: Mapping[str, str]) -> str:
    """The innermost block among the modules at ``paths``, or an empty name."""
    return next((blocks[path] for path in reversed(paths) if path in blocks), "")


def _operand(argument: Any) -> Node:
    if not isinstance(argument, torch.fx.Node):
        raise TypeError(f"{argument!r} is not a value")
    return argument


def _shape(tensor: torch.Tensor) -> Shape:
    return tuple(side if isinstance(side, int) else None for side in tensor.shape)


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _value(node: Node) -> Value:
    tensor = node.meta["val"]
    return Value(node.name, _shape(tensor), _dtype(tensor))


def _rank(x: Any) -> int:
    return len(_operand(x).meta["val"].shape)


def _pair(given: Any) -> tuple[int, int]:
    sides = [given] if isinstance(given, int) else list(given)
    first, last = sides[0], sides[-1]
    return int(first), int(last)


# A rule for each of ATen's operators: it adds an operator of ours, or names the value that the
# node's is. Its arguments are the node's, so what a rule does not take is refused.


def _convolution(
    r: _Reader,
    node: Node,
    x: Node,
    weight: Node,
    bias: Node | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> None:
    inputs = (x, weight) if bias is None else (x, weight, bias)
    r.op(
        node,
        "convolution",
        *inputs,
        stride=_pair(stride),
        padding=_pair(padding),
        dilation=_pair(dilation),
        groups=groups,
    )


def _linear(r: _Reader, node: Node, x: Node, weight: Node, bias: Node | None = None) -> None:
    r.op(node, "linear", *((x, weight) if bias is None else (x, weight, bias)))


def _matmul(r: _Reader, node: Node, a: Node, b: Node) -> None:
    r.op(node, "matmul", a, b, transpose_a=False, transpose_b=False)


def _elementwise(kind: str) -> Rule:
    def rule(r: _Reader, node: Node, a: Any, b: Any) -> None:
        r.op(node, kind, a, b)

    return rule


def _unary(kind: str) -> Rule:
    def rule(r: _Reader, node: Node, x: Node) -> None:
        r.op(node, kind, x)

    return rule


def _gelu(r: _Reader, node: Node, x: Node, *, approximate: str = "none") -> None:
    r.op(node, "gelu", x, tanh=approximate == "tanh")


def _softmax(r: _Reader, node: Node, x: Node, dim: int) -> None:
    r.op(node, "softmax", x, axis=dim % _rank(x))


def _batch_norm(
    r: _Reader,
    node: Node,
    x: Node,
    scale: Node | None,
    shift: Node | None,
    mean: Node,
    variance: Node,
    training: bool,
    momentum: float,
    epsilon: float,
    cudnn: bool,
) -> None:
    del momentum, cudnn
    if training:
        raise ValueError("it is in train mode")
    width = _operand(mean).meta["val"].shape[0]
    scales = scale or r.constant(f"ones_{width}", np.ones(width, np.float32))
    shifts = shift or r.constant(f"zeros_{width}", np.zeros(width, np.float32))
    r.op(node, "batch_norm", x, scales, shifts, mean, variance, epsilon=epsilon)


def _layer_norm(
    r: _Reader,
    node: Node,
    x: Node,
    shape: Sequence[int],
    scale: Node,
    shift: Node,
    epsilon: float = 1e-5,
    cudnn: bool = False,
) -> None:
    del cudnn
    if len(shape) != 1:
        raise ValueError(f"it normalises over {len(shape)} axes")
    r.op(node, "layer_norm", x, scale, shift, epsilon=epsilon)


def _mean(
    r: _Reader,
    node: Node,
    x: Node,
    dims: Sequence[int],
    keepdim: bool = False,
) -> None:
    r.op(node, "mean", x, axes=tuple(dim % _rank(x) for dim in dims), keep=keepdim)


def _pool(
    kind: str,
    r: _Reader,
    node: Node,
    x: Node,
    window: Any,
    stride: Any,
    padding: Any,
) -> None:
    r.op(
        node,
        kind,
        x,
        window=_pair(window),
        stride=_pair(stride or window),
        padding=_pair(padding),
    )


def _max_pool(
    r: _Reader, node: Node, x: Node, window: Any, stride: Any = (), padding: Any = 0
) -> None:
    _pool("max_pool", r, node, x, window, stride, padding)


def _average_pool(r: _Reader, node: Node, x: Node, window: Any, stride: Any = ()) -> None:
    _pool("average_pool", r, node, x, window, stride, 0)


def _reshape(r: _Reader, node: Node, *_: Any) -> str | None:
    return r.reshape(node)


def _transpose(r: _Reader, node: Node, x: Node, first: int, second: int) -> None:
    axes = list(range(_rank(x)))
    axes[first], axes[second] = axes[second], axes[first]
    r.op(node, "transpose", x, axes=tuple(axes))


def _permute(r: _Reader, node: Node, x: Node, axes: Sequence[int]) -> None:
    r.op(node, "transpose", x, axes=tuple(axis % _rank(x) for axis in axes))


def _slice(
    r: _Reader,
    node: Node,
    x: Node,
    axis: int = 0,
    start: int | None = None,
    stop: int | None = None,
    step: int = 1,
) -> str | None:
    length = _operand(x).meta["val"].shape[axis]
    if not isinstance(length, int):
        if (start, step) == (0, 1) and (stop is None or stop > LARGEST_BATCH):
            return r.name(x)
        raise ValueError("it takes a part of an open batch")
    first, last, _ = slice(start, stop).indices(length)
    if (first, last, step) == (0, length, 1):
        return r.name(x)
    axis %= _rank(x)
    r.op(node, "slice", x, axes=(axis,), starts=(first,), stops=(last,), steps=(step,))
    return None


def _select(r: _Reader, node: Node, x: Node, axis: int, index: int) -> None:
    length = _operand(x).meta["val"].shape[axis]
    r.op(node, "select", x, axis=axis % _rank(x), index=index % length)


def _split(r: _Reader, node: Node, x: Node, size: int, axis: int = 0) -> None:
    length = _operand(x).meta["val"].shape[axis]
    sizes = [min(size, length - start) for start in range(0, length, size)]
    r.split(node, x, sizes, axis)


def _split_with_sizes(
    r: _Reader, node: Node, x: Node, sizes: Sequence[int], axis: int = 0
) -> None:
    r.split(node, x, sizes, axis)


def _concatenate(r: _Reader, node: Node, parts: Sequence[Node], axis: int = 0) -> None:
    r.op(node, "concatenate", *parts, axis=axis % _rank(parts[0]))


def _pad(
    r: _Reader,
    node: Node,
    x: Node,
    sides: Sequence[int],
    mode: str = "constant",
    value: float | None = None,
) -> None:
    if mode != "constant" or value:
        raise ValueError(f"it pads with {mode} {value}")
    rank = _rank(x)
    before, after = [0] * rank, [0] * rank
    for number in range(len(sides) // 2):  # PyTorch starts at the last axis
        before[rank - 1 - number], after[rank - 1 - number] = sides[2 * number : 2 * number + 2]
    r.op(node, "pad", x, before=tuple(before), after=tuple(after))


def _index(r: _Reader, node: Node, table: Node, indices: Sequence[Node | None]) -> None:
    (axis,) = (axis for axis, index in enumerate(indices) if index is not None)
    r.op(node, "gather", table, indices[axis], axis=axis)


def _to(r: _Reader, node: Node, x: Node, *_: Any, **__: Any) -> str | None:
    wanted = _dtype(node.meta["val"])
    if wanted == _dtype(_operand(x).meta["val"]):
        return r.name(x)
    r.op(node, "cast", x, dtype=wanted)
    return None


def _same(r: _Reader, node: Node, x: Node, *_: Any, **__: Any) -> str:
    del node
    return r.name(x)


def _dropout(
    r: _Reader,
    node: Node,
    x: Node,
    share: float,
    training: bool,
) -> str:
    del node, share
    if training:
        raise ValueError("it is in train mode")
    return r.name(x)


Rule = Callable[..., str | None]
IGNORED = ("_assert_tensor_metadata.default",)
RULES: Mapping[str, Rule] = {
    "conv2d.default": _convolution,
    "linear.default": _linear,
    "matmul.default": _matmul,
    "add.Tensor": _elementwise("add"),
    "sub.Tensor": _elementwise("subtract"),
    "mul.Tensor": _elementwise("multiply"),
    "div.Tensor": _elementwise("divide"),
    "relu.default": _unary("relu"),
    "hardswish.default": _unary("hardswish"),
    "silu.default": _unary("silu"),
    "sigmoid.default": _unary("sigmoid"),
    "gelu.default": _gelu,
    "softmax.int": _softmax,
    "batch_norm.default": _batch_norm,
    "layer_norm.default": _layer_norm,
    "mean.dim": _mean,
    "max_pool2d.default": _max_pool,
    "avg_pool2d.default": _average_pool,
    "flatten.using_ints": _reshape,
    "reshape.default": _reshape,
    "view.default": _reshape,
    "unsqueeze.default": _reshape,
    "squeeze.dim": _reshape,
    "transpose.int": _transpose,
    "permute.default": _permute,
    "slice.Tensor": _slice,
    "select.int": _select,
    "split.Tensor": _split,
    "split_with_sizes.default": _split_with_sizes,
    "cat.default": _concatenate,
    "pad.default": _pad,
    "index.Tensor": _index,
    "to.dtype": _to,
    "contiguous.default": _same,
    "clone.default": _same,
    "alias.default": _same,
    "detach.default": _same,
    "dropout.default": _dropout,
}
