"""A report held against an earlier one: parity, sizes, and what is missing."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from gate_reports import MODEL, TOLERANCE, artifact, output, parity_of, report_of, unrun

from levit_export.checks.parity import OutputParity
from levit_export.checks.results import ArtifactReport
from levit_export.core.errors import UsageError
from levit_export.core.values import Tolerance
from levit_export.reports import gate
from levit_export.reports.gate import Check, Slack

PARITY, SIZE = "parity against baseline", "size against baseline"


def compare(now: ArtifactReport, then: ArtifactReport, slack: Slack | None = None) -> list[Check]:
    """The checks of one artifact against its like."""
    return list(gate.compare(report_of(now), report_of(then), slack or Slack()))


def verdicts(checks: list[Check]) -> dict[str, str]:
    """Verdict by the name of the check."""
    return {check.name: check.verdict for check in checks}


def test_the_same_report_passes() -> None:
    """Against itself a report passes every check, however narrow the slack."""
    slack = Slack(parity=1, size=0)
    found = compare(artifact(), artifact(), slack)
    assert verdicts(found) == {PARITY: "pass", SIZE: "pass"}


def test_parity_that_got_worse() -> None:
    """An error within its tolerance but beyond the slack names the artifact and all figures."""
    now, then = artifact(share=0.75), artifact(share=0.25)
    assert verdicts(compare(now, then, Slack(parity=3.0)))[PARITY] == "pass"
    (found,) = (c for c in compare(now, then, Slack(parity=2.0)) if c.name == PARITY)
    assert (found.artifact, found.verdict) == ("onnx-fp32", "fail")
    for words in ("logits", "75 %", "25 %", "limit is 50 %"):
        assert words in found.reason


def test_a_wider_tolerance_does_not_hide_a_regression() -> None:
    """Both figures are shares of the baseline's tolerance: a wider one now changes nothing."""
    wide = replace(TOLERANCE, rtol=(1.0,), origin="given")
    widened = replace(output(0.75), tolerance=wide, worst_ratio=7.5e-6)
    now = replace(artifact(), parity=parity_of(widened))
    assert verdicts(compare(now, artifact(share=0.25)))[PARITY] == "fail"


def test_an_artifact_that_agreed_bit_for_bit_may_round() -> None:
    """A baseline without any error allows one rounding, a 30th of the tolerance, times the slack.

    A given tolerance does not say what a rounding is and allows none.
    """
    exact, rounding = artifact(share=0.0), 1 / 30
    assert verdicts(compare(artifact(share=1.9 * rounding), exact))[PARITY] == "pass"
    assert verdicts(compare(artifact(share=2.1 * rounding), exact))[PARITY] == "fail"
    given = replace(output(0.0), tolerance=Tolerance(0.0, (1e-5,), "given"))
    bare = replace(artifact(), parity=parity_of(given))
    assert verdicts(compare(artifact(share=0.01), bare))[PARITY] == "fail"


def test_every_output_is_compared() -> None:
    """The worst of several outputs decides, and an output that is gone fails."""
    both = parity_of(output(0.25), output(0.25, "distill"))
    worse = parity_of(output(0.25), output(0.9, "distill"))
    then = replace(artifact(), parity=both)
    (found,) = (c for c in compare(replace(then, parity=worse), then) if c.name == PARITY)
    assert found.verdict == "fail"
    assert found.reason.startswith("distill: ")
    gone = replace(then, parity=parity_of(output(0.25)))
    (found,) = (c for c in compare(gone, then) if c.name == PARITY)
    assert (found.verdict, "distill" in found.reason) == ("fail", True)


@pytest.mark.parametrize(
    ("now", "then"),
    [
        (unrun, lambda a: a),
        (lambda a: a, unrun),
        (
            lambda a: a,
            lambda a: replace(a, parity=parity_of(replace(output(), worst_ratio=math.inf))),
        ),
        (lambda a: a, lambda a: replace(a, parity=parity_of())),
        (
            lambda a: replace(
                a,
                parity=replace(
                    a.parity, outputs=(replace(output(), errors=(0.0,) * 3, scales=(1.0,) * 3),)
                ),
            ),
            lambda a: a,
        ),
    ],
    ids=["now not run", "then not run", "then incomparable", "then no outputs", "other samples"],
)
def test_parity_that_cannot_be_compared(
    now: Callable[[ArtifactReport], ArtifactReport],
    then: Callable[[ArtifactReport], ArtifactReport],
) -> None:
    """What cannot be compared is not run, with a reason, and never passes."""
    (found,) = (c for c in compare(now(artifact()), then(artifact())) if c.name == PARITY)
    assert found.verdict == "not-run"
    assert found.reason


def test_an_output_that_holds_nan_is_worse() -> None:
    """An output that could not be compared at all is a regression."""
    broken: OutputParity = replace(
        output(), worst_ratio=math.inf, errors=(), scales=(), spreads=(), rows=()
    )
    now = replace(artifact(), parity=parity_of(broken))
    assert verdicts(compare(now, artifact()))[PARITY] == "fail"


@pytest.mark.parametrize(
    ("size", "slack", "verdict"),
    [(1000, 0, "pass"), (1001, 0, "fail"), (1010, 1, "pass"), (1011, 1, "fail"), (5, 0, "pass")],
)
def test_size(size: int, slack: float, verdict: str) -> None:
    """A file may grow by the slack in percent and not by a byte more; it may always shrink."""
    found = compare(artifact(size=size), artifact(size=1000), Slack(size=slack))
    assert verdicts(found)[SIZE] == verdict


def test_size_names_the_figures() -> None:
    """A file that grew too much is named with both sizes and the limit."""
    (found,) = (
        c for c in compare(artifact(size=3000), artifact(size=2000)) if c.verdict == "fail"
    )
    assert (found.artifact, found.name) == ("onnx-fp32", SIZE)
    for words in ("3,000", "2,000", "2,020", "1 %"):
        assert words in found.reason


@pytest.mark.parametrize(("now", "then"), [(0, 1000), (1000, 0)])
def test_size_that_is_not_known(now: int, then: int) -> None:
    """A size that either report lacks is not compared, and that is no pass."""
    assert verdicts(compare(artifact(size=now), artifact(size=then)))[SIZE] == "not-run"


def test_missing_and_new_artifacts() -> None:
    """An artifact that the baseline has and this run lacks fails; a new one is said and passes."""
    now = report_of(artifact("onnx"), artifact("coreml"))
    then = report_of(artifact("openvino"), artifact("onnx"))
    found = {c.artifact: c for c in gate.compare(now, then, Slack()) if c.name == "presence"}
    assert {label: c.verdict for label, c in found.items()} == {
        "coreml-fp32": "pass",
        "openvino-fp32": "fail",
    }
    assert "missing" in found["openvino-fp32"].reason
    assert "new" in found["coreml-fp32"].reason


def test_artifacts_of_one_format_are_told_apart() -> None:
    """Several rows of one format and precision are matched by device, whatever their order."""

    def on(unit: str, share: float) -> ArtifactReport:
        found = artifact("coreml", share=share)
        return replace(found, parity=replace(found.parity, runtime=f"Core ML ({unit})"))

    then = report_of(on("cpu_only", 0.1), on("all", 0.8))
    now = report_of(on("all", 0.8), on("cpu_only", 0.1))
    assert {c.verdict for c in gate.compare(now, then, Slack())} == {"pass"}
    fewer = gate.compare(report_of(on("all", 0.8)), then, Slack())
    assert [c.name for c in fewer if c.verdict == "fail"] == ["presence"]
    assert next(c.artifact for c in fewer if c.verdict == "fail").endswith("(cpu_only)")


@pytest.mark.parametrize("change", [{"name": "levit_256"}, {"parameters": 4}, {"macs": 5}])
def test_a_baseline_of_another_model(change: dict[str, object]) -> None:
    """A baseline of another network is a usage error that names both."""
    other = report_of(artifact(), model=replace(MODEL, **change))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="levit_digits") as caught:
        gate.compare(report_of(artifact()), other, Slack())
    assert str(next(iter(change.values()))) in caught.value.what


def test_a_baseline_of_other_weights() -> None:
    """The same network trained again is what a baseline is for; so is one that names no model."""
    trained = replace(MODEL, checkpoint_sha256="ef")
    for then in (report_of(artifact(), model=trained), report_of(artifact(), model=None)):
        found = gate.compare(report_of(artifact()), then, Slack())
        assert {check.verdict for check in found} == {"pass"}


def test_the_default_of_the_parity_slack() -> None:
    """Two draws of one rounding error differ by less than the default in 999 of 1000 pairs."""
    errors = np.abs(np.random.default_rng(0).standard_normal((2, 5000, 260))).max(axis=2)
    assert (errors[0] > gate.PARITY_SLACK * errors[1]).mean() < 1e-3
