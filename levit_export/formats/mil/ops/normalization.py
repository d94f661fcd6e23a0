"""Batch, instance, layer, L2 and local response normalisation.

Source: coremltools, MIL op set ``normalization``. The first three compute
``y = gamma * (x - mean) / sqrt(variance + epsilon) + beta`` and differ in what the mean and the
variance are taken over.
"""

from __future__ import annotations

import numpy as np

from levit_export.formats.mil.elements import Array
from levit_export.formats.mil.ops.bounds import axes_of, integer

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


def l2_norm(x: Array, epsilon: Array) -> Array:
    """``x / sqrt(sum(x ** 2) + epsilon)``, summed over the last three axes."""
    if x.ndim < 3:
        raise ValueError(f"x {list(x.shape)} needs rank 3 or more")
    return np.asarray(x / np.sqrt(np.sum(x * x, axis=(-3, -2, -1), keepdims=True) + epsilon))


def local_response_norm(
    x: Array,
    size: Array,
    *,
    alpha: Array | None = None,
    beta: Array | None = None,
    k: Array | None = None,
) -> Array:
    """``x[n, c] / (k + alpha / size * sum_j x[n, j] ** 2) ** beta``.

    ``j`` runs over the ``size`` channels around ``c``, one more before it than after if even.
    coremltools' page admits three and four axes, and its tests hold three to five against PyTorch.
    For three axes another of its tests expects each number to be divided by itself alone.
    """
    many = integer(size)
    if not 1 <= many <= 2**16 or x.ndim < 3:
        raise ValueError(f"{many} channels of {list(x.shape)} cannot be summed")
    if x.ndim not in {4, 5}:
        raise NotImplementedError(f"local response normalisation of {x.ndim} axes")
    before, after = many // 2, (many - 1) // 2
    channels = x.shape[1]
    total = np.zeros_like(x)
    for shift in range(max(-before, 1 - channels), min(after, channels - 1) + 1):
        into = slice(max(0, -shift), channels - max(0, shift))
        total[:, into] += np.square(x[:, max(0, shift) : channels + min(0, shift)])
    scale = np.float32(1e-4) if alpha is None else alpha
    exponent = np.float32(0.75) if beta is None else beta
    base = (_ONE if k is None else k) + scale / np.float32(many) * total
    return np.asarray(x / np.power(base, exponent))


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
