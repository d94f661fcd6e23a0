"""What ``evaluate`` found out, for the table of artifacts and the lines below it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

from levit_export.checks.results import Accuracy, ArtifactReport
from levit_export.reports.report import Report

NONE = "–"


def columns(report: Report) -> Iterator[tuple[str, Callable[[ArtifactReport], str]]]:
    """Headings and cells of what was evaluated; a column without a figure is left out."""
    for heading, cell in CELLS.items():
        if any(cell(found) != NONE for found in _found(report)):
            yield heading, partial(_cell_of, cell)


def notes(report: Report) -> Iterator[str]:
    """On which images, what was left out of them, and how to read the columns."""
    found = _found(report)
    yield from dict.fromkeys(line for accuracy in found for line in _of_data(accuracy))
    if found:
        yield f"evaluated on {', '.join(sorted({accuracy.runtime for accuracy in found}))}"
    if any(accuracy.lost is not None for accuracy in found):
        yield (
            "flips: other top-1 than PyTorch's (-right before, +right now); McNemar p: of as "
            "uneven a split by chance; drop: points of top-1 below PyTorch's"
        )
    elif any(accuracy.drop is not None for accuracy in found):
        yield "flips: other top-1 than PyTorch's; drop: 100 less the agreement, in points"


def _found(report: Report) -> list[Accuracy]:
    """Results of ``evaluate``: an export takes counts on the way and names no runtime."""
    return [a.accuracy for a in report.artifacts if a.accuracy and a.accuracy.runtime]


def _of_data(accuracy: Accuracy) -> Iterator[str]:
    yield f"{accuracy.images} images of {accuracy.dataset} (list {accuracy.fingerprint[:12]})"
    yield from accuracy.remarks
    if accuracy.skipped:
        more = accuracy.skipped - len(accuracy.skipped_names)
        names = "; ".join(accuracy.skipped_names) + (f"; and {more} more" if more else "")
        yield f"{accuracy.skipped} images could not be read and are left out: {names}"


def _cell_of(cell: Callable[[Accuracy], str], artifact: ArtifactReport) -> str:
    return NONE if artifact.accuracy is None else cell(artifact.accuracy)


def _top1(accuracy: Accuracy) -> str:
    if accuracy.top1 is None or accuracy.top1_interval is None:
        return NONE
    low, high = accuracy.top1_interval
    return f"{accuracy.top1:.2f} % ({low:.1f}–{high:.1f})"


def _top5(accuracy: Accuracy) -> str:
    return NONE if accuracy.top5 is None else f"{accuracy.top5:.2f} %"


def _agreement(accuracy: Accuracy) -> str:
    if accuracy.agreement is None or accuracy.agreement_interval is None:
        return NONE
    low, high = accuracy.agreement_interval
    return f"{100 * accuracy.agreement:.2f} % ({100 * low:.1f}–{100 * high:.1f})"


def _flips(accuracy: Accuracy) -> str:
    if accuracy.flips is None:
        return NONE
    split = "" if accuracy.lost is None else f" (-{accuracy.lost} +{accuracy.gained})"
    return f"{accuracy.flips}{split if accuracy.flips else ''}"


def _mcnemar(accuracy: Accuracy) -> str:
    return NONE if accuracy.mcnemar_p is None else f"{accuracy.mcnemar_p:.2g}"


def _drop(accuracy: Accuracy) -> str:
    if accuracy.drop is None:
        return NONE
    gate = "" if accuracy.max_drop is None else f" of {accuracy.max_drop:g}"
    text = f"{accuracy.drop:.2f}{gate}"
    return f"[red]{text}[/red]" if accuracy.exceeded else text


CELLS: Mapping[str, Callable[[Accuracy], str]] = {
    "top-1 (95 %)": _top1,
    "top-5": _top5,
    "agreement (95 %)": _agreement,
    "flips": _flips,
    "McNemar p": _mcnemar,
    "drop": _drop,
}
