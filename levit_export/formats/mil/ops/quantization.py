"""Quantisation of activations (since iOS 17).

Source: coremltools, MIL op set ``quantization_ops``. ``scale`` and ``zero_point`` are scalars, or
vectors along ``axis``.
"""

from __future__ import annotations

import numpy as np

from levit_export.formats.mil.elements import BY_SHORT_NAME, Array
from levit_export.formats.mil.ops.bounds import axis_of, integer


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
    q = np.asarray(np.rint(input / along(scale, input, axis)))
    if zero_point is not None:
        q += along(zero_point, input, axis)
    if np.isnan(q).any():
        raise ValueError("NaN has no quantised value")
    return np.clip(q, limits.min, limits.max).astype(target)


def dequantize(
    input: Array, scale: Array, *, zero_point: Array | None = None, axis: Array | None = None
) -> Array:
    """``scale * (input - zero_point)``."""
    x = input.astype(np.float32)
    if zero_point is not None:
        x -= along(zero_point, input, axis)
    x *= along(scale, input, axis)
    return x


def along(values: Array, data: Array, axis: Array | None) -> Array:
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
