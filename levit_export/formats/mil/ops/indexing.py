"""Values taken from, and put at, places that another tensor holds.

Source: coremltools, MIL op sets ``scatter_gather`` and ``tensor_operation``. An index outside its
axis has no documented result and is refused whatever ``validate_indices`` says; negative indices
count from the end before iOS 17 and are outside since. Where one place is written more than once,
the order is that of the updates; Core ML promises none.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from levit_export.formats.mil.elements import Array
from levit_export.formats.mil.ops.bounds import (
    IOS17,
    axis_of,
    bounded,
    flag,
    integer,
    joined,
)
from levit_export.formats.mil.ops.overflow import checked


def gather(
    x: Array,
    indices: Array,
    *,
    axis: Array | None = None,
    batch_dims: Array | None = None,
    validate_indices: Array | None = None,
    specification: int,
) -> Array:
    """``y[p, i, q] = x[p, indices[i], q]``, where ``p`` runs over the axes before ``axis``.

    The first ``batch_dims`` axes of ``x`` and ``indices`` go together.
    """
    flag(validate_indices)
    along = axis_of(0 if axis is None else integer(axis), x.ndim)
    batch = 0 if batch_dims is None else integer(batch_dims)
    if not 0 <= batch <= min(along, indices.ndim) or x.shape[:batch] != indices.shape[:batch]:
        raise ValueError(f"batch_dims {batch} does not fit {list(x.shape)} at axis {along}")
    places = _inside(indices, x.shape[along], specification)
    shape = bounded((*x.shape[:along], *places.shape[batch:], *x.shape[along + 1 :]))
    if batch == 0:
        return np.asarray(np.take(x, places, axis=along))
    lead = math.prod(x.shape[:batch])
    rows = zip(
        x.reshape(lead, *x.shape[batch:]),
        places.reshape(lead, *places.shape[batch:]),
        strict=True,
    )
    return np.stack([np.take(row, i, axis=along - batch) for row, i in rows]).reshape(shape)


def gather_along_axis(
    x: Array,
    indices: Array,
    *,
    axis: Array | None = None,
    validate_indices: Array | None = None,
    specification: int,
) -> Array:
    """``y[p, i, q] = x[p, indices[p, i, q], q]``."""
    flag(validate_indices)
    along = axis_of(0 if axis is None else integer(axis), x.ndim)
    return np.take_along_axis(x, _inside(indices, x.shape[along], specification), axis=along)


def gather_nd(
    x: Array,
    indices: Array,
    *,
    batch_dims: Array | None = None,
    validate_indices: Array | None = None,
    specification: int,
) -> Array:
    """``y[b, i, q] = x[b, indices[b, i, 0], ..., indices[b, i, K - 1], q]``.

    ``b`` runs over the first ``batch_dims`` axes, ``K`` is the last size of ``indices``.
    """
    flag(validate_indices)
    batch = 0 if batch_dims is None else integer(batch_dims)
    if not 0 <= batch < max(indices.ndim, 1) or x.shape[:batch] != indices.shape[:batch]:
        raise ValueError(f"batch_dims {batch} does not fit {list(x.shape)}")
    places = _places(indices, x.shape[batch:], specification)
    bounded((*indices.shape[:-1], *x.shape[batch + len(places) :]))
    lead = np.ix_(*map(np.arange, x.shape[:batch])) if batch else ()
    trailing = indices.ndim - 1 - batch
    where = (*(i.reshape(*i.shape, *(1,) * trailing) for i in lead), *places)
    return np.asarray(x[where])


def scatter(
    data: Array,
    indices: Array,
    updates: Array,
    *,
    axis: Array | None = None,
    mode: str = "add",
    validate_indices: Array | None = None,
    specification: int,
) -> Array:
    """``y = data``, but ``y[p, indices[i], q] = mode(data[p, indices[i], q], updates[p, i, q])``.

    ``p`` runs over the axes before ``axis``.
    """
    flag(validate_indices)
    along = axis_of(0 if axis is None else integer(axis), data.ndim)
    places = _inside(indices, data.shape[along], specification)
    return _put(data, (*(slice(None),) * along, places), updates, mode)


def scatter_along_axis(
    data: Array,
    indices: Array,
    updates: Array,
    *,
    axis: Array | None = None,
    mode: str = "add",
    validate_indices: Array | None = None,
    specification: int,
) -> Array:
    """``y = data``, but ``y[p, k, q] = mode(data[p, k, q], updates[p, i, q])``.

    ``k = indices[p, i, q]`` is the place along ``axis``.
    """
    flag(validate_indices)
    along = axis_of(0 if axis is None else integer(axis), data.ndim)
    if indices.shape != updates.shape or indices.ndim != data.ndim:
        raise ValueError(f"indices {list(indices.shape)} and updates {list(updates.shape)} differ")
    places = list(np.ix_(*map(np.arange, indices.shape)))
    places[along] = _inside(indices, data.shape[along], specification)
    return _put(data, tuple(places), updates, mode)


def scatter_nd(
    data: Array,
    indices: Array,
    updates: Array,
    *,
    mode: str = "add",
    validate_indices: Array | None = None,
    specification: int,
) -> Array:
    """``y = data``, but ``y[k, q] = mode(data[k, q], updates[i, q])`` for ``k = indices[i]``."""
    flag(validate_indices)
    return _put(data, _places(indices, data.shape, specification), updates, mode)


def select(cond: Array, a: Array, b: Array) -> Array:
    """``a`` where ``cond`` is True, else ``b``; all three broadcast."""
    joined(cond, a, b)
    if cond.dtype.kind != "b":
        raise ValueError(f"cond should be boolean, not {cond.dtype}")
    return np.where(cond, a, b)


def non_zero(x: Array) -> Array:
    """The places of elements other than 0, one a row, as int32 ``[N, rank]``."""
    return np.argwhere(x).astype(np.int32)


def one_hot(
    indices: Array,
    one_hot_vector_size: Array,
    on_value: Array,
    off_value: Array,
    *,
    axis: Array | None = None,
) -> Array:
    """``on_value`` at ``indices[i]`` along a new ``axis`` (the last), ``off_value`` elsewhere."""
    size = integer(one_hot_vector_size)
    where = axis_of(-1 if axis is None else integer(axis), indices.ndim + 1)
    bounded((*indices.shape, size))
    bounded((size,))  # also where there are no indices
    if indices.size and not 0 <= indices.min() <= indices.max() < size:
        raise _outside(indices, 0, size)
    hot = np.expand_dims(indices, where) == np.expand_dims(
        np.arange(size), [a for a in range(indices.ndim + 1) if a != where]
    )
    return np.where(hot, on_value, off_value)


def _set(y: Array, places: Any, values: Array) -> None:
    y[places] = values


MODES: dict[str, Callable[..., None]] = {
    "update": _set,
    "add": np.add.at,
    "sub": np.subtract.at,
    "mul": np.multiply.at,
    "div": np.divide.at,
    "max": np.maximum.at,
    "min": np.minimum.at,
}
"""What ``scatter`` does with the value at a place and its update."""


def _put(data: Array, places: Any, updates: Array, mode: str) -> Array:
    if mode == "div" and data.dtype.kind != "f":
        raise NotImplementedError("division of integers")
    if data[places].shape != updates.shape:
        raise ValueError(f"updates {list(updates.shape)} do not fit {list(data[places].shape)}")

    def put(values: Array, new: Array) -> Array:
        y: Array = values.copy()
        MODES[mode](y, places, new)
        return y

    return checked(put, data, updates)


def _inside(indices: Array, size: int, specification: int) -> Array:
    """``indices`` counted from the front; refused unless all lie inside the axis."""
    lowest = 0 if specification >= IOS17 else -size
    if indices.dtype.kind not in "iu":
        raise ValueError(f"indices should be integers, not {indices.dtype}")
    if indices.size and not lowest <= indices.min() <= indices.max() < size:
        raise _outside(indices, lowest, size)
    whole = indices.astype(np.int64)
    return np.where(whole < 0, whole + size, whole)


def _outside(indices: Array, lowest: int, size: int) -> NotImplementedError:
    return NotImplementedError(
        f"an index outside [{lowest}, {size}) (they run from {indices.min()} to {indices.max()})"
    )


def _places(indices: Array, sizes: tuple[int, ...], specification: int) -> tuple[Array, ...]:
    """The last axis of ``indices`` as one array of places for each of the first ``sizes``."""
    if indices.ndim < 1 or indices.shape[-1] > len(sizes):
        raise ValueError(f"indices {list(indices.shape)} do not fit {list(sizes)}")
    return tuple(
        _inside(indices[..., k], size, specification)
        for k, size in zip(range(indices.shape[-1]), sizes, strict=False)
    )
