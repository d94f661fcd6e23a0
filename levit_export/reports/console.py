"""Reports on a terminal, with rich: results to stdout, progress and notices to stderr."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from levit_export.checks.results import ArtifactReport
from levit_export.checks.timing import TimingReport
from levit_export.core.progress import Silent
from levit_export.core.values import Availability
from levit_export.models.zoo import size_in_words
from levit_export.reports import accuracy
from levit_export.reports.report import Report, SearchResult

if TYPE_CHECKING:
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

MOST_PERCENT = 1e6

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
    _print_verdict(out, report)


def _notes(report: Report) -> Iterator[str]:
    """What the table has no room for: reasons, remarks, where it was checked and how timed."""
    for artifact in report.artifacts:
        if artifact.parity.verdict != "not-run" and artifact.parity.reason:
            yield f"{artifact.id}: {artifact.parity.reason}"
            if artifact.drift is not None and artifact.parity.verdict == "fail":
                yield f"{artifact.id}: drift: {artifact.drift.sentence}"
        elif artifact.parity.reason and not _only_timed(report):
            yield f"{artifact.id}: not checked: {artifact.parity.reason}"
        if artifact.timing is not None and artifact.timing.verdict == "not-run":
            yield f"{artifact.id}: not timed: {artifact.timing.reason}"
        yield from (f"{artifact.id}: {note}" for note in artifact.notes)
    yield from accuracy.notes(report)
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


def _only_timed(report: Report) -> bool:
    """Whether parity was not asked for at all."""
    return not any(a.parity.was_asked for a in report.artifacts)


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
    columns = list(_columns(report))
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("artifact", no_wrap=True)
    for heading, _, _ in columns:
        table.add_column(heading, justify="left" if heading == "parity" else "right")
    ids = [artifact.id for artifact in report.artifacts]
    for artifact in report.artifacts:
        unique = ids.count(artifact.id) == 1
        name = artifact.id if unique else f"{artifact.id} {escape(artifact.path)}"
        table.add_row(name, *(cell(artifact) for _, cell, _ in columns))
    for name, timing in report.baselines.items():
        table.add_row(f"[dim]{name}[/dim]", *(cell(timing) for _, _, cell in columns))
    return table


Column = tuple[str, Callable[[ArtifactReport], str], Callable[[TimingReport], str]]


def _columns(report: Report) -> Iterator[Column]:
    """Heading, the cell of an artifact, the cell of a baseline."""

    def nothing(_: TimingReport) -> str:
        return ""

    if not _only_timed(report):
        yield "parity", _verdict_cell, nothing
        yield "max rel error", _error_cell, nothing
        yield "of tolerance", _share_cell, nothing
    if any(a.parity.weights and not a.parity.weights.unread for a in report.artifacts):
        yield "weights", _weights_cell, nothing
    if any(a.accuracy for a in report.artifacts):
        yield "top-1", _accuracy_cell, nothing
        for heading, cell in accuracy.columns(report):
            yield heading, cell, nothing
    yield "size", lambda a: f"{a.bytes / 1e6:.2f} MB" if a.bytes else "–", nothing
    if report.baselines or any(a.timing for a in report.artifacts):
        yield "latency", lambda a: _latency_cell(a.timing), _latency_cell
        yield "memory", lambda a: _memory_cell(a.timing), nothing
        yield "GEMM share", lambda a: _efficiency_cell(a.timing), _efficiency_cell


def _verdict_cell(artifact: ArtifactReport) -> str:
    verdict = artifact.parity.verdict
    fault = artifact.parity.fault
    words = f"{verdict} ({fault})" if fault else verdict
    return f"[{COLOURS[verdict]}]{words}[/{COLOURS[verdict]}]"


def _error_cell(artifact: ArtifactReport) -> str:
    worst = artifact.parity.max_rel
    return "–" if worst is None else f"{worst:.1e}"


def _share_cell(artifact: ArtifactReport) -> str:
    outputs = artifact.parity.outputs
    if not outputs:
        return "–"
    percent = 100 * max(output.worst_ratio for output in outputs)
    return f"{percent:.0f} %" if percent < MOST_PERCENT else f"> {MOST_PERCENT:.0e} %"


def _weights_cell(artifact: ArtifactReport) -> str:
    audit = artifact.parity.weights
    if audit is None or audit.unread:
        return "–"
    return f"{audit.tensors - len(audit.missing)}/{audit.tensors}"


def _accuracy_cell(artifact: ArtifactReport) -> str:
    found = artifact.accuracy
    return "–" if found is None or found.correct is None else f"{found.correct}/{found.images}"


def _latency_cell(timing: TimingReport | None) -> str:
    if timing is None:
        return "–"
    if timing.verdict == "not-run":
        return "[yellow]not run[/yellow]"
    low, high = timing.interval_ms()
    noisy = "[yellow]noisy[/yellow] " if timing.noisy else ""
    return f"{noisy}{timing.median_ms:.2f} ms ({low:.2f}–{high:.2f})"


def _memory_cell(timing: TimingReport | None) -> str:
    peak = None if timing is None else timing.peak_bytes
    return "–" if peak is None else f"{peak / 2**20:.0f} MiB"


def _efficiency_cell(timing: TimingReport | None) -> str:
    return "–" if timing is None or timing.efficiency is None else f"{timing.efficiency:.2f}"


def _search(kind: str, found: SearchResult) -> Table:
    """What a search for a precision measured; the choice is marked."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in (f"{kind}: tried", "in float", "points lost", "size", "latency", ""):
        table.add_column(heading)
    for point in found.points:
        keep = point.candidate.keep
        table.add_row(
            point.candidate.precision,
            f"{len(keep)}: {', '.join(keep[:2])}{' …' if len(keep) > 2 else ''}" if keep else "–",
            f"{point.drop:.2f}",
            f"{point.bytes / 1e6:.2f} MB",
            "–" if point.latency_ms is None else f"{point.latency_ms:.2f} ms",
            "[green]chosen[/green]" if point == found.chosen else "",
        )
    return table


def _print_verdict(out: Console, report: Report) -> None:
    colour = COLOURS[report.verdict]
    where = f"  {escape(str(report.output))}" if report.output else ""
    out.print(f"[bold {colour}]{report.verdict}[/bold {colour}]{where}", highlight=False)
    if report.output is None:
        return
    verb = "check" if report.verdict == "fail" else "bench"
    out.print(f"next: levit-export {verb} {escape(str(report.output))}", highlight=False)


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
) -> None:
    """What can be exported, run and timed here, and what would help where it cannot."""
    out = screen.out
    out.print(
        f"{machine.processor}, {machine.cores} cores, {machine.memory / 2**30:.0f} GiB, "
        f"{machine.system}, Python {machine.python}",
        highlight=False,
    )
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("format", "export", "run", "time"):
        table.add_column(heading)
    for name, able in abilities.items():
        table.add_row(name, *(_ability_cell(able[a]) for a in ("export", "run", "time")))
    out.print(table)
    out.print(Text("  ".join(f"{k} {v}" for k, v in toolchain.items()), style="dim"))
    out.print(Text(EVIDENCE, style="dim"))


def _ability_cell(available: Availability) -> str:
    if available.ok:
        by = f" ({escape(available.reason)})" if available.reason else ""
        return f"[green]yes[/green]{by}"
    return f"[yellow]no[/yellow]: {escape(f'{available.reason}; {available.fix}')}"
