"""What a sweep found out: as values, as JSON (schema 1), as Markdown, a page and on a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from levit_export.core import serialisation
from levit_export.core.machine import Machine
from levit_export.core.values import Verdict
from levit_export.reports import ci, figures
from levit_export.workflows.sweep.cell import Cell, Result

if TYPE_CHECKING:
    from levit_export.reports import html
    from levit_export.reports.console import Screen

SCHEMA = 1
NONE = "–"
HEADINGS = (
    "model",
    "artifact",
    "verdict",
    "size",
    "of tolerance",
    "top-1",
    figures.DROP,
    "latency",
)
PAGE = "sweep.html"
LEFT = 3
"""The first columns are words, the others figures."""


@dataclass(frozen=True)
class SweepRow:
    """A cell and its result. ``path`` is the artifact's below the sweep's folder.

    ``fresh`` says that it was done by this run and not by an earlier one.
    """

    cell: Cell
    result: Result
    path: str
    fresh: bool

    @property
    def bytes(self) -> int | None:
        """Size of the artifact."""
        return None if self.result.artifact is None else int(self.result.artifact["bytes"])

    @property
    def parity(self) -> Mapping[str, Any] | None:
        """The parity section of a report."""
        return None if self.result.artifact is None else self.result.artifact["parity"]

    @property
    def accuracy(self) -> Mapping[str, Any] | None:
        """The accuracy section, None where there were no images."""
        return None if self.result.artifact is None else self.result.artifact["accuracy"]

    @property
    def timing(self) -> Mapping[str, Any] | None:
        """The timing section, None where latency was not asked for or could not be measured."""
        if self.result.artifact is None or not self.cell.timed:
            return None
        timing = self.result.artifact["timing"]
        return timing if timing and timing["verdict"] == "pass" else None


@dataclass(frozen=True)
class SweepReport:
    """All rows in the order of the file; ``notes`` say what was left out and why."""

    file: str
    output: Path
    verdict: Verdict
    rows: tuple[SweepRow, ...]
    notes: tuple[str, ...]
    machine: Machine
    toolchain: Mapping[str, str]
    command: str = ""
    """What was typed, where it was asked for on a command line."""


def to_json(report: SweepReport) -> dict[str, Any]:
    """The report as plain data."""
    return {
        "schema": SCHEMA,
        "file": report.file,
        "verdict": report.verdict,
        "rows": [_row(row) for row in report.rows],
        "notes": list(report.notes),
        "machine": asdict(report.machine),
        "toolchain": dict(report.toolchain),
        "command": report.command,
    }


def _row(row: SweepRow) -> dict[str, Any]:
    artifact = row.result.artifact or {}
    return {
        "model": row.cell.label,
        "format": row.cell.format,
        "precision": row.cell.precision,
        "key": row.cell.key,
        "verdict": row.result.verdict,
        "reason": row.result.reason,
        "path": row.path,
        "bytes": row.bytes,
        "sha256": artifact.get("sha256"),
        "notes": artifact.get("notes", []),
        "parity": row.parity,
        "accuracy": row.accuracy,
        "timing": row.timing,
        "checkpoint": None if row.result.model is None else row.result.model["checkpoint"],
        "parameters": None if row.result.model is None else row.result.model["parameters"],
        "fresh": row.fresh,
    }


def report_files(report: SweepReport) -> dict[str, str]:
    """The report's files by name."""
    return {
        "sweep.json": serialisation.to_text(to_json(report)),
        "sweep.md": as_markdown(report),
        PAGE: as_page(report),
    }


def as_page(report: SweepReport) -> str:
    """The same looks as a report's: the table, and plots with their Pareto fronts."""
    from levit_export.reports import html

    return html.sweep_page(
        Path(report.file).name,
        report.verdict,
        [_swept(row) for row in report.rows],
        headings=HEADINGS[LEFT:],
        notes=list(_notes(report, reasons=False)),
        environment=[
            ("machine", figures.machine(report.machine)),
            ("versions", ", ".join(f"{name} {known}" for name, known in report.toolchain.items())),
            ("written to", str(report.output)),
        ],
        command=report.command,
    )


def _swept(row: SweepRow) -> html.SweptRow:
    from levit_export.reports import html

    accuracy, timing = row.accuracy or {}, row.timing
    measured = html.Measured(
        row.cell.id,
        row.bytes or 0,
        accuracy.get("top1"),
        _pair(accuracy.get("top1_interval")),
        None if timing is None else timing["median_ms"],
        None if timing is None else _pair(timing["median_interval_ms"]),
        model=row.cell.label,
        has_failed=row.result.verdict == "fail",
    )
    result = row.result
    return html.SweptRow(measured, result.verdict, result.reason, row.path, _cells(row)[LEFT:])


def _pair(values: Sequence[float] | None) -> tuple[float, float] | None:
    return None if values is None else (values[0], values[1])


def as_markdown(report: SweepReport) -> str:
    """A table with a line for each cell, then the reasons and what was left out."""
    align = ["---"] * LEFT + ["---:"] * (len(HEADINGS) - LEFT)
    rows = [[ci.escape(cell) for cell in _cells(row)] for row in report.rows]
    table = "\n".join(f"| {' | '.join(line)} |" for line in (HEADINGS, align, *rows))
    notes = "\n".join(f"- {ci.escape(note)}" for note in _notes(report))
    return "\n\n".join(filter(None, (f"## {report.verdict}", table, notes))) + "\n"


def print_sweep(screen: Screen, report: SweepReport) -> None:
    """The table, what did not pass and why, the verdict and where it all is."""
    from rich.text import Text

    from levit_export.reports.console import COLOURS, tables

    rows = []
    for row in report.rows:
        model, artifact, verdict, *figures = map(Text, _cells(row))
        verdict.stylize(COLOURS[row.result.verdict])
        rows.append([model + Text(" ") + artifact, verdict, *figures])
    sides = {"model": "left", "verdict": "left", **dict.fromkeys(HEADINGS[LEFT:], "right")}
    for table in tables(screen.out.width, sides, rows):
        screen.out.print(table)
    for note in _notes(report):
        screen.out.print(Text(note, style="dim"))
    colour = COLOURS[report.verdict]
    line = Text.assemble((report.verdict, colour), f"  {report.output}")
    screen.out.print(line, soft_wrap=True)
    screen.out.print(Text(f"report: {report.output / PAGE}"), soft_wrap=True)


def _cells(row: SweepRow) -> tuple[str, ...]:
    """The row's words and figures, a dash for each that is not known."""
    ratio = None if row.parity is None else row.parity["worst_ratio"]
    accuracy, timing = row.accuracy, row.timing
    top1 = drop = latency = NONE
    if accuracy is not None and accuracy["correct"] is not None:
        top1 = f"{accuracy['correct']}/{accuracy['images']}"
    if accuracy is not None and accuracy["drop"] is not None:
        drop = f"{accuracy['drop']:+.2f}"
    if timing is not None:
        low, high = timing["median_interval_ms"]
        noisy = " noisy" if timing["noisy"] else ""
        latency = f"{timing['median_ms']:.2f} ms ({low:.2f}–{high:.2f}){noisy}"
    return (
        row.cell.label,
        row.cell.id,
        row.result.verdict,
        NONE if row.bytes is None else f"{row.bytes / 1e6:.2f} MB",
        NONE if ratio is None else f"{100 * ratio:.0f} %",
        top1,
        drop,
        latency,
    )


def _notes(report: SweepReport, *, reasons: bool = True) -> Iterator[str]:
    for row in report.rows:
        if row.result.reason and reasons:
            yield f"{row.cell.label} {row.cell.id}: {row.result.reason}"
    kept = sum(not row.fresh for row in report.rows)
    if kept:
        yield f"{kept} of {len(report.rows)} cells were done before and are taken from the store"
    yield from report.notes
