"""What the evaluator knows about an op besides its formula."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from levit_export.formats.mil.elements import Element, Value

CONTEXT = frozenset({"specification"})
"""Arguments that the evaluator passes by itself, and that no op of a program may carry."""


@dataclass(frozen=True)
class Like:
    """Outputs have the element types of these parameters, in order."""

    names: tuple[str, ...]


@dataclass(frozen=True)
class Named:
    """All outputs have the element type that a parameter of type string names."""

    parameter: str


@dataclass(frozen=True)
class Op:
    """A row of :data:`levit_export.formats.mil.table.OPS`."""

    function: Callable[..., object]
    operands: tuple[str, ...] = ("x",)
    """Parameters that must be of the kinds below; all of one kind."""
    kinds: str = "f"
    """Kinds of element that ``operands`` may have: ``f`` float, ``i`` integer, ``b`` boolean."""
    result: Like | Named | Element | None = Like(())
    """Element types of the outputs (``Like(())``: that of the first operand; None: any)."""
    moves: bool = False
    """True if outputs hold unchanged input values (and may be views), so need no rounding."""
    choices: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """The values that a parameter of type string may have; a string parameter must be here."""
    variadic: str = ""
    """The parameter that takes any number of tensors, if there is one."""
    labels: str = ""
    """The parameter that takes a list of class labels, if there is one."""

    def unknown(self, given: frozenset[str]) -> frozenset[str]:
        """Parameters among ``given`` that the formula does not know."""
        return given - self._parameters[0]

    def missing(self, given: frozenset[str]) -> frozenset[str]:
        """Parameters that the formula needs and ``given`` lacks."""
        return self._parameters[1] - given

    @property
    def context(self) -> frozenset[str]:
        """Those of :data:`CONTEXT` that the formula takes."""
        return self._parameters[2]

    @property
    def _parameters(self) -> tuple[frozenset[str], frozenset[str], frozenset[str]]:
        return _signature(self.function)


@functools.cache
def _signature(
    function: Callable[..., object],
) -> tuple[frozenset[str], frozenset[str], frozenset[str]]:
    """Known parameters, required ones, and context arguments of an op's function."""
    parameters = inspect.signature(function).parameters.values()
    known = frozenset(p.name for p in parameters) - CONTEXT
    required = frozenset(p.name for p in parameters if p.default is p.empty) - CONTEXT
    return known, required, frozenset(p.name for p in parameters) & CONTEXT


Arguments = dict[str, Value | list[Value]]
"""Parameter name to value; a list of tensors for a variadic parameter."""
