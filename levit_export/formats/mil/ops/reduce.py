"""Sums, means, extremes and softmax along axes.

Source: coremltools, MIL op sets ``reduction`` and ``activation``.
"""

from __future__ import annotations

import numpy as np

from levit_export.formats.mil.elements import Array
from levit_export.formats.mil.ops.bounds import axes_of, axis_of, flag, integer


def reduce_mean(x: Array, *, axes: Array | None = None, keep_dims: Array | None = None) -> Array:
    """The mean over ``axes`` (all when left out)."""
    over = axes_of(axes, x.ndim)
    return np.asarray(np.mean(x, axis=over, keepdims=flag(keep_dims), dtype=x.dtype))


def reduce_sum(x: Array, *, axes: Array | None = None, keep_dims: Array | None = None) -> Array:
    """The sum over ``axes`` (all when left out)."""
    over = axes_of(axes, x.ndim)
    return np.asarray(np.sum(x, axis=over, keepdims=flag(keep_dims), dtype=x.dtype))


def reduce_max(x: Array, *, axes: Array | None = None, keep_dims: Array | None = None) -> Array:
    """The largest element over ``axes`` (all when left out)."""
    return np.asarray(np.max(x, axis=axes_of(axes, x.ndim), keepdims=flag(keep_dims)))


def reduce_min(x: Array, *, axes: Array | None = None, keep_dims: Array | None = None) -> Array:
    """The smallest element over ``axes`` (all when left out)."""
    return np.asarray(np.min(x, axis=axes_of(axes, x.ndim), keepdims=flag(keep_dims)))


def softmax(x: Array, *, axis: Array | None = None) -> Array:
    """``e ** (x - m) / sum(e ** (x - m))`` along ``axis`` (the last), ``m`` the maximum there."""
    return softmax_along(x, -1 if axis is None else axis_of(integer(axis), x.ndim))


def softmax_along(x: Array, axis: int) -> Array:
    """:func:`softmax` with a plain axis."""
    p = np.asarray(x - np.max(x, axis=axis, keepdims=True))
    np.exp(p, out=p)
    p /= np.sum(p, axis=axis, keepdims=True)
    return p
