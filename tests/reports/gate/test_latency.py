"""Latency against a baseline: slower artifacts are found, slower machines are not.

Nothing here is timed: sessions are calls that turn a clock forward.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from gate_reports import artifact, report_of, timed

from levit_export.checks import timing
from levit_export.checks.timing import TimingPlan, TimingReport
from levit_export.core.errors import UsageError
from levit_export.core.values import Verdict
from levit_export.reports import gate
from levit_export.reports.gate import Slack
from levit_export.reports.report import Report

SLACK = Slack(latency=10.0)
LATENCY = "latency against baseline"
GEMM_S = 0.004
ROUNDS = 50


class Machine:
    """Calls of noisy durations on a clock of its own, ``speed`` times as fast as another."""

    def __init__(self, seed: int, *, speed: float = 1.0, noise: float = 0.05) -> None:
        self.now = 0.0
        self.speed, self.noise = speed, noise
        self.generator = np.random.default_rng(seed)

    def durations(self, seconds: float) -> Iterator[float]:
        """Durations around ``seconds``, with a tail of slow ones."""
        while True:
            tail = self.generator.gamma(4, self.noise / 2)
            yield seconds * (1 + tail) / self.speed

    def time(self, **seconds: float) -> dict[str, tuple[float, ...]]:
        """The raw seconds of sessions that take ``seconds``, by the toolchain's own measuring."""

        def session(durations: Iterator[float]) -> object:
            def call() -> None:
                self.now += next(durations)

            return call

        calls = {name: session(self.durations(value)) for name, value in seconds.items()}
        plan = TimingPlan(warmup=0, iterations=ROUNDS, budget_s=1e9)
        return timing.measure(calls, plan, clock=lambda: self.now)  # type: ignore[arg-type]


def run(machine: Machine, *, seconds: float = 0.010, eager: bool = True) -> Report:
    """A report of an artifact that takes ``seconds`` there, beside an eager model of 20 ms."""
    measured = machine.time(artifact=seconds, eager=0.020)
    found = np.array(measured["artifact"])
    rate = GEMM_S / machine.speed / float(np.median(found))
    row = artifact(timing=timed(found, efficiency=rate))
    return report_of(row, eager=timed(np.array(measured["eager"])) if eager else None)


def judge(now: Report, then: Report, slack: Slack = SLACK) -> Verdict:
    """The verdict on the artifact's latency."""
    (found,) = (c for c in gate.compare(now, then, slack) if c.name == LATENCY)
    assert bool(found.reason) == (found.verdict != "pass")
    return found.verdict


@pytest.mark.parametrize("eager", [True, False], ids=["eager", "products"])
def test_a_session_that_takes_longer(*, eager: bool) -> None:
    """A session that takes 30 % longer beside an unchanged reference is found and named."""
    then, now = run(Machine(0), eager=eager), run(Machine(1), seconds=0.013, eager=eager)
    (found,) = (c for c in gate.compare(now, then, SLACK) if c.verdict == "fail")
    assert (found.artifact, found.name) == ("onnx-fp32", LATENCY)
    assert ("PyTorch" if eager else "products") in found.reason
    assert "limit is 10 %" in found.reason
    assert "95 % interval" in found.reason


@pytest.mark.parametrize("eager", [True, False], ids=["eager", "products"])
@pytest.mark.parametrize("speed", [1 / 1.3, 1 / 3, 2.0])
def test_another_machine(speed: float, *, eager: bool) -> None:
    """A machine that is slower or faster as a whole changes no ratio and fails nothing."""
    then = run(Machine(0), eager=eager)
    now = run(Machine(1, speed=speed), eager=eager)
    assert judge(now, then) == "pass"


def test_a_slower_session_on_a_faster_machine() -> None:
    """A regression is found although the absolute latency went down."""
    now = run(Machine(1, speed=2.0), seconds=0.013)
    then = run(Machine(0))
    assert np.median(timings(now).seconds) < np.median(timings(then).seconds)
    assert judge(now, then) == "fail"


def timings(found: Report) -> TimingReport:
    """The artifact's measurement."""
    measured = found.artifacts[0].timing
    assert measured is not None
    return measured


@pytest.mark.parametrize("eager", [True, False], ids=["eager", "products"])
def test_clean_runs_stay_green(*, eager: bool) -> None:
    """A hundred clean pairs of runs, each redrawn with noise, never fail."""
    found = [
        judge(run(Machine(2 * n), eager=eager), run(Machine(2 * n + 1), eager=eager))
        for n in range(100)
    ]
    assert found == ["pass"] * 100


def test_regressions_do_not_hide() -> None:
    """A hundred runs of a session that takes 30 % longer fail every time."""
    found = [
        judge(run(Machine(2 * n), seconds=0.013), run(Machine(2 * n + 1))) for n in range(100)
    ]
    assert found == ["fail"] * 100


def test_the_interval_has_to_exclude_the_limit() -> None:
    """A growth above the limit does not fail while noise explains it."""
    then, now = run(Machine(0, noise=0.8)), run(Machine(2, noise=0.8), seconds=0.0115)
    here, there = ((found, timings(found)) for found in (now, then))
    found = gate.growth(here, there)
    assert found is not None
    assert found.low < 1.1 < found.factor < found.high
    assert judge(now, then) == "pass"


def test_the_interval_is_repeatable_and_covers_the_truth() -> None:
    """About 95 of 100 intervals hold the true growth, 1, and equal input gives an equal one."""
    covered = 0
    for n in range(100):
        now, then = run(Machine(2 * n)), run(Machine(2 * n + 1))
        found = gate.growth((now, timings(now)), (then, timings(then)))
        assert found is not None
        assert found == gate.growth((now, timings(now)), (then, timings(then)))
        covered += found.low <= 1 <= found.high
    assert 90 <= covered <= 99


def test_eager_is_preferred() -> None:
    """The reference is eager PyTorch where both runs have it, else the matrix products."""
    with_eager, without = run(Machine(0)), run(Machine(0), eager=False)
    for now, then, against in (
        (with_eager, with_eager, gate.EAGER),
        (with_eager, without, gate.PRODUCTS),
        (without, with_eager, gate.PRODUCTS),
    ):
        found = gate.growth((now, timings(now)), (then, timings(then)))
        assert found is not None
        assert found.against == against


def changed(found: Report, **changes: object) -> Report:
    """The report with another measurement of its artifact."""
    row = found.artifacts[0]
    measured = replace(timings(found), **changes)  # type: ignore[arg-type]
    return replace(found, artifacts=(replace(row, timing=measured),))


@pytest.mark.parametrize(
    "changes",
    [
        {"threads": 2},
        {"batch": 8},
        {"seconds": (0.01,) * 9},
        {"verdict": "not-run", "reason": "no Mac", "seconds": ()},
    ],
    ids=["threads", "batch", "rounds", "not timed"],
)
def test_latencies_that_cannot_be_compared(changes: dict[str, object]) -> None:
    """Other threads or batches, too few rounds or no timing at all are not run, never a pass."""
    then = run(Machine(0))
    assert judge(changed(then, **changes), then) == "not-run"


def test_no_reference() -> None:
    """Without eager PyTorch and without a known number of MACs, nothing is concluded."""
    then = run(Machine(0), eager=False)
    assert judge(changed(then, efficiency=None), then) == "not-run"


def test_a_row_that_was_never_timed() -> None:
    """An artifact without a latency in the baseline is not asked about, as the others are."""
    then = run(Machine(0))
    bare = artifact("coreml")
    both = replace(then, artifacts=(*then.artifacts, bare))
    found = gate.compare(both, both, SLACK)
    assert [check.artifact for check in found if check.name == LATENCY] == ["onnx-fp32"]


def test_a_baseline_without_latency() -> None:
    """A slack for a latency that no artifact of the baseline has is a usage error."""
    then = report_of(artifact())
    with pytest.raises(UsageError, match="no latency"):
        gate.compare(run(Machine(0)), then, SLACK)
    assert LATENCY not in {c.name for c in gate.compare(run(Machine(0)), then, Slack())}


def test_a_regression_has_to_show_again() -> None:
    """A run that looks slow is measured again, and only what is slow every time fails."""
    then, quick, slow = run(Machine(0)), run(Machine(1)), run(Machine(2), seconds=0.02)
    for series, taken in (([quick, slow], quick), ([slow, quick, slow], quick)):
        left = iter(series)
        assert gate.confirmed(lambda: next(left), then, SLACK) is taken  # noqa: B023
    left = iter([slow] * 4)
    assert judge(gate.confirmed(lambda: next(left), then, SLACK), then) == "fail"
    assert len(list(left)) == 1
