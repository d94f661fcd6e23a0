"""How figures are written: units, digits, and what stands where nothing is known.

The console, the Markdown summary and the page all take their figures, and the columns of their
tables of artifacts, from here. Which colour a cell has is decided where it is shown.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from levit_export.checks.results import Accuracy, ArtifactReport
    from levit_export.checks.timing import TimingReport
    from levit_export.core.machine import Machine
    from levit_export.core.values import Verdict
    from levit_export.reports.report import Report

NONE = "–"
MOST_PERCENT = 999
"""A larger share is said as a multiple."""
MOST_TIMES = 10_000
"""A larger multiple is only bounded."""

GEMM_SHARE = (
    "GEMM share: multiply-adds a second, over those of float32 matrix products on this machine; "
    "int8 and bf16 can exceed 1, and so can a kernel that is better than NumPy's"
)
NOISE = (
    "noisy: the middle half of the calls spans more than 10 % of the median, because something "
    "else ran on the machine"
)

WORDS: dict[Verdict, str] = {
    "pass": "pass",
    "fail": "fail",
    "inconclusive": "inconclusive",
    "not-run": "not run",
}
MARKS: dict[Verdict, str] = {"pass": "✓", "fail": "✗", "inconclusive": "?", "not-run": "○"}
NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that neither XML 1.0 nor HTML can hold, not even escaped."""


def printable(text: str) -> str:
    """``text`` with the characters replaced that no XML and no page can hold."""
    return NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text)


def size(count: int) -> str:
    """Bytes in megabytes of 10**6."""
    return f"{count / 1e6:.2f} MB" if count else NONE


def error(value: float | None) -> str:
    """A relative error with two digits; ``0`` where there is none at all."""
    # An infinite error is known; what is not a number is not.
    if value is None or math.isnan(value):
        return NONE
    return f"{value:.1e}" if value else "0"


def share(value: float) -> str:
    """A share as percent; a multiple where it is ten times the whole and more."""
    if 100 * value <= MOST_PERCENT:
        return f"{100 * value:.0f} %"
    return f"{value:.0f} times" if value <= MOST_TIMES else f"over {MOST_TIMES} times"


def change(count: int) -> str:
    """Bytes more or fewer, in the largest unit that leaves something to be seen."""
    if abs(count) < 1000:
        return f"{count:+d} B" if count else "0"
    return f"{count / 1e6:+.2f} MB" if abs(count) >= 10_000 else f"{count / 1e3:+.2f} kB"


def milliseconds(value: float | None) -> str:
    """Latency with three significant digits."""
    if value is None:
        return NONE
    if value >= 100:
        return f"{value:.0f} ms"
    return f"{value:.1f} ms" if value >= 10 else f"{value:.2f} ms"


def count(value: int) -> str:
    """A whole number with a thin space between thousands."""
    return f"{value:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def machine(found: Machine) -> str:
    """Processor, cores, memory, system and Python in one line."""
    return (
        f"{found.processor}, {found.cores} cores, {found.memory / 2**30:.0f} GiB, "
        f"{found.system}, Python {found.python}"
    )


def latency(timing: TimingReport | None) -> str:
    """The median and its 95 % interval, or what the rules quote that it was measured by."""
    if timing is None:
        return NONE
    if not timing.seconds:
        return WORDS["not-run"]
    if timing.rules:
        from levit_export.checks.timing import RULES

        quantile = RULES[timing.rules].quantile
        return f"p{100 * quantile:.0f} {timing.quantile_ms(quantile):.2f} ms"
    low, high = timing.interval_ms()
    return f"{timing.median_ms:.2f} ms ({low:.2f}–{high:.2f})"


def of_tolerance(artifact: ArtifactReport) -> str:
    """The largest share that an output uses of what its tolerance allows."""
    outputs = artifact.parity.outputs
    return share(max(output.worst_ratio for output in outputs)) if outputs else NONE


@dataclass(frozen=True)
class Column:
    """A heading, the cell of an artifact, and that of a baseline, which has a timing only."""

    heading: str
    of_artifact: Callable[[ArtifactReport], str]
    of_baseline: Callable[[TimingReport], str] = lambda _: ""


PARITY, LATENCY, DROP, TOP1 = "parity", "latency", "drop in points", "top-1 (95 %)"
"""Headings of the columns that are not figures alone, or are judged."""

JUDGED = (TOP1, DROP)
"""Columns of accuracy that a reader looks for first."""


def columns(report: Report, *, counts: bool = False) -> Iterator[Column]:
    """The columns of a table of artifacts, the most important first.

    They are those of what was looked at in this run. With ``counts`` right answers are counted,
    and the intervals are left to what evaluates: few images were classified on the way of an
    export, and there is little room on a terminal.
    """
    found = report.artifacts
    accuracies = [artifact.accuracy for artifact in found if artifact.accuracy]
    if any(artifact.parity.was_asked for artifact in found):
        yield Column(PARITY, _verdict)
    is_compared = any(artifact.parity.outputs for artifact in found)
    if is_compared:
        yield Column("of tolerance", of_tolerance)
    if counts and accuracies:
        yield Column("top-1", lambda a: of_accuracy(a, counted))
    known = [a for a in accuracies if a.runtime or not counts]
    of_images = [
        Column(heading, lambda a, cell=cell: of_accuracy(a, cell))  # type: ignore[misc]
        for heading, cell in ACCURACY.items()
        if any(cell(accuracy) is not None for accuracy in known)
    ]
    yield from (column for column in of_images if column.heading in JUDGED)
    yield Column("size", lambda a: size(a.bytes))
    is_timed = bool(report.baselines) or any(artifact.timing for artifact in found)
    if is_timed:
        yield Column(LATENCY, lambda a: latency(a.timing), latency)
    if is_compared:
        yield Column("max rel error", lambda a: error(a.parity.max_rel))
    if any(a.parity.weights and not a.parity.weights.unread for a in found):
        yield Column("weights", _weights)
    yield from (column for column in of_images if column.heading not in JUDGED)
    if is_timed:
        yield Column("memory", lambda a: _memory(a.timing))
        yield Column("GEMM share", lambda a: _efficiency(a.timing), _efficiency)


def _verdict(artifact: ArtifactReport) -> str:
    found, fault = artifact.parity.verdict, artifact.parity.fault
    return f"{found} ({fault})" if fault else found


def _weights(artifact: ArtifactReport) -> str:
    audit = artifact.parity.weights
    if audit is None or audit.unread:
        return NONE
    return f"{audit.tensors - len(audit.missing)}/{audit.tensors}"


def _memory(timing: TimingReport | None) -> str:
    peak = None if timing is None else timing.peak_bytes
    return NONE if peak is None else f"{peak / 2**20:.0f} MiB"


def _efficiency(timing: TimingReport | None) -> str:
    known = None if timing is None else timing.efficiency
    return NONE if known is None else f"{known:.2f}"


def of_accuracy(artifact: ArtifactReport, cell: Callable[[Accuracy], str | None]) -> str:
    """What ``cell`` says of how the artifact classifies."""
    known = None if artifact.accuracy is None else cell(artifact.accuracy)
    return NONE if known is None else known


def counted(accuracy: Accuracy) -> str | None:
    """Right answers, and of how many."""
    return None if accuracy.correct is None else f"{accuracy.correct}/{accuracy.images}"


def _percent(value: float | None, interval: tuple[float, float] | None) -> str | None:
    if value is None:
        return None
    return f"{value:.2f} %" + (
        "" if interval is None else f" ({interval[0]:.1f}–{interval[1]:.1f})"
    )


def _agreement(accuracy: Accuracy) -> str | None:
    value, interval = accuracy.agreement, accuracy.agreement_interval
    return _percent(
        None if value is None else 100 * value,
        None if interval is None else (100 * interval[0], 100 * interval[1]),
    )


def _flips(accuracy: Accuracy) -> str | None:
    if accuracy.flips is None:
        return None
    is_split = accuracy.flips and accuracy.lost is not None
    return f"{accuracy.flips}" + (f" (-{accuracy.lost} +{accuracy.gained})" if is_split else "")


def _drop(accuracy: Accuracy) -> str | None:
    if accuracy.drop is None:
        return None
    limit = "" if accuracy.max_drop is None else f" of {accuracy.max_drop:g}"
    return f"{accuracy.drop:+.2f}{limit}{' exceeded' if accuracy.exceeded else ''}"


ACCURACY: dict[str, Callable[[Accuracy], str | None]] = {
    TOP1: lambda a: _percent(a.top1, a.top1_interval),
    "top-5": lambda a: _percent(a.top5, None),
    "agreement (95 %)": _agreement,
    "flips": _flips,
    "McNemar p": lambda a: None if a.mcnemar_p is None else f"{a.mcnemar_p:.2g}",
    DROP: _drop,
}
"""What is shown of the images that were classified; None where it is not known."""


def accuracy_notes(report: Report) -> Iterator[str]:
    """On which images, what was left out of them, and how to read the columns."""
    # An export counts answers on its way and names no runtime; only evaluate does.
    found = [a.accuracy for a in report.artifacts if a.accuracy and a.accuracy.runtime]
    yield from dict.fromkeys(line for accuracy in found for line in _images(accuracy))
    if found:
        yield f"evaluated on {', '.join(sorted({accuracy.runtime for accuracy in found}))}"
    if any(accuracy.lost is not None for accuracy in found):
        yield (
            "flips: images whose top-1 differs from PyTorch's (-: only PyTorch is right, +: only "
            "the artifact is); McNemar p: probability of so uneven a split by chance; drop: "
            "top-1 below PyTorch's, + is a loss"
        )
    elif any(accuracy.drop is not None for accuracy in found):
        yield "flips: other top-1 than PyTorch's; drop: 100 less the agreement, + is a loss"


def _images(accuracy: Accuracy) -> Iterator[str]:
    yield f"{accuracy.images} images of {accuracy.dataset} (list {accuracy.fingerprint[:12]})"
    yield from accuracy.remarks
    if accuracy.skipped:
        more = accuracy.skipped - len(accuracy.skipped_names)
        names = "; ".join(accuracy.skipped_names) + (f"; and {more} more" if more else "")
        yield f"{left_out(accuracy)}: {names}"


def left_out(accuracy: Accuracy) -> str:
    """How many images could not be read."""
    said = "1 image" if accuracy.skipped == 1 else f"{accuracy.skipped} images"
    return f"{said} could not be read and {'is' if accuracy.skipped == 1 else 'are'} left out"
