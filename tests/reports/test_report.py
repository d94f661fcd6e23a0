"""A run's findings as values and as the JSON that CI reads."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gate_reports import MACHINE, MODEL, output

from levit_export.checks import parity, timing
from levit_export.checks.findings import Finding
from levit_export.checks.parity import ParityReport
from levit_export.checks.results import Accuracy, ArtifactReport
from levit_export.checks.timing import TimingReport
from levit_export.core.values import PassRecord, Tolerance, overall
from levit_export.reports import report
from levit_export.reports.report import Report

OUTPUT = replace(
    output(), max_rel=1e-6, max_abs=1e-5, snr_db=120.0, top5_agreement=0.75, undecided_flips=1
)
PARITY = ParityReport("a runtime", 26, (OUTPUT,))
TIMING = TimingReport(
    "pass", runtime="a runtime", threads=2, batch=1, load_s=0.5, efficiency=0.5, seconds=(0.1, 0.2)
)
ARTIFACT = ArtifactReport(
    format="onnx",
    precision="fp32",
    path="onnx-fp32/model.onnx",
    bytes=10,
    sha256="ab",
    parity=PARITY,
    timing=TIMING,
    accuracy=Accuracy("digits", 4, 3, 3, 1.0),
    notes=("a note",),
)
REPORT = Report(
    verdict="pass",
    model=MODEL,
    passes=(PassRecord("fuse_batchnorm", "applied", matches=3),),
    artifacts=(ARTIFACT,),
    baselines={"PyTorch eager": TIMING},
    machine=MACHINE,
    toolchain={"torch": "2"},
    output=Path("out"),
)


def strict(found: Report) -> Any:
    """The report through strict JSON, which has no NaN."""
    return json.loads(json.dumps(report.to_json(found), allow_nan=False))


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        (["pass"], "pass"),
        (["pass", "pass"], "pass"),
        (["pass", "fail", "not-run"], "fail"),
        (["pass", "fail", "inconclusive", "not-run"], "fail"),
        (["pass", "inconclusive", "not-run"], "inconclusive"),
        (["pass", "inconclusive"], "inconclusive"),
        (["pass", "not-run"], "not-run"),
        (["not-run"], "not-run"),
        ([], "not-run"),
    ],
)
def test_overall(verdicts: list[Any], expected: str) -> None:
    """One failure fails the run; what was not run, or nothing at all, is never a pass."""
    assert overall(verdicts) == expected


def test_sections() -> None:
    """The report has exactly the sections of schema 1."""
    content = strict(REPORT)
    assert set(content) == {
        "schema",
        "verdict",
        "model",
        "passes",
        "artifacts",
        "baselines",
        "searches",
        "machine",
        "toolchain",
        "output",
        "command",
        "vouching",
    }
    assert (content["schema"], content["verdict"], content["output"]) == (1, "pass", "out")
    assert content["model"]["config"] == {"dims": [1, 2]}
    assert content["passes"][0]["matches"] == 3


def test_artifact() -> None:
    """An artifact's section holds what was found out about it."""
    artifact = strict(REPORT)["artifacts"][0]
    for key in ("format", "precision", "path", "bytes", "sha256"):
        assert artifact[key] == getattr(ARTIFACT, key)
    assert artifact["notes"] == ["a note"]
    assert artifact["accuracy"]["top1"] == 75.0
    assert artifact["timing"]["median_ms"] == pytest.approx(150)
    assert artifact["timing"]["p10_ms"] == pytest.approx(110)
    assert artifact["timing"]["p90_ms"] == pytest.approx(190)
    assert artifact["timing"]["load_ms"] == 500
    assert artifact["timing"]["seconds"] == [0.1, 0.2]
    assert artifact["timing"]["noisy"] is True


def test_worst_of_several_outputs() -> None:
    """Over several outputs the parity section shows the worst of each figure, and each by name."""
    other = replace(
        OUTPUT, name="features", max_abs=1.0, cosine=0.5, snr_db=3.0, undecided_flips=2
    )
    two = replace(PARITY, outputs=(OUTPUT, other))
    content = strict(replace(REPORT, artifacts=(replace(ARTIFACT, parity=two),)))
    found = content["artifacts"][0]["parity"]
    assert (found["max_abs"], found["cosine"], found["snr_db"]) == (1.0, 0.5, 3.0)
    assert (found["max_rel"], found["undecided_flips"]) == (1e-6, 3)
    assert [output["name"] for output in found["outputs"]] == ["logits", "features"]


def test_numbers_that_json_cannot_hold() -> None:
    """NaN and infinity become null wherever they stand."""
    broken = replace(OUTPUT, max_abs=math.nan, worst_ratio=math.inf, snr_db=-math.inf)
    nan = Finding("not-finite", {"count": 1, "rows": 26, "sample": "noise"}, "logits")
    failed = ParityReport("a runtime", 26, (broken,), findings=(nan,))
    content = strict(replace(REPORT, artifacts=(replace(ARTIFACT, parity=failed),)))
    found = content["artifacts"][0]["parity"]
    for section in (found, found["outputs"][0]):
        assert (section["max_abs"], section["worst_ratio"], section["snr_db"]) == (None,) * 3
    assert found["reason"] == "logits: NaN or infinity on 1 of 26 samples, first noise"
    assert found["findings"] == [
        {
            "kind": "not-finite",
            "output": "logits",
            "values": {"count": 1, "rows": 26, "sample": "noise"},
            "part": "answers",
            "verdict": "fail",
            "sentence": found["reason"],
        }
    ]


def test_incomparable_output() -> None:
    """What parity itself reports of a NaN in an answer is strict JSON."""
    samples = parity.Samples(("a", "b"), np.zeros((2, 1)), np.full(2, -1), {})
    logits = np.array([[1.0, 2.0], [5.0, 3.0]])
    signature = report_signature()
    found = parity.compare_outputs(
        {"logits": logits},
        {"logits": logits * np.nan},
        samples,
        {"logits": Tolerance(0.0, (1e-3,), "given")},
        expected=signature,
        runtime="a runtime",
    )
    content = strict(replace(REPORT, artifacts=(replace(ARTIFACT, parity=found),)))
    section = content["artifacts"][0]["parity"]
    assert (section["verdict"], section["max_abs"], section["top1_agreement"]) == ("fail", None, 0)


def report_signature() -> Any:
    """A signature with one output, logits of two classes."""
    from levit_export.core.values import Signature, TensorSpec

    return Signature((TensorSpec("input", (1, 1)),), (TensorSpec("logits", (1, 2)),))


def test_what_was_not_run() -> None:
    """What was not run has a reason and no figure that could be taken for a measurement."""
    skipped = replace(
        ARTIFACT,
        parity=parity.not_run("no runtime"),
        timing=timing.not_timed("no runtime"),
        accuracy=None,
    )
    artifact = strict(replace(REPORT, artifacts=(skipped,)))["artifacts"][0]
    assert artifact["parity"]["verdict"] == artifact["timing"]["verdict"] == "not-run"
    assert artifact["parity"]["reason"] == artifact["timing"]["reason"] == "no runtime"
    assert artifact["parity"]["max_abs"] is None
    assert artifact["parity"]["tolerance"] is None
    assert "median_ms" not in artifact["timing"]
    assert artifact["accuracy"] is None


def test_without_a_model() -> None:
    """A check of bare files has no model and no output to tell of."""
    content = strict(replace(REPORT, model=None, output=None, artifacts=()))
    assert (content["model"], content["output"], content["artifacts"]) == (None, None, [])
