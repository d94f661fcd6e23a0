"""Reports on a terminal, with rich: results to stdout, progress and notices to stderr."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from levit_export.core import Availability
from levit_export.progress import Silent
from levit_export.report import ArtifactReport, Report
from levit_export.timing import TimingReport

if TYPE_CHECKING:
    from levit_export.machine import Machine
    from levit_export.zoo import Variant

WIDE = 160
"""Columns where there is no terminal to ask, so that tables in logs do not wrap."""

COLOURS = {"pass": "green", "fail": "red", "not-run": "yellow"}


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
        with Progress(*columns, console=self.err, transient=True) as bars:
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
    console = Console(stderr=stderr, soft_wrap=False)
    return console if console.is_terminal else Console(stderr=stderr, width=WIDE)


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
    if report.passes:
        out.print(_passes(report))
    out.print(_artifacts(report))
    for artifact in report.artifacts:
        for note in (artifact.parity.reason, *artifact.notes):
            if note:
                out.print(Text(f"{artifact.id}: {note}"))
    runtimes = {a.parity.runtime for a in report.artifacts if a.parity.runtime}
    timed = [a.timing for a in report.artifacts if a.timing and a.timing.verdict == "pass"]
    if runtimes:
        out.print(Text(f"checked on {', '.join(sorted(runtimes))}", style="dim"))
    if timed:
        out.print(
            Text(
                f"timed with {timed[0].threads} threads, batch {timed[0].batch}, interleaved with "
                "what it is compared to; median with its 95 % interval. GEMM share: 1 is the rate "
                "at which this machine multiplies matrices.",
                style="dim",
            )
        )
    _print_verdict(out, report)


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
    """A row for each artifact, then the baselines; columns only for what was measured."""
    has_accuracy = any(a.accuracy for a in report.artifacts)
    has_timing = bool(report.baselines) or any(a.timing for a in report.artifacts)
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("artifact", "parity", "max rel error"):
        table.add_column(heading)
    if has_accuracy:
        table.add_column("top-1", justify="right")
    table.add_column("size", justify="right")
    if has_timing:
        for heading in ("latency", "95 % interval", "GEMM share"):
            table.add_column(heading, justify="right")
    for artifact in report.artifacts:
        table.add_row(
            *_parity_cells(artifact),
            *([_accuracy_cell(artifact)] if has_accuracy else []),
            f"{artifact.bytes / 1e6:.2f} MB",
            *(_timing_cells(artifact.timing) if has_timing else []),
        )
    for name, timing in report.baselines.items():
        blank = [""] * (4 if has_accuracy else 3)
        table.add_row(f"[dim]{name}[/dim]", *blank, *_timing_cells(timing))
    return table


def _parity_cells(artifact: ArtifactReport) -> list[str]:
    parity = artifact.parity
    colour = COLOURS[parity.verdict]
    verdict = f"[{colour}]{parity.verdict}[/{colour}]"
    if not parity.outputs or parity.tolerance is None:
        return [artifact.id, verdict, "–"]
    worst = max(parity.outputs, key=lambda output: output.worst_ratio)
    allowed = f"{100 * worst.worst_ratio:.0f} % of tolerance"
    return [artifact.id, verdict, f"{worst.max_rel:.1e} ({allowed})"]


def _accuracy_cell(artifact: ArtifactReport) -> str:
    accuracy = artifact.accuracy
    if accuracy is None:
        return "–"
    return f"{accuracy.top1:.2f} % ({accuracy.correct}/{accuracy.images})"


def _timing_cells(timing: TimingReport | None) -> list[str]:
    if timing is None:
        return ["–", "", ""]
    if timing.verdict == "not-run":
        return [f"[yellow]not run[/yellow]: {escape(timing.reason)}", "", ""]
    low, high = timing.interval_ms()
    noisy = " [yellow]noisy[/yellow]" if timing.noisy else ""
    share = "–" if timing.efficiency is None else f"{timing.efficiency:.2f}"
    return [f"{timing.median_ms:.2f} ms{noisy}", f"{low:.2f}–{high:.2f}", share]


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
    for heading in ("model", "parameters", "MACs", "image", "classes", "top-1", "licence"):
        table.add_column(heading)
    for known in variants:
        table.add_row(
            known.name,
            known.parameters,
            known.macs,
            str(known.config.image_size),
            str(known.config.classes),
            f"{known.top1} % {known.top1_on}",
            known.licence,
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


def _ability_cell(available: Availability) -> str:
    if available.ok:
        return "[green]yes[/green]"
    return f"[yellow]no[/yellow]: {escape(f'{available.reason}; {available.fix}')}"
