"""Quantised activations, and compressed weights, which a loader evaluates once.

Source: coremltools, MIL op sets ``quantization_ops`` (iOS 17), ``constexpr_ops`` (iOS 16) and
``compression`` (iOS 18). ``scale`` and ``zero_point`` are scalars, or vectors along ``axis``. Up
to iOS 17 the operands of compressed weights are flat and packed, with the dense shape given;
since iOS 18 they are tensors of sub-byte types, whose shape is known.
"""

from __future__ import annotations

import math

import numpy as np

from levit_export.formats.mil.blob import unpack
from levit_export.formats.mil.elements import BY_SHORT_NAME, Array
from levit_export.formats.mil.ops.bounds import axis_of, bounded, integer, integers


def quantize(
    input: Array,
    scale: Array,
    output_dtype: str,
    *,
    zero_point: Array | None = None,
    axis: Array | None = None,
) -> Array:
    """``clip(round(input / scale) + zero_point)`` to the range of ``output_dtype``.

    Halves round to even.
    """
    target = np.dtype(BY_SHORT_NAME[output_dtype].held_as)
    limits = np.iinfo(target)
    q = np.asarray(np.rint(input / _along(scale, input, axis)))
    if zero_point is not None:
        q += _along(zero_point, input, axis)
    if np.isnan(q).any():
        raise NotImplementedError("a quantised NaN")
    return np.clip(q, limits.min, limits.max).astype(target)


def dequantize(
    input: Array, scale: Array, *, zero_point: Array | None = None, axis: Array | None = None
) -> Array:
    """``scale * (input - zero_point)``."""
    x = input.astype(np.float32)
    if zero_point is not None:
        x -= _along(zero_point, input, axis)
    x *= _along(scale, input, axis)
    return x


def constexpr_affine_dequantize(
    quantized_data: Array, zero_point: Array, scale: Array, axis: Array
) -> Array:
    """``scale * (quantized_data - zero_point)``, scalars or vectors along ``axis``."""
    x = quantized_data.astype(np.float32)
    x -= _along(zero_point, quantized_data, axis)
    x *= _along(scale, quantized_data, axis)
    return x


def constexpr_cast(source_val: Array, output_dtype: str) -> Array:
    """``source_val`` (float16) as float32: the same numbers."""
    return source_val.astype(BY_SHORT_NAME[output_dtype].held_as)


def constexpr_blockwise_shift_scale(
    data: Array, scale: Array, *, offset: Array | None = None
) -> Array:
    """``scale[b] * (data[i] - offset[b])``, where ``b = floor(i / block)`` on every axis.

    The block sizes are ``data.shape / scale.shape``.
    """
    x = data.astype(np.float32)
    if offset is not None:
        if offset.shape != scale.shape:
            raise ValueError(f"offset {list(offset.shape)} and scale {list(scale.shape)} differ")
        x -= _blocks(offset, data.shape).astype(np.float32)
    x *= _blocks(scale, data.shape)
    return x


def constexpr_lut_to_dense(
    indices: Array, lut: Array, *, shape: Array | None = None, vector_axis: Array | None = None
) -> Array:
    """Look every index up in a table.

    With ``shape`` (iOS 16): ``lut`` has ``2**n`` entries, ``indices`` holds ``n``-bit numbers
    packed from the lowest bit up.

    Without (iOS 18): ``lut`` has shape ``[*groups, 2**n, v]``; the element at ``i`` uses the table
    of its group ``floor(i / (indices.shape / groups))``, and the ``v`` numbers found go to
    consecutive places along ``vector_axis``.
    """
    if shape is not None:
        if vector_axis is not None:
            raise ValueError("shape (iOS 16) and vector_axis (iOS 18) exclude each other")
        return _lut_packed(indices, lut, bounded(integers(shape)))
    if lut.ndim != indices.ndim + 2:
        raise ValueError(f"lut {list(lut.shape)} should have two axes more than indices")
    _check_indices(indices, lut.shape[-2])
    entry = (*_groups(lut.shape[:-2], indices.shape), indices)
    vectors = lut[entry]
    if vector_axis is None:
        if lut.shape[-1] != 1:
            raise ValueError(f"vectors of {lut.shape[-1]} numbers need a vector_axis")
        return np.array(vectors[..., 0])
    where = axis_of(integer(vector_axis), indices.ndim)
    dense = list(indices.shape)
    dense[where] *= lut.shape[-1]
    return np.array(np.moveaxis(vectors, -1, where + 1).reshape(bounded(dense)))


def constexpr_sparse_to_dense(
    nonzero_data: Array, mask: Array, *, shape: Array | None = None
) -> Array:
    """``nonzero_data`` in row-major order where ``mask`` is set, 0 elsewhere.

    With ``shape`` (iOS 16) ``mask`` holds bits packed from the lowest up.
    """
    where = mask if shape is None else unpack(mask.tobytes(), 1, bounded(integers(shape)))
    return _scatter(nonzero_data, where)


def constexpr_lut_to_sparse(
    indices_mask: Array,
    indices_nonzero_data: Array,
    lut: Array,
    *,
    vector_axis: Array | None = None,
) -> tuple[Array, Array]:
    """:func:`constexpr_lut_to_dense` for the set elements only: their mask and their values."""
    indices = _scatter(indices_nonzero_data, indices_mask)
    dense = constexpr_lut_to_dense(indices, lut, vector_axis=vector_axis)
    mask = indices_mask.copy()
    if vector_axis is not None:
        where = axis_of(integer(vector_axis), mask.ndim)
        mask = np.repeat(mask, lut.shape[-1], axis=where)
    return mask, dense[mask != 0]


def constexpr_sparse_blockwise_shift_scale(
    data_mask: Array, nonzero_data: Array, scale: Array, *, offset: Array | None = None
) -> tuple[Array, Array]:
    """:func:`constexpr_blockwise_shift_scale` for the set elements: their mask and values."""
    data = _scatter(nonzero_data, data_mask)
    dense = constexpr_blockwise_shift_scale(data, scale, offset=offset)
    return data_mask.copy(), dense[data_mask != 0]


def _lut_packed(indices: Array, lut: Array, shape: tuple[int, ...]) -> Array:
    if lut.ndim != 1 or lut.size not in (2, 4, 16, 64, 256):
        raise ValueError(f"lut {list(lut.shape)} should have 2, 4, 16, 64 or 256 entries")
    bits = lut.size.bit_length() - 1
    return np.asarray(lut[unpack(indices.tobytes(), bits, shape)])


def _groups(blocks: tuple[int, ...], shape: tuple[int, ...]) -> tuple[Array, ...]:
    """For every axis, the block that each position of ``shape`` belongs to (an open mesh)."""
    if any(have == 0 or n % have for have, n in zip(blocks, shape, strict=True)):
        raise ValueError(f"blocks {list(blocks)} do not divide {list(shape)}")
    return np.ix_(
        *(np.arange(n) // max(n // have, 1) for have, n in zip(blocks, shape, strict=True))
    )


def _blocks(values: Array, shape: tuple[int, ...]) -> Array:
    """``values``, one per block, repeated to ``shape``."""
    if values.ndim != len(shape):
        raise ValueError(f"{list(values.shape)} should have as many axes as {list(shape)}")
    return np.asarray(values[_groups(values.shape, shape)])


def _scatter(nonzero_data: Array, mask: Array) -> Array:
    where = mask != 0
    if nonzero_data.shape != (int(np.count_nonzero(where)),):
        raise ValueError(
            f"{list(nonzero_data.shape)} values for {int(np.count_nonzero(where))} set bits"
        )
    dense = np.zeros(math.prod(mask.shape), dtype=nonzero_data.dtype)
    dense[where.reshape(-1)] = nonzero_data
    return dense.reshape(mask.shape)


def _check_indices(indices: Array, entries: int) -> None:
    for index in (indices.min(), indices.max()) if indices.size else ():
        if not 0 <= int(index) < entries:
            raise ValueError(f"index {int(index)} in a table of {entries}")


def _along(values: Array, data: Array, axis: Array | None) -> Array:
    """``values`` as float32, shaped to broadcast along ``axis`` of ``data`` (or scalar)."""
    numbers = values.astype(np.float32)
    if numbers.ndim == 0:
        return numbers
    if axis is None or numbers.ndim != 1:
        raise ValueError(f"values of shape {list(numbers.shape)} need one axis")
    where = axis_of(integer(axis), data.ndim)
    if numbers.size != data.shape[where]:
        raise ValueError(f"{numbers.size} values for an axis of {data.shape[where]}")
    return numbers.reshape([-1 if a == where else 1 for a in range(data.ndim)])
