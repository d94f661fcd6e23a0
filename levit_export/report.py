"""What a run found out, as values and as the JSON that CI reads (schema 1)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from levit_export.core import ModelInfo, PassRecord, Verdict
from levit_export.machine import Machine
from levit_export.parity import ParityReport
from levit_export.proportions import wilson
from levit_export.search import Found
from levit_export.timing import TimingReport

SCHEMA = 1


@dataclass(frozen=True)
class Accuracy:
    """How an artifact classifies images, and whether as the reference does.

    ``correct`` (and ``top5_correct``, where there are more than 5 classes) are counts of
    ``images``, None without labels; what concerns the reference is None where there was none.
    ``agreement`` is the share of images with the reference's top-1, ``flips`` the number of the
    others, of which ``lost`` only the reference has right and ``gained`` only the artifact.
    ``mcnemar_p`` is the p of that split, ``drop`` what the gate compares with ``max_drop``: points
    of top-1 below the reference, or without labels 100 less the agreement in percent. ``skipped``
    images could not be read, of which the first are named.
    """

    dataset: str
    images: int
    correct: int | None
    reference_correct: int | None
    agreement: float | None
    top5_correct: int | None = None
    flips: int | None = None
    lost: int | None = None
    gained: int | None = None
    mcnemar_p: float | None = None
    drop: float | None = None
    max_drop: float | None = None
    skipped: int = 0
    skipped_names: tuple[str, ...] = ()
    fingerprint: str = ""
    runtime: str = ""
    remarks: tuple[str, ...] = ()

    @property
    def top1(self) -> float | None:
        """Percent of images classified correctly."""
        return None if self.correct is None else 100 * self.correct / self.images

    @property
    def top5(self) -> float | None:
        """Percent of images whose class is among the five best."""
        return None if self.top5_correct is None else 100 * self.top5_correct / self.images

    @property
    def top1_interval(self) -> tuple[float, float] | None:
        """The 95 % interval of :attr:`top1`, in percent."""
        if self.correct is None:
            return None
        low, high = wilson(self.correct, self.images)
        return 100 * low, 100 * high

    @property
    def agreement_interval(self) -> tuple[float, float] | None:
        """The 95 % interval of ``agreement``, as shares."""
        return None if self.flips is None else wilson(self.images - self.flips, self.images)

    @property
    def exceeded(self) -> bool:
        """Whether the drop is larger than was allowed."""
        gated = self.drop is not None and self.max_drop is not None
        return gated and self.drop > self.max_drop  # type: ignore[operator]


@dataclass(frozen=True)
class Explanation:
    """Where an artifact that failed diverges from its checkpoint, or why nobody could say.

    ``sentence`` has all of it, with what to do. ``cause``, ``stage``, ``block`` and ``tap`` are
    those of a finding of drift, empty where it names none.
    """

    sentence: str
    cause: str = ""
    stage: str = ""
    block: str = ""
    tap: str = ""


@dataclass(frozen=True)
class ArtifactReport:
    """Everything found out about one artifact; None where it was not asked for.

    ``drift`` is there for failures only.
    """

    format: str
    precision: str
    path: str
    bytes: int
    sha256: str
    parity: ParityReport
    timing: TimingReport | None = None
    accuracy: Accuracy | None = None
    notes: tuple[str, ...] = ()
    drift: Explanation | None = None

    @property
    def id(self) -> str:
        """``onnx-fp32``."""
        return f"{self.format}-{self.precision}"


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
    searches: Mapping[str, Found] = field(default_factory=dict)
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
