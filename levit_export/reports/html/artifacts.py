"""The table of artifacts, and what it has no room for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from levit_export.checks.results import Accuracy, ArtifactReport
from levit_export.checks.timing import TimingReport
from levit_export.reports.html import wording
from levit_export.reports.html.markup import (
    Column,
    Markup,
    bullets,
    element,
    folded,
    section,
    table,
)
from levit_export.reports.report import Report, labels

GEMM = "GEMM share: 1 is the rate at which this machine multiplies matrices."
MOST_OF_A_PATH = 60
"""Characters; the list of files has all of it."""


@dataclass(frozen=True)
class Cells:
    """A column: its heading, the cell of an artifact, and that of a baseline."""

    heading: str
    of_artifact: Callable[[ArtifactReport], object]
    of_baseline: Callable[[TimingReport], object] = lambda _: ""
    number: bool = True


def artifacts(report: Report) -> Markup:
    """One row for each artifact, then the baselines; columns only for what was looked at."""
    cells = list(_columns(report))
    columns = [Column("artifact"), *(Column(c.heading, number=c.number) for c in cells)]
    rows: list[Sequence[object]] = [
        (_named(label), *(column.of_artifact(artifact) for column in cells))
        for label, artifact in zip(labels(report.artifacts), report.artifacts, strict=True)
    ]
    for name, timing in report.baselines.items():
        rows.append((name, *(column.of_baseline(timing) for column in cells)))
    if not rows:
        nothing = element("p", "No artifact was made or looked at.", kind="note")
        return section("artifacts", "Artifacts", nothing)
    shown = table("Artifacts: size, parity, accuracy, latency, efficiency", columns, rows)
    remarks = [element("p", GEMM, kind="note")] if _timed(report) else []
    return section("artifacts", "Artifacts", shown, *remarks, _notes(report), _files(report))


def _timed(report: Report) -> bool:
    return bool(report.baselines) or any(artifact.timing for artifact in report.artifacts)


def _columns(report: Report) -> Iterator[Cells]:
    found = report.artifacts
    if any(artifact.parity.was_asked for artifact in found):
        yield Cells(
            "parity", lambda a: wording.verdict(a.parity.verdict, a.parity.fault), number=False
        )
        yield Cells("of tolerance", _share)
        yield Cells("max rel. error", _error)
    if any(a.parity.weights and not a.parity.weights.unread for a in found):
        yield Cells("weights found", _weights)
    if any(artifact.accuracy for artifact in found):
        yield Cells("top-1 (95 %)", lambda a: _of_accuracy(a, _top1))
        yield Cells("same as PyTorch", lambda a: _of_accuracy(a, _agreement))
    if any(artifact.accuracy and artifact.accuracy.drop is not None for artifact in found):
        yield Cells("drop", lambda a: _of_accuracy(a, _drop))
    yield Cells("size", lambda a: wording.size(a.bytes))
    if _timed(report):
        yield Cells("latency (95 %)", lambda a: _latency(a.timing), _latency)
        yield Cells("memory", lambda a: _memory(a.timing))
        yield Cells("GEMM share", lambda a: _efficiency(a.timing), _efficiency)


def _named(label: str) -> Markup:
    """The id, with a path that may be long on a line of its own."""
    name, _, more = label.partition(" ")
    place = [element("small", wording.shortened(more, MOST_OF_A_PATH))] if more else []
    return element("span", name, *place, kind="name")


def _verdict(artifact: ArtifactReport) -> Markup:
    return wording.verdict(artifact.parity.verdict, artifact.parity.fault)


def _share(artifact: ArtifactReport) -> str:
    outputs = artifact.parity.outputs
    return wording.share(max(o.worst_ratio for o in outputs)) if outputs else wording.NONE


def _error(artifact: ArtifactReport) -> str:
    worst = artifact.parity.max_rel
    return wording.NONE if worst is None else wording.error(worst)


def _weights(artifact: ArtifactReport) -> str:
    audit = artifact.parity.weights
    if audit is None or audit.unread:
        return wording.NONE
    return f"{audit.tensors - len(audit.missing)} of {audit.tensors}"


def _of_accuracy(artifact: ArtifactReport, cell: Callable[[Accuracy], str]) -> str:
    return wording.NONE if artifact.accuracy is None else cell(artifact.accuracy)


def _top1(accuracy: Accuracy) -> str:
    if accuracy.top1 is None or accuracy.top1_interval is None:
        return wording.NONE
    low, high = accuracy.top1_interval
    return f"{accuracy.top1:.2f} % ({low:.1f}–{high:.1f})"


def _agreement(accuracy: Accuracy) -> str:
    return wording.NONE if accuracy.agreement is None else f"{100 * accuracy.agreement:.2f} %"


def _drop(accuracy: Accuracy) -> str:
    if accuracy.drop is None:
        return wording.NONE
    gate = "" if accuracy.max_drop is None else f" of {accuracy.max_drop:g}"
    return f"{accuracy.drop:.2f}{gate}{' exceeded' if accuracy.exceeded else ''}"


def _latency(timing: TimingReport | None) -> object:
    if timing is None:
        return wording.NONE
    if not timing.seconds:
        return "not run"
    low, high = timing.interval_ms()
    words = f"{timing.median_ms:.2f} ms ({low:.2f}–{high:.2f})"
    if not timing.noisy:
        return words
    return element("span", element("span", "noisy", kind="noisy"), " ", words)


def _memory(timing: TimingReport | None) -> str:
    peak = None if timing is None else timing.peak_bytes
    return wording.NONE if peak is None else f"{peak / 2**20:.0f} MiB"


def _efficiency(timing: TimingReport | None) -> str:
    known = None if timing is None else timing.efficiency
    return wording.NONE if known is None else f"{known:.2f}"


def _notes(report: Report) -> Markup:
    """Remarks, each once with the artifacts that it concerns."""
    concerned: dict[str, list[str]] = {}
    for label, artifact in zip(labels(report.artifacts), report.artifacts, strict=True):
        for remark in _remarks(artifact):
            concerned.setdefault(remark, []).append(label)
    return bullets(
        element("span", element("b", _listed(names, report)), f": {remark}")
        for remark, names in concerned.items()
    )


def _listed(names: Sequence[str], report: Report) -> str:
    if 1 < len(report.artifacts) == len(names):
        return "all"
    return ", ".join(wording.shortened(name, MOST_OF_A_PATH) for name in names)


def _remarks(artifact: ArtifactReport) -> Iterator[str]:
    accuracy = artifact.accuracy
    if artifact.parity.verdict == "pass" and artifact.parity.reason:
        yield artifact.parity.reason
    if any(output.tolerance.origin == "given" for output in artifact.parity.outputs):
        yield "held against a tolerance that was given, not the derived one"
    yield from artifact.notes
    if accuracy is not None:
        yield f"accuracy on {accuracy.images} images of {accuracy.dataset}"
        yield from accuracy.remarks
        if accuracy.skipped:
            yield f"{accuracy.skipped} images could not be read and are left out"


def _files(report: Report) -> Markup:
    columns = [Column("file"), Column("bytes", number=True), Column("SHA-256")]
    rows = [
        (artifact.path, wording.count(artifact.bytes), element("code", artifact.sha256))
        for artifact in {(a.path, a.sha256): a for a in report.artifacts}.values()
    ]
    return folded("Files", table("Files of the artifacts", columns, rows))
