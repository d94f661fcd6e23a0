"""Other tolerances for a saved report."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gate_reports import artifact, output, parity_of, report_of, unrun, write

from levit_export.checks import parity
from levit_export.checks.findings import Finding
from levit_export.checks.parity import ParityReport
from levit_export.checks.weights import WeightAudit
from levit_export.core.errors import DataError
from levit_export.core.values import Signature, TensorSpec, Tolerance, Verdict
from levit_export.inputs.samples import Samples
from levit_export.reports import gate
from levit_export.reports.report import Report, read_report

CLASSES = 5


def given(rtol: float, atol: float = 0.0) -> Tolerance:
    """A tolerance as a user gives it."""
    return Tolerance(atol, (rtol,), "given")


def compared(seed: int, tolerance: Tolerance, *, missing: bool = False) -> ParityReport:
    """What ``parity`` says of noisy answers; ``missing`` leaves out one of two outputs."""
    generator = np.random.default_rng(seed)
    rows = int(generator.integers(2, 9))
    names = ("logits", "distill")
    reference = {name: generator.standard_normal((rows, CLASSES)) for name in names}
    size = 10.0 ** generator.uniform(-7, -2)
    candidate = {
        name: values + size * generator.standard_normal(values.shape)
        for name, values in reference.items()
        if not (missing and name == "distill")
    }
    samples = Samples(
        tuple(f"s{row}" for row in range(rows)), np.zeros((rows, 1)), np.full(rows, -1), {}
    )
    specs = tuple(TensorSpec(name, (None, CLASSES)) for name in names)
    return parity.compare_outputs(
        reference,
        candidate,
        samples,
        dict.fromkeys(names, tolerance),
        expected=Signature((TensorSpec("input", (None, 1)),), specs),
        runtime="a runtime (CPU)",
    )


def saved(found: ParityReport, folder: Path) -> Report:
    """A report of one artifact, written and read back."""
    path = write(report_of(replace(artifact(), parity=found)), folder / "report.json")
    return read_report(path)


def test_a_recheck_is_what_a_check_would_have_said(tmp_path: Path) -> None:
    """A saved report judged anew has the verdict and the shares of a run with that tolerance."""
    seen: set[tuple[Verdict, Verdict]] = set()
    for seed in range(60):
        first, second = given(10.0 ** -(seed % 7 + 1)), given(3e-5, 10.0 ** -(seed % 5 + 2))
        found = gate.recheck(saved(compared(seed, first), tmp_path), second).artifacts[0].parity
        wanted = compared(seed, second)
        assert found.verdict == wanted.verdict, (found.reason, wanted.reason)
        for here, there in zip(found.outputs, wanted.outputs, strict=True):
            assert here.worst_ratio == pytest.approx(there.worst_ratio, rel=1e-12)
            assert here.undecided_rows == there.undecided_rows
            assert here.tolerance == second
        assert {f.kind for f in found.findings} == {f.kind for f in wanted.findings}
        seen.add((compared(seed, first).verdict, found.verdict))
    assert seen >= {(a, b) for a in ("pass", "fail") for b in ("pass", "fail")}


def test_a_pass_without_outputs_is_no_pass(tmp_path: Path) -> None:
    """A report that says pass and keeps no answers was edited, and is refused."""
    path = write(
        report_of(replace(artifact(), parity=ParityReport("a runtime", 26))), tmp_path / "r"
    )
    content = json.loads(path.read_text())
    content["verdict"] = content["artifacts"][0]["parity"]["verdict"] = "pass"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match="makes it 'not-run'"):
        read_report(path)


def test_a_narrower_tolerance_names_the_sample(tmp_path: Path) -> None:
    """What no longer lies within the tolerance fails with both distances and the sample."""
    found = gate.recheck(saved(parity_of(output(0.25)), tmp_path), given(1e-6))
    assert found.verdict == "fail"
    (check,) = (c for c in gate.of_report(found.artifacts) if c.name == "parity")
    for words in ("logits", "2.50e-06", "1.00e-06", "noise"):
        assert words in check.reason


def test_a_wider_tolerance_mends_distances(tmp_path: Path) -> None:
    """A report that failed by its distances alone passes a tolerance that admits them."""
    before = saved(parity_of(output(3.0), audit=WeightAudit(3)), tmp_path)
    assert before.verdict == "fail"
    after = gate.recheck(before, given(1e-4))
    assert (after.verdict, after.artifacts[0].parity.reason) == ("pass", "")


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (parity_of(output(0.1), audit=WeightAudit(3, missing=("head.bias",))), "head.bias"),
        (parity_of(output(3.0), audit=WeightAudit(3, strange=("(2, 2)",))), "(2, 2)"),
        (compared(0, given(1e-3), missing=True), "'distill' is missing"),
        (
            parity_of(replace(output(0.1), decided_flips=1)),
            "1 top-1 flips",
        ),
        (
            parity_of(
                replace(output(), worst_ratio=math.inf, errors=(), scales=(), spreads=(), rows=())
            ).joined(Finding("not-finite", {"count": 1, "rows": 4, "sample": "noise"}, "logits")),
            "NaN",
        ),
        (ParityReport("", 0, findings=(Finding("altered-files", {"text": "x"}),)), "altered"),
    ],
    ids=["missing", "strange", "output", "flips", "nan", "altered"],
)
def test_what_no_tolerance_mends(tmp_path: Path, found: ParityReport, words: str) -> None:
    """Failures that are no distances stay, and stay the only ones."""
    after = gate.recheck(saved(found, tmp_path), given(0.5)).artifacts[0].parity
    assert after.verdict == "fail"
    assert words in after.reason
    assert "exceeds the tolerance" not in after.reason


def test_a_tolerance_that_accepts_anything(tmp_path: Path) -> None:
    """A tolerance that the mean answer would pass decides nothing."""
    after = gate.recheck(saved(parity_of(output()), tmp_path), given(1.0))
    assert after.verdict == "inconclusive"
    assert "decides nothing" in after.artifacts[0].parity.reason


def test_an_untrained_network_stays_inconclusive(tmp_path: Path) -> None:
    """A wider tolerance mends the distances, not what made the check pointless."""
    found = parity_of(output(3.0)).joined(Finding("untrained", {"text": "x"}))
    assert found.verdict == "fail"
    assert gate.recheck(saved(found, tmp_path), given(0.5)).verdict == "inconclusive"


def test_a_hint_is_no_failure(tmp_path: Path) -> None:
    """A float16 artifact that failed by its distances alone passes a wider tolerance."""
    hint = Finding(
        "float16-overflow", {"block": "stem", "peak": 7e4, "more": "", "format": "onnx"}
    )
    before = saved(parity_of(output(3.0), audit=WeightAudit(3)).joined(hint), tmp_path)
    assert before.verdict == "fail"
    assert gate.recheck(before, given(1e-4)).verdict == "pass"


def test_a_verdict_that_does_not_follow_is_refused(tmp_path: Path) -> None:
    """A saved report whose findings were taken out contradicts its own verdict."""
    path = write(report_of(replace(artifact(), parity=parity_of(output(3.0)))), tmp_path / "r")
    content = json.loads(path.read_text())
    content["artifacts"][0]["parity"]["findings"] = []
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match="the verdict 'fail'"):
        read_report(path)


@pytest.mark.parametrize(
    "found",
    [
        parity_of(output(3.0)),
        parity.with_weights(parity_of(output(0.1)), WeightAudit(3, missing=("head.bias",))),
        parity.with_weights(parity_of(output(0.1)), WeightAudit(3, strange=("1.01",))),
    ],
    ids=["distances", "missing", "strange"],
)
def test_a_failure_that_was_talked_away_is_refused(tmp_path: Path, found: ParityReport) -> None:
    """A pass whose findings were taken out contradicts the distances and weights that it keeps."""
    path = write(report_of(replace(artifact(), parity=found)), tmp_path / "r")
    content = json.loads(path.read_text())
    content["verdict"] = content["artifacts"][0]["parity"]["verdict"] = "pass"
    content["artifacts"][0]["parity"]["findings"] = []
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match="which follows from what it keeps"):
        read_report(path)


def test_what_was_not_run_stays_so(tmp_path: Path) -> None:
    """A recheck does not turn a check that was not run into one that was."""
    path = write(report_of(artifact(), unrun(artifact("coreml"))), tmp_path / "report.json")
    after = gate.recheck(read_report(path), given(0.5))
    assert [a.parity.verdict for a in after.artifacts] == ["pass", "not-run"]
    assert after.verdict == "not-run"


def test_a_report_without_errors_by_sample(tmp_path: Path) -> None:
    """A report of an earlier version, which kept no errors by sample, is refused."""
    bare = parity_of(replace(output(), errors=(), scales=(), spreads=(), rows=()))
    with pytest.raises(DataError, match="does not keep the errors"):
        gate.recheck(saved(bare, tmp_path), given(0.5))
