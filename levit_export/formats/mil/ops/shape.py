"""Ops that move, select or repeat values without computing with them.

Source: coremltools, MIL op sets ``tensor_transformation``, ``tensor_operation`` and
``scatter_gather``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from levit_export.formats.mil.elements import Array
from levit_export.formats.mil.ops.bounds import axes_of, axis_of, bounded, flag, integer, integers

IOS17 = 8
"""Specification version from which ``reshape`` and ``gather`` mean what they mean today."""


def identity(x: Array) -> Array:
    """``x`` under another name."""
    return x


def reshape(x: Array, shape: Array, *, specification: int) -> Array:
    """The elements of ``x`` in row-major order, as ``shape``.

    One ``-1`` is deduced from the rest. A ``0`` takes the size of ``x`` at the same axis; since
    iOS 17 axes are matched from the right and one without a counterpart becomes 1, before that the
    ranks must agree.
    """
    target = list(integers(shape))
    if 0 in target and specification < IOS17 and len(target) != x.ndim:
        raise ValueError(f"shape {target} with a 0 needs rank {x.ndim}, that of x")
    for back in range(1, len(target) + 1):
        if target[-back] == 0:
            target[-back] = x.shape[-back] if back <= x.ndim else 1
    if any(n < -1 for n in target):
        raise ValueError(f"negative size in shape {target}")
    return np.asarray(x.reshape(target))


def transpose(x: Array, perm: Array) -> Array:
    """Axis ``i`` of the result is axis ``perm[i]`` of ``x``."""
    return np.transpose(x, axes_of(perm, x.ndim))


def expand_dims(x: Array, axes: Array) -> Array:
    """``x`` with axes of size 1 at the positions ``axes`` of the result."""
    return np.expand_dims(x, axes_of(axes, x.ndim + len(integers(axes))))


def squeeze(x: Array, *, axes: Array | None = None) -> Array:
    """``x`` without those of ``axes`` (all when left out) that have size 1."""
    return x.squeeze(tuple(a for a in axes_of(axes, x.ndim) if x.shape[a] == 1))


def slice_by_index(
    x: Array,
    begin: Array,
    end: Array,
    *,
    stride: Array | None = None,
    begin_mask: Array | None = None,
    end_mask: Array | None = None,
    squeeze_mask: Array | None = None,
) -> Array:
    """``x[begin : end : stride]`` on every axis.

    A set ``begin_mask`` or ``end_mask`` leaves that bound open. A set ``squeeze_mask`` takes the
    single element ``begin`` and drops the axis.
    """
    first, last = _per_axis(x, begin, "begin"), _per_axis(x, end, "end")
    steps = (1,) * x.ndim if stride is None else _per_axis(x, stride, "stride")
    open_first, open_last = _mask(x, begin_mask), _mask(x, end_mask)
    single = _mask(x, squeeze_mask)
    return x[
        tuple(
            (0 if open_first[axis] else first[axis])
            if single[axis]
            else slice(
                None if open_first[axis] else first[axis],
                None if open_last[axis] else last[axis],
                steps[axis],
            )
            for axis in range(x.ndim)
        )
    ]


def slice_by_size(x: Array, begin: Array, size: Array) -> Array:
    """``size`` elements from ``begin`` on every axis; a size of ``-1`` takes all that remain."""
    first, many = _per_axis(x, begin, "begin"), _per_axis(x, size, "size")
    slices = []
    for n, b, s in zip(x.shape, first, many, strict=True):
        start = b + n if b < 0 else b
        stop = n if s == -1 else start + s
        if not 0 <= start <= stop <= n:
            raise ValueError(f"{s} elements from {b} do not fit an axis of {n}")
        slices.append(slice(start, stop))
    return x[tuple(slices)]


def split(
    x: Array,
    axis: Array,
    *,
    num_splits: Array | None = None,
    split_sizes: Array | None = None,
) -> tuple[Array, ...]:
    """``x`` cut along ``axis`` into pieces of ``split_sizes``, or ``num_splits`` equal ones."""
    along = axis_of(integer(axis), x.ndim)
    total = x.shape[along]
    if split_sizes is not None:
        sizes: Sequence[int] = integers(split_sizes)
    elif num_splits is not None and integer(num_splits) > 0 and total % integer(num_splits) == 0:
        sizes = (total // integer(num_splits),) * integer(num_splits)
    else:
        raise ValueError(f"num_splits {num_splits} does not divide an axis of {total}")
    if min((*sizes, 0)) < 0 or sum(sizes) != total:
        raise ValueError(f"split_sizes {list(sizes)} do not add up to {total}")
    if num_splits is not None and integer(num_splits) != len(sizes):
        raise ValueError(f"num_splits {num_splits} contradicts split_sizes {list(sizes)}")
    return tuple(np.split(x, np.cumsum(sizes)[:-1], axis=along))


def concat(values: Sequence[Array], axis: Array, *, interleave: Array | None = None) -> Array:
    """``values`` one after the other along ``axis``; interleaved, their slices take turns."""
    if values[0].ndim == 0:
        return np.stack(values)
    along = axis_of(integer(axis), values[0].ndim)
    if not flag(interleave):
        bounded((sum(v.size for v in values),))
        return np.concatenate(values, axis=along)
    shape = list(values[0].shape)
    shape[along] *= len(values)
    return np.stack(values, axis=along + 1).reshape(bounded(shape))


def stack(values: Sequence[Array], axis: Array) -> Array:
    """``values`` of one shape along a new axis."""
    bounded((sum(v.size for v in values),))
    return np.stack(values, axis=axis_of(integer(axis), values[0].ndim + 1))


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

    The first ``batch_dims`` axes of ``x`` and ``indices`` go together. An index outside the axis
    has no documented result and is refused whatever ``validate_indices`` says.
    """
    flag(validate_indices)
    along = axis_of(0 if axis is None else integer(axis), x.ndim)
    batch = 0 if batch_dims is None else integer(batch_dims)
    if not 0 <= batch <= min(along, indices.ndim) or x.shape[:batch] != indices.shape[:batch]:
        raise ValueError(f"batch_dims {batch} does not fit {list(x.shape)} at axis {along}")
    _check_indices(indices, x.shape[along], specification)
    shape = bounded((*x.shape[:along], *indices.shape[batch:], *x.shape[along + 1 :]))
    if batch == 0:
        return np.take(x, indices, axis=along)
    lead = math.prod(x.shape[:batch])
    rows = zip(
        x.reshape(lead, *x.shape[batch:]),
        indices.reshape(lead, *indices.shape[batch:]),
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
    _check_indices(indices, x.shape[along], specification)
    return np.take_along_axis(x, indices.astype(np.int64), axis=along)


def pad(
    x: Array, pad: Array, *, mode: str = "constant", constant_val: Array | None = None
) -> Array:
    """``x`` with ``pad[2 i]`` elements before and ``pad[2 i + 1]`` after each of its last axes."""
    amounts = integers(pad)
    if len(amounts) % 2 or len(amounts) > 2 * x.ndim or min((*amounts, 0)) < 0:
        raise ValueError(f"pad {list(amounts)} does not fit rank {x.ndim}")
    widths = [(0, 0)] * (x.ndim - len(amounts) // 2)
    widths += list(zip(amounts[0::2], amounts[1::2], strict=True))
    bounded(n + b + a for n, (b, a) in zip(x.shape, widths, strict=True))
    if mode == "constant":
        filler = 0 if constant_val is None else constant_val
        return np.pad(x, widths, mode="constant", constant_values=filler)
    if mode == "reflect":
        if any(max(w) >= n for n, w in zip(x.shape, widths, strict=True) if max(w)):
            raise ValueError(f"reflection by {widths} reaches beyond {list(x.shape)}")
        return np.pad(x, widths, mode="reflect")
    if mode == "replicate":
        return np.pad(x, widths, mode="edge")
    raise ValueError(f"unknown pad mode {mode!r}")


def fill(shape: Array, *, value: Array) -> Array:
    """A tensor of ``shape`` with ``value`` everywhere."""
    return np.full(bounded(integers(shape)), value, dtype=value.dtype)


def tile(x: Array, reps: Array) -> Array:
    """``x`` repeated ``reps[i]`` times along axis ``i``."""
    many = _per_axis(x, reps, "reps")
    bounded(n * r for n, r in zip(x.shape, many, strict=True))
    return np.tile(x, many)


def shape(x: Array) -> Array:
    """The sizes of ``x``, as int32."""
    return np.array(x.shape, dtype=np.int32)


def _per_axis(x: Array, values: Array, name: str) -> tuple[int, ...]:
    found = integers(values)
    if len(found) != x.ndim:
        raise ValueError(f"{name} {list(found)} should have {x.ndim} entries, one per axis")
    return found


def _mask(x: Array, values: Array | None) -> tuple[bool, ...]:
    if values is None:
        return (False,) * x.ndim
    if values.shape != (x.ndim,) or values.dtype.kind != "b":
        raise ValueError(f"a mask should hold {x.ndim} booleans, one per axis")
    return tuple(bool(v) for v in values)


def _check_indices(indices: Array, size: int, specification: int) -> None:
    lowest = 0 if specification >= IOS17 else -size
    if indices.size and not lowest <= indices.min() <= indices.max() < size:
        raise ValueError(
            f"indices from {indices.min()} to {indices.max()} leave [{lowest}, {size})"
        )
