"""What a sweep found out: as values, as JSON (schema 1), as Markdown, a page and on a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from levit_export.checks.results import ArtifactReport
from levit_export.core import serialisation
from levit_export.core.machine import Machine
from levit_export.core.values import Verdict
from levit_export.reports import ci, figures
from levit_export.reports.report import artifact_to_json
from levit_export.workflows.sweep.cell import Cell, Result

if TYPE_CHECKING:
    from levit_export.reports import html
    from levit_export.reports.console import Screen

SCHEMA = 1
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
    def artifact(self) -> ArtifactReport | None:
        """What was found, with a latency only if this cell asked for one and it was measured."""
        found = self.result.artifact
        if found is None or found.timing is None:
            return found
        is_shown = self.cell.timed and found.timing.verdict == "pass"
        return found if is_shown else replace(found, timing=None)


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
    artifact = {} if row.artifact is None else artifact_to_json(row.artifact)
    return {
        "model": row.cell.label,
        "format": row.cell.format,
        "precision": row.cell.precision,
        "key": row.cell.key,
        "verdict": row.result.verdict,
        "reason": row.result.reason,
        "path": row.path,
        "bytes": artifact.get("bytes"),
        "sha256": artifact.get("sha256"),
        "notes": artifact.get("notes", []),
        "parity": artifact.get("parity"),
        "accuracy": artifact.get("accuracy"),
        "timing": artifact.get("timing"),
        "checkpoint": None if row.result.model is None else row.result.model.checkpoint,
        "parameters": None if row.result.model is None else row.result.model.parameters,
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

    result, name = row.result, row.cell.id
    known = html.Measured(name, 0) if row.artifact is None else html.measured(name, row.artifact)
    measured = replace(known, model=row.cell.label, has_failed=result.verdict == "fail")
    return html.SweptRow(measured, result.verdict, result.reason, row.path, _cells(row)[LEFT:])


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
    words, artifact = (row.cell.label, row.cell.id, row.result.verdict), row.artifact
    if artifact is None:
        return (*words, *[figures.NONE] * (len(HEADINGS) - LEFT))
    noisy = " noisy" if artifact.timing is not None and artifact.timing.noisy else ""
    return (
        *words,
        figures.size(artifact.bytes),
        figures.of_tolerance(artifact),
        figures.of_accuracy(artifact, figures.counted),
        figures.of_accuracy(artifact, figures.ACCURACY[figures.DROP]),
        figures.latency(artifact.timing) + noisy,
    )


def _notes(report: SweepReport, *, reasons: bool = True) -> Iterator[str]:
    for row in report.rows:
        if row.result.reason and reasons:
            yield f"{row.cell.label} {row.cell.id}: {row.result.reason}"
    kept = sum(not row.fresh for row in report.rows)
    if kept:
        yield f"{kept} of {len(report.rows)} cells were done before and are taken from the store"
    yield from report.notes
