"""A sweep's report for people: on a terminal and as Markdown; and the files that hold it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from levit_export.core import serialisation
from levit_export.reports.markdown import SPECIAL
from levit_export.workflows.sweep.report import Row, SweepReport, to_json

if TYPE_CHECKING:
    from levit_export.reports.console import Screen

NONE = "–"
HEADINGS = ("model", "artifact", "verdict", "size", "of tolerance", "top-1", "drop", "latency")
LEFT = 3
"""The first columns are words, the others figures."""


def files(report: SweepReport) -> dict[str, str]:
    """The report's files by name."""
    return {
        "sweep.json": serialisation.to_text(to_json(report)),
        "sweep.md": as_markdown(report),
    }


def as_markdown(report: SweepReport) -> str:
    """A table with a line for each cell, then the reasons and what was left out."""
    align = ["---"] * LEFT + ["---:"] * (len(HEADINGS) - LEFT)
    rows = [[_escaped(cell) for cell in _cells(row)] for row in report.rows]
    table = "\n".join(f"| {' | '.join(line)} |" for line in (HEADINGS, align, *rows))
    notes = "\n".join(f"- {_escaped(note)}" for note in _notes(report))
    return "\n\n".join(filter(None, (f"## {report.verdict}", table, notes))) + "\n"


def _escaped(text: str) -> str:
    """One line that shows ``text`` as it is: no markup, no HTML, no cell or line ended early."""
    line = " ".join(text.split())
    plain = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return SPECIAL.sub(r"\\\1", plain)


def print_sweep(screen: Screen, report: SweepReport) -> None:
    """The table, what did not pass and why, the verdict and where it all is."""
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    from levit_export.reports.console import COLOURS

    table = Table(box=None, pad_edge=False, header_style="dim")
    for index, heading in enumerate(HEADINGS):
        table.add_column(heading, justify="left" if index < LEFT else "right")
    for row in report.rows:
        model, artifact, verdict, *figures = map(escape, _cells(row))
        colour = COLOURS[row.result.verdict]
        table.add_row(model, artifact, f"[{colour}]{verdict}[/{colour}]", *figures)
    screen.out.print(table)
    for note in _notes(report):
        screen.out.print(Text(note, style="dim"))
    colour = COLOURS[report.verdict]
    screen.out.print(
        f"[{colour}]{report.verdict}[/{colour}]  {escape(str(report.output))}", highlight=False
    )


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.cell.label,
        row.cell.id,
        row.result.verdict,
        NONE if row.bytes is None else f"{row.bytes / 1e6:.2f} MB",
        _share(row),
        _top1(row),
        _drop(row),
        _latency(row),
    )


def _share(row: Row) -> str:
    ratio = None if row.parity is None else row.parity["worst_ratio"]
    return NONE if ratio is None else f"{100 * ratio:.0f} %"


def _top1(row: Row) -> str:
    accuracy = row.accuracy
    if accuracy is None or accuracy["correct"] is None:
        return NONE
    return f"{accuracy['correct']}/{accuracy['images']}"


def _drop(row: Row) -> str:
    drop = None if row.accuracy is None else row.accuracy["drop"]
    return NONE if drop is None else f"{drop:.2f}"


def _latency(row: Row) -> str:
    timing = row.timing
    if timing is None:
        return NONE
    low, high = timing["median_interval_ms"]
    noisy = "noisy " if timing["noisy"] else ""
    return f"{noisy}{timing['median_ms']:.2f} ms ({low:.2f}–{high:.2f})"


def _notes(report: SweepReport) -> Iterator[str]:
    for row in report.rows:
        if row.result.reason:
            yield f"{row.cell.label} {row.cell.id}: {row.result.reason}"
    kept = sum(not row.fresh for row in report.rows)
    if kept:
        yield f"{kept} of {len(report.rows)} cells were done before and are taken from the store"
    yield from report.notes
