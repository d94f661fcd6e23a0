"""The derived tolerance: its formula, and how often it is wrong."""

from __future__ import annotations

import dataclasses
import math
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from levit_export.checks.reference import Overrides
from levit_export.checks.tolerance import FALSE_ALARM, KERNEL, derive, relative_spread
from levit_export.core.precisions import UNIT_ROUNDOFF
from levit_export.core.values import Tolerance

CHECKS = 2000


def _exact(rows: int = 6, columns: int = 50, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns)) * 3


def _rounded(exact: np.ndarray, spread: np.ndarray | float, seed: int = 1) -> np.ndarray:
    """``exact`` with Gaussian errors of ``spread`` (per row) relative to the row's largest."""
    scale = np.abs(exact).max(axis=1, keepdims=True)
    noise = np.random.default_rng(seed).standard_normal(exact.shape)
    return exact + np.reshape(spread, (-1, 1)) * scale * noise


def _by_formula(rounded: np.ndarray, exact: np.ndarray, u: float) -> list[float]:
    """The rtol of every row, number by number, as the derivation is written."""
    spreads = []
    for r, e in zip(rounded.tolist(), exact.tolist(), strict=True):
        squares = [(a - b) ** 2 for a, b in zip(r, e, strict=True)]
        spreads.append(math.sqrt(statistics.fmean(squares)) / max(abs(x) for x in e))
    floor = max(statistics.median(spreads), u)
    lam = math.sqrt(2 * math.log(2 * exact.size / 1e-6))
    return [lam * 4 * math.sqrt(2) * max(s, floor) for s in spreads]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "fp64"])
@pytest.mark.parametrize("rows", [5, 6])
def test_the_tolerance_is_that_of_the_formula(precision: str, rows: int) -> None:
    """Every row's rtol is lambda * kernel * sqrt(2) * sigma, computed here number by number."""
    u = UNIT_ROUNDOFF[precision]
    exact = _exact(rows)
    rounded = _rounded(exact, u * np.linspace(0.1, 40, rows))
    derived = derive(rounded, exact, precision=precision)
    assert derived.atol == 0
    assert derived.origin == "derived"
    # Sums of 50 squares and their root.
    bound = 100 * UNIT_ROUNDOFF["fp64"]
    assert derived.rtol == pytest.approx(_by_formula(rounded, exact, u), rel=bound)


def test_the_derivation_says_what_it_rests_on() -> None:
    """The record holds every factor of the formula, so that a reader can multiply again."""
    exact = _exact()
    rounded = _rounded(exact, 5e-7)
    derived = derive(rounded, exact, precision="fp32")
    said = derived.derivation
    assert said["precision"] == "fp32"
    assert said["unit_roundoff"] == 2.0**-24
    assert said["factor"] == KERNEL * math.sqrt(2) == 4 * math.sqrt(2)
    assert said["compared"] == exact.size == 300
    assert said["false_alarm"] == FALSE_ALARM == 1e-6
    factors = [float(said[k]) for k in ("lambda", "factor", "growth", "unit_roundoff")]
    # The product of four factors is rounded three times on either side.
    bound = 16 * UNIT_ROUNDOFF["fp64"]
    assert math.prod(factors) == pytest.approx(max(derived.rtol), rel=bound)


def test_lambda_is_the_tail_bound() -> None:
    """Lambda solves ``2 n exp(-lambda ** 2 / 2) = p`` for the n numbers compared."""
    exact = _exact(3, 7)
    lam = float(derive(_rounded(exact, 1e-6), exact, precision="fp32").derivation["lambda"])
    # The exponent of some 17 carries its rounding into the result.
    assert 2 * 21 * math.exp(-(lam**2) / 2) == pytest.approx(1e-6, rel=64 * UNIT_ROUNDOFF["fp64"])


def test_a_lucky_row_is_held_to_the_median() -> None:
    """A row that happened to round to the exact numbers is allowed what the median row is."""
    exact = _exact(5)
    rounded = _rounded(exact, 1e-6)
    rounded[2] = exact[2]
    derived = derive(rounded, exact, precision="fp32")
    spreads = sorted(relative_spread(rounded, exact))
    assert spreads[0] == 0
    assert derived.rtol[2] == min(derived.rtol)
    assert sorted(derived.rtol)[:3] == [derived.rtol[2]] * 3  # the two below the median, and it
    lucky = derived.rtol[2] / float(derived.derivation["lambda"]) / KERNEL / math.sqrt(2)
    assert lucky == pytest.approx(spreads[2], rel=16 * UNIT_ROUNDOFF["fp64"])


def test_an_unlucky_row_keeps_its_own_spread() -> None:
    """A row whose rounding costs more than the median's is allowed more, and it alone."""
    exact = _exact(5)
    derived = derive(
        _rounded(exact, np.array([1e-7, 1e-7, 1e-7, 1e-7, 1e-5])), exact, precision="fp32"
    )
    assert derived.rtol[4] > 10 * max(derived.rtol[:4])


@pytest.mark.parametrize("precision", ["fp32", "fp16", "fp64"])
def test_no_row_is_held_to_less_than_the_unit_roundoff(precision: str) -> None:
    """A model that rounds to the exact numbers still allows its precision's own roundoff."""
    exact = _exact()
    derived = derive(exact.copy(), exact, precision=precision)
    assert set(derived.rtol) == {max(derived.rtol)}
    assert derived.derivation["growth"] == 1
    assert min(derived.rtol) > UNIT_ROUNDOFF[precision]


def test_a_row_of_zeros_is_allowed_nothing_but_breaks_nothing() -> None:
    """A row that is exactly zero has no spread, and its allowance is zero as well."""
    exact = np.vstack([_exact(3), np.zeros((1, 50))])
    derived = derive(_rounded(exact, 1e-6), exact, precision="fp32")
    assert np.isfinite(derived.rtol).all()
    assert derived.allowed(exact)[3] == 0


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # inf - inf, as in a network
@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_an_arithmetic_that_overflowed_gives_no_finite_tolerance(value: float) -> None:
    """Where the artifact's own arithmetic overflows, its row has no finite allowance."""
    exact = _exact()
    rounded = _rounded(exact, 1e-4)
    rounded[2, 3] = value
    assert not np.isfinite(derive(rounded, exact, precision="fp16").allowed(exact)[2])


@given(
    spread=st.floats(1e-8, 1e-2),
    factor=st.floats(1.0, 100.0),
    row=st.integers(0, 5),
)
def test_more_rounding_never_allows_less(spread: float, factor: float, row: int) -> None:
    """If one row's rounding grows, no row's allowance shrinks."""
    exact = _exact()
    spreads = np.full(6, spread)
    before = derive(_rounded(exact, spreads), exact, precision="fp32")
    spreads[row] *= factor
    after = derive(_rounded(exact, spreads), exact, precision="fp32")
    assert all(b <= a for b, a in zip(before.rtol, after.rtol, strict=True))


@given(power=st.integers(-30, 30))
def test_the_tolerance_does_not_depend_on_the_scale(power: int) -> None:
    """Logits multiplied by a power of two get the same rtol."""
    exact = _exact()
    rounded = _rounded(exact, 1e-6)
    scaled = derive(rounded * 2.0**power, exact * 2.0**power, precision="fp32")
    assert scaled.rtol == derive(rounded, exact, precision="fp32").rtol


def test_more_numbers_are_held_to_a_wider_bound() -> None:
    """Comparing more numbers at the same rate of false alarms widens lambda."""
    lambdas = [
        float(derive(e, e, precision="fp32").derivation["lambda"])
        for e in (_exact(4, 10), _exact(4, 1000), _exact(40, 1000))
    ]
    assert lambdas == sorted(set(lambdas))


def test_a_spread_is_relative_to_the_largest_of_its_row() -> None:
    """The spread of a row is the root mean square of its errors over its largest number."""
    exact = np.array([[4.0, -8.0], [1.0, 2.0]])
    rounded = exact + np.array([[3.0, 4.0], [0.0, 0.0]])
    assert relative_spread(rounded, exact).tolist() == [math.sqrt(12.5) / 8, 0]


def test_a_spread_is_measured_in_float64() -> None:
    """A float32 answer is compared with the exact one, not the exact one rounded to float32."""
    exact = np.array([[1 + 2.0**-30, 1.0]])
    assert relative_spread(exact.astype(np.float32), exact)[0] > 0


# --- how often it is wrong ------------------------------------------------------------------


def _ratio(difference: np.ndarray, exact: np.ndarray, tolerance: Tolerance) -> float:
    return float((np.abs(difference).max(axis=1) / tolerance.allowed(exact)).max())


@pytest.mark.parametrize("columns", [10, 1000])
def test_correct_artifacts_raise_no_false_alarm(columns: int) -> None:
    """In 2000 checks of Gaussian errors as large as the formula admits, none is refused.

    The formula promises one alarm in a million checks where the spread is known; it is measured
    here from as few rows and columns as a real check has.
    """
    generator = np.random.default_rng(2024)
    exact = _exact(10, columns)
    scale = np.abs(exact).max(axis=1, keepdims=True)
    alarms = 0
    for _ in range(CHECKS):
        mine, theirs = (1e-6 * scale * generator.standard_normal(exact.shape) for _ in "rc")
        tolerance = derive(exact + mine, exact, precision="fp32")
        alarms += _ratio(KERNEL * theirs - mine, exact, tolerance) > 1
    assert alarms == 0


def test_errors_beyond_rounding_are_refused() -> None:
    """In 2000 checks of errors ten times as large as the formula admits, every one is refused."""
    generator = np.random.default_rng(2025)
    exact = _exact(10, 100)
    scale = np.abs(exact).max(axis=1, keepdims=True)
    missed = 0
    for _ in range(CHECKS):
        mine, theirs = (1e-6 * scale * generator.standard_normal(exact.shape) for _ in "rc")
        tolerance = derive(exact + mine, exact, precision="fp32")
        missed += _ratio(10 * KERNEL * theirs - mine, exact, tolerance) <= 1
    assert missed == 0


# --- Tolerance.allowed ----------------------------------------------------------------------


def test_allowed_is_absolute_plus_relative_by_row() -> None:
    """A row's allowance is ``atol + rtol_i * max|row_i|``, over all but the first axis."""
    reference = np.array([[[1.0, -4.0]], [[2.0, 0.5]]])
    assert Tolerance(0.5, (0.25, 1.0), "given").allowed(reference).tolist() == [1.5, 2.5]


def test_one_rtol_serves_all_rows() -> None:
    """A single rtol stands for every row."""
    reference = np.array([[1.0, -4.0], [2.0, 0.5], [0.0, 0.0]])
    assert Tolerance(0.0, (0.5,), "given").allowed(reference).tolist() == [2, 1, 0]


def test_as_many_rtols_as_rows_are_asked_for() -> None:
    """A number of rtols that is neither one nor the number of rows is refused, never cycled."""
    with pytest.raises(ValueError, match="broadcast"):
        Tolerance(0.0, (0.5, 0.5), "given").allowed(np.ones((3, 2)))


def test_a_half_precision_reference_does_not_overflow() -> None:
    """The allowance of a float16 reference is computed in float64."""
    reference = np.full((1, 2), 60000, np.float16)
    assert Tolerance(0.0, (2.0,), "given").allowed(reference).tolist() == [2 * 60000]


# --- given by the user ----------------------------------------------------------------------


def test_a_derived_tolerance_stays_where_none_is_given() -> None:
    """Without overrides the derived tolerance is used as it is."""
    derived = derive(_exact(), _exact(), precision="fp32")
    assert Overrides().apply(derived) is derived


@pytest.mark.parametrize(
    ("overrides", "atol", "rtol"),
    [
        (Overrides(atol=0.5), 0.5, 0.0),
        (Overrides(rtol=0.25), 0.0, 0.25),
        (Overrides(atol=0.5, rtol=0.25), 0.5, 0.25),
        (Overrides(atol=0.0), 0.0, 0.0),
        (Overrides(rtol=0.0), 0.0, 0.0),
    ],
)
def test_a_given_tolerance_replaces_the_derived_one(
    overrides: Overrides, atol: float, rtol: float
) -> None:
    """What a user gives is used alone, zero included, and the record says so."""
    derived = {"logits": derive(_exact(), _exact(), precision="fp32")}
    given_one = overrides.apply(derived)["logits"]
    assert given_one == Tolerance(atol, (rtol,), "given")
    assert given_one.derivation == {}
    assert dataclasses.asdict(given_one)["origin"] == "given"
