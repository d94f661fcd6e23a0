"""The checks of a report by itself."""

from __future__ import annotations

from dataclasses import replace

from gate_reports import artifact, output, parity_of, unrun

from levit_export.checks import parity
from levit_export.checks.findings import Finding
from levit_export.checks.parity import ParityReport
from levit_export.checks.weights import WeightAudit
from levit_export.reports import gate
from levit_export.reports.report import labels


def answers(*artifacts: gate.ArtifactReport) -> dict[tuple[str, str], tuple[str, str]]:
    """Verdict and reason by artifact and name."""
    found = gate.of_report(artifacts)
    assert len({(c.artifact, c.name) for c in found}) == len(found)
    return {(c.artifact, c.name): (c.verdict, c.reason) for c in found}


def test_parity_and_weights_are_separate_checks() -> None:
    """An artifact that passes has passed two checks, without a reason."""
    assert answers(artifact()) == {
        ("onnx-fp32", "parity"): ("pass", ""),
        ("onnx-fp32", "weights"): ("pass", ""),
    }


def test_weights_that_are_not_there() -> None:
    """A missing tensor fails the check of the weights alone where the answers are close."""
    audit = WeightAudit(3, missing=("head.weight",))
    found = answers(replace(artifact(), parity=parity_of(output(), audit=audit)))
    assert found["onnx-fp32", "parity"] == ("pass", "")
    verdict, reason = found["onnx-fp32", "weights"]
    assert verdict == "fail"
    assert "head.weight" in reason


def test_both_fail_with_their_own_reason() -> None:
    """When both fail, each check says its own sentence."""
    audit = WeightAudit(3, missing=("head.weight",))
    found = answers(replace(artifact(), parity=parity_of(output(7.0), audit=audit)))
    verdict, reason = found["onnx-fp32", "parity"]
    assert verdict == "fail"
    assert "exceeds the tolerance" in reason
    assert "head.weight" not in reason
    verdict, reason = found["onnx-fp32", "weights"]
    assert verdict == "fail"
    assert "exceeds" not in reason


def test_weights_that_were_not_read() -> None:
    """Weights that could not be looked for leave nothing decided, whatever the answers are."""
    audit = WeightAudit(3, unread="no reader")
    found = gate.of_report([replace(artifact(), parity=parity_of(output(), audit=audit))])
    assert [check.verdict for check in found] == ["pass", "inconclusive"]
    assert "no reader" in found[1].reason
    assert gate.verdict_of(found) == "inconclusive"


def test_files_of_others_may_pass_by_their_answers() -> None:
    """A file that is not ours passes by answers alone, says so, and not where audits are asked."""
    audit = WeightAudit(0, unread="unknown", answers_only=True)
    report = parity.with_weights(parity_of(output()), audit)
    assert (report.verdict, report.fault) == ("pass", "answers only")
    assert report.reason.startswith("answers only")
    found = [replace(artifact(), parity=report)]
    assert gate.verdict_of(gate.of_report(found)) == "pass"
    assert gate.of_report(found)[1].reason == report.reason
    assert gate.verdict_of(gate.of_report(found, require_audit=True)) == "not-run"


def test_overall() -> None:
    """What was not run is no pass, one failure fails, and nothing at all is not run."""
    good, bad = artifact("onnx"), artifact("openvino", share=2.0)
    assert gate.verdict_of(gate.of_report([good])) == "pass"
    assert gate.verdict_of(gate.of_report([good, unrun(good)])) == "not-run"
    assert gate.verdict_of(gate.of_report([good, unrun(good), bad])) == "fail"
    assert gate.verdict_of([]) == "not-run"


def test_a_report_of_nothing_was_not_run() -> None:
    """A report that found nothing and compared nothing is no pass."""
    hollow = replace(artifact(), parity=ParityReport("", 0))
    ((verdict, _),) = answers(hollow).values()
    assert verdict == "not-run"


def test_a_hint_fails_nothing() -> None:
    """A hint at float16 beside wrong weights leaves the answers as they are."""
    hint = Finding(
        "float16-overflow", {"block": "stem", "peak": 7e4, "more": "", "format": "onnx"}
    )
    audit = WeightAudit(3, missing=("head.weight",))
    found = parity_of(output(), audit=audit).joined(hint)
    checks = answers(replace(artifact(), parity=found))
    assert checks["onnx-fp32", "parity"] == ("pass", "")
    assert checks["onnx-fp32", "weights"][0] == "fail"
    assert (found.verdict, found.fault) == ("fail", "weights")
    off = answers(replace(artifact(), parity=parity_of(output(3.0)).joined(hint)))
    assert off["onnx-fp32", "parity"][1].endswith("let --precision onnx=auto find out")


def test_an_altered_directory_is_a_claim() -> None:
    """Files that differ from the manifest fail the claims; the answers were not looked at."""
    found = ParityReport("", 0, findings=(Finding("altered-files", {"text": "x is missing"}),))
    checks = answers(replace(artifact(), parity=found))
    assert checks["onnx-fp32", "claims"] == (
        "fail",
        "the directory was altered after it was written: x is missing",
    )
    assert (found.verdict, found.fault) == ("fail", "claims")


def test_labels_tell_artifacts_apart() -> None:
    """Artifacts of one id are told apart by path, and by device where the path is the same too."""
    one = artifact()
    other = replace(one, path="elsewhere/m.onnx")
    on_gpu = replace(other, parity=replace(other.parity, runtime="a runtime (GPU)"))
    assert labels([one]) == ("onnx-fp32",)
    assert labels([one, other, on_gpu]) == (
        "onnx-fp32 onnx-fp32/m.onnx",
        "onnx-fp32 elsewhere/m.onnx (CPU)",
        "onnx-fp32 elsewhere/m.onnx (GPU)",
    )
