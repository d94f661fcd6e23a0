"""Sums, means, extremes, order and softmax along axes; the end of a classifier.

Source: coremltools, MIL op sets ``reduction``, ``activation``, ``tensor_operation`` and
``classify``. Of equal elements the first is the largest, or the smallest; Core ML promises none.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from levit_export.formats.mil.elements import BY_SHORT_NAME, Array
from levit_export.formats.mil.ops.bounds import axes_of, axis_of, flag, integer
from levit_export.formats.mil.ops.overflow import checked, narrowed


def reduce_mean(x: Array, *, axes: Array | None = None, keep_dims: Array | None = None) -> Array:
    """The mean over ``axes`` (all when left out)."""
    over = axes_of(axes, x.ndim)
    return np.asarray(np.mean(x, axis=over, keepdims=flag(keep_dims), dtype=x.dtype))


def reduce_sum(x: Array, *, axes: Array | None = None, keep_dims: Array | None = None) -> Array:
    """The sum over ``axes`` (all when left out)."""
    over, kept = axes_of(axes, x.ndim), flag(keep_dims)
    return checked(lambda v: np.sum(v, axis=over, keepdims=kept), x)


def reduce_max(x: Array, *, axes: Array | None = None, keep_dims: Array | None = None) -> Array:
    """The largest element over ``axes`` (all when left out)."""
    return np.asarray(np.max(x, axis=axes_of(axes, x.ndim), keepdims=flag(keep_dims)))


def reduce_min(x: Array, *, axes: Array | None = None, keep_dims: Array | None = None) -> Array:
    """The smallest element over ``axes`` (all when left out)."""
    return np.asarray(np.min(x, axis=axes_of(axes, x.ndim), keepdims=flag(keep_dims)))


def reduce_prod(x: Array, *, axes: Array | None = None, keep_dims: Array | None = None) -> Array:
    """The product over ``axes`` (all when left out)."""
    over, kept = axes_of(axes, x.ndim), flag(keep_dims)
    return checked(lambda v: np.prod(v, axis=over, keepdims=kept), x)


def reduce_sum_square(
    x: Array, *, axes: Array | None = None, keep_dims: Array | None = None
) -> Array:
    """The sum of squares over ``axes`` (all when left out)."""
    over, kept = axes_of(axes, x.ndim), flag(keep_dims)
    return checked(lambda v: np.sum(v * v, axis=over, keepdims=kept), x)


def reduce_l1_norm(
    x: Array, *, axes: Array | None = None, keep_dims: Array | None = None
) -> Array:
    """The sum of absolute values over ``axes`` (all when left out)."""
    over, kept = axes_of(axes, x.ndim), flag(keep_dims)
    return checked(lambda v: np.sum(np.abs(v), axis=over, keepdims=kept), x)


def reduce_l2_norm(
    x: Array, *, axes: Array | None = None, keep_dims: Array | None = None
) -> Array:
    """The square root of the sum of squares over ``axes`` (all when left out)."""
    over, kept = axes_of(axes, x.ndim), flag(keep_dims)
    return np.asarray(np.sqrt(np.sum(x * x, axis=over, keepdims=kept)))


def reduce_log_sum(
    x: Array, *, axes: Array | None = None, keep_dims: Array | None = None
) -> Array:
    """The logarithm of the sum over ``axes`` (all when left out)."""
    over, kept = axes_of(axes, x.ndim), flag(keep_dims)
    return np.asarray(np.log(np.sum(x, axis=over, keepdims=kept)))


def reduce_log_sum_exp(
    x: Array, *, axes: Array | None = None, keep_dims: Array | None = None
) -> Array:
    """``m + log(sum(e ** (x - m)))`` over ``axes`` (all), ``m`` the maximum there."""
    over = axes_of(axes, x.ndim)
    top = np.max(x, axis=over, keepdims=True)
    # An infinite maximum is the result; subtracting it from itself would give NaN.
    top = np.where(np.isfinite(top), top, np.zeros_like(top))
    y = np.log(np.sum(np.exp(x - top), axis=over, keepdims=True)) + top
    return np.asarray(y if flag(keep_dims) else np.squeeze(y, axis=over))


def reduce_argmax(
    x: Array,
    *,
    axis: Array | None = None,
    keep_dims: Array | None = None,
    output_dtype: str = "int32",
) -> Array:
    """Where the largest element along ``axis`` (the last) is."""
    along = axis_of(-1 if axis is None else integer(axis), x.ndim)
    found = np.argmax(x, axis=along, keepdims=flag(keep_dims))
    return narrowed(np.asarray(found), BY_SHORT_NAME[output_dtype].held_as)


def reduce_argmin(
    x: Array,
    *,
    axis: Array | None = None,
    keep_dims: Array | None = None,
    output_dtype: str = "int32",
) -> Array:
    """Where the smallest element along ``axis`` (the last) is."""
    along = axis_of(-1 if axis is None else integer(axis), x.ndim)
    found = np.argmin(x, axis=along, keepdims=flag(keep_dims))
    return narrowed(np.asarray(found), BY_SHORT_NAME[output_dtype].held_as)


def cumsum(
    x: Array,
    *,
    axis: Array | None = None,
    exclusive: Array | None = None,
    reverse: Array | None = None,
) -> Array:
    """``y[i] = x[0] + ... + x[i]`` along ``axis`` (the first).

    Without ``x[i]`` itself if ``exclusive``, from the other end if ``reverse``.
    """
    along = axis_of(0 if axis is None else integer(axis), x.ndim)

    def summed(v: Array) -> Array:
        y = np.cumsum(np.flip(v, along) if flag(reverse) else v, axis=along)
        if flag(exclusive):
            y = np.roll(y, 1, axis=along)
            np.moveaxis(y, along, 0)[:1] = 0
        return np.array(np.flip(y, along) if flag(reverse) else y)

    return checked(summed, x)


def argsort(x: Array, *, axis: Array | None = None, ascending: Array | None = None) -> Array:
    """The places along ``axis`` (the last) in descending order of their elements.

    In ascending order if ``ascending``; equal elements keep their order.
    """
    along = axis_of(-1 if axis is None else integer(axis), x.ndim)
    return _order(x, along, ascending=flag(ascending)).astype(np.int32)


def topk(
    x: Array,
    *,
    k: Array | None = None,
    axis: Array | None = None,
    ascending: Array | None = None,
    sort: Array | None = None,
    return_indices: Array | None = None,
    output_indices_dtype: str = "int32",
) -> tuple[Array, ...]:
    """The ``k`` (1) largest elements along ``axis`` (the last) in order, and where they are.

    The smallest if ``ascending``; all for ``k = -1``. Without ``sort`` Core ML promises no order.
    """
    flag(sort)
    along = axis_of(-1 if axis is None else integer(axis), x.ndim)
    many = 1 if k is None else integer(k)
    many = x.shape[along] if many == -1 else many
    if not 0 <= many <= x.shape[along]:
        raise ValueError(f"{many} elements of an axis of {x.shape[along]}")
    places = np.take(_order(x, along, ascending=flag(ascending)), np.arange(many), axis=along)
    values = np.take_along_axis(x, places, axis=along)
    if return_indices is not None and not flag(return_indices):
        return (values,)
    return values, narrowed(places, BY_SHORT_NAME[output_indices_dtype].held_as)


def classify(probabilities: Array, classes: list[Any]) -> tuple[Any, dict[Any, float]]:
    """The class with the largest probability (the first of equals), and all of them by class."""
    numbers = probabilities.reshape(-1)
    if numbers.size != len(classes) or not classes:
        raise ValueError(f"{len(classes)} classes for {numbers.size} probabilities")
    label = classes[int(np.argmax(numbers))]
    return label, dict(zip(classes, numbers.tolist(), strict=True))


def softmax(x: Array, *, axis: Array | None = None) -> Array:
    """``e ** (x - m) / sum(e ** (x - m))`` along ``axis`` (the last), ``m`` the maximum there."""
    return softmax_along(x, -1 if axis is None else axis_of(integer(axis), x.ndim))


def softmax_along(x: Array, axis: int) -> Array:
    """:func:`softmax` with a plain axis."""
    p = np.asarray(x - np.max(x, axis=axis, keepdims=True))
    np.exp(p, out=p)
    p /= np.sum(p, axis=axis, keepdims=True)
    return p


def _order(x: Array, axis: int, *, ascending: bool) -> Array:
    """Places along ``axis`` by their elements; equal ones in the order they have."""
    if ascending:
        return np.argsort(x, axis=axis, stable=True)
    # Sorted from behind and read backwards, equal elements keep their order.
    backwards = np.argsort(np.flip(x, axis), axis=axis, stable=True)
    return np.asarray(x.shape[axis] - 1 - np.flip(backwards, axis))
