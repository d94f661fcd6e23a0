"""Latency: what is called when, and statistics that follow from the raw seconds alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from levit_export.checks import timing
from levit_export.checks.timing import TimingPlan, TimingReport
from levit_export.core.progress import Silent


class Clock:
    """A clock that stands still but for the calls that are timed by it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def __call__(self) -> float:
        return self.now

    def work(self, name: str, durations: Iterator[float]) -> Callable[[], object]:
        """A call that takes the next of ``durations``."""

        def call() -> None:
            self.calls.append(name)
            self.now += next(durations)

        return call


def steady(seconds: float) -> Iterator[float]:
    """The same duration for ever."""
    return itertools.repeat(seconds)


def report(*milliseconds: float) -> TimingReport:
    """A measurement with these raw values."""
    return TimingReport("pass", seconds=tuple(m / 1e3 for m in milliseconds))


def test_raw_seconds_are_exact() -> None:
    """Every timed call is recorded with its own duration, in its order, for its own session."""
    clock = Clock()
    a = (float(n) for n in itertools.count(1))
    seconds = timing.measure(
        {"a": clock.work("a", a), "b": clock.work("b", steady(0.5))},
        TimingPlan(warmup=0, iterations=3),
        clock=clock,
    )
    # Of each pair of calls the second is timed; the first brings the session's weights back.
    assert seconds == {"a": (2.0, 4.0, 6.0), "b": (0.5, 0.5, 0.5)}


def test_sessions_are_interleaved() -> None:
    """Sessions take turns round by round, each timed call right after one of the same session."""
    clock = Clock()
    calls = {name: clock.work(name, steady(1)) for name in "abc"}
    rounds: list[int] = []

    class Counting(Silent):
        """Notes how many calls there were when a round was done."""

        def advance(self) -> None:
            """A round is done."""
            rounds.append(len(clock.calls))

    timing.measure(
        calls,
        TimingPlan(warmup=0, iterations=2),
        clock=clock,
        progress=Counting(),
    )
    assert "".join(clock.calls) == "aabbcc" * 2
    assert rounds == [6, 12]


def test_a_session_may_be_left_to_rest() -> None:
    """There is a rest after each timed call, of which the session is told; it counts for none."""
    clock = Clock()
    calls = {name: clock.work(name, steady(1)) for name in "ab"}

    def rest(name: str) -> None:
        clock.work(f"<{name}>", steady(100))()

    seconds = timing.measure(
        calls, TimingPlan(warmup=0, iterations=2, budget_s=1e6), clock=clock, rest=rest
    )
    assert "".join(clock.calls) == "aa<a>bb<b>" * 2
    assert seconds == {"a": (1.0, 1.0), "b": (1.0, 1.0)}


def test_warm_up_stops_when_steady() -> None:
    """A session that is steady from the start is warmed up for two windows, not to the limit."""
    clock = Clock()
    plan = TimingPlan(warmup=100, iterations=1)
    timing.measure({"a": clock.work("a", steady(0.125))}, plan, clock=clock)
    assert len(clock.calls) == 2 * timing.WINDOW + 2


def test_warm_up_waits_for_a_steady_latency() -> None:
    """A session that gets faster is called on until it does not."""
    clock = Clock()
    slow = (0.10, 0.09, 0.08, 0.07, 0.06, 0.05, 0.04, 0.03, 0.02, 0.015)
    plan = TimingPlan(warmup=100, iterations=1)
    durations = itertools.chain(slow, steady(0.0078125))
    seconds = timing.measure({"a": clock.work("a", durations)}, plan, clock=clock)
    assert len(clock.calls) == len(slow) + 2 * timing.WINDOW + 2
    assert seconds["a"] == pytest.approx((0.0078125,))


def test_warm_up_has_an_end() -> None:
    """A session that never gets steady is warmed up to the limit and then measured."""
    clock = Clock()
    plan = TimingPlan(warmup=23, iterations=1)
    growing = (1e-6 * 1.5**n for n in itertools.count())
    timing.measure({"a": clock.work("a", growing)}, plan, clock=clock)
    assert len(clock.calls) == 23 + 2


def test_budget() -> None:
    """Slow sessions are not called on and on: warm-up ends, and so do the rounds after a few."""
    clock = Clock()
    calls = {name: clock.work(name, steady(1)) for name in "ab"}
    seconds = timing.measure(calls, TimingPlan(30, 50, budget_s=4), clock=clock)
    assert seconds == {"a": (1.0,) * timing.FEWEST, "b": (1.0,) * timing.FEWEST}
    # Half of the budget is for warming up, half of that for each session: until 1 s has passed.
    warm_up = len(clock.calls) - 2 * 2 * timing.FEWEST
    assert warm_up == 2 * 2


def test_budget_that_is_kept() -> None:
    """Sessions that are fast enough are measured for every round that was asked for."""
    clock = Clock()
    calls = {"a": clock.work("a", steady(0.125))}
    seconds = timing.measure(calls, TimingPlan(0, 50, budget_s=12.5), clock=clock)
    assert len(seconds["a"]) == 50


@pytest.mark.parametrize(
    ("seconds", "calls"),
    [(0.25, 1024), (0.0078125, 7680)],  # 256 s pass, and 60 s of shorter calls
)
def test_rules_of_a_benchmark(seconds: float, calls: int) -> None:
    """MLPerf Mobile's rules time one session after the other, 1,024 calls and 60 s of each."""
    clock = Clock()
    passed: list[float] = []

    class Watching(Silent):
        """Notes when a step was done."""

        def advance(self) -> None:
            """A second of a session."""
            passed.append(clock.now)

    named = {name: clock.work(name, steady(seconds)) for name in "ab"}
    plan = TimingPlan(warmup=0, iterations=3, rules=timing.RULES["mlperf-mobile"])
    found = timing.measure(named, plan, clock=clock, progress=Watching())
    assert found == {"a": (seconds,) * calls, "b": (seconds,) * calls}
    assert "".join(clock.calls) == "a" * calls + "b" * calls
    assert len(passed) == 2 * 60


def test_no_sessions() -> None:
    """Nothing to measure gives nothing."""
    assert timing.measure({}, TimingPlan(iterations=2)) == {}


def test_quantiles() -> None:
    """Median and quantiles are those of the raw values, in milliseconds."""
    found = report(3, 1, 2, 5, 4)
    assert found.median_ms == pytest.approx(3, rel=1e-12)
    assert found.quantile_ms(0) == pytest.approx(1, rel=1e-12)
    assert found.quantile_ms(0.9) == pytest.approx(4.6, rel=1e-12)


@pytest.mark.parametrize(("spread", "noisy"), [(0.0, False), (0.19, False), (0.21, True)])
def test_noisy(spread: float, *, noisy: bool) -> None:
    """Noisy is an interquartile range above a tenth of the median; outliers do not matter."""
    values = np.linspace(10 - 5 * spread, 10 + 5 * spread, 101)
    values[-5:] = 1000
    values[:5] = 0.001
    assert report(*values).noisy is noisy


def test_interval() -> None:
    """The interval holds the median, lies within the data, is repeatable and narrows with data."""
    generator = np.random.default_rng(3)
    few, many = generator.gamma(9, 1, 15), generator.gamma(9, 1, 1500)
    widths = []
    for values in (few, many):
        found = report(*values)
        low, high = found.interval_ms()
        assert values.min() <= low <= found.median_ms <= high <= values.max()
        assert found.interval_ms() == (low, high)
        widths.append(high - low)
    assert widths[1] < widths[0] / 3


def test_interval_covers_the_truth() -> None:
    """About 95 of 100 intervals hold the median of the distribution that was drawn from."""
    generator = np.random.default_rng(0)
    intervals = [report(*generator.normal(10, 1, 41)).interval_ms() for _ in range(200)]
    covered = np.mean([low <= 10 <= high for low, high in intervals])
    assert 0.9 <= covered <= 0.99


def test_interval_of_a_long_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing a few samples at a time gives the interval that all at once would give."""
    values = np.random.default_rng(7).gamma(9, 1, 301)
    at_once = report(*values).interval_ms()
    monkeypatch.setattr(timing, "MOST_DRAWS", 5 * 301 + 7)
    assert report(*values).interval_ms() == at_once


def test_interval_of_one_value() -> None:
    """A single measurement, or equal ones, give an interval without width."""
    assert report(2).interval_ms() == report(2, 2, 2).interval_ms() == (0.002e3, 0.002e3)


def test_ratio() -> None:
    """The ratio of a series to its exact half is 2, without doubt, however noisy both are."""
    values = np.random.default_rng(1).gamma(2, 1, 31)
    assert timing.ratio_interval(2 * values, values) == pytest.approx((2, 2, 2), rel=1e-12)


def test_ratio_of_what_is_alike() -> None:
    """Two independent series of one distribution have an interval that holds 1."""
    one, other = np.random.default_rng(5).gamma(9, 1, (2, 99))
    ratio, low, high = timing.ratio_interval(one, other)
    assert low < min(1, ratio) <= max(1, ratio) < high
    assert ratio == np.median(one) / np.median(other)
    assert timing.ratio_interval(one, other) == (ratio, low, high)


def test_not_timed() -> None:
    """What was not timed is neither a pass nor without a reason."""
    found = timing.not_timed("no runtime")
    assert (found.verdict, found.reason) == ("not-run", "no runtime")
    assert found.seconds == ()
