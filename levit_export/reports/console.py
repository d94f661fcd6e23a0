"""Reports on a terminal, with rich: results to stdout, progress and notices to stderr."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from levit_export.checks.results import ArtifactReport
from levit_export.core.progress import Silent
from levit_export.core.values import Availability
from levit_export.models.zoo import size_in_words
from levit_export.reports import figures
from levit_export.reports.report import Report, SearchResult, labels

if TYPE_CHECKING:
    from levit_export.checks.drift.values import DriftMap, DriftRow, DriftStage
    from levit_export.core.machine import Machine
    from levit_export.models.zoo import Variant

WIDE = 160
"""Columns where there is no terminal to ask, so that tables in logs do not wrap."""

EVIDENCE = (
    "tested by this project: ONNX and OpenVINO on Linux x86-64; Core ML packages on Linux by the "
    "reference evaluator. Core ML itself, its timing and op placement are written against its "
    "documented interface and left to the macOS workflow; Windows has not been tried"
)
"""What a ``yes`` of ``doctor`` rests on."""

TAPS = {"fused": "fused away", "missing": "missing", "shape": "other shape"}
LINE_HEADS, COLUMN = 40, 19
"""Characters of a tap and its peak, and of a cell with the space beside it."""

LEGEND = (
    "each cell: error introduced at the tap / accumulated up to it, relative to the largest "
    "value; peak: largest |x| of the exact network"
)

COLOURS = {"pass": "green", "fail": "red", "inconclusive": "yellow", "not-run": "yellow"}


class Screen:
    """Standard output for results, standard error for everything else."""

    def __init__(self, *, quiet: bool) -> None:
        self.quiet = quiet
        self.out = _console(stderr=False)
        self.err = _console(stderr=True)

    def notice(self, text: str) -> None:
        """One line on standard error."""
        if not self.quiet:
            self.err.print(Text(text, style="dim"))

    @contextmanager
    def progress(self) -> Iterator[Any]:
        """A bar on a terminal; silence elsewhere."""
        if self.quiet or not self.err.is_terminal:
            yield Silent()
            return
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TimeElapsedColumn(),
        )
        # Converters' output is kept away by redirecting; the bar must not go with it.
        with Progress(
            *columns,
            console=self.err,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        ) as bars:
            yield _Bars(bars)


class _Bars:
    """One bar that is renamed stage by stage."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._task = bars.add_task("starting", total=None)

    def stage(self, text: str) -> None:
        self._bars.reset(self._task, total=None, description=text)

    def steps(self, total: int) -> None:
        self._bars.update(self._task, total=total)

    def advance(self) -> None:
        self._bars.advance(self._task)


def _console(*, stderr: bool) -> Console:
    file = sys.stderr if stderr else sys.stdout
    if isinstance(file, io.TextIOWrapper):
        # A stream that cannot show an arrow must not cost a verdict.
        file.reconfigure(errors="replace")
    console = Console(file=file)
    return console if console.is_terminal else Console(file=file, width=WIDE)


def print_report(screen: Screen, report: Report) -> None:
    """Verdict, artifacts, passes, and the next command to try."""
    out = screen.out
    if report.model is not None:
        source = f"{report.model.checkpoint} sha256 {report.model.checkpoint_sha256[:12]}"
        out.print(
            f"[bold]{report.model.name}[/bold]  {report.model.parameters / 1e6:.2f} M parameters, "
            f"{report.model.macs / 1e6:.0f} M MACs, {report.model.heads} heads  "
            f"[dim]{escape(source)}[/dim]",
            highlight=False,
        )
        for remark in report.model.remarks:
            out.print(Text(remark, style="dim"))
        for assumption in report.model.assumptions:
            out.print(Text(f"assumption: {assumption}"))
    if report.passes:
        out.print(_passes(report))
    for kind, found in report.searches.items():
        out.print(_search(kind, found))
    out.print(_artifacts(report))
    for line in _notes(report):
        out.print(Text(line, style="dim"))
    colour = COLOURS[report.verdict]
    where = f"  {escape(str(report.output))}" if report.output else ""
    out.print(f"[bold {colour}]{report.verdict}[/bold {colour}]{where}", highlight=False)
    if report.output is not None:
        verb = "check" if report.verdict == "fail" else "bench"
        out.print(f"next: levit-export {verb} {escape(str(report.output))}", highlight=False)


def _notes(report: Report) -> Iterator[str]:
    """What the table has no room for: reasons, remarks, where it was checked and how timed."""
    was_asked = any(artifact.parity.was_asked for artifact in report.artifacts)
    for artifact in report.artifacts:
        if artifact.parity.verdict != "not-run" and artifact.parity.reason:
            yield f"{artifact.id}: {artifact.parity.reason}"
            if artifact.drift is not None and artifact.parity.verdict == "fail":
                yield f"{artifact.id}: drift: {artifact.drift.sentence}"
        elif artifact.parity.reason and was_asked:
            yield f"{artifact.id}: not checked: {artifact.parity.reason}"
        if artifact.timing is not None and artifact.timing.verdict == "not-run":
            yield f"{artifact.id}: not timed: {artifact.timing.reason}"
        yield from (f"{artifact.id}: {note}" for note in artifact.notes)
    yield from figures.accuracy_notes(report)
    outputs = [output for artifact in report.artifacts for output in artifact.parity.outputs]
    if any(output.tolerance.origin == "given" for output in outputs):
        yield "held against a tolerance that was given (--atol, --rtol), not the derived one"
    runtimes = {a.parity.runtime for a in report.artifacts if a.parity.runtime}
    if runtimes:
        yield f"checked on {', '.join(sorted(runtimes))}"
    timed = [a.timing for a in report.artifacts if a.timing and a.timing.verdict == "pass"]
    if timed:
        yield (
            f"timed interleaved, {timed[0].threads} threads, batch {timed[0].batch}: median and "
            "its 95 % interval; GEMM share 1 is the rate at which this machine multiplies matrices"
        )


def _passes(report: Report) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("pass", "matches", "float64 error", "operators", "weights"):
        table.add_column(heading, justify="left" if heading == "pass" else "right")
    for record in report.passes:
        if record.status != "applied":
            table.add_row(record.name, f"[dim]{record.status}[/dim]", record.reason)
            continue
        table.add_row(
            record.name,
            str(record.matches),
            f"{record.error:.0e}",
            f"{record.nodes[0]} → {record.nodes[1]}",
            f"{record.bytes_added / 1e6:+.2f} MB",
        )
    return table


def _artifacts(report: Report) -> Table:
    """A row for each artifact, then the baselines; columns only for what was looked at."""
    columns = list(figures.columns(report, counts=True))
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("artifact", no_wrap=True)
    for column in columns:
        is_words = column.heading == figures.PARITY
        table.add_column(column.heading, justify="left" if is_words else "right")
    for label, artifact in zip(labels(report.artifacts), report.artifacts, strict=True):
        cells = [_cell(c.heading, c.of_artifact(artifact), artifact) for c in columns]
        table.add_row(Text(label), *cells)
    for name, timing in report.baselines.items():
        noisy = {figures.LATENCY} if timing.noisy else set()
        cells = [
            Text.assemble(*[("noisy ", "yellow")] * (c.heading in noisy), c.of_baseline(timing))
            for c in columns
        ]
        table.add_row(Text(name, style="dim"), *cells)
    return table


def _cell(heading: str, words: str, artifact: ArtifactReport) -> Text:
    """The cell in the colour that its column gives it."""
    timing, accuracy = artifact.timing, artifact.accuracy
    if heading == figures.PARITY:
        return Text(words, style=COLOURS[artifact.parity.verdict])
    if heading == figures.DROP and accuracy is not None and accuracy.exceeded:
        return Text(words, style="red")
    if heading == figures.LATENCY and timing is not None:
        if timing.verdict == "not-run":
            return Text(words, style="yellow")
        return Text.assemble(*[("noisy ", "yellow")] * timing.noisy, words)
    return Text(words)


def _search(kind: str, found: SearchResult) -> Table:
    """What a search for a precision measured; the choice is marked."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in (f"{kind}: tried", "in float", "points lost", "size", "latency", ""):
        table.add_column(heading)
    for point in found.points:
        keep = point.candidate.keep
        table.add_row(
            point.candidate.precision,
            f"{len(keep)}: {', '.join(keep[:2])}{' …' if len(keep) > 2 else ''}"
            if keep
            else figures.NONE,
            f"{point.drop:.2f}",
            figures.size(point.bytes),
            figures.milliseconds(point.latency_ms),
            "[green]chosen[/green]" if point == found.chosen else "",
        )
    return table


def print_plan(screen: Screen, lines: Sequence[str]) -> None:
    """What an export would do, a line each."""
    for line in lines:
        screen.out.print(Text(line))


def print_models(screen: Screen, variants: Sequence[Variant]) -> None:
    """The zoo as a table."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    headings = ("model", "parameters", "MACs", "image", "classes", "top-1", "licence", "dialects")
    for heading in headings:
        table.add_column(heading)
    for known in variants:
        table.add_row(
            known.name,
            known.parameters,
            known.macs,
            size_in_words(known.config.image_size),
            str(known.config.classes),
            f"{known.top1} % {known.top1_on}" if known.top1 else "untrained",
            known.licence,
            ", ".join(known.dialects),
        )
    screen.out.print(table)


def print_doctor(
    screen: Screen,
    machine: Machine,
    toolchain: Mapping[str, str],
    abilities: Mapping[str, Mapping[str, Availability]],
    providers: Mapping[str, str],
) -> None:
    """What can be exported, run and timed here, and what would help where it cannot.

    ``providers`` are ONNX Runtime's, each with the reason why it does not start, if so.
    """
    out = screen.out
    out.print(figures.machine(machine), highlight=False, markup=False)
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("format", "export", "run", "time"):
        table.add_column(heading)
    for name, able in abilities.items():
        table.add_row(name, *(_ability_cell(able[a]) for a in ("export", "run", "time")))
    out.print(table)
    if providers:
        said = (
            f"{name} (does not start: {why})" if why else name for name, why in providers.items()
        )
        out.print(Text(f"execution providers of ONNX Runtime: {', '.join(said)}"), highlight=False)
    out.print(Text("  ".join(f"{k} {v}" for k, v in toolchain.items()), style="dim"))
    out.print(Text(EVIDENCE, style="dim"))


def _ability_cell(available: Availability) -> str:
    if available.ok:
        by = f" ({escape(available.reason)})" if available.reason else ""
        return f"[green]yes[/green]{by}"
    return f"[yellow]no[/yellow]: {escape(f'{available.reason}; {available.fix}')}"


def print_drift(screen: Screen, drift: DriftMap) -> None:
    """The chain before the files, the map of the files, and who is at fault."""
    out = screen.out
    samples = f"{len(drift.samples)} samples: {', '.join(drift.samples)}"
    out.print(f"[bold]{drift.model}[/bold]  [dim]{samples}[/dim]", highlight=False)
    before = [s for s in drift.stages if s.kind in ("checkpoint", "pass", "program")]
    after = [s for s in drift.stages if s.kind == "artifact"]
    rounded = [s for s in drift.stages if s.kind == "precision" and not s.name.startswith("fp32")]
    out.print(_drift_chain(before))
    exact = next((stage for stage in drift.stages if stage.kind == "precision"), None)
    peaks = {} if exact is None else {row.tap: row for row in exact.rows}
    shown = [*after, *rounded]
    room = max(1, (out.width - LINE_HEADS) // COLUMN)
    for start in range(0, len(shown), room):
        # Columns that do not fit side by side come in a table below.
        out.print(_drift_map(shown[start : start + room], peaks))
    out.print(Text(LEGEND, style="dim"))
    for line in _drift_notes(drift):
        out.print(Text(line, style="dim"))
    for finding in drift.findings:
        colour, word = ("green", "clean") if finding.clean else ("red", finding.cause)
        out.print(Text.assemble((word, f"bold {colour}"), "  ", finding.sentence))


def _drift_chain(stages: Sequence[DriftStage]) -> Table:
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
            figures.error(fault.introduced),
            figures.error(fault.tolerance),
            fault.tap,
            style=style,
        )
    return table


def _drift_map(stages: Sequence[DriftStage], peaks: dict[str, DriftRow]) -> Table:
    """A line for each tap, a column for each file."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("tap", no_wrap=True)
    table.add_column("peak", justify="right")
    for stage in stages:
        table.add_column(stage.name, justify="right")
    rows = [{row.tap: row for row in stage.rows} for stage in stages]
    for tap in dict.fromkeys(row.tap for stage in stages for row in stage.rows):
        peak = peaks.get(tap)
        cells = (_tap_cell(found.get(tap)) for found in rows)
        table.add_row(
            tap,
            "" if peak is None else figures.NONE if peak.peak is None else f"{peak.peak:.3g}",
            *cells,
        )
    return table


def _tap_cell(row: DriftRow | None) -> Text:
    if row is None:
        return Text("–", style="dim")
    if row.status in TAPS:
        return Text(TAPS[row.status], style="dim" if row.status == "fused" else "red")
    if row.not_finite:
        return Text(f"{row.not_finite} not finite", style="red" if row.is_fault else "yellow")
    text = f"{figures.error(row.introduced)} / {figures.error(row.accumulated)}"
    return Text(text, style="red" if row.is_fault else "")


def _drift_notes(drift: DriftMap) -> Iterator[str]:
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
