"""The drift map on a terminal: a line a tap, a column a stage, and the findings in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from levit_export.checks.drift.values import DriftMap, DriftRow, DriftStage
    from levit_export.reports.console import Screen

MARKS = {"fused": "fused away", "missing": "missing", "shape": "other shape"}
LINE_HEADS, COLUMN = 40, 19
"""Characters of a tap and its peak, and of a cell with the space beside it."""

LEGEND = (
    "each cell: error introduced at the tap / accumulated up to it, relative to the largest "
    "value; peak: largest |x| of the exact network"
)


def print_drift(screen: Screen, drift: DriftMap) -> None:
    """The chain before the files, the map of the files, and who is at fault."""
    out = screen.out
    samples = f"{len(drift.samples)} samples: {', '.join(drift.samples)}"
    out.print(f"[bold]{drift.model}[/bold]  [dim]{samples}[/dim]", highlight=False)
    before = [s for s in drift.stages if s.kind in ("checkpoint", "pass", "program")]
    after = [s for s in drift.stages if s.kind == "artifact"]
    rounded = [s for s in drift.stages if s.kind == "precision" and not s.name.startswith("fp32")]
    out.print(_chain(before))
    for stages in _abreast([*after, *rounded], out.width):
        out.print(_map(stages, _peaks(drift)))
    out.print(Text(LEGEND, style="dim"))
    for line in _notes(drift):
        out.print(Text(line, style="dim"))
    for finding in drift.findings:
        colour, word = ("green", "clean") if finding.clean else ("red", finding.cause)
        out.print(Text.assemble((word, f"bold {colour}"), "  ", finding.sentence))


def _abreast(stages: Sequence[DriftStage], width: int) -> Iterator[Sequence[DriftStage]]:
    """The columns that fit side by side; the others come in a table below."""
    room = max(1, (width - LINE_HEADS) // COLUMN)
    for start in range(0, len(stages), room):
        yield stages[start : start + room]


def _chain(stages: Sequence[DriftStage]) -> Table:
    """A line for each stage before the files: where it introduces most."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("stage", "against", "introduced", "tolerance", "at"):
        table.add_column(heading)
    for stage in stages:
        worst = max(stage.rows, key=lambda row: row.of_tolerance or 0.0)
        fault = stage.first_fault or worst
        style = "red" if stage.first_fault else ""
        table.add_row(
            stage.name,
            stage.against,
            _number(fault.introduced),
            _number(fault.tolerance),
            fault.tap,
            style=style,
        )
    return table


def _map(stages: Sequence[DriftStage], peaks: dict[str, DriftRow]) -> Table:
    """A line for each tap, a column for each file."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("tap", no_wrap=True)
    table.add_column("peak", justify="right")
    for stage in stages:
        table.add_column(stage.name, justify="right")
    rows = [{row.tap: row for row in stage.rows} for stage in stages]
    for tap in dict.fromkeys(row.tap for stage in stages for row in stage.rows):
        peak = peaks.get(tap)
        cells = (_cell(found.get(tap)) for found in rows)
        table.add_row(tap, "" if peak is None else _number(peak.peak, digits=3), *cells)
    return table


def _peaks(drift: DriftMap) -> dict[str, DriftRow]:
    exact = next((stage for stage in drift.stages if stage.kind == "precision"), None)
    return {} if exact is None else {row.tap: row for row in exact.rows}


def _cell(row: DriftRow | None) -> Text:
    if row is None:
        return Text("–", style="dim")
    if row.status in MARKS:
        return Text(MARKS[row.status], style="dim" if row.status == "fused" else "red")
    if row.not_finite:
        return Text(f"{row.not_finite} not finite", style="red" if row.is_fault else "yellow")
    text = f"{_number(row.introduced)} / {_number(row.accumulated)}"
    return Text(text, style="red" if row.is_fault else "")


def _number(value: float | None, *, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits - 1}e}" if digits == 2 else f"{value:.3g}"


def _notes(drift: DriftMap) -> Iterator[str]:
    yield from drift.notes
    for stage in drift.stages:
        if stage.failure:
            yield f"{stage.name}: {stage.failure}"
        fused = [row.tap for row in stage.rows if row.status == "fused"]
        if fused:
            more = f" and {len(fused) - 5} more" if len(fused) > 5 else ""
            yield f"{stage.name}: fused away: {', '.join(fused[:5])}{more}"
    runtimes = dict.fromkeys(stage.runtime for stage in drift.stages if stage.runtime)
    if runtimes:
        yield f"run on {', '.join(runtimes)}"
