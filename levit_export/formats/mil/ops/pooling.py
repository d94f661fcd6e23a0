"""Average, maximum and L2 pooling.

Source: coremltools, MIL op set ``pool``.
"""

from __future__ import annotations

import numpy as np

from levit_export.formats.mil.elements import Array
from levit_export.formats.mil.ops.bounds import bounded, flag, integers
from levit_export.formats.mil.ops.windows import Windows, windows


def avg_pool(
    x: Array,
    kernel_sizes: Array,
    *,
    pad_type: str,
    strides: Array | None = None,
    pad: Array | None = None,
    exclude_padding_from_average: Array | None = None,
    ceil_mode: Array | None = None,
) -> Array:
    """The mean of each window of ``x[n, c, ...]``.

    Padding counts as zeros, unless ``exclude_padding_from_average``. Positions beyond the padding,
    which ``ceil_mode`` can reach, never count (as in PyTorch).
    """
    w = _windows(x, kernel_sizes, strides=strides, pad_type=pad_type, pad=pad, ceil_mode=ceil_mode)
    y = np.zeros(bounded((*x.shape[:2], *w.counts)), dtype=x.dtype)
    for elements in w.taps(w.padded(x, 0.0)):
        y += elements
    y /= _counted(w, padding_too=not flag(exclude_padding_from_average))
    return y


def max_pool(
    x: Array,
    kernel_sizes: Array,
    *,
    pad_type: str,
    strides: Array | None = None,
    pad: Array | None = None,
    ceil_mode: Array | None = None,
) -> Array:
    """The largest element of each window of ``x[n, c, ...]``; padding never wins."""
    w = _windows(x, kernel_sizes, strides=strides, pad_type=pad_type, pad=pad, ceil_mode=ceil_mode)
    y = np.full(bounded((*x.shape[:2], *w.counts)), -np.inf, dtype=x.dtype)
    for elements in w.taps(w.padded(x, -np.inf)):
        np.maximum(y, elements, out=y)
    return y


def l2_pool(
    x: Array,
    kernel_sizes: Array,
    *,
    pad_type: str,
    strides: Array | None = None,
    pad: Array | None = None,
    ceil_mode: Array | None = None,
) -> Array:
    """The square root of the sum of squares in each window of ``x[n, c, ...]``."""
    w = _windows(x, kernel_sizes, strides=strides, pad_type=pad_type, pad=pad, ceil_mode=ceil_mode)
    y = np.zeros(bounded((*x.shape[:2], *w.counts)), dtype=x.dtype)
    for elements in w.taps(w.padded(x, 0.0)):
        y += np.square(elements)
    return np.sqrt(y)


def _windows(
    x: Array,
    kernel_sizes: Array,
    *,
    strides: Array | None,
    pad_type: str,
    pad: Array | None,
    ceil_mode: Array | None,
) -> Windows:
    if not 3 <= x.ndim <= 5:
        raise ValueError(f"x {list(x.shape)} needs rank 3, 4 or 5")
    return windows(
        x.shape[2:],
        integers(kernel_sizes),
        strides=strides,
        dilations=None,
        pad_type=pad_type,
        pad=pad,
        ceil_mode=flag(ceil_mode),
    )


def _counted(w: Windows, *, padding_too: bool) -> Array:
    """How many positions of each window count, shape ``w.counts``."""
    totals = np.ones((), dtype=np.float32)
    for n, k, s, b, a, count in zip(
        w.sizes, w.kernel, w.strides, w.before, w.after, w.counts, strict=True
    ):
        first, last = (0, b + n + a) if padding_too else (b, b + n)
        starts = np.arange(count) * s
        inside = np.minimum(starts + k, last) - np.maximum(starts, first)
        if inside.min() < 1:
            raise ValueError("a window lies in the padding entirely and has no mean")
        totals = totals[..., np.newaxis] * inside.astype(np.float32)
    return totals
