"""Integers are computed exactly, or refused: what Core ML gives for an overflow is not documented.

Every op that computes with integers goes through :func:`checked`, and every op that gives its
numbers as a smaller integer type through :func:`narrowed`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from levit_export.formats.mil.elements import Array


def checked(formula: Callable[..., Any], *operands: Array) -> Array:
    """``formula(*operands)``; of integers the exact numbers, refused if their type lacks one.

    In int64, sums, products, quotients and powers are the exact number ``e`` but for a multiple of
    ``2**64``: ``i = e + k 2**64``. In float64 they are ``f``, whose error is below ``2**63``, or
    small beside an ``e`` that int64 lacks. So ``|f - i| < 2**63`` exactly if ``k = 0``. (Only a
    sum of ``2**27`` products of int32 could be further off, of operands of 512 MiB each.)
    """
    if operands[0].dtype.kind == "f":
        return np.asarray(formula(*operands))
    held = np.result_type(*operands)
    i = np.asarray(formula(*(x.astype(np.int64) for x in operands)))
    f = np.asarray(formula(*(x.astype(np.float64) for x in operands)))
    y = i.astype(held)
    # Where f is NaN, float64 multiplied 0 by infinity, and i is the exact 0.
    wrapped, longer = np.abs(f - i) >= 2.0**63, y != i
    if wrapped.any() or longer.any():
        raise _not_held((f[wrapped] if wrapped.any() else i[longer])[0], held)
    return y


def narrowed(numbers: Array, target: npt.DTypeLike) -> Array:
    """Whole ``numbers`` as integers of the type ``target``; refused unless it holds them all."""
    limits = np.iinfo(target)
    # As Python's numbers, because NumPy compares float32 with an integer rounded to float32.
    for number in (numbers.min().item(), numbers.max().item()) if numbers.size else ():
        if not limits.min <= number <= limits.max:
            raise _not_held(number, limits.dtype)
    return numbers.astype(target)


def _not_held(number: float, held: np.dtype[Any]) -> NotImplementedError:
    return NotImplementedError(f"the number {number}, which {held} does not hold,")
