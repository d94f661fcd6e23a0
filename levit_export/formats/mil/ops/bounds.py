"""Sizes and axes checked before memory is taken or an index is used."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from levit_export.formats.mil.elements import MAX_ELEMENTS, Array

IOS17 = 8
"""Specification version from which ``reshape`` and ``gather`` mean what they mean today."""


def bounded(shape: Iterable[int]) -> tuple[int, ...]:
    """``shape`` as a tuple of Python ints, once it is known to be small enough to allocate.

    An op can ask for more than its inputs hold (``fill``, ``tile``, ``pad``, broadcasting), so a
    few damaged bytes could otherwise exhaust memory.
    """
    sizes = tuple(int(n) for n in shape)
    if any(n < 0 for n in sizes):
        raise ValueError(f"negative size in shape {list(sizes)}")
    if math.prod(sizes) > MAX_ELEMENTS:
        raise ValueError(f"shape {list(sizes)} has more than {MAX_ELEMENTS} elements")
    return sizes


def joined(*operands: Array) -> tuple[int, ...]:
    """Shape to which ``operands`` broadcast, checked by :func:`bounded`."""
    shapes = {x.shape for x in operands}
    if len(shapes) == 1:
        return shapes.pop()
    return bounded(np.broadcast_shapes(*shapes))


def integers(values: Array) -> tuple[int, ...]:
    """A vector of integers (``axes``, ``shape``, ``strides`` ...) as Python ints."""
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise ValueError(f"a vector of integers is needed, got {values.dtype}{list(values.shape)}")
    return tuple(int(n) for n in values)


def integer(value: Array) -> int:
    """A scalar integer (``axis``, ``groups`` ...) as a Python int."""
    if value.ndim != 0 or value.dtype.kind not in "iu":
        raise ValueError(f"a scalar integer is needed, got {value.dtype}{list(value.shape)}")
    return int(value)


def flag(value: Array | None) -> bool:
    """A scalar boolean; ``None`` (an optional parameter left out) is False."""
    if value is None:
        return False
    if value.ndim != 0 or value.dtype.kind != "b":
        raise ValueError(f"a scalar boolean is needed, got {value.dtype}{list(value.shape)}")
    return bool(value)


def axis_of(axis: int, rank: int) -> int:
    """``axis`` counted from the front; negative axes count from the back."""
    if not -rank <= axis < rank:
        raise ValueError(f"axis {axis} is outside a tensor of rank {rank}")
    return axis % rank


def axes_of(axes: Array | None, rank: int) -> tuple[int, ...]:
    """Distinct axes counted from the front; ``None`` stands for all."""
    if axes is None:
        return tuple(range(rank))
    found = tuple(axis_of(axis, rank) for axis in integers(axes))
    if len(set(found)) != len(found):
        raise ValueError(f"axes {list(found)} name one axis twice")
    return found


def same_length(expected: int, **vectors: Sequence[int]) -> None:
    """Raise unless every vector has ``expected`` entries, one per axis."""
    for name, vector in vectors.items():
        if len(vector) != expected:
            raise ValueError(f"{name} {list(vector)} should have {expected} entries")
