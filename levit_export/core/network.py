"""A network as a list of operators: what every writer reads and what every file must compute.

A :class:`Network` is the graph between the captured PyTorch module (``models.capture``) and the
files (the writers of each format). It knows some 25 kinds of operator, listed in ``KINDS``, and
NumPy arrays; nothing of PyTorch or of any format. What a kind computes is in
``models.interpreter``.

Every value is called after its block, ``stage2_block0_attention_softmax``, and every operator
knows its block. A *tap* is a value that users may ask for, under the name that they see:
``stage2.block0.attention.softmax``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from levit_export.core.errors import ExportFailedError, UnknownNameError
from levit_export.core.values import FLOAT16_MAX

INFINITE = 1e38
"""A number as large as this stands for infinity, as in a mask, and may become infinity."""

Shape = tuple[int | None, ...]
"""Lengths of the axes; None where one follows from an open batch."""


@dataclass(frozen=True)
class Kind:
    """How an operator of a kind is written down: how many inputs, and which attributes."""

    inputs: range
    attributes: frozenset[str] = frozenset()


def _kind(least: int, most: int, *attributes: str) -> Kind:
    return Kind(range(least, most + 1), frozenset(attributes))


KINDS: Mapping[str, Kind] = {
    # x (B, C, H, W), weight (O, C / groups, kh, kw), bias (O,). stride, padding and dilation are
    # (rows, columns); padding is the same at both ends of an axis.
    "convolution": _kind(2, 3, "stride", "padding", "dilation", "groups"),
    # x (..., I), weight (O, I), bias (O,): x weightᵀ + bias.
    "linear": _kind(2, 3),
    # a (..., N, K), b (..., K, M), each transposed in its last two axes first where the attribute
    # says so; the other axes broadcast.
    "matmul": _kind(2, 2, "transpose_a", "transpose_b"),
    # Elementwise with broadcasting; either input may be a constant.
    "add": _kind(2, 2),
    "subtract": _kind(2, 2),
    "multiply": _kind(2, 2),
    "divide": _kind(2, 2),
    "relu": _kind(1, 1),
    "hardswish": _kind(1, 1),
    "silu": _kind(1, 1),
    "sigmoid": _kind(1, 1),
    # The exact one, x Φ(x), or with ``tanh`` its approximation.
    "gelu": _kind(1, 1, "tanh"),
    "softmax": _kind(1, 1, "axis"),
    # x, scale, shift, mean, variance, the last four (C,); channels are axis 1.
    "batch_norm": _kind(5, 5, "epsilon"),
    # x, scale, shift; over the last axis.
    "layer_norm": _kind(3, 3, "epsilon"),
    "mean": _kind(1, 1, "axes", "keep"),
    # Over (H, W) of (B, C, H, W); windows lie inside the padded map; an average
    # does not count padding.
    "max_pool": _kind(1, 1, "window", "stride", "padding"),
    "average_pool": _kind(1, 1, "window", "stride", "padding"),
    # ``shape`` is whole numbers; its first is -1 where the batch is open.
    "reshape": _kind(1, 1, "shape"),
    "transpose": _kind(1, 1, "axes"),
    # Of each axis in ``axes`` the positions start, start + step, … below stop.
    "slice": _kind(1, 1, "axes", "starts", "stops", "steps"),
    # One position of an axis, which then is gone.
    "select": _kind(1, 1, "axis", "index"),
    # Parts of these sizes, one after the other: the only kind with several outputs.
    "split": _kind(1, 1, "axis", "sizes"),
    "concatenate": _kind(2, 8, "axis"),
    # Zeros before and after each axis.
    "pad": _kind(1, 1, "before", "after"),
    # table, index (whole numbers): the axis of the table is replaced by the axes of the index.
    "gather": _kind(2, 2, "axis"),
    "cast": _kind(1, 1, "dtype"),
}
"""Every kind of operator there is; a writer has a function for each."""


@dataclass(frozen=True)
class Value:
    """What flows between operators: a name, a shape, and an element type by NumPy's name."""

    name: str
    shape: Shape
    dtype: str = "float32"


@dataclass(frozen=True)
class Op:
    """One operator. ``inputs`` name values or constants; ``block`` is empty outside of blocks.

    ``attributes`` are those of its kind, tuples for lists. ``outputs`` is one value, but for a
    ``split``.
    """

    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[Value, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    block: str = ""

    @property
    def output(self) -> Value:
        """The only output."""
        (only,) = self.outputs
        return only


@dataclass(frozen=True)
class Network:
    """Operators in the order of execution, each after all that it reads.

    ``outputs`` name values. ``constants`` are called as the module's parameters are,
    ``blocks.3.m.qkv.weight``, each once. ``taps`` give the value of each tap. Raises
    ``ExportFailedError`` when it does not hold together: that is a bug of whoever made it.
    """

    inputs: tuple[Value, ...]
    outputs: tuple[str, ...]
    ops: tuple[Op, ...]
    constants: Mapping[str, np.ndarray]
    taps: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = {value.name for value in self.inputs} | set(self.constants)
        if len(known) < len(self.inputs) + len(self.constants):
            raise _broken("an input is called like a constant")
        for op in self.ops:
            _refuse_malformed(op)
            if missing := [name for name in op.inputs if name not in known]:
                raise _broken(f"{op.outputs[0].name} reads {missing[0]!r} before it is computed")
            for value in op.outputs:
                if value.name in known:
                    raise _broken(f"two values are called {value.name!r}")
                known.add(value.name)
        read = {name for op in self.ops for name in op.inputs} | set(self.outputs)
        if unread := [c for c in self.constants if c not in read]:
            raise _broken(f"nothing reads the constant {unread[0]!r}")
        if idle := [op for op in self.ops if not read & {value.name for value in op.outputs}]:
            raise _broken(f"nothing reads {idle[0].outputs[0].name!r}")
        if absent := {*self.outputs, *self.taps.values()} - known:
            raise _broken(f"there is no value {min(absent)!r}")

    @cached_property
    def values(self) -> Mapping[str, Value]:
        """Every input and every operator's output by its name."""
        made = [value for op in self.ops for value in op.outputs]
        return {value.name: value for value in (*self.inputs, *made)}

    @cached_property
    def readers(self) -> Mapping[str, tuple[Op, ...]]:
        """The operators that read a value or a constant."""
        found: dict[str, list[Op]] = {}
        for op in self.ops:
            for name in dict.fromkeys(op.inputs):
                found.setdefault(name, []).append(op)
        return {name: tuple(ops) for name, ops in found.items()}

    def shape(self, name: str) -> Shape:
        """The shape of a value or a constant."""
        return self.constants[name].shape if name in self.constants else self.values[name].shape

    def is_half(self, op: Op, keep: Collection[str]) -> bool:
        """Whether ``op`` computes in float16 where all but the blocks ``keep`` does.

        It stays in float32 where a constant that it reads exceeds float16.
        """
        read = (self.constants[name] for name in op.inputs if name in self.constants)
        return not is_within(op.block, keep) and not any(map(_exceeds_half, read))

    def ops_of(self, blocks: Collection[str]) -> Iterator[Op]:
        """The operators of ``blocks`` and of what lies inside them."""
        return (op for op in self.ops if is_within(op.block, blocks))

    def refuse_unknown(self, blocks: Collection[str]) -> None:
        """Raise ``UnknownNameError`` for a block that has no operator."""
        for block in blocks:
            if next(self.ops_of([block]), None) is None:
                raise UnknownNameError("block", block, {op.block for op in self.ops if op.block})

    def listing(self) -> str:
        """The network as text, a line for each operator, for people."""
        lines = [f"input {_described(value)}" for value in self.inputs]
        for op in self.ops:
            made = ", ".join(map(_described, op.outputs))
            said = "".join(f" {key}={value}" for key, value in sorted(op.attributes.items()))
            lines.append(f"{made} = {op.kind}({', '.join(op.inputs)}){said}")
        sizes = sum(array.nbytes for array in self.constants.values())
        lines.append(f"output {', '.join(self.outputs)}")
        lines.append(
            f"{len(self.ops)} operators, {len(self.constants)} constants of {sizes / 1e6:.2f} MB"
        )
        return "\n".join(lines)


def value_of_tap(tap: str) -> str:
    """What the value of a tap is called in files: ``stem.0`` is ``stem_0``."""
    return tap.replace(".", "_")


def is_within(block: str, blocks: Collection[str]) -> bool:
    """Whether ``block`` is one of ``blocks`` or lies inside one."""
    return any(block == each or block.startswith(f"{each}.") for each in blocks)


def _exceeds_half(array: np.ndarray) -> bool:
    if array.dtype.kind != "f":
        return False
    sizes = np.abs(array)
    return bool(np.max(sizes, initial=0.0, where=sizes < INFINITE) > FLOAT16_MAX)


def _described(value: Value) -> str:
    shape = ", ".join("B" if side is None else str(side) for side in value.shape)
    return f"{value.name} {value.dtype} ({shape})"


def _refuse_malformed(op: Op) -> None:
    kind = KINDS.get(op.kind)
    name = op.outputs[0].name if op.outputs else "?"
    if kind is None:
        raise _broken(f"{name} is a {op.kind!r}, which is not a kind of operator")
    if len(op.inputs) not in kind.inputs:
        raise _broken(f"{name} ({op.kind}) has {len(op.inputs)} inputs")
    if set(op.attributes) != kind.attributes:
        raise _broken(f"{name} ({op.kind}) has the attributes {sorted(op.attributes)}")
    if len(op.outputs) != 1 and op.kind != "split":
        raise _broken(f"{name} ({op.kind}) has {len(op.outputs)} outputs")


def _broken(why: str) -> ExportFailedError:
    return ExportFailedError(f"the network does not hold together: {why}", remedy="Report it.")
