"""What a run found out, as values and as the JSON that CI reads (schema 1)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from levit_export.core import ModelInfo, PassRecord, Verdict
from levit_export.machine import Machine
from levit_export.parity import ParityReport
from levit_export.timing import TimingReport

SCHEMA = 1


@dataclass(frozen=True)
class Accuracy:
    """Top-1 on labelled images, and how many of the predictions are the reference's."""

    dataset: str
    images: int
    correct: int
    reference_correct: int
    agreement: float

    @property
    def top1(self) -> float:
        """Percent of images classified correctly."""
        return 100 * self.correct / self.images


@dataclass(frozen=True)
class ArtifactReport:
    """Everything found out about one artifact; None where it was not asked for."""

    format: str
    precision: str
    path: str
    bytes: int
    sha256: str
    parity: ParityReport
    timing: TimingReport | None = None
    accuracy: Accuracy | None = None
    notes: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """``onnx-fp32``."""
        return f"{self.format}-{self.precision}"


@dataclass(frozen=True)
class Report:
    """A run: the verdict over all artifacts, and where and with what it was reached.

    ``baselines`` are timings of what is no artifact, such as eager PyTorch in the same run.
    """

    verdict: Verdict
    model: ModelInfo | None
    passes: tuple[PassRecord, ...]
    artifacts: tuple[ArtifactReport, ...]
    baselines: Mapping[str, TimingReport]
    machine: Machine
    toolchain: Mapping[str, str]
    output: Path | None = None


def overall(verdicts: Iterable[Verdict]) -> Verdict:
    """``fail`` if any failed, else ``not-run`` if any was not run or there is none."""
    seen = set(verdicts)
    if "fail" in seen:
        return "fail"
    return "pass" if seen == {"pass"} else "not-run"


def to_json(report: Report) -> dict[str, Any]:
    """The report as plain data; numbers that JSON cannot hold (NaN, infinity) become null."""
    content = {
        "schema": SCHEMA,
        "verdict": report.verdict,
        "model": None if report.model is None else asdict(report.model),
        "passes": [asdict(record) for record in report.passes],
        "artifacts": [_artifact(artifact) for artifact in report.artifacts],
        "baselines": {name: _timing(timing) for name, timing in report.baselines.items()},
        "machine": asdict(report.machine),
        "toolchain": dict(report.toolchain),
        "output": None if report.output is None else str(report.output),
    }
    return _finite(content)  # type: ignore[no-any-return]


def _artifact(artifact: ArtifactReport) -> dict[str, Any]:
    return {
        "format": artifact.format,
        "precision": artifact.precision,
        "path": artifact.path,
        "bytes": artifact.bytes,
        "sha256": artifact.sha256,
        "notes": list(artifact.notes),
        "parity": _parity(artifact.parity),
        "accuracy": None
        if artifact.accuracy is None
        else {**asdict(artifact.accuracy), "top1": artifact.accuracy.top1},
        "timing": None if artifact.timing is None else _timing(artifact.timing),
    }


def _parity(parity: ParityReport) -> dict[str, Any]:
    """The parity section: the worst of each figure over the outputs, then each output's own."""
    outputs = [asdict(output) for output in parity.outputs]
    summary: dict[str, Any] = {
        "verdict": parity.verdict,
        "reason": parity.reason,
        "runtime": parity.runtime,
        "samples": parity.samples,
    }
    worst: dict[str, Callable[[list[Any]], Any]] = {
        "max_abs": max,
        "max_rel": max,
        "cosine": min,
        "snr_db": min,
        "worst_ratio": max,
        "top1_agreement": min,
        "top5_agreement": min,
        "decided_flips": sum,
        "undecided_flips": sum,
    }
    for key, reduce in worst.items():
        values = [output[key] for output in outputs]
        summary[key] = reduce(values) if values else None
    worst_output = max(parity.outputs, key=lambda output: output.worst_ratio, default=None)
    summary["tolerance"] = None if worst_output is None else asdict(worst_output.tolerance)
    summary["weights"] = None if parity.weights is None else asdict(parity.weights)
    summary["outputs"] = outputs
    return summary


def _timing(timing: TimingReport) -> dict[str, Any]:
    summary: dict[str, Any] = {
        "verdict": timing.verdict,
        "reason": timing.reason,
        "runtime": timing.runtime,
    }
    if timing.verdict == "not-run":
        return summary
    low, high = timing.interval_ms()
    return summary | {
        "threads": timing.threads,
        "batch": timing.batch,
        "load_ms": 1e3 * timing.load_s,
        "peak_memory_bytes": timing.peak_bytes,
        "median_ms": timing.median_ms,
        "median_interval_ms": [low, high],
        "p10_ms": timing.quantile_ms(0.1),
        "p90_ms": timing.quantile_ms(0.9),
        "noisy": timing.noisy,
        "efficiency": timing.efficiency,
        "seconds": list(timing.seconds),
    }


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return value
