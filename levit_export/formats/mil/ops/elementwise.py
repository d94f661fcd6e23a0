"""Arithmetic and activation functions that treat every element alike.

Source: coremltools, MIL op sets ``elementwise_binary``, ``elementwise_unary``, ``activation`` and
``tensor_operation``. Binary ops broadcast as NumPy does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from levit_export.formats.mil.elements import BY_SHORT_NAME, Array
from levit_export.formats.mil.ops.bounds import joined
from levit_export.formats.mil.ops.overflow import checked, narrowed

_ZERO = np.float32(0)
_HALF = np.float32(0.5)
_ONE = np.float32(1)
_INFINITY = np.float32(np.inf)


def add(x: Array, y: Array) -> Array:
    """``x + y``."""
    joined(x, y)
    return checked(np.add, x, y)


def sub(x: Array, y: Array) -> Array:
    """``x - y``."""
    joined(x, y)
    return checked(np.subtract, x, y)


def mul(x: Array, y: Array) -> Array:
    """``x * y``."""
    joined(x, y)
    return checked(np.multiply, x, y)


def real_div(x: Array, y: Array) -> Array:
    """``x / y``; of integers the whole part.

    coremltools' tests state the whole part for positive integers. What Core ML gives for a
    negative quotient with a remainder is not documented.
    """
    joined(x, y)
    if x.dtype.kind == "f":
        return np.asarray(x / y)
    whole = floor_div(x, y)
    if np.any((whole < 0) & (np.mod(x, y) != 0)):
        raise NotImplementedError("a negative quotient of integers, with a remainder,")
    return whole


def maximum(x: Array, y: Array) -> Array:
    """The larger of ``x`` and ``y``; NaN if either is."""
    joined(x, y)
    return np.asarray(np.maximum(x, y))


def minimum(x: Array, y: Array) -> Array:
    """The smaller of ``x`` and ``y``; NaN if either is."""
    joined(x, y)
    return np.asarray(np.minimum(x, y))


def power(x: Array, y: Array) -> Array:
    """``x ** y``; of integers for ``y >= 0``.

    coremltools' page admits int32. What Core ML gives for a negative power is not documented.
    """
    joined(x, y)
    if y.dtype.kind != "f" and np.any(y < 0):
        raise NotImplementedError("a negative power of an integer")
    return checked(np.power, x, y)


def floor_div(x: Array, y: Array) -> Array:
    """``floor(x / y)``, towards minus infinity for integers too."""
    joined(x, y)
    _no_zero(y)
    return checked(np.floor_divide, x, y)


def mod(x: Array, y: Array) -> Array:
    """``x - y * floor(x / y)``, which has the sign of ``y``."""
    joined(x, y)
    _no_zero(y)
    return np.asarray(np.mod(x, y))


def equal(x: Array, y: Array) -> Array:
    """``x == y``."""
    joined(x, y)
    return np.asarray(x == y)


def not_equal(x: Array, y: Array) -> Array:
    """``x != y``."""
    joined(x, y)
    return np.asarray(x != y)


def greater(x: Array, y: Array) -> Array:
    """``x > y``."""
    joined(x, y)
    return np.asarray(x > y)


def greater_equal(x: Array, y: Array) -> Array:
    """``x >= y``."""
    joined(x, y)
    return np.asarray(x >= y)


def less(x: Array, y: Array) -> Array:
    """``x < y``."""
    joined(x, y)
    return np.asarray(x < y)


def less_equal(x: Array, y: Array) -> Array:
    """``x <= y``."""
    joined(x, y)
    return np.asarray(x <= y)


def logical_and(x: Array, y: Array) -> Array:
    """``x and y``."""
    joined(x, y)
    return np.asarray(np.logical_and(x, y))


def logical_or(x: Array, y: Array) -> Array:
    """``x or y``."""
    joined(x, y)
    return np.asarray(np.logical_or(x, y))


def logical_xor(x: Array, y: Array) -> Array:
    """Either ``x`` or ``y``, and not both."""
    joined(x, y)
    return np.asarray(np.logical_xor(x, y))


def logical_not(x: Array) -> Array:
    """``not x``."""
    return np.asarray(np.logical_not(x))


def square(x: Array) -> Array:
    """``x * x``."""
    return checked(np.square, x)


def absolute(x: Array) -> Array:
    """``|x|``."""
    return checked(np.abs, x)


def exp(x: Array) -> Array:
    """``e ** x``."""
    return np.asarray(np.exp(x))


def log(x: Array, epsilon: Array) -> Array:
    """``log(x + epsilon)``."""
    return np.asarray(np.log(x + epsilon))


def sqrt(x: Array) -> Array:
    """The square root of ``x``."""
    return np.asarray(np.sqrt(x))


def rsqrt(x: Array, epsilon: Array) -> Array:
    """``1 / sqrt(x + epsilon)``."""
    return np.asarray(_ONE / np.sqrt(x + epsilon))


def inverse(x: Array, epsilon: Array) -> Array:
    """``1 / (x + epsilon)``."""
    return np.asarray(_ONE / (x + epsilon))


def sign(x: Array) -> Array:
    """-1, 0 or 1, as ``x`` is negative, zero or positive."""
    return np.asarray(np.sign(x))


def ceil(x: Array) -> Array:
    """The least whole number that is not below ``x``."""
    return np.asarray(np.ceil(x))


def floor(x: Array) -> Array:
    """The greatest whole number that is not above ``x``."""
    return np.asarray(np.floor(x))


def nearest(x: Array) -> Array:
    """The whole number nearest to ``x``; halves go to the even one."""
    return np.asarray(np.rint(x))


def exp2(x: Array) -> Array:
    """``2 ** x``."""
    return np.asarray(np.exp2(x))


def sin(x: Array) -> Array:
    """The sine of ``x`` radians."""
    return np.asarray(np.sin(x))


def cos(x: Array) -> Array:
    """The cosine of ``x`` radians."""
    return np.asarray(np.cos(x))


def tan(x: Array) -> Array:
    """The tangent of ``x`` radians."""
    return np.asarray(np.tan(x))


def asin(x: Array) -> Array:
    """The angle, in radians, whose sine is ``x``."""
    return np.asarray(np.arcsin(x))


def acos(x: Array) -> Array:
    """The angle, in radians, whose cosine is ``x``."""
    return np.asarray(np.arccos(x))


def atan(x: Array) -> Array:
    """The angle, in radians, whose tangent is ``x``."""
    return np.asarray(np.arctan(x))


def sinh(x: Array) -> Array:
    """The hyperbolic sine of ``x``."""
    return np.asarray(np.sinh(x))


def cosh(x: Array) -> Array:
    """The hyperbolic cosine of ``x``."""
    return np.asarray(np.cosh(x))


def atanh(x: Array) -> Array:
    """The number whose hyperbolic tangent is ``x``."""
    return np.asarray(np.arctanh(x))


def threshold(x: Array, alpha: Array) -> Array:
    """``max(x, alpha)`` with a scalar ``alpha``."""
    return np.asarray(np.maximum(x, _scalar(alpha)))


def clip(x: Array, alpha: Array, beta: Array) -> Array:
    """``min(max(x, alpha), beta)`` with scalars ``alpha`` and ``beta``."""
    return np.asarray(np.clip(x, _scalar(alpha), _scalar(beta)))


def relu(x: Array) -> Array:
    """``max(x, 0)``."""
    # With both bounds, np.clip is faster than np.maximum of an array and a number.
    return np.asarray(np.clip(x, _ZERO, _INFINITY))


def relu6(x: Array) -> Array:
    """``min(max(x, 0), 6)``."""
    return np.asarray(np.clip(x, _ZERO, np.float32(6)))


def leaky_relu(x: Array, alpha: Array) -> Array:
    """``x`` where ``x >= 0``, else ``alpha * x``."""
    return np.asarray(np.where(x >= _ZERO, x, x * _scalar(alpha)))


def prelu(x: Array, alpha: Array) -> Array:
    """``x[n, c]`` where positive, else ``alpha[c] * x[n, c]``."""
    if alpha.shape != x.shape[1:2]:
        raise ValueError(f"alpha {list(alpha.shape)} should hold one number per channel")
    per_channel = alpha.reshape(-1, *(1,) * (x.ndim - 2))
    return np.asarray(np.where(x > _ZERO, x, x * per_channel))


def thresholded_relu(x: Array, alpha: Array) -> Array:
    """0 where ``x < alpha``, else ``x``: a NaN, which is not below, stays one."""
    y: Array = np.array(x)
    # Faster than np.where, and without the 0 * inf of a product with the mask.
    np.copyto(y, _ZERO, where=np.asarray(x < _scalar(alpha)))
    return y


def clamped_relu(x: Array, alpha: Array, beta: Array) -> Array:
    """``min(x, beta)`` where ``x >= 0``, else ``min(alpha * x, beta)``."""
    return np.asarray(np.minimum(np.where(x >= _ZERO, x, x * _scalar(alpha)), _scalar(beta)))


def elu(x: Array, alpha: Array) -> Array:
    """``x`` where ``x > 0``, else ``alpha * (e ** x - 1)``."""
    return np.asarray(np.where(x > _ZERO, x, _scalar(alpha) * np.expm1(np.minimum(x, _ZERO))))


def linear_activation(x: Array, alpha: Array, beta: Array) -> Array:
    """``alpha * x + beta``."""
    y = x * _scalar(alpha)
    y += _scalar(beta)
    return np.asarray(y)


def sigmoid_hard(x: Array, alpha: Array, beta: Array) -> Array:
    """``min(max(alpha * x + beta, 0), 1)``."""
    y = linear_activation(x, alpha, beta)
    return np.asarray(np.clip(y, _ZERO, _ONE, out=y))


def sigmoid(x: Array) -> Array:
    """``1 / (1 + e ** -x)``."""
    return _over_one_plus_exp(x, None)


def silu(x: Array) -> Array:
    """``x / (1 + e ** -x)``."""
    return _over_one_plus_exp(x, x)


def _over_one_plus_exp(x: Array, numerator: Array | None) -> Array:
    """``numerator / (1 + e ** -x)``; 1 is the numerator if there is none."""
    y = np.empty(x.shape, x.dtype)
    above = x if numerator is None else numerator
    scratch = np.empty(min(_BLOCK, x.size), x.dtype)
    for (part, out), (over, _) in zip(_blocks(x, y), _blocks(above, y), strict=True):
        divisor = np.negative(part, out=scratch[: part.size])
        np.exp(divisor, out=divisor)
        divisor += _ONE
        np.divide(_ONE if numerator is None else over, divisor, out=out)
    return y


def softplus(x: Array) -> Array:
    """``log(1 + e ** x)``."""
    return np.asarray(np.logaddexp(x, _ZERO))


def softplus_parametric(x: Array, alpha: Array, beta: Array) -> Array:
    """``alpha[c] * log(1 + e ** (beta[c] * x[n, c]))``."""
    if alpha.shape != x.shape[1:2] or beta.shape != x.shape[1:2]:
        raise ValueError(f"alpha {list(alpha.shape)} should hold one number per channel")
    a, b = (v.reshape(-1, *(1,) * (x.ndim - 2)) for v in (alpha, beta))
    return np.asarray(a * np.logaddexp(b * x, _ZERO))


def softsign(x: Array) -> Array:
    """``x / (1 + |x|)``."""
    return np.asarray(x / (_ONE + np.abs(x)))


def scaled_tanh(x: Array, alpha: Array, beta: Array) -> Array:
    """``alpha * tanh(beta * x)``."""
    return np.asarray(_scalar(alpha) * np.tanh(_scalar(beta) * x))


def tanh(x: Array) -> Array:
    """The hyperbolic tangent of ``x``."""
    return np.asarray(np.tanh(x))


def erf(x: Array) -> Array:
    """The error function ``2 / sqrt(pi) * integral of e ** -t**2 from 0 to x``.

    ``x P(x**2) / Q(x**2)`` in float64, whose error of 2e-9 vanishes in the rounding to float32.
    """
    y = np.empty(x.shape, np.float32)
    for part, out in _blocks(x, y):
        z = np.clip(part.astype(np.float64), -_ERF_FLAT, _ERF_FLAT)
        out[...] = z * _rational(z * z, _ERF)
    return y


def gelu(x: Array, *, mode: str = "EXACT") -> Array:
    """The Gaussian error linear unit, in one of three forms.

    - ``EXACT``: ``0.5 x (1 + erf(x / sqrt(2)))``
    - ``TANH_APPROXIMATION``: ``0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x**3)))``
    - ``SIGMOID_APPROXIMATION``: ``x sigmoid(1.702 x)``

    The exact form is computed as ``x sigmoid(x P(x**2) / Q(x**2))``: nothing cancels below zero,
    and it takes float32 and a sixteenth of the time that erf in float64 did.
    """
    if mode == "EXACT":
        y = np.empty(x.shape, np.float32)
        for part, out in _blocks(x, y):
            z = np.clip(part, -_GELU_FLAT, _GELU_FLAT)
            logit = _rational(z * z, _GELU)
            logit *= z
            np.negative(logit, out=logit)
            np.exp(logit, out=logit)
            logit += _ONE
            np.divide(part, logit, out=out)
        return y
    if mode == "TANH_APPROXIMATION":
        inner = np.float32(math.sqrt(2.0 / math.pi)) * (x + np.float32(0.044715) * (x * x * x))
        return np.asarray(_HALF * x * (_ONE + np.tanh(inner)))
    if mode == "SIGMOID_APPROXIMATION":
        return np.asarray(x * sigmoid(np.asarray(np.float32(1.702) * x)))
    raise ValueError(f"unknown gelu mode {mode!r}")


def cast(x: Array, dtype: str) -> Array:
    """``x`` with another element type; floats lose their fraction towards zero.

    A number that the integer type cannot hold has no documented result.
    """
    target = np.dtype(BY_SHORT_NAME[dtype].held_as)
    if target.kind not in "iu":
        return x.astype(target)
    return narrowed(np.trunc(x) if x.dtype.kind == "f" else x, target)


def _no_zero(y: Array) -> None:
    """Integers have no infinity that a division by zero could give."""
    if y.dtype.kind in "iu" and not y.all():
        raise NotImplementedError("a division of integers by zero")


def _scalar(value: Array) -> Array:
    if value.ndim != 0:
        raise ValueError(f"a scalar is needed, got shape {list(value.shape)}")
    return value


_BLOCK = 1 << 14
"""Numbers that a formula of many steps works on at a time, so that they stay in the cache."""

_ERF_FLAT = 3.93
"""From here on erf is 1 to more digits than float32 has (``1 - erf(3.93)`` is 2.7e-8)."""

_ERF = (
    (
        1.128379169177679,
        0.18514764583118348,
        0.05425473747845595,
        0.0038402925059706425,
        0.0003771676355878138,
        4.620061276272499e-06,
        -1.2857983243003156e-08,
    ),
    (
        1.0,
        0.4974162362308266,
        0.11388693525375529,
        0.015434838614701265,
        0.001302409511025809,
        6.250089244233969e-05,
    ),
)
"""``P`` and ``Q`` of erf: ``erf(x) / x`` for ``|x| <= 3.93`` to a relative error of 1.9e-9.

Fitted to float64 values, by least squares with weights raised where the error was largest.
"""

_GELU_FLAT = 8.0
"""Below minus this, gelu is less than 5e-15 and the formula too; above, it is ``x``."""

_GELU = (
    (
        1.5957687316188813,
        0.2379683356334557,
        0.020937336308530688,
        0.0007290927543538899,
        3.920462872493846e-06,
    ),
    (
        1.0,
        0.10358231168733277,
        0.008453146921468105,
        0.0001402232526967642,
        1.8625371708369255e-07,
    ),
)
"""``P`` and ``Q`` of gelu: ``log(F(x) / F(-x)) / x``, ``F`` the normal distribution function.

For ``|x| <= 8``, to a relative error of 2.5e-7; fitted as :data:`_ERF` was.
"""


def _blocks(x: Array, y: Array) -> Iterator[tuple[Array, Array]]:
    """Pieces of ``x`` and the places of their results in ``y``, a new array of the same shape."""
    flat, out = np.ascontiguousarray(x).reshape(-1), y.reshape(-1)
    for start in range(0, flat.size, _BLOCK):
        yield flat[start : start + _BLOCK], out[start : start + _BLOCK]


def _rational(t: Array, coefficients: tuple[tuple[float, ...], tuple[float, ...]]) -> Array:
    """``P(t) / Q(t)``, coefficients from the lowest power up, in the precision of ``t``."""
    found: list[Array] = []
    for polynomial in coefficients:
        value = t * t.dtype.type(polynomial[-1])
        for coefficient in polynomial[-2:0:-1]:
            value += t.dtype.type(coefficient)
            value *= t
        value += t.dtype.type(polynomial[0])
        found.append(value)
    numerator, denominator = found
    numerator /= denominator
    return numerator
