"""Ops that move, select or repeat values without computing with them.

Source: coremltools, MIL op sets ``tensor_transformation`` and ``tensor_operation``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from levit_export.formats.mil.elements import Array
from levit_export.formats.mil.ops.bounds import (
    IOS17,
    axes_of,
    axis_of,
    bounded,
    flag,
    integer,
    integers,
)


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
    return x[
        _slices(
            x,
            begin,
            end,
            stride=stride,
            begin_mask=begin_mask,
            end_mask=end_mask,
            squeeze_mask=squeeze_mask,
        )
    ]


def slice_update(
    x: Array,
    update: Array,
    begin: Array,
    end: Array,
    *,
    stride: Array | None = None,
    begin_mask: Array | None = None,
    end_mask: Array | None = None,
    squeeze_mask: Array | None = None,
) -> Array:
    """``x`` with ``update`` in the place that :func:`slice_by_index` would take."""
    where = _slices(
        x,
        begin,
        end,
        stride=stride,
        begin_mask=begin_mask,
        end_mask=end_mask,
        squeeze_mask=squeeze_mask,
    )
    y: Array = x.copy()
    if y[where].shape != update.shape:
        raise ValueError(f"update {list(update.shape)} does not fit {list(y[where].shape)}")
    y[where] = update
    return y


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


def reshape_like(
    x: Array,
    ref_tensors: Sequence[Array],
    begins: Sequence[Array],
    ends: Sequence[Array],
    end_masks: Sequence[Array],
) -> Array:
    """``x`` in the shape ``ref_tensors[i].shape[begins[i] : ends[i]]``, joined over ``i``.

    A set ``end_masks[i]`` leaves the end open.
    """
    target: list[int] = []
    for like, begin, end, is_open in zip(ref_tensors, begins, ends, end_masks, strict=True):
        target += like.shape[integer(begin) : None if flag(is_open) else integer(end)]
    return np.asarray(x.reshape(target))


def flatten2d(x: Array, *, axis: Array | None = None) -> Array:
    """``x`` with the axes before ``axis`` (1) merged into one, and those from it on."""
    at = 1 if axis is None else integer(axis)
    if not -x.ndim <= at <= x.ndim:
        raise ValueError(f"axis {at} is outside a tensor of rank {x.ndim}")
    return x.reshape(math.prod(x.shape[:at]), math.prod(x.shape[at:]))


def reverse(x: Array, *, axes: Array | None = None) -> Array:
    """``x`` backwards along ``axes`` (all when left out)."""
    return np.flip(x, axes_of(axes, x.ndim))


def reverse_sequence(
    x: Array, lengths: Array, *, seq_axis: Array | None = None, batch_axis: Array | None = None
) -> Array:
    """For every ``b`` on ``batch_axis``, the first ``lengths[b]`` along ``seq_axis`` backwards."""
    along = axis_of(0 if seq_axis is None else integer(seq_axis), x.ndim)
    over = axis_of(0 if batch_axis is None else integer(batch_axis), x.ndim)
    many = integers(lengths)
    if along == over or len(many) != x.shape[over]:
        raise ValueError(f"{len(many)} lengths do not fit {list(x.shape)} at axis {over}")
    if any(not 0 <= n <= x.shape[along] for n in many):
        raise NotImplementedError(
            f"a length outside [0, {x.shape[along]}] (they are {list(many)})"
        )
    y: Array = x.copy()
    rows, source = np.moveaxis(y, (over, along), (0, 1)), np.moveaxis(x, (over, along), (0, 1))
    for b, n in enumerate(many):
        rows[b, :n] = source[b, :n][::-1]
    return y


def depth_to_space(x: Array, block_size: Array) -> Array:
    """``y[n, c, h b + i, w b + j] = x[n, (i b + j) C + c, h, w]``, ``b`` the block size."""
    b = _block(x, integer(block_size), x.shape[1:2], squared=True)
    n, c, h, w = x.shape
    y = x.reshape(n, b, b, c // (b * b), h, w).transpose(0, 3, 4, 1, 5, 2)
    return np.asarray(y.reshape(n, c // (b * b), h * b, w * b))


def space_to_depth(x: Array, block_size: Array) -> Array:
    """``y[n, (i b + j) C + c, h, w] = x[n, c, h b + i, w b + j]``, ``b`` the block size."""
    b = _block(x, integer(block_size), x.shape[2:])
    n, c, h, w = x.shape
    y = x.reshape(n, c, h // b, b, w // b, b).transpose(0, 3, 5, 1, 2, 4)
    return np.asarray(y.reshape(n, c * b * b, h // b, w // b))


def pixel_shuffle(x: Array, upscale_factor: Array) -> Array:
    """``y[n, c, h f + i, w f + j] = x[n, c f f + i f + j, h, w]``, ``f`` the factor."""
    f = _block(x, integer(upscale_factor), x.shape[1:2], squared=True)
    n, c, h, w = x.shape
    y = x.reshape(n, c // (f * f), f, f, h, w).transpose(0, 1, 4, 2, 5, 3)
    return np.asarray(y.reshape(n, c // (f * f), h * f, w * f))


def pixel_unshuffle(x: Array, downscale_factor: Array) -> Array:
    """``y[n, c f f + i f + j, h, w] = x[n, c, h f + i, w f + j]``, ``f`` the factor."""
    f = _block(x, integer(downscale_factor), x.shape[2:])
    n, c, h, w = x.shape
    y = x.reshape(n, c, h // f, f, w // f, f).transpose(0, 1, 3, 5, 2, 4)
    return np.asarray(y.reshape(n, c * f * f, h // f, w // f))


def space_to_batch(x: Array, block_shape: Array, paddings: Array) -> Array:
    """``y[(i q + j) N + n, c, h, w] = x[n, c, h p + i, w q + j]`` of ``x`` padded with zeros.

    ``(p, q)`` is ``block_shape``; ``paddings[k]`` counts zeros before and after axis ``2 + k``.
    """
    p, q, widths = _spatial_blocks(x, block_shape, paddings)
    bounded((*x.shape[:2], *(s + a + b for s, (a, b) in zip(x.shape[2:], widths, strict=True))))
    z = np.pad(x, [(0, 0), (0, 0), *widths])
    n, c, h, w = z.shape
    if h % p or w % q:
        raise ValueError(f"blocks {p}x{q} do not divide {h}x{w}")
    y = z.reshape(n, c, h // p, p, w // q, q).transpose(3, 5, 0, 1, 2, 4)
    return np.asarray(y.reshape(p * q * n, c, h // p, w // q))


def batch_to_space(x: Array, block_shape: Array, crops: Array) -> Array:
    """The inverse of :func:`space_to_batch`: ``crops`` are cut off where it padded."""
    p, q, ((top, bottom), (left, right)) = _spatial_blocks(x, block_shape, crops)
    n, c, h, w = x.shape
    if n % (p * q) or top + bottom > h * p or left + right > w * q:
        raise ValueError(f"blocks {p}x{q} and crops do not fit {list(x.shape)}")
    y = x.reshape(p, q, n // (p * q), c, h, w).transpose(2, 3, 4, 0, 5, 1)
    y = y.reshape(n // (p * q), c, h * p, w * q)
    return np.asarray(y[:, :, top : h * p - bottom, left : w * q - right])


def sliding_windows(x: Array, axis: Array, size: Array, *, stride: Array | None = None) -> Array:
    """``y[p, i, k, q] = x[p, i * stride + k, q]``: windows of ``size`` along ``axis``."""
    along, length = axis_of(integer(axis), x.ndim), integer(size)
    step = 1 if stride is None else integer(stride)
    if step < 1 or not 1 <= length <= x.shape[along]:
        raise ValueError(f"windows of {length} every {step} do not fit {x.shape[along]}")
    bounded(((x.shape[along] - length) // step + 1, length))
    starts = np.arange(0, x.shape[along] - length + 1, step)
    bounded((*x.shape[:along], starts.size, length, *x.shape[along + 1 :]))
    return np.asarray(np.take(x, starts[:, np.newaxis] + np.arange(length), axis=along))


def band_part(x: Array, *, lower: Array | None = None, upper: Array | None = None) -> Array:
    """``x[..., m, n]`` where ``m - n <= lower`` and ``n - m <= upper``, 0 elsewhere.

    A negative bound, as when left out, keeps that whole triangle.
    """
    if x.ndim < 2:
        raise ValueError(f"x {list(x.shape)} needs rank 2 or more")
    below, above = (-1 if b is None else integer(b) for b in (lower, upper))
    down = np.arange(x.shape[-2])[:, np.newaxis] - np.arange(x.shape[-1])
    keep = ((below < 0) | (down <= below)) & ((above < 0) | (-down <= above))
    return np.where(keep, x, np.zeros((), x.dtype))


def fill_like(ref_tensor: Array, value: Array) -> Array:
    """A tensor of the shape of ``ref_tensor`` with ``value`` everywhere."""
    return np.full(ref_tensor.shape, value, dtype=value.dtype)


def range_1d(start: Array, end: Array, step: Array) -> Array:
    """``start + i * step`` for ``i = 0, 1, ...`` as long as it stays before ``end``."""
    first, last, by = (float(v) for v in (start, end, step))
    if by == 0 or not all(map(math.isfinite, (first, last, by))):
        raise ValueError(f"no range goes from {first} to {last} by {by}")
    (many,) = bounded((max(0, math.ceil((last - first) / by)),))
    return np.asarray(start + np.arange(many).astype(start.dtype) * step)


def _slices(
    x: Array,
    begin: Array,
    end: Array,
    *,
    stride: Array | None,
    begin_mask: Array | None,
    end_mask: Array | None,
    squeeze_mask: Array | None,
) -> tuple[int | slice, ...]:
    """The index of ``x`` that :func:`slice_by_index` describes."""
    first, last = _per_axis(x, begin, "begin"), _per_axis(x, end, "end")
    steps = (1,) * x.ndim if stride is None else _per_axis(x, stride, "stride")
    open_first, open_last = _mask(x, begin_mask), _mask(x, end_mask)
    single = _mask(x, squeeze_mask)
    return tuple(
        (0 if open_first[axis] else first[axis])
        if single[axis]
        else slice(
            None if open_first[axis] else first[axis],
            None if open_last[axis] else last[axis],
            steps[axis],
        )
        for axis in range(x.ndim)
    )


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


def _block(x: Array, size: int, axes: tuple[int, ...], *, squared: bool = False) -> int:
    """``size`` once it divides ``axes`` of an image; they are divided by its square."""
    by = size * size if squared else size
    if x.ndim != 4 or size < 1 or any(n % by for n in axes):
        raise ValueError(f"blocks of {size} do not fit {list(x.shape)}")
    bounded((x.size,))
    return size


def _spatial_blocks(
    x: Array, shape: Array, borders: Array
) -> tuple[int, int, tuple[tuple[int, int], tuple[int, int]]]:
    """Block sizes, and what is added or cut before and after height and width."""
    if x.ndim != 4 or len(integers(shape)) != 2 or borders.shape != (2, 2):
        raise ValueError(f"blocks {shape.tolist()}, {borders.tolist()} do not fit {list(x.shape)}")
    (p, q), (top, bottom, left, right) = integers(shape), integers(borders.reshape(-1))
    if min(p, q) < 1 or min(top, bottom, left, right) < 0:
        raise ValueError(f"blocks {p}x{q} and borders {borders.tolist()} should be positive")
    return p, q, ((top, bottom), (left, right))
