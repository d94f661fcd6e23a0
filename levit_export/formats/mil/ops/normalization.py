"""Batch, instance and layer normalisation.

Source: coremltools, MIL op set ``normalization``. All three compute
``y = gamma * (x - mean) / sqrt(variance + epsilon) + beta`` and differ in what the mean and the
variance are taken over.
"""

from __future__ import annotations

import numpy as np

from levit_export.formats.mil.elements import Array
from levit_export.formats.mil.ops.bounds import axes_of

_ONE = np.float32(1)


def batch_norm(
    x: Array,
    mean: Array,
    variance: Array,
    epsilon: Array,
    *,
    gamma: Array | None = None,
    beta: Array | None = None,
) -> Array:
    """Normalise ``x[n, c, ...]`` by statistics ``mean[c]`` and ``variance[c]`` that are given."""
    scale = _ONE / np.sqrt(variance + epsilon)
    if gamma is not None:
        scale = gamma * scale
    y = np.asarray(x - _per_channel(mean, x))
    y *= _per_channel(scale, x)
    if beta is not None:
        y += _per_channel(beta, x)
    return y


def instance_norm(
    x: Array, epsilon: Array, *, gamma: Array | None = None, beta: Array | None = None
) -> Array:
    """Normalise ``x[n, c, ...]`` by the statistics of each ``x[n, c]``."""
    y = _standardised(x, tuple(range(2, x.ndim)), epsilon)
    if gamma is not None:
        y *= _per_channel(gamma, x)
    if beta is not None:
        y += _per_channel(beta, x)
    return y


def layer_norm(
    x: Array,
    epsilon: Array,
    *,
    axes: Array | None = None,
    gamma: Array | None = None,
    beta: Array | None = None,
) -> Array:
    """Normalise over ``axes`` (all when left out), whose shape ``gamma`` and ``beta`` have."""
    over = axes_of(axes, x.ndim)
    y = _standardised(x, over, epsilon)
    if gamma is not None:
        y *= _along(gamma, x, over)
    if beta is not None:
        y += _along(beta, x, over)
    return y


def _standardised(x: Array, axes: tuple[int, ...], epsilon: Array) -> Array:
    y = np.asarray(x - np.mean(x, axis=axes, keepdims=True))
    variance = np.mean(y * y, axis=axes, keepdims=True)
    y /= np.sqrt(variance + epsilon)
    return y


def _per_channel(values: Array, x: Array) -> Array:
    if values.shape != x.shape[1:2]:
        raise ValueError(
            f"{list(values.shape)} values for {list(x.shape[1:2])} channels of {list(x.shape)}"
        )
    return values.reshape(-1, *(1,) * (x.ndim - 2))


def _along(values: Array, x: Array, axes: tuple[int, ...]) -> Array:
    expected = [x.shape[axis] for axis in sorted(axes)]
    if list(values.shape) != expected:
        raise ValueError(f"shape {list(values.shape)} should be {expected}, that of the axes")
    return values.reshape([n if axis in axes else 1 for axis, n in enumerate(x.shape)])
