"""What a run found out: as values, and as the JSON (schema 1) that CI and later runs read.

How artifacts are called where people see them is decided here too. What is asked of a report is
in ``gate``; how it is shown is in the modules beside this one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from levit_export.checks.findings import Finding
from levit_export.checks.parity import ParityReport, with_weights
from levit_export.checks.results import Accuracy, ArtifactReport, Place, names_of
from levit_export.checks.timing import RULES, Regimes, TimingReport
from levit_export.core import files, serialisation
from levit_export.core.errors import DataError
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
class Vouching:
    """Who says that what was checked is the model that was trained; ``signer`` in words.

    A ``reference`` is another file, whose name is in place of the signer's.
    """

    by: Literal["itself", "checkpoint", "signature", "reference"]
    signer: str = ""

    @property
    def sentence(self) -> str:
        """The same for people."""
        if self.by == "itself":
            return (
                "the directory vouches for itself: a checkpoint (--checkpoint) or a signature "
                "(--verify-key, --verify-certificate) would tell whose it is"
            )
        if self.by == "checkpoint":
            return "held against a checkpoint"
        if self.by == "reference":
            return f"held against {self.signer}"
        return f"signed by {self.signer}"


@dataclass(frozen=True)
class Report:
    """A run: the verdict over all artifacts, and where and with what it was reached.

    ``baselines`` are timings of what is not an artifact, such as eager PyTorch in the same run;
    ``searches`` what the search for a precision saw, by format. ``vouching`` is known of checks.
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
    command: str = ""
    """What was typed, where the report was asked for on a command line."""
    vouching: Vouching | None = None


def labels(artifacts: Sequence[ArtifactReport]) -> tuple[str, ...]:
    """A name for each artifact: its id, with path and way where the id is not enough.

    ``onnx-fp32 (OpenVINO)`` of a file that was executed in several ways.
    """
    return names_of(
        [
            Place(each.id, each.path, device(each), is_elsewhere=bool(each.device))
            for each in artifacts
        ]
    )


def device(artifact: ArtifactReport) -> str:
    """``cpu_and_ne`` of ``Core ML (cpu_and_ne)``: what the runtime ran on; empty if it did not.

    Where another device ran it, that device's name stands before.
    """
    if artifact.device:
        return artifact.device
    runtimes = [artifact.parity.runtime]
    runtimes += [found.runtime for found in (artifact.accuracy, artifact.timing) if found]
    return next(filter(None, runtimes), "").partition("(")[2].partition(")")[0]


def to_json(report: Report) -> dict[str, Any]:
    """The report as plain data; numbers that JSON cannot hold (NaN, infinity) become null."""
    content = {
        "schema": SCHEMA,
        "verdict": report.verdict,
        "model": None if report.model is None else asdict(report.model),
        "passes": [asdict(record) for record in report.passes],
        "artifacts": [artifact_to_json(artifact) for artifact in report.artifacts],
        "baselines": {name: _timing(timing) for name, timing in report.baselines.items()},
        "searches": {name: asdict(found) for name, found in report.searches.items()},
        "machine": asdict(report.machine),
        "toolchain": dict(report.toolchain),
        "output": None if report.output is None else str(report.output),
        "command": report.command,
        "vouching": None
        if report.vouching is None
        else {**asdict(report.vouching), "sentence": report.vouching.sentence},
    }
    return serialisation.plain(content)  # type: ignore[no-any-return]


def accuracy_to_json(accuracy: Accuracy) -> dict[str, Any]:
    """The accuracy section of an artifact, with its intervals."""
    return {
        **asdict(accuracy),
        "top1": accuracy.top1,
        "top5": accuracy.top5,
        "top1_interval": accuracy.top1_interval,
        "agreement_interval": accuracy.agreement_interval,
    }


def artifact_to_json(artifact: ArtifactReport) -> dict[str, Any]:
    """The entry of an artifact."""
    return {
        "format": artifact.format,
        "precision": artifact.precision,
        "path": artifact.path,
        "bytes": artifact.bytes,
        "sha256": artifact.sha256,
        "notes": list(artifact.notes),
        "parity": _parity(artifact.parity),
        "drift": None if artifact.drift is None else asdict(artifact.drift),
        "device": artifact.device,
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
        # An output of which no row decides has no figures, and does not hide those of the others.
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
        "rules": timing.rules,
        "seconds": list(timing.seconds),
        "regimes": None if timing.regimes is None else _regimes(timing.regimes),
    }


def _regimes(found: Regimes) -> dict[str, Any]:
    summary: dict[str, Any] = {"cold_ms": 1e3 * found.cold_s, "first_ms": 1e3 * found.first_s}
    if found.sustained:
        summary |= {
            "sustained_median_ms": found.sustained_ms(0.5),
            "sustained_p90_ms": found.sustained_ms(0.9),
            "sustained_slowdown": found.slowdown,
        }
    return {**summary, "sustained_seconds": list(found.sustained)}


def read_report(path: Path) -> Report:
    """The report in the file ``path``; numbers that JSON could not hold come back as NaN.

    Raises ``DataError`` when it cannot be read, is of another schema or contradicts itself.
    """
    try:
        content = serialisation.parse(files.read_text(path), SCHEMA)
        found = serialisation.structure(content, Report, strict=False, hooks=HOOKS)
        verdicts = [str(artifact["parity"]["verdict"]) for artifact in content["artifacts"]]
    except serialisation.OtherSchemaError as error:
        raise DataError(
            f"{path} {error} of reports",
            remedy="Make it anew with this version: levit-export export, or check --json.",
        ) from error
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"{path} cannot be read as a report of schema {SCHEMA}: {error}",
            remedy="Give the report.json of an export, or what --json wrote, as it was written.",
        ) from error
    for problem in _inconsistencies(found, verdicts):
        raise DataError(f"{path} {problem}", remedy="Make it anew; the file was edited.")
    return found


def _finding_of_json(value: Any, _: Any) -> Finding:
    """From kind and values; its part, verdict and sentence follow from the kind."""
    found = Finding(
        value["kind"],
        {
            # What JSON has no number for was written as null.
            name: held if isinstance(held, str) else math.nan if held is None else float(held)
            for name, held in value["values"].items()
        },
        str(value["output"]),
    )
    found.sentence  # noqa: B018 -- an unknown kind or a missing value is damage, found here
    return found


def _timing_of_json(value: Any, _: Any) -> TimingReport:
    """From the raw seconds; the statistics beside them are computed again."""
    peak, efficiency = value.get("peak_memory_bytes"), value.get("efficiency")
    regimes = value.get("regimes")
    return TimingReport(
        verdict=value["verdict"],
        reason=str(value["reason"]),
        runtime=str(value["runtime"]),
        threads=int(value.get("threads", 0)),
        batch=int(value.get("batch", 0)),
        load_s=float(value.get("load_ms", 0.0)) / 1e3,
        efficiency=None if efficiency is None else float(efficiency),
        peak_bytes=None if peak is None else int(peak),
        seconds=tuple(float(second) for second in value.get("seconds", ())),
        rules=str(value.get("rules", "")),
        regimes=None
        if regimes is None
        else Regimes(
            float(regimes["cold_ms"]) / 1e3,
            float(regimes["first_ms"]) / 1e3,
            tuple(float(second) for second in regimes["sustained_seconds"]),
        ),
    )


HOOKS = {TimingReport: _timing_of_json, Finding: _finding_of_json}
"""How ``serialisation.structure`` reads what ``to_json`` and ``artifact_to_json`` make."""


def _inconsistencies(report: Report, verdicts: Sequence[str]) -> Iterator[str]:
    """What a report that this toolchain wrote cannot say."""
    if not report.artifacts:
        yield "tells of no artifact"
    for artifact, verdict in zip(report.artifacts, verdicts, strict=True):
        if artifact.parity.verdict != verdict:
            yield (
                f"gives {artifact.id} the verdict {verdict!r}, and what was found makes it "
                f"{artifact.parity.verdict!r}"
            )
        yield from _of_outputs(artifact)
        yield from _unsaid(artifact)
    timings = [(a.id, a.timing) for a in report.artifacts if a.timing is not None]
    for name, timing in (*timings, *report.baselines.items()):
        if timing.verdict not in ("pass", "not-run"):
            yield f"gives the latency of {name} the verdict {timing.verdict!r}"
        measured = timing.verdict == "pass"
        if measured and not (timing.seconds and all(0 < s < math.inf for s in timing.seconds)):
            yield f"has no latencies of {name}, or impossible ones"
        if timing.rules not in ("", *RULES):
            yield f"has the latency of {name} by rules {timing.rules!r}, which are not known"
        if timing.efficiency is not None and not 0 < timing.efficiency < math.inf:
            yield f"has the efficiency {timing.efficiency} of {name}"


def _unsaid(artifact: ArtifactReport) -> Iterator[str]:
    """What follows from the distances and the weights, and is not among the findings."""
    found = artifact.parity
    follows = [finding for output in found.outputs for finding in output.findings()]
    if found.weights is not None:
        follows += with_weights(replace(found, findings=()), found.weights).findings
    said = {finding.kind for finding in found.findings}
    for kind in dict.fromkeys(finding.kind for finding in follows):
        if kind not in said:
            yield f"does not say {kind} of {artifact.id}, which follows from what it keeps"


def _of_outputs(artifact: ArtifactReport) -> Iterator[str]:
    for output in artifact.parity.outputs:
        rows = len(output.errors)
        if rows != len(output.scales) or (rows and len(output.tolerance.rtol) not in (1, rows)):
            yield f"has {rows} errors of {artifact.id} {output.name!r} and not as many scales"
        if output.spreads and not rows == len(output.spreads) == len(output.rows):
            yield f"has {rows} errors of {artifact.id} {output.name!r} and not as many rows"
        numbers = (*output.errors, *output.scales, *output.spreads)
        if not all(0 <= number < math.inf for number in numbers):
            yield f"has errors or scales of {artifact.id} {output.name!r} below 0 or infinite"
