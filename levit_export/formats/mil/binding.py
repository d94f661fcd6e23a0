"""One op of a program: checked when a package is loaded, computed when it runs.

:func:`bind` makes sure that the evaluator knows an op in just the form it has; :func:`evaluate`
calls its formula and holds the result to what the program declares.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from levit_export.core.errors import LevitExportError, PackageError, UnsupportedOpError
from levit_export.formats.mil.elements import (
    BY_SHORT_NAME,
    DeclaredType,
    Element,
    OpaqueType,
    TensorType,
    Value,
)
from levit_export.formats.mil.rounding import round_to_half_
from levit_export.formats.mil.table import OPS, Arguments, Like, Named, OpRow, Variable

SUPPORT = "Remove the op from the model, or add its formula to levit_export/formats/mil/table.py."
_RAISED = (ValueError, TypeError, IndexError, ArithmeticError, MemoryError)
"""What a formula, or NumPy in it, raises for arguments that make no sense."""


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
    op: OpRow
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

    @functools.cached_property
    def is_exact(self) -> bool:
        """Whether a float16 output needs no rounding: the op is exact, and its operands are so."""
        operands = [o for name in self.op.operands for o in self.operands.get(name, ())]
        return self.op.exact and all(
            isinstance(o.declared, TensorType)
            and (o.declared.element.is_half or o.declared.element.kind != "f")
            for o in operands
        )

    def arguments(self, values: Mapping[str, Value]) -> Arguments:
        """Arguments of the op's function."""
        found: Arguments = dict(self.context)  # type: ignore[arg-type]
        for parameter, many in self.operands.items():
            given = [values[o.name] if o.constant is None else o.constant for o in many]
            found[parameter] = given if parameter in self.op.variadic else given[0]
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

    ``type_`` is one of :data:`OPS`. Raises :class:`UnsupportedOpError` for what the evaluator does
    not know of it (parameter, option, element type) and :class:`PackageError` for what no op can
    mean.
    """
    label = f"op {type_!r} -> {outputs[0][0] if outputs else ''!r} in {package}"
    op = OPS[type_]
    given = frozenset(operands)
    if op.unknown(given):
        raise UnsupportedOpError(
            f"{label} has parameters that are not known: {sorted(op.unknown(given))}",
            remedy=SUPPORT,
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
    _check_kinds(node, specification)
    _check_results(node)
    return node


def evaluate(node: Node, values: Mapping[str, Value]) -> tuple[Value, ...]:
    """The outputs of ``node``, rounded to their declared types.

    Floating-point overflow gives infinity and an invalid operation gives NaN, as in the hardware
    that is modelled: NumPy's warnings about these are silenced, nothing else is.

    Raises :class:`UnsupportedOpError` for numbers of which it is not documented what the op makes,
    :class:`PackageError` if the op makes no sense for its operands, or if a shape or type differs
    from the declared one.
    """
    try:
        with np.errstate(over="ignore", under="ignore", divide="ignore", invalid="ignore"):
            found = node.op.function(**node.arguments(values))
    except NotImplementedError as error:
        raise UnsupportedOpError(
            f"{node.label}: {error} is not evaluated",
            remedy="Give it other numbers or options, or remove the op from the model.",
        ) from error
    except _RAISED as error:
        other = "Give it other inputs, or export" if node.names else "Export"
        raise PackageError(f"{node.label}: {error}", remedy=f"{other} the model again.") from error
    results = found if isinstance(found, tuple) else (found,)
    if len(results) != len(node.outputs):
        raise PackageError(
            f"{node.label} gives {len(results)} values, the program declares {len(node.outputs)}",
            remedy="Export the model again.",
        )
    return tuple(
        _declared(node, result, name, declared)
        for result, (name, declared) in zip(results, node.outputs, strict=True)
    )


def _declared(node: Node, result: object, name: str, declared: DeclaredType) -> Value:
    if isinstance(declared, OpaqueType) or declared.element.kind == "s":
        wanted = str if not isinstance(declared, OpaqueType) else dict
        if not isinstance(result, wanted):
            raise _differs(node, name, declared, type(result).__name__)
        return result
    array = np.asarray(result)
    if not declared.admits(array.shape) or array.dtype != declared.element.held_as:
        raise _differs(node, name, declared, f"{array.dtype}{list(array.shape)}")
    if declared.element.is_half and not node.is_exact:
        # A formula that computes gives new arrays: rounding in place changes nothing else. (One
        # that only moves values may not, but for operands of another type than its output.)
        if not array.flags.writeable or node.op.exact:
            array = array.copy()
        round_to_half_(array)
    return array


def _differs(node: Node, name: str, declared: DeclaredType, found: str) -> PackageError:
    return PackageError(
        f"{node.label}: output {name!r} is declared as {declared}, computed as {found}",
        remedy="The package is damaged or was edited; export the model again.",
    )


def _check_parameter(node: Node, parameter: str, many: tuple[Operand, ...]) -> None:
    """As many values as the formula takes, and of a type that it takes."""
    if len(many) != 1 and (parameter not in node.op.variadic or not many):
        raise _mismatch(node, f"{len(many)} values for {parameter!r}")
    for operand in many:
        if parameter in node.op.choices or parameter in node.op.strings:
            _check_option(node, parameter, operand.constant)
        elif parameter == node.op.labels:
            if not isinstance(operand.constant, list):
                raise _mismatch(node, f"{parameter!r} is not a constant list")
        elif not isinstance(operand.declared, TensorType) or operand.declared.element.kind == "s":
            raise _mismatch(
                node, f"{parameter!r} is a {operand.declared}, not a tensor of numbers"
            )


def _check_option(node: Node, parameter: str, value: Value | None) -> None:
    """A string that the formula knows, or judges by itself."""
    if not isinstance(value, str):
        raise _mismatch(node, f"{parameter!r} is not a constant string")
    choices = node.op.choices.get(parameter, frozenset({value}))
    if value not in choices:
        raise UnsupportedOpError(
            f"{node.label} has {parameter} {value!r}",
            remedy=f"Known are {', '.join(sorted(choices))}.",
        )


def _check_kinds(node: Node, specification: int) -> None:
    """Operands are of a kind that the formula is for, and of the same kind."""
    operands = [o for name in node.op.operands for o in node.operands.get(name, ())]
    kinds = {_element(node, operand).kind for operand in operands}
    varying = {_element(node, operand).kind for operand in operands if operand.constant is None}
    if len(kinds) > 1 and (specification < 8 or len(varying) != 1):
        raise _mismatch(node, f"{', '.join(node.op.operands)} are of different kinds")
    if len(kinds) > 1:  # a constant may be of another kind for some ops since iOS 17
        raise UnsupportedOpError(
            f"{node.label} has {', '.join(node.op.operands)} of floats and integers together",
            remedy="Known is the op for operands of one kind.",
        )
    if not kinds <= set(node.op.kinds):
        raise UnsupportedOpError(
            f"{node.label} works on elements of kind {kinds.pop()!r}",
            remedy=f"It is known for kinds {node.op.kinds!r} (float, integer, boolean).",
        )


def _check_results(node: Node) -> None:
    """Outputs are declared with the element types that the op gives."""
    rules = node.op.results
    for index, (name, declared) in enumerate(node.outputs if rules else ()):
        rule = rules[min(index, len(rules) - 1)]
        element = rule if isinstance(rule, Element) else _given_by(node, rule)
        if not isinstance(declared, TensorType) or declared.element != element:
            raise _mismatch(
                node, f"output {name!r} is {declared}, but the op gives {element.name}"
            )


def _given_by(node: Node, rule: Like | Named | Variable) -> Element:
    if isinstance(rule, Named):
        named = node.operands.get(rule.parameter)
        return BY_SHORT_NAME[rule.default if named is None else str(named[0].constant)]
    if isinstance(rule, Like):
        name = rule.name or next(name for name in node.op.operands if name in node.operands)
        decisive = node.operands[name]
    else:
        both = [operand for name in rule.names for operand in node.operands[name]]
        decisive = tuple(o for o in both if o.constant is None) or tuple(both)
    elements = [_element(node, operand) for operand in decisive]
    if len(set(elements)) != 1:
        raise _mismatch(node, f"operands of types {sorted({e.name for e in elements})} differ")
    return elements[0]


def _element(node: Node, operand: Operand) -> Element:
    if isinstance(operand.declared, OpaqueType):
        raise _mismatch(node, f"{operand.name!r} is a {operand.declared}")
    return operand.declared.element


def _mismatch(node: Node, what: str) -> LevitExportError:
    return PackageError(f"{node.label}: {what}", remedy="Export the model again.")
