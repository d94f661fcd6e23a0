"""Intervals and tests for counts, against published figures."""

from __future__ import annotations

from math import comb

import pytest

from levit_export.core.statistics import mcnemar, wilson


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_as_published(k: int, n: int, low: float, high: float) -> None:
    """The intervals are those of Newcombe, Statistics in Medicine 17 (1998), table I, method 3."""
    assert tuple(round(end, 4) for end in wilson(k, n)) == (low, high)


@pytest.mark.parametrize("n", [1, 7, 360, 50_000])
def test_wilson_at_the_ends(n: int) -> None:
    """None right begins at exactly 0, all right ends at exactly 1, and one mirrors the other."""
    low, high = wilson(0, n)
    assert (low, wilson(n, n)[1]) == (0.0, 1.0)
    assert wilson(n, n)[0] == pytest.approx(1 - high)
    assert 0 < high < 1


@pytest.mark.parametrize(("k", "n"), [(1, 0), (0, 0), (3, 2), (-1, 2)])
def test_wilson_of_nonsense(k: int, n: int) -> None:
    """Counts that cannot be are refused."""
    with pytest.raises(ValueError, match=f"{k} of {n}"):
        wilson(k, n)


def test_mcnemar_as_published() -> None:
    """1 and 7 pairs give 0.070: Fagerland, Lydersen and Laake, BMC Med. Res. Meth. 13:91, 2013."""
    assert round(mcnemar(1, 7), 3) == 0.070
    assert mcnemar(7, 1) == mcnemar(1, 7) == 18 / 256


@pytest.mark.parametrize(("b", "c", "p"), [(0, 0, 1.0), (4, 4, 1.0), (0, 1, 1.0), (0, 6, 1 / 32)])
def test_mcnemar_by_hand(b: int, c: int, p: float) -> None:
    """No pairs and even splits are no evidence; six of six are heads twice in 64 throws."""
    assert mcnemar(b, c) == p


def test_mcnemar_of_many_pairs() -> None:
    """Thousands of pairs neither overflow nor lose digits."""
    b, c = 1900, 2100
    expected = 2 * sum(comb(b + c, i) for i in range(b + 1)) / 2 ** (b + c)
    assert mcnemar(b, c) == expected
    assert mcnemar(0, 5000) == 0.0


def test_mcnemar_of_nonsense() -> None:
    """Negative counts are refused."""
    with pytest.raises(ValueError, match="-1 and 3"):
        mcnemar(-1, 3)
