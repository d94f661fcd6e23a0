"""Figures of a pair of values, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from levit_export.checks import tolerance
from levit_export.checks.drift.tolerances import (
    Distance,
    Range,
    Rounded,
    relative_tolerance,
    rms_tolerance,
)
from levit_export.core.precisions import UNIT_ROUNDOFF


def test_figures_by_hand() -> None:
    """Largest error and rms are relative to the sample's largest value; the ratio is in power."""
    found = Distance()
    found.add(np.array([[1.0, -4.0]]), np.array([[1.0, -2.0]]))
    assert found.errors == [1.0]
    assert found.spreads == [pytest.approx(math.sqrt(2) / 2)]
    assert found.snr_db == pytest.approx(10 * math.log10(5 / 4))
    assert found.levels == [pytest.approx(math.sqrt(2.5) / 2)]


def test_a_failure_is_infinitely_far() -> None:
    """A sample that cannot be compared has an infinite error and no ratio."""
    found = Distance()
    found.add_failure(1)
    assert (found.largest, found.snr_db) == (math.inf, None)


def test_range_counts_what_float16_cannot_hold() -> None:
    """Extremes are those of finite values; infinities count as not finite and as too large."""
    found = Range()
    found.add(np.array([1.0, -7e4, np.inf, np.nan]))
    assert (found.low, found.high, found.peak) == (-7e4, 1.0, 7e4)
    assert (found.not_finite, found.share_above) == (2, 0.5)


def test_the_formula_is_that_of_whole_artifacts() -> None:
    """From the same measurements a tap gets the tolerance that ``tolerance.derive`` would give."""
    generator = np.random.default_rng(0)
    exact = generator.standard_normal((3, 50))
    rounded = exact + 1e-6 * generator.standard_normal((3, 50))
    found = Distance()
    for row in range(3):
        found.add(rounded[row : row + 1], exact[row : row + 1])
    for precision in ("fp32", "fp16", "int8"):
        derived = tolerance.derive(rounded, exact, precision=precision)
        ours = relative_tolerance(found.spreads, found.count, precision)
        assert ours == pytest.approx(derived.rtol)


def test_an_overflow_grants_nothing() -> None:
    """A sample on which float16 itself overflows gets no more than the floor."""
    broken, sound = Distance(), Distance()
    for found in (broken, sound):
        found.add(np.ones((1, 4)), np.ones((1, 4)))
    broken.add_failure(1)
    assert np.isfinite(relative_tolerance(broken.spreads, broken.count, "fp16")).all()
    assert np.isfinite(rms_tolerance(broken, "fp16")).all()


def test_rms_of_correct_arithmetic_is_within_its_tolerance() -> None:
    """Rounding to float16, the error that is expected, uses well under half of what is allowed."""
    generator = np.random.default_rng(0)
    exact = generator.standard_normal((4, 3000))
    found = Distance()
    for row in exact:
        found.add(row[None].astype(np.float16), row[None])
    assert (np.array(found.spreads) < rms_tolerance(found, "fp16") / 2).all()


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_network_rounds_as_its_precision_does(precision: str) -> None:
    """Numbers that the type holds pass through a layer; others are rounded, and so are weights."""
    u = UNIT_ROUNDOFF[precision]
    layer = torch.nn.Linear(1, 1, bias=False)
    layer.weight.data = torch.tensor([[1 + u / 2]])  # which is nearer to 1 than to the next number
    network = Rounded(layer, precision)
    inputs = torch.tensor([[3.0], [1 + 4 * u], [1 + u / 2]])
    with torch.no_grad():
        found = network.run({}, inputs, ("y",))["y"]
    assert found.tolist() == [[3.0], [1 + 4 * u], [1.0]]
    held = network.stored({"x": torch.tensor([1 + u / 2], dtype=torch.float64)}, {})
    assert held["x"].tolist() == [1.0]
