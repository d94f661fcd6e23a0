"""What a run found out, as values and as the JSON that CI reads (schema 1)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from levit_export.checks.parity import ParityReport
from levit_export.checks.results import Accuracy, ArtifactReport
from levit_export.checks.timing import TimingReport
from levit_export.core.machine import Machine
from levit_export.core.values import ModelInfo, PassRecord, Verdict

SCHEMA = 1


@dataclass(frozen=True)
class Candidate:
    """A precision, and the blocks that stay in float."""

    precision: str
    keep: tuple[str, ...] = ()


@dataclass(frozen=True)
class SearchPoint:
    """What a candidate gave: points of accuracy lost, size, and latency where it can be timed."""

    candidate: Candidate
    drop: float
    bytes: int
    latency_ms: float | None = None


@dataclass(frozen=True)
class SearchResult:
    """The choice, and everything that was measured on the way, in that order."""

    chosen: SearchPoint
    points: tuple[SearchPoint, ...]


@dataclass(frozen=True)
class Report:
    """A run: the verdict over all artifacts, and where and with what it was reached.

    ``baselines`` are timings of what is not an artifact, such as eager PyTorch in the same run;
    ``searches`` what the search for a precision saw, by format.
    """

    verdict: Verdict
    model: ModelInfo | None
    passes: tuple[PassRecord, ...]
    artifacts: tuple[ArtifactReport, ...]
    baselines: Mapping[str, TimingReport]
    machine: Machine
    toolchain: Mapping[str, str]
    searches: Mapping[str, SearchResult] = field(default_factory=dict)
    output: Path | None = None


def to_json(report: Report) -> dict[str, Any]:
    """The report as plain data; numbers that JSON cannot hold (NaN, infinity) become null."""
    content = {
        "schema": SCHEMA,
        "verdict": report.verdict,
        "model": None if report.model is None else asdict(report.model),
        "passes": [asdict(record) for record in report.passes],
        "artifacts": [_artifact(artifact) for artifact in report.artifacts],
        "baselines": {name: _timing(timing) for name, timing in report.baselines.items()},
        "searches": {name: asdict(found) for name, found in report.searches.items()},
        "machine": asdict(report.machine),
        "toolchain": dict(report.toolchain),
        "output": None if report.output is None else str(report.output),
    }
    return _finite(content)  # type: ignore[no-any-return]


def accuracy_to_json(accuracy: Accuracy) -> dict[str, Any]:
    """The accuracy section of an artifact, with its intervals."""
    return {
        **asdict(accuracy),
        "top1": accuracy.top1,
        "top5": accuracy.top5,
        "top1_interval": accuracy.top1_interval,
        "agreement_interval": accuracy.agreement_interval,
    }


def _artifact(artifact: ArtifactReport) -> dict[str, Any]:
    return {
        "format": artifact.format,
        "precision": artifact.precision,
        "path": artifact.path,
        "bytes": artifact.bytes,
        "sha256": artifact.sha256,
        "notes": list(artifact.notes),
        "parity": _parity(artifact.parity),
        "drift": None if artifact.drift is None else asdict(artifact.drift),
        "accuracy": None if artifact.accuracy is None else accuracy_to_json(artifact.accuracy),
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
        "findings": [
            {
                **asdict(finding),
                "part": finding.part,
                "verdict": finding.verdict,
                "sentence": finding.sentence,
            }
            for finding in parity.findings
        ],
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
        values = [output[key] for output in outputs if not math.isnan(output[key])]
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
