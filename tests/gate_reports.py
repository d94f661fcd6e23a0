"""Reports made by hand for tests of the gate."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from levit_export.checks import parity
from levit_export.checks.parity import OutputParity, ParityReport
from levit_export.checks.results import ArtifactReport
from levit_export.checks.timing import TimingReport
from levit_export.checks.weights import WeightAudit
from levit_export.core.machine import Machine
from levit_export.core.values import ModelInfo, Preprocessing, Tolerance, overall
from levit_export.reports import report
from levit_export.reports.report import Report

ROWS = 4
TOLERANCE = Tolerance(0.0, (1e-5,) * ROWS, "derived", {"lambda": 6.0, "factor": 5.0})
MODEL = ModelInfo(
    name="levit_digits",
    dialect="fair",
    checkpoint="w.pth",
    checkpoint_sha256="cd",
    parameters=3,
    macs=4,
    heads=2,
    config={"dims": (1, 2)},
    labels=("a", "b"),
    preprocessing=Preprocessing("digits", (96, 96), (96, 96)),
)
MACHINE = Machine("cpu", 2, 3, ("avx2",), "Linux", "3.11")


def output(share: float = 0.25, name: str = "logits") -> OutputParity:
    """An output whose worst sample, the second, uses ``share`` of its tolerance."""
    errors = np.array([0.5, 1.0, 0.1, 0.2]) * share * 1e-5
    return OutputParity(
        name=name,
        max_abs=float(errors.max()),
        max_rel=float(errors.max()),
        mean_abs=1e-7,
        cosine=0.999,
        snr_db=120.0,
        worst_ratio=share,
        worst_sample="noise",
        top1_agreement=1.0,
        top5_agreement=1.0,
        decided_flips=0,
        undecided_flips=0,
        tolerance=TOLERANCE,
        errors=tuple(errors.tolist()),
        scales=(1.0,) * ROWS,
        spreads=(1.0,) * ROWS,
        rows=("normal", "noise", "black", "white"),
    )


def parity_of(*outputs: OutputParity, audit: WeightAudit | None = None) -> ParityReport:
    """The parity report of ``outputs``, as ``parity.compare_outputs`` puts it together."""
    findings = tuple(finding for output in outputs for finding in output.findings())
    found = ParityReport("a runtime (CPU)", ROWS, outputs, findings=findings)
    return found if audit is None else parity.with_weights(found, audit)


def timed(seconds: np.ndarray, efficiency: float | None = None) -> TimingReport:
    """A measurement with these raw values."""
    return TimingReport(
        "pass",
        runtime="a runtime (CPU)",
        threads=1,
        batch=1,
        efficiency=efficiency,
        seconds=tuple(seconds.tolist()),
    )


def artifact(
    kind: str = "onnx",
    *,
    share: float = 0.25,
    size: int = 1000,
    timing: TimingReport | None = None,
) -> ArtifactReport:
    """An artifact that passes unless ``share`` exceeds 1."""
    found = parity_of(output(share), audit=WeightAudit(3))
    return ArtifactReport(kind, "fp32", f"{kind}-fp32/m.{kind}", size, "ab", found, timing)


def report_of(
    *artifacts: ArtifactReport,
    model: ModelInfo | None = MODEL,
    eager: TimingReport | None = None,
) -> Report:
    """A report over ``artifacts``."""
    return Report(
        verdict=overall(a.parity.verdict for a in artifacts),
        model=model,
        passes=(),
        artifacts=artifacts,
        baselines={} if eager is None else {"PyTorch eager": eager},
        machine=MACHINE,
        toolchain={"torch": "2"},
    )


def unrun(found: ArtifactReport, reason: str = "no runtime") -> ArtifactReport:
    """The same artifact where its check could not be run."""
    return replace(found, parity=parity.not_run(reason))


def write(found: Report, path: Path) -> Path:
    """The report as the file that an earlier run would have left."""
    path.write_text(json.dumps(report.to_json(found), allow_nan=False), encoding="utf-8")
    return path
