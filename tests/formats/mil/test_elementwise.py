"""Arithmetic and activation functions against coremltools' own values and float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mil_programs import FUNCTION, UNIT, Saved, assert_close, mb

from levit_export.core.errors import UnsupportedOpError
from levit_export.formats.mil.ops import elementwise

Save = Callable[..., Saved]
Array = npt.NDArray[Any]
U = UNIT[np.dtype(np.float32)]
FLOATS = ["float32", "float16"]

X = np.array([-300.0, -8.0, -3.0, -1.5, -1e-3, -0.0, 0.0, 1e-7, 0.3, 1.0, 2.5, 6.0, 7.5, 88.0])


def _sigmoid(x: Array) -> Array:
    with np.errstate(over="ignore"):
        return np.asarray(1 / (1 + np.exp(-x)))


# name: (op, exact function, relative error of the float32 formula in units of U)
UNARY: dict[str, tuple[Callable[..., Any], Callable[[Array], Array], float]] = {
    "relu": (lambda x: mb.relu(x=x), lambda x: np.maximum(x, 0), 0),
    "relu6": (lambda x: mb.relu6(x=x), lambda x: np.clip(x, 0, 6), 0),
    "square": (lambda x: mb.square(x=x), np.square, 1),
    "abs": (lambda x: mb.abs(x=x), np.abs, 0),
    "exp": (lambda x: mb.exp(x=x), np.exp, FUNCTION),
    "tanh": (lambda x: mb.tanh(x=x), np.tanh, FUNCTION),
    # exp, addition and division; the argument of exp is exact.
    "sigmoid": (lambda x: mb.sigmoid(x=x), _sigmoid, FUNCTION + 2),
    "silu": (lambda x: mb.silu(x=x), lambda x: x * _sigmoid(x), FUNCTION + 3),
    "softplus": (lambda x: mb.softplus(x=x), lambda x: np.logaddexp(x, 0), 2 * FUNCTION + 2),
    "identity": (lambda x: mb.identity(x=x), lambda x: x, 0),
}


@pytest.mark.parametrize("dtype", FLOATS)
def test_functions_of_one_tensor(saved: Save, dtype: str) -> None:
    """Each function agrees with float64, within the error of its float32 formula."""
    x = X.astype(dtype)

    def build(x: Any) -> list[Any]:
        return [mb.identity(x=make(x), name=name) for name, (make, _, _) in UNARY.items()]

    found = saved(build, x=x).run()
    for name, (_, function, growth) in UNARY.items():
        with np.errstate(over="ignore"):
            exact = function(x.astype(np.float64))
        assert found[name].dtype == dtype
        finite = np.where(np.isfinite(exact), exact, 0)
        if dtype == "float32":
            exact = np.where(np.abs(exact) > np.finfo(np.float32).max, np.inf, exact)
        assert_close(found[name], exact, error=growth * U * np.abs(finite) + 2.0**-149)


@pytest.mark.parametrize("dtype", FLOATS)
def test_erf_and_gelu(saved: Save, dtype: str) -> None:
    """``erf`` and the three forms of gelu agree with the standard library's functions."""
    x = np.linspace(-9, 9, 2001).astype(dtype)

    def build(x: Any) -> list[Any]:
        modes = ("EXACT", "TANH_APPROXIMATION", "SIGMOID_APPROXIMATION")
        return [mb.erf(x=x, name="erf"), *(mb.gelu(x=x, mode=m, name=m) for m in modes)]

    found = saved(build, x=x).run()
    z = x.astype(np.float64)
    erf = np.array([math.erf(v) for v in z.tolist()])
    below = 0.5 * np.array([math.erfc(v / math.sqrt(2)) for v in z.tolist()])
    exact = z * below[::-1]
    inner = math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)
    # The fraction is good to 2e-9, and erf is taken to be 1 from 1 - 2.8e-8 on.
    assert_close(found["erf"], erf, error=2.8e-8)
    # An error in the argument l of the sigmoid counts l F(-x) times. It is that of the fraction,
    # 2.5e-7, and of its computation: two polynomials of degree 4 with positive coefficients, two
    # roundings a degree, and four other roundings. Beyond 8 gelu is below 1e-14 or x itself.
    argument = np.abs(np.log(np.maximum(below, 1e-300)) - np.log(np.maximum(below[::-1], 1e-300)))
    growth = (2.5e-7 / U + 2 * 2 * 4 + 4) * argument * below + FUNCTION + 2
    assert_close(found["EXACT"], exact, error=growth * U * np.abs(exact) + 1e-14)
    # 1 + tanh cancels: tanh's error and the inner formula's (4 roundings, slope of tanh <= 1/inner
    # at most 1) are absolute ones, times 0.5 x.
    tanh_error = (FUNCTION + 4 + 2) * U * np.abs(z)
    tanh = 0.5 * z * (1 + np.tanh(inner))
    assert_close(found["TANH_APPROXIMATION"], tanh, error=tanh_error)
    # An error of 2 U in the argument of exp becomes 2 U |1.702 x| in its value.
    quick = z * _sigmoid(1.702 * z)
    growth = FUNCTION + 3 + 2 * np.abs(1.702 * z)
    assert_close(found["SIGMOID_APPROXIMATION"], quick, error=growth * U * np.abs(quick))


PARAMETRIC: dict[str, Callable[[Any], Any]] = {
    "thresholded_relu": lambda x: mb.thresholded_relu(x=x, alpha=_like(x, 1.0)),
    "below": lambda x: mb.thresholded_relu(x=x, alpha=_like(x, -3.0)),
    "leaky_relu": lambda x: mb.leaky_relu(x=x, alpha=_like(x, 0.25)),
    "clip": lambda x: mb.clip(x=x, alpha=_like(x, -2.0), beta=_like(x, 5.0)),
    "sigmoid_hard": lambda x: mb.sigmoid_hard(x=x, alpha=_like(x, 0.125), beta=_like(x, 0.5)),
    "linear_activation": lambda x: mb.linear_activation(
        x=x, alpha=_like(x, 0.5), beta=_like(x, 3.0)
    ),
    "elu": lambda x: mb.elu(x=x, alpha=_like(x, 2.0)),
}


def _like(x: Any, value: float) -> Any:
    """A constant of the type of ``x``."""
    from coremltools.converters.mil.mil import types

    return types.nptype_from_builtin(x.dtype)(value)


@pytest.mark.parametrize("dtype", FLOATS)
def test_functions_with_parameters(saved: Save, dtype: str) -> None:
    """Activation functions with parameters equal coremltools' value inference."""
    x = np.clip(X, -8, 8).astype(dtype)
    expected = {}

    def build(x: Any) -> list[Any]:
        for name, make in PARAMETRIC.items():
            expected[name] = make(mb.const(val=np.clip(X, -8, 8).astype(dtype))).val
        return [mb.identity(x=make(x), name=name) for name, make in PARAMETRIC.items()]

    found = saved(build, x=x).run()
    for name, exact in expected.items():
        # Powers of two as parameters leave the roundings of an addition, and of exp for elu; the
        # reference was rounded step by step in the output type.
        steps = 2 * UNIT[np.dtype(dtype)] * (np.abs(exact) + (2 if name == "elu" else 0))
        slack = 0 if name in {"thresholded_relu", "below", "leaky_relu", "clip"} else steps
        assert_close(found[name], exact, error=slack)


def test_prelu_has_a_slope_per_channel(saved: Save) -> None:
    """``prelu`` takes its slope from the channel axis."""
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 5)).astype(np.float32)
    slopes = np.array([0.5, 0.25, 2.0], np.float32)
    found = saved(lambda x: mb.prelu(x=x, alpha=slopes), x=x).output()
    exact = torch.nn.functional.prelu(torch.from_numpy(x), torch.from_numpy(slopes)).numpy()
    assert_close(found, exact)


BINARY: dict[str, tuple[Callable[..., Any], Callable[[Array, Array], Array]]] = {
    "add": (mb.add, np.add),
    "sub": (mb.sub, np.subtract),
    "mul": (mb.mul, np.multiply),
    "real_div": (mb.real_div, np.divide),
    "maximum": (mb.maximum, np.maximum),
    "minimum": (mb.minimum, np.minimum),
}


@st.composite
def _shapes(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Two shapes that broadcast."""
    full = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))

    def thinned() -> tuple[int, ...]:
        cut = draw(st.integers(0, len(full) - 1))
        return tuple(1 if draw(st.booleans()) else n for n in full[cut:])

    return tuple(full), thinned()


@settings(max_examples=12, derandomize=True)
@given(shapes=_shapes(), dtype=st.sampled_from(FLOATS), swap=st.booleans())
def test_binary_ops_broadcast(
    saved: Save, *, shapes: tuple[tuple[int, ...], tuple[int, ...]], dtype: str, swap: bool
) -> None:
    """Binary ops broadcast, and are correctly rounded in both float types."""
    rng = np.random.default_rng(len(shapes[1]))
    x, y = (rng.uniform(0.5, 300, s).astype(dtype) for s in (shapes[::-1] if swap else shapes))

    def build(x: Any, y: Any) -> list[Any]:
        return [mb.identity(x=op(x=x, y=y), name=name) for name, (op, _) in BINARY.items()]

    found = saved(build, x=x, y=y).run()
    for name, (_, exact) in BINARY.items():
        with np.errstate(over="ignore"):
            assert np.array_equal(found[name], exact(x, y)), name


def test_pow_log_and_roots(saved: Save) -> None:
    """Powers, logarithm and roots agree with float64."""
    x = np.array([1e-3, 0.5, 1.0, 2.0, 37.0], np.float32)

    def build(x: Any) -> list[Any]:
        return [
            mb.pow(x=x, y=np.float32(1.75), name="pow"),
            mb.log(x=x, epsilon=np.float32(1e-2), name="log"),
            mb.sqrt(x=x, name="sqrt"),
            mb.rsqrt(x=x, epsilon=np.float32(1e-2), name="rsqrt"),
            mb.inverse(x=x, epsilon=np.float32(1e-2), name="inverse"),
        ]

    found = saved(build, x=x).run()
    z, e = x.astype(np.float64), float(np.float32(1e-2))
    exact = {
        "pow": z**1.75,
        "log": np.log(z + e),
        "sqrt": np.sqrt(z),
        "rsqrt": 1 / np.sqrt(z + e),
        "inverse": 1 / (z + e),
    }
    for name, value in exact.items():
        # The rounded sum z + e moves a logarithm by U absolutely.
        assert_close(found[name], value, error=(FUNCTION + 2) * U * np.abs(value) + U)


@pytest.mark.parametrize("op", ["add", "mul"])
def test_float16_overflows_to_infinity(saved: Save, op: str) -> None:
    """A result beyond the largest float16 is infinite, of the right sign, as in hardware."""
    x = np.array([60000, -60000, 300, 65504], np.float16)
    found = saved(lambda x: getattr(mb, op)(x=x, y=x), x=x).output()
    with np.errstate(over="ignore"):
        assert np.array_equal(found, x + x if op == "add" else x * x)


def test_float16_intermediate_values_are_rounded(saved: Save) -> None:
    """A sum in float16 loses what float16 cannot hold before the next op sees it."""
    x = np.array([1.0], np.float16)

    def build(x: Any) -> Any:
        return mb.sub(x=mb.add(x=x, y=np.float16(2.0**-11)), y=np.float16(1.0))

    assert saved(build, x=x).output() == 0


def test_integers_stay_integers(saved: Save) -> None:
    """``int32`` arithmetic gives int32."""
    x = np.array([-7, 2**20, 3], np.int32)
    found = saved(lambda x: mb.mul(x=x, y=np.int32(3)), x=x).output()
    assert found.dtype == np.int32
    assert np.array_equal(found, x * 3)


def test_the_quotient_of_integers_is_whole(saved: Save) -> None:
    """``real_div`` of integers drops the remainder; it is refused where that has two meanings."""

    def build(x: Any) -> Any:
        return mb.real_div(x=x, y=np.array([11, 12, -3], np.int32))

    found = saved(build, x=np.array([50, 5, 12], np.int32)).output()
    assert found.dtype == np.int32
    assert found.tolist() == [4, 0, -4]
    with pytest.raises(UnsupportedOpError, match="negative quotient"):
        saved(build, x=np.array([50, 5, 13], np.int32)).output()


@pytest.mark.parametrize("dtype", ["int32", "fp16", "bool"])
def test_cast(saved: Save, dtype: str) -> None:
    """``cast`` drops fractions towards zero, rounds to half, and takes non-zero for true."""
    x = np.array([-2.7, -0.5, 0.0, 0.9, 1.1, 1234.567], np.float32)
    expected = {
        "int32": np.trunc(x).astype(np.int32),
        "fp16": x.astype(np.float16),
        "bool": x != 0,
    }[dtype]

    def build(x: Any) -> Any:
        y = mb.cast(x=x, dtype=dtype)
        return y if dtype != "bool" else mb.cast(x=y, dtype="int32")

    assert np.array_equal(saved(build, x=x).output(), expected)


def test_fractions_are_dropped_before_the_range_is_checked(saved: Save) -> None:
    """127.9 is the int8 number 127, not one too many."""
    x = np.array([127.9, -128.9], np.float32)

    def build(x: Any) -> Any:
        return mb.cast(x=mb.cast(x=x, dtype="int8"), dtype="int32")

    assert saved(build, specification=8, x=x).output().tolist() == [127, -128]


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("relu", ()),
        ("relu6", ()),
        ("leaky_relu", (0.1,)),
        ("thresholded_relu", (-3.0,)),
        ("elu", (1.0,)),
        ("clip", (0.0, 6.0)),
        ("linear_activation", (2.0, 1.0)),
        ("sigmoid_hard", (1 / 6, 0.5)),
        ("sigmoid", ()),
        ("silu", ()),
        ("softplus", ()),
        ("tanh", ()),
        ("erf", ()),
        ("gelu", ()),
    ],
)
def test_nan_stays(name: str, more: tuple[float, ...]) -> None:
    """No activation function turns a NaN into a number, nor +infinity into a NaN."""
    x = np.array([np.nan, np.inf, 1.0], np.float32)
    function = getattr(elementwise, name)
    with np.errstate(all="ignore"):
        y = function(x, *(np.array(m, np.float32) for m in more))
    assert np.isnan(y).tolist() == [True, False, False]
