"""The main function of a program as a checked list of ops.

MIL is in static single assignment: an op may use only names that an op before it, or an input,
defines, and each name is defined once. Anything else is damage.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from levit_export.core.errors import UnsupportedOpError
from levit_export.formats.mil.binding import SUPPORT, Node, Operand, bind, evaluate
from levit_export.formats.mil.elements import DeclaredType, TensorType, Value
from levit_export.formats.mil.package import damaged
from levit_export.formats.mil.table import LEFT_OUT, OPS
from levit_export.formats.mil.values import Reader

_OPSETS = {"CoreML5": 6, "CoreML6": 7, "CoreML7": 8, "CoreML8": 9, "CoreML9": 10}
"""Specification version (6 is iOS 15) by the name of its op set."""


@dataclass(frozen=True)
class Graph:
    """Inputs, ops in order, outputs, and the declared type of every name.

    ``parts`` are the constants that serve only to store others, or to put activations on a grid:
    packed numbers, scales, offsets, palettes.
    """

    inputs: Mapping[str, TensorType]
    nodes: tuple[Node, ...]
    outputs: tuple[str, ...]
    types: Mapping[str, DeclaredType]
    constants: Mapping[str, Value]
    parts: frozenset[str]
    op_types: Counter[str]
    bits: Mapping[str, float]
    """How many bits the file spends on each number of a constant, those of its parts included."""


@dataclass
class _Builder:
    """What is known of a block while its ops are read in order."""

    reader: Reader
    specification: int
    later: frozenset[str]
    types: dict[str, DeclaredType] = field(default_factory=dict)
    constants: dict[str, Value] = field(default_factory=dict)
    bits: dict[str, float] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)
    stored: set[str] = field(default_factory=set)
    """Names that ops of compression take."""
    computed: set[str] = field(default_factory=set)
    """Names that any other op takes."""

    def define(self, name: str, declared: DeclaredType) -> None:
        if not name or name in self.types:
            raise damaged(self.reader.package.root, f"the name {name!r} is empty or defined twice")
        self.types[name] = declared

    def operand(self, name: str, user: str) -> Operand:
        if name not in self.types:
            why = (
                "only defined by a later op (a cycle, or ops out of order)"
                if name in self.later
                else "never defined"
            )
            raise damaged(self.reader.package.root, f"{user} uses {name!r}, which is {why}")
        return Operand(name, self.types[name], self.constants.get(name))

    def literal(self, message: Any, where: str) -> Operand:
        value, declared = self.reader.constant(message, where)
        return Operand("", declared, value)


def read_graph(function: Any, reader: Reader, *, specification: int) -> Graph:
    """Read the ``Function`` message ``main``.

    Ops that depend on no input (compressed weights above all) are evaluated here, once. Raises
    :class:`PackageError` and :class:`UnsupportedOpError`.
    """
    block = _block(function, reader)
    builder = _Builder(
        reader,
        min(specification, _OPSETS[function.opset]),
        frozenset(o.name for op in block.operations for o in op.outputs),
    )
    _check_types(block, reader)
    inputs = {}
    for message in function.inputs:
        declared = reader.declared(message.type, f"input {message.name!r}")
        if not isinstance(declared, TensorType):
            raise damaged(reader.package.root, f"input {message.name!r} is a {declared}")
        builder.define(message.name, declared)
        inputs[message.name] = declared
    for operation in block.operations:
        _read_operation(operation, builder)
    for name in block.outputs:
        builder.operand(name, "the list of outputs")
    return Graph(
        inputs,
        tuple(builder.nodes),
        tuple(dict.fromkeys(block.outputs)),
        builder.types,
        builder.constants,
        frozenset(builder.stored - builder.computed - set(block.outputs)),
        Counter(operation.type for operation in block.operations),
        builder.bits,
    )


def _block(function: Any, reader: Reader) -> Any:
    root = reader.package.root
    if function.opset not in _OPSETS:
        raise UnsupportedOpError(
            f"{root} uses op set {function.opset!r}",
            remedy=f"Export for one of {', '.join(_OPSETS)} (iOS 15 to 26).",
        )
    if list(function.block_specializations) != [function.opset]:
        found = sorted(function.block_specializations)
        raise damaged(root, f"main has code for {found}, not for {function.opset!r} alone")
    block = function.block_specializations[function.opset]
    if block.inputs:
        raise damaged(root, "the block of main has inputs of its own")
    return block


def unknown_ops(block: Any) -> Counter[str]:
    """How many ops of each type the block has that the evaluator does not know."""
    types = Counter(operation.type for operation in block.operations)
    return Counter({t: n for t, n in types.items() if t not in OPS and t != "const"})


def _check_types(block: Any, reader: Reader) -> None:
    """Refuse unknown ops all at once: whoever repairs a model wants to know them all."""
    unknown = unknown_ops(block)
    if not unknown:
        return
    first = next(o for o in block.operations if o.type in unknown)
    name = first.outputs[0].name if first.outputs else ""
    listed = ", ".join(
        f"{type_} ({n}{': ' + LEFT_OUT[type_] if type_ in LEFT_OUT else ''})"
        for type_, n in unknown.most_common()
    )
    raise UnsupportedOpError(
        f"{reader.package.root} has {sum(unknown.values())} ops that the evaluator does not know, "
        f"{first.type!r} -> {name!r} the first: {listed}",
        remedy=SUPPORT,
    )


def _read_operation(message: Any, builder: _Builder) -> None:
    outputs = [
        (o.name, builder.reader.declared(o.type, f"output {o.name!r}")) for o in message.outputs
    ]
    label = f"op {message.type!r} -> {outputs[0][0] if outputs else ''!r}"
    if message.blocks:
        raise UnsupportedOpError(
            f"{label} in {builder.reader.package.root} has nested blocks (control flow)",
            remedy="Export a model without loops and conditions.",
        )
    if message.type == "const":
        _read_constant(message, outputs, label, builder)
        return
    node = bind(
        message.type,
        _operands(message, label, builder),
        outputs,
        specification=builder.specification,
        package=str(builder.reader.package.root),
    )
    for name, declared in outputs:
        builder.define(name, declared)
    taken = {o.name for many in node.operands.values() for o in many}
    (builder.stored if _is_compression(node.type) else builder.computed).update(taken)
    if node.names:
        builder.nodes.append(node)
        return
    values = dict(zip((n for n, _ in outputs), evaluate(node, {}), strict=True))
    builder.constants.update(values)
    spent = sum(
        builder.bits.get(operand.name, operand.declared.element.bits) * np.size(operand.constant)
        for many in node.operands.values()
        for operand in many
        if isinstance(operand.declared, TensorType) and isinstance(operand.constant, np.ndarray)
    )
    for name, value in values.items():
        builder.bits[name] = spent / (value.size or 1) if isinstance(value, np.ndarray) else 0


def _is_compression(type_: str) -> bool:
    return type_.startswith("constexpr_") or type_ in ("quantize", "dequantize")


def _read_constant(
    message: Any, outputs: list[tuple[str, DeclaredType]], label: str, builder: _Builder
) -> None:
    root = builder.reader.package.root
    if len(outputs) != 1 or message.inputs or set(message.attributes) - {"name"} != {"val"}:
        raise damaged(root, f"{label} should have one output and one attribute 'val'")
    value, declared = builder.reader.constant(message.attributes["val"], label)
    name, expected = outputs[0]
    if declared != expected:
        raise damaged(root, f"{label} is declared as {expected} but holds {declared}")
    builder.define(name, expected)
    builder.constants[name] = value
    if isinstance(expected, TensorType):
        builder.bits[name] = expected.element.bits


def _operands(message: Any, label: str, builder: _Builder) -> dict[str, tuple[Operand, ...]]:
    """Parameters of an op: its inputs, and attributes (compressed weights up to iOS 17)."""
    found = {}
    for parameter, argument in message.inputs.items():
        where = f"{parameter!r} of {label}"
        found[parameter] = tuple(
            builder.operand(binding.name, where)
            if binding.WhichOneof("binding") == "name"
            else builder.literal(binding.value, where)
            for binding in argument.arguments
        )
    for parameter, value in message.attributes.items():
        if parameter in found:
            raise damaged(
                builder.reader.package.root, f"{label} has {parameter!r} as input and attribute"
            )
        if parameter != "name":
            found[parameter] = (builder.literal(value, f"{parameter!r} of {label}"),)
    return found
