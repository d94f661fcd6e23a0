"""Checks, when a package is loaded, that the evaluator knows an op in just the form it has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from levit_export.core.errors import LevitExportError, PackageError, UnsupportedOpError
from levit_export.formats.mil.elements import (
    BY_SHORT_NAME,
    DeclaredType,
    Element,
    OpaqueType,
    TensorType,
    Value,
)
from levit_export.formats.mil.operation import Arguments, Like, Named, Op
from levit_export.formats.mil.table import OPS

_SUPPORT = "Remove the op from the model, or add its formula to levit_export/formats/mil/table.py."


@dataclass(frozen=True)
class Operand:
    """One tensor given to an op: a name of the program, or a constant written in place."""

    name: str
    declared: DeclaredType
    constant: Value | None = None


@dataclass(frozen=True)
class Node:
    """An op of the program, checked and ready to run."""

    type: str
    op: Op
    operands: Mapping[str, tuple[Operand, ...]]
    outputs: tuple[tuple[str, DeclaredType], ...]
    context: Mapping[str, int]
    package: str
    """The package, for messages."""

    @property
    def label(self) -> str:
        """Op type, first output and package, as messages name an op."""
        return f"op {self.type!r} -> {self.outputs[0][0]!r} in {self.package}"

    @property
    def names(self) -> frozenset[str]:
        """Values of the program that the op needs."""
        return frozenset(
            o.name for many in self.operands.values() for o in many if o.constant is None
        )

    def arguments(self, values: Mapping[str, Value]) -> Arguments:
        """Arguments of the op's function."""
        found: Arguments = dict(self.context)  # type: ignore[arg-type]
        for parameter, many in self.operands.items():
            given = [values[o.name] if o.constant is None else o.constant for o in many]
            found[parameter] = given if parameter == self.op.variadic else given[0]
        return found


def bind(
    type_: str,
    operands: Mapping[str, tuple[Operand, ...]],
    outputs: Sequence[tuple[str, DeclaredType]],
    *,
    specification: int,
    package: str,
) -> Node:
    """The op as a checked :class:`Node`.

    Raises :class:`UnsupportedOpError` for what the evaluator does not know (type, parameter,
    option, element type) and :class:`PackageError` for what no op can mean.
    """
    label = f"op {type_!r} -> {outputs[0][0] if outputs else ''!r} in {package}"
    if type_ not in OPS:
        raise UnsupportedOpError(f"{label} is not known to the evaluator", remedy=_SUPPORT)
    op = OPS[type_]
    given = frozenset(operands)
    if op.unknown(given):
        raise UnsupportedOpError(
            f"{label} has parameters that are not known: {sorted(op.unknown(given))}",
            remedy=_SUPPORT,
        )
    if op.missing(given) or not outputs:
        raise PackageError(
            f"{label} lacks parameters {sorted(op.missing(given))} or outputs",
            remedy="Export the model again.",
        )
    context = dict.fromkeys(op.context, specification)
    node = Node(type_, op, operands, tuple(outputs), context, package)
    for parameter, many in operands.items():
        _check_parameter(node, parameter, many)
    _check_kinds(node)
    _check_results(node)
    return node


def _check_parameter(node: Node, parameter: str, many: tuple[Operand, ...]) -> None:
    """Count, and options against those that the formula knows."""
    if len(many) != 1 and (parameter != node.op.variadic or not many):
        raise _mismatch(node, f"{len(many)} values for {parameter!r}")
    for operand in many:
        declared = operand.declared
        if parameter in node.op.choices:
            value = operand.constant
            if not isinstance(value, str):
                raise _mismatch(node, f"{parameter!r} is not a constant string")
            if value not in node.op.choices[parameter]:
                raise UnsupportedOpError(
                    f"{node.label} has {parameter} {value!r}",
                    remedy=f"Known are {', '.join(sorted(node.op.choices[parameter]))}.",
                )
        elif parameter == node.op.labels:
            if not isinstance(operand.constant, list):
                raise _mismatch(node, f"{parameter!r} is not a constant list")
        elif not isinstance(declared, TensorType) or declared.element.kind == "s":
            raise _mismatch(node, f"{parameter!r} is a {declared}, not a tensor of numbers")


def _check_kinds(node: Node) -> None:
    """Operands are of a kind that the formula is for, and of the same kind."""
    kinds = {
        _element(node, operand).kind
        for parameter in node.op.operands
        for operand in node.operands.get(parameter, ())
    }
    if len(kinds) > 1:
        raise _mismatch(node, f"{', '.join(node.op.operands)} mix floats and integers")
    if not kinds <= set(node.op.kinds):
        raise UnsupportedOpError(
            f"{node.label} works on elements of kind {kinds.pop()!r}",
            remedy=f"It is known for kinds {node.op.kinds!r} (float, integer, boolean).",
        )


def _check_results(node: Node) -> None:
    """Outputs are declared with the element type that the op gives."""
    result = node.op.result
    if result is None:
        return
    if isinstance(result, Element):
        expected = [result]
    elif isinstance(result, Named):
        expected = [BY_SHORT_NAME[str(node.operands[result.parameter][0].constant)]]
    else:
        expected = [
            _only(node, [_element(node, o) for o in node.operands[name]])
            for name in _typed_like(node, result)
        ]
    if len(expected) == 1:
        expected *= len(node.outputs)
    for (name, declared), element in zip(node.outputs, expected, strict=False):
        if not isinstance(declared, TensorType) or declared.element != element:
            raise _mismatch(
                node, f"output {name!r} is {declared}, but the op gives {element.name}"
            )


def _typed_like(node: Node, result: Like) -> tuple[str, ...]:
    return result.names or next((name,) for name in node.op.operands if name in node.operands)


def _only(node: Node, elements: list[Element]) -> Element:
    if len(set(elements)) != 1:
        raise _mismatch(node, f"operands of types {sorted({e.name for e in elements})} differ")
    return elements[0]


def _element(node: Node, operand: Operand) -> Element:
    if isinstance(operand.declared, OpaqueType):
        raise _mismatch(node, f"{operand.name!r} is a {operand.declared}")
    return operand.declared.element


def _mismatch(node: Node, what: str) -> LevitExportError:
    return PackageError(f"{node.label}: {what}", remedy="Export the model again.")
