"""Whether an artifact became slower than the machine and its noise explain.

With ``a`` the medians of the artifact and ``r`` those of what was measured in the same run, eager
PyTorch or the machine's matrix product, now and then (in the baseline)

    growth = (a_now / r_now) / (a_then / r_then)

A machine that is slower as a whole slows ``a_now`` and ``r_now`` alike. An artifact has regressed
when the 95 % bootstrap interval of ``growth`` (Efron 1979) lies above ``1 + slack``: rounds are
drawn again within each run, the same ones of both its series. Of the matrix products a report has
the median rate alone, so their own spread is not in the interval.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeGuard

import numpy as np

from levit_export.checks.results import ArtifactReport
from levit_export.checks.timing import RESAMPLES, TimingReport
from levit_export.core.errors import UsageError
from levit_export.core.values import Verdict
from levit_export.reports.report import Report

EAGER = "PyTorch eager"
PRODUCTS = "the machine's matrix products"
LEVEL = 0.95
FEWEST = 10
"""Rounds below which a bootstrap of the median says little: nothing is concluded then."""

Run = tuple[Report, ArtifactReport]


@dataclass(frozen=True)
class Growth:
    """How many times slower than in the baseline, with the bootstrap interval.

    ``now`` and ``then`` are latencies over that of the reference in the same run.
    """

    against: str
    now: float
    then: float
    low: float
    high: float

    @property
    def factor(self) -> float:
        """The formula's ``growth``."""
        return self.now / self.then


def refuse_untimed(baseline: Report) -> None:
    """Raise ``UsageError`` when nothing in the baseline was timed."""
    if not any(_measured(artifact.timing) for artifact in baseline.artifacts):
        raise UsageError(
            "the baseline holds no latency to compare with",
            remedy="Take the report of an export without --no-bench, or leave out "
            "--latency-slack.",
        )


def judge(now: Run, then: Run, slack: float) -> tuple[Verdict, str] | None:
    """Whether an artifact is more than ``slack`` percent slower than in the baseline, and why.

    None when the baseline has no latency of it: Core ML, say, where there was no Mac.
    """
    timed, before = now[1].timing, then[1].timing
    if not _measured(before):
        return None
    if not _measured(timed):
        return "not-run", "not timed" if timed is None else f"not timed: {timed.reason}"
    if problem := _incomparable(timed, before):
        return "not-run", problem
    found = growth((now[0], timed), (then[0], before))
    if found is None:
        return "not-run", (
            "no reference was timed beside it in both runs; name the model (--checkpoint FILE)"
        )
    if found.low <= 1 + slack / 100:
        return "pass", ""
    return "fail", (
        f"takes {found.now:.3g} times as long as {found.against}, in the baseline "
        f"{found.then:.3g}: {100 * (found.factor - 1):.0f} % slower, 95 % interval "
        f"{100 * (found.low - 1):.0f} to {100 * (found.high - 1):.0f} %; the limit is {slack:g} %"
    )


def _measured(timed: TimingReport | None) -> TypeGuard[TimingReport]:
    return timed is not None and timed.verdict == "pass" and bool(timed.seconds)


def _incomparable(timed: TimingReport, before: TimingReport) -> str:
    for name in ("threads", "batch"):
        here, there = getattr(timed, name), getattr(before, name)
        if here != there:
            return f"timed with {name} {here}, in the baseline {there}: the ratios differ by that"
    fewest = min(len(timed.seconds), len(before.seconds))
    if fewest < FEWEST:
        return f"{fewest} rounds were timed, at least {FEWEST} are needed (--iters)"
    return ""


Timed = tuple[Report, TimingReport]
Series = tuple[np.ndarray, np.ndarray]
"""Seconds of the artifact and of the reference, round by round."""


def growth(now: Timed, then: Timed) -> Growth | None:
    """The formula's ``growth``, against eager PyTorch where both runs have it, else the products.

    None when neither reference is in both runs.
    """
    references: dict[str, Callable[[Report, TimingReport], Series | None]] = {
        EAGER: _beside_eager,
        PRODUCTS: _beside_products,
    }
    for against, beside in references.items():
        here, there = beside(*now), beside(*then)
        if here is not None and there is not None:
            return _growth(against, here, there)
    return None


def _beside_eager(report: Report, timed: TimingReport) -> Series | None:
    eager = report.baselines.get(EAGER)
    if not _measured(eager) or len(eager.seconds) != len(timed.seconds):
        return None
    return np.array(timed.seconds), np.array(eager.seconds)


def _beside_products(_: Report, timed: TimingReport) -> Series | None:
    """As efficiency = ideal / median, ``ideal`` is what the products alone would take."""
    if timed.efficiency is None:
        return None
    seconds = np.array(timed.seconds)
    return seconds, np.full_like(seconds, timed.efficiency * np.median(seconds))


def _growth(against: str, now: Series, then: Series) -> Growth:
    here, there = (float(np.median(a) / np.median(r)) for a, r in (now, then))
    generator = np.random.default_rng(0)
    drawn = [_redrawn(series, generator) for series in (now, then)]
    tails = (1 - LEVEL) / 2, (1 + LEVEL) / 2
    low, high = np.quantile(drawn[0] / drawn[1], tails)
    return Growth(against, here, there, low=float(low), high=float(high))


def _redrawn(series: Series, generator: np.random.Generator) -> np.ndarray:
    """Ratios of medians ``(RESAMPLES,)`` over rounds drawn with replacement."""
    a, r = series
    rounds = generator.integers(0, len(a), (RESAMPLES, len(a)))
    ratios: np.ndarray = np.median(a[rounds], axis=1) / np.median(r[rounds], axis=1)
    return ratios
