"""Rounding to float16 inside float32."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from levit_export.formats.mil.rounding import round_to_half_


def _by_numpy(x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    with np.errstate(all="ignore"):
        rounded: npt.NDArray[np.float32] = x.astype(np.float16).astype(np.float32)
        return rounded


def _assert_same_bits(x: npt.NDArray[np.float32]) -> None:
    y = x.copy()
    round_to_half_(y)
    expected = _by_numpy(x)
    numbers = ~np.isnan(expected)
    assert np.array_equal(np.isnan(y), ~numbers)
    assert np.array_equal(y.view(np.uint32)[numbers], expected.view(np.uint32)[numbers])


def _halves() -> npt.NDArray[np.float32]:
    """Every finite float16 number, subnormal ones and both zeros included."""
    every = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16).view(np.float16)
    finite: npt.NDArray[np.float32] = every[np.isfinite(every)].astype(np.float32)
    return finite


@pytest.mark.parametrize("steps", range(-2, 3))
def test_numbers_around_every_half_and_every_midpoint(steps: int) -> None:
    """Exact numbers, ties and their float32 neighbours round as NumPy rounds them."""
    halves = np.unique(_halves())
    midpoints = (halves[:-1].astype(np.float64) + halves[1:]) / 2
    for start in (halves, midpoints.astype(np.float32)):
        x = start.copy()
        for _ in range(abs(steps)):
            x = np.nextafter(x, np.float32(np.copysign(np.inf, steps)))
        _assert_same_bits(x)


def test_signed_zeros_survive() -> None:
    """Zeros, and numbers that vanish, keep their sign."""
    _assert_same_bits(np.array([0.0, -0.0, 1e-30, -1e-30, 2.0**-25, -(2.0**-25)], np.float32))


def test_overflow_infinities_and_nan() -> None:
    """Numbers from 65520 on become infinite; infinities and NaN stay."""
    x = np.array([65504, 65519.996, 65520, -65520, 1e30, -np.inf, np.inf, np.nan], np.float32)
    _assert_same_bits(x)
    _assert_same_bits(np.array([65519.996, -65519.996], np.float32))


def test_random_bit_patterns() -> None:
    """A million float32 bit patterns agree, in blocks with and without overflow."""
    bits = np.random.default_rng(0).integers(0, 1 << 32, size=1 << 20, dtype=np.uint64)
    x = bits.astype(np.uint32).view(np.float32)
    _assert_same_bits(x)
    _assert_same_bits(x[np.abs(x) < 65520])


@pytest.mark.parametrize("layout", ["scalar", "transposed", "permuted", "strided", "empty"])
def test_layouts(layout: str) -> None:
    """Arrays of every memory layout are rounded in place."""
    base = np.random.default_rng(1).standard_normal((6, 10)).astype(np.float32)
    x = {
        "scalar": np.array(0.1, np.float32),
        "transposed": base.T,
        "permuted": base.reshape(3, 2, 10).transpose(1, 2, 0),
        "strided": base[::2, ::3],
        "empty": base[:0],
    }[layout]
    expected = _by_numpy(x.copy())
    round_to_half_(x)
    assert np.array_equal(x, expected)
