"""Measure the latency of several sessions side by side. Pure: the clock is an argument.

Sessions are called round robin, so that a machine that slows down or speeds up hits all of them
alike, and ratios between them hold. Each timed call directly follows an untimed one of the same
session: it finds its own weights in the caches and its own threads awake, not its neighbour's. Raw
seconds are kept; every statistic is computed from them.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import TypeVar

import numpy as np

from levit_export.core.progress import Progress
from levit_export.core.values import Verdict

KeyT = TypeVar("KeyT")

EAGER = "PyTorch eager"
"""What the timing of the unfused model in PyTorch is called beside those of artifacts."""

NOISY = 0.10
"""Interquartile range over median above which a measurement is called noisy."""

STEADY = 0.05
WINDOW = 5
"""Warm-up ends when two successive windows of this many calls have medians within ``STEADY``."""

FEWEST = 10
"""Rounds that are measured even when the budget is spent."""

RESAMPLES = 2000
INTERVAL = (0.025, 0.975)
"""The ends of a bootstrap interval, as quantiles."""

MOST_DRAWS = 1_000_000
"""Values that a bootstrap holds in memory at once."""


@dataclass(frozen=True)
class Rules:
    """How a benchmark wants latency measured: one session after the other, its calls in a row.

    At least ``calls`` of them are made, and until ``seconds`` have passed; what is quoted of them
    is the ``quantile``.
    """

    name: str
    calls: int
    seconds: float
    quantile: float

    @property
    def in_words(self) -> str:
        """What a figure that was measured by them is."""
        return (
            f"{100 * self.quantile:.0f}th percentile of calls in a row, at least {self.calls:,} "
            f"of them and {self.seconds:g} s ({self.name})"
        )


RULES = {each.name: each for each in (Rules("mlperf-mobile", 1024, 60.0, 0.9),)}
"""By name. Those of MLPerf Mobile's single-stream scenario, in which each call is one image."""


@dataclass(frozen=True)
class TimingPlan:
    """How long to measure: at most ``warmup`` calls before, at most ``iterations`` rounds after.

    Warm-up takes at most half of ``budget_s`` seconds; once all of it has passed, rounds end after
    ``FEWEST`` of them: a slow model on a busy machine is not worth minutes. ``rules`` take the
    place of the rounds. ``sustain_s`` are the seconds of a run without pauses of each session,
    after all of that.
    """

    warmup: int = 30
    iterations: int = 50
    budget_s: float = 5.0
    rules: Rules | None = None
    sustain_s: float = 0.0


@dataclass(frozen=True)
class Regimes:
    """What was measured beside warm calls; each regime has a figure of its own.

    ``cold_s`` is from the start of loading to the first answer, ``first_s`` the first call of
    that. ``sustained`` are the seconds of all calls of a long run in a row, empty without one.
    """

    cold_s: float
    first_s: float
    sustained: tuple[float, ...] = field(default=(), repr=False)

    def sustained_ms(self, q: float) -> float:
        """The q-quantile of the sustained calls in milliseconds."""
        return 1e3 * float(np.quantile(self.sustained, q))

    @property
    def slowdown(self) -> float:
        """Median of the sustained calls in the second half of their time over the first half's.

        Above 1 the device slows down, as it does when it becomes hot.
        """
        ends = np.cumsum(self.sustained)
        late = ends > ends[-1] / 2
        seconds = np.asarray(self.sustained)
        early = seconds[~late] if not late.all() else seconds
        return float(np.median(seconds[late]) / np.median(early))

    @property
    def in_words(self) -> str:
        """Every regime with a figure of its own."""
        words = f"cold {1e3 * self.cold_s:.1f} ms, first {1e3 * self.first_s:.2f} ms"
        if self.sustained:
            words += (
                f", sustained for {sum(self.sustained):.0f} s {self.sustained_ms(0.5):.2f} ms "
                f"(p90 {self.sustained_ms(0.9):.2f}), {self.slowdown:.2f} times as long in the "
                "second half as in the first"
            )
        return words


@dataclass(frozen=True)
class TimingReport:
    """Raw seconds of one session and where they were measured; statistics are properties.

    ``efficiency`` is ``(2 * MACs * batch / GEMM rate) / latency``: 1 means that the model runs as
    fast as this machine multiplies matrices, by the rate measured in the same run. ``peak_bytes``
    is the resident memory of a process of its own that loads the artifact and runs it once.
    ``regimes`` is what the first calls and a long run took, ``rules`` the name of what it was
    measured by.
    """

    verdict: Verdict
    reason: str = ""
    runtime: str = ""
    threads: int = 0
    batch: int = 0
    load_s: float = 0.0
    efficiency: float | None = None
    peak_bytes: int | None = None
    seconds: tuple[float, ...] = field(default=(), repr=False)
    regimes: Regimes | None = None
    rules: str = ""

    def quantile_ms(self, q: float) -> float:
        """The q-quantile in milliseconds."""
        return 1e3 * float(np.quantile(self.seconds, q))

    @property
    def median_ms(self) -> float:
        """Median latency of one call in milliseconds."""
        return self.quantile_ms(0.5)

    @property
    def noisy(self) -> bool:
        """Whether the interquartile range exceeds ``NOISY`` of the median."""
        return self.quantile_ms(0.75) - self.quantile_ms(0.25) > NOISY * self.median_ms

    def interval_ms(self) -> tuple[float, float]:
        """The 95 % percentile-bootstrap interval of the median in milliseconds (Efron 1979)."""
        values, drawn = np.asarray(self.seconds), np.random.default_rng(0)
        # A few samples at a time: all of a minute's calls would take gigabytes.
        at_once = max(1, MOST_DRAWS // len(values))
        sizes = [min(at_once, RESAMPLES - done) for done in range(0, RESAMPLES, at_once)]
        medians = [
            np.median(values[drawn.integers(0, len(values), (size, len(values)))], axis=1)
            for size in sizes
        ]
        low, high = np.quantile(np.concatenate(medians), INTERVAL)
        return 1e3 * float(low), 1e3 * float(high)


def not_timed(reason: str) -> TimingReport:
    """A measurement that was asked for and did not happen."""
    return TimingReport("not-run", reason)


def measure(
    calls: Mapping[KeyT, Callable[[], object]],
    plan: TimingPlan,
    *,
    clock: Callable[[], float] = perf_counter,
    progress: Progress | None = None,
    rest: Callable[[KeyT], None] = lambda _: None,
) -> dict[KeyT, tuple[float, ...]]:
    """Seconds of every call, ``{name: (rounds,)}``, measured round robin after warming up.

    ``rest`` is called with each name once it was timed, and may wait until the session's threads
    sleep: OpenMP's go on spinning, and would take the cores from the next session.
    """
    # A slow model gets fewer rounds, not a longer run; fewer than ``FEWEST`` would say nothing.
    end = clock() + plan.budget_s
    for call in calls.values():
        _warm_up(call, plan.warmup, plan.budget_s / len(calls) / 2, clock)
    if plan.rules is not None:
        asked = plan.rules.calls, plan.rules.seconds
        return {
            name: in_a_row(call, *asked, clock=clock, progress=progress)
            for name, call in calls.items()
        }
    seconds: dict[KeyT, list[float]] = {name: [] for name in calls}
    for done in range(plan.iterations):
        if done >= FEWEST and clock() > end:
            break
        for name, call in calls.items():
            call()  # not timed: it brings the session's weights back into the caches
            seconds[name] += series(call, 1, clock=clock)
            rest(name)
        if progress is not None:
            progress.advance()
    return {name: tuple(values) for name, values in seconds.items()}


def in_a_row(
    call: Callable[[], object],
    calls: int,
    least_s: float,
    *,
    clock: Callable[[], float] = perf_counter,
    progress: Progress | None = None,
) -> tuple[float, ...]:
    """Seconds of calls without a pause, so many at least and for ``least_s`` seconds at least."""
    start, seconds, shown = clock(), array("d"), 0
    while len(seconds) < calls or clock() - start < least_s:
        seconds.extend(series(call, 1, clock=clock))
        while progress is not None and shown < min(int(clock() - start), least_s):
            progress.advance()
            shown += 1
    return tuple(seconds)


def series(
    call: Callable[[], object], count: int, *, clock: Callable[[], float] = perf_counter
) -> tuple[float, ...]:
    """Seconds of ``count`` calls in a row."""
    seconds = []
    for _ in range(count):
        start = clock()
        call()
        seconds.append(clock() - start)
    return tuple(seconds)


def drawn_ratios(
    numerator: Sequence[float] | np.ndarray,
    denominator: Sequence[float] | np.ndarray,
    generator: np.random.Generator,
) -> np.ndarray:
    """Ratios of medians, of rounds that are drawn again ``(RESAMPLES,)``.

    The two series were measured round robin, so the same rounds are drawn from both: what slowed
    a round slowed both.
    """
    a, b = np.asarray(numerator), np.asarray(denominator)
    rounds = generator.integers(0, len(a), (RESAMPLES, len(a)))
    ratios: np.ndarray = np.median(a[rounds], axis=1) / np.median(b[rounds], axis=1)
    return ratios


def ratio_interval(
    numerator: Sequence[float], denominator: Sequence[float]
) -> tuple[float, float, float]:
    """Ratio of medians with its 95 % bootstrap interval ``(ratio, low, high)``."""
    drawn = drawn_ratios(numerator, denominator, np.random.default_rng(0))
    low, high = np.quantile(drawn, INTERVAL)
    return float(np.median(numerator) / np.median(denominator)), float(low), float(high)


def _warm_up(
    call: Callable[[], object], most: int, budget_s: float, clock: Callable[[], float]
) -> None:
    """Call until the latency is steady, at most ``most`` times and about ``budget_s`` seconds."""
    seconds: list[float] = []
    while len(seconds) < most and sum(seconds) <= budget_s:
        seconds += series(call, 1, clock=clock)
        if len(seconds) >= 2 * WINDOW and len(seconds) % WINDOW == 0:
            now, before = np.median(seconds[-WINDOW:]), np.median(seconds[-2 * WINDOW : -WINDOW])
            if abs(now - before) <= STEADY * before:
                return
