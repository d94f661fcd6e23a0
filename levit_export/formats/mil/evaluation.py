"""One op: call its formula, hold the result to what the program declares."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from levit_export.core.errors import PackageError
from levit_export.formats.mil.binding import Node
from levit_export.formats.mil.elements import Array, DeclaredType, OpaqueType, Value
from levit_export.formats.mil.rounding import round_to_half_

_RAISED = (ValueError, TypeError, IndexError, ArithmeticError, MemoryError)
"""What a formula, or NumPy in it, raises for arguments that make no sense."""


def evaluate(node: Node, values: Mapping[str, Value]) -> tuple[Value, ...]:
    """The outputs of ``node``, rounded to their declared types.

    Floating-point overflow gives infinity and an invalid operation gives NaN, as in the hardware
    that is modelled: NumPy's warnings about these are silenced, nothing else is.

    Raises :class:`PackageError` if the op makes no sense for its operands, or if a shape or type
    differs from the declared one.
    """
    try:
        with np.errstate(over="ignore", under="ignore", divide="ignore", invalid="ignore"):
            found = node.op.function(**node.arguments(values))
    except _RAISED as error:
        raise PackageError(f"{node.label}: {error}", remedy="Export the model again.") from error
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
    if array.shape != declared.shape or array.dtype != declared.element.held_as:
        raise _differs(node, name, declared, f"{array.dtype}{list(array.shape)}")
    if declared.element.is_half and not node.op.moves:
        _round_(array)
    return array


def _round_(array: Array) -> None:
    """Formulas give new arrays, so that rounding in place changes nothing else."""
    round_to_half_(array)


def _differs(node: Node, name: str, declared: DeclaredType, found: str) -> PackageError:
    return PackageError(
        f"{node.label}: output {name!r} is declared as {declared}, computed as {found}",
        remedy="The package is damaged or was edited; export the model again.",
    )
