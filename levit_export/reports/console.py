"""Reports on a terminal, with rich: results to stdout, progress and notices to stderr.

What is imported at the top is light; a report brings NumPy along, and functions that show one
import what they need of it.
"""

from __future__ import annotations

import io
import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from levit_export.core.progress import Progress, Silent
from levit_export.models.zoo import size_in_words
from levit_export.reports import figures

if TYPE_CHECKING:
    from levit_export.checks.drift.values import DriftMap, DriftRow, DriftStage
    from levit_export.checks.results import ArtifactReport
    from levit_export.core.machine import Machine
    from levit_export.core.values import Availability, ModelInfo, Verdict
    from levit_export.models.zoo import Variant
    from levit_export.reports.gate import Check
    from levit_export.reports.report import Report, SearchResult

WIDE = 160
"""How many columns a table may take where no terminal says it: tables in logs do not wrap."""

GAP = 2
"""Blanks between columns."""

EVIDENCE = (
    "tested by this project: ONNX and OpenVINO on Linux x86-64; Core ML packages on Linux by the "
    "reference evaluator; Core AI on Linux x86-64 by Apple's runtime, a pre-release. "
    "Core ML itself, its timing and op placement are written against its "
    "documented interface and left to the macOS workflow; Windows has not been tried"
)
"""What a ``yes`` of ``doctor`` rests on."""

TAPS = {"fused": "fused away", "missing": "missing", "shape": "other shape"}
MOST_TAPS = 5
"""Taps above their tolerance that are listed for a file; the map has all of them."""

LEGEND = (
    "each cell: error introduced at the tap / accumulated up to it, relative to the largest "
    "value; peak: largest |x| of the exact network"
)

COLOURS = {"pass": "green", "fail": "red", "inconclusive": "yellow", "not-run": "yellow"}
NOISY = "*"
"""Behind a latency whose spread is large."""


class Screen:
    """Standard output for results, standard error for everything else."""

    def __init__(self, *, quiet: bool) -> None:
        self.quiet = quiet
        self.out = _console(stderr=False)
        self.err = _console(stderr=True)

    def notice(self, text: str) -> None:
        """One line on standard error."""
        if not self.quiet:
            self.err.print(Text(text, style="dim"), soft_wrap=True)

    @contextmanager
    def progress(self) -> Iterator[Progress]:
        """A bar on a terminal, a line for each stage elsewhere."""
        if self.quiet:
            yield Silent()
            return
        from levit_export.reports import progress

        if not self.err.is_terminal:
            yield progress.Lines(self.err)
            return
        with progress.bars(self.err) as bars:
            yield bars


def _console(*, stderr: bool) -> Console:
    file = sys.stderr if stderr else sys.stdout
    if isinstance(file, io.TextIOWrapper):
        # A stream that cannot show an arrow must not cost a verdict.
        file.reconfigure(errors="replace")
    console = Console(file=file)
    is_known = console.is_terminal or os.environ.get("COLUMNS", "").isdigit()
    return console if is_known else Console(file=file, width=WIDE)


def tables(
    width: int, headings: Mapping[str, str], rows: Sequence[Sequence[str | Text]]
) -> Iterator[Table]:
    """``rows`` as tables no wider than ``width`` in which no name and no figure is cut.

    ``headings`` are "left" or "right" by heading. The first column names the rows and stands in
    every table. The others are taken in their order, which is that of their importance, as long as
    they fit; the rest follows in tables below. A cell wider than the terminal is folded.
    """
    names = list(headings)
    cells = [[Text(cell) if isinstance(cell, str) else cell for cell in row] for row in rows]
    held = [max((row[i].cell_len for row in cells), default=0) for i in range(len(names))]
    widths = [max(at, cell_len(name)) for at, name in zip(held, names, strict=True)]
    if sum(widths) + GAP * (len(names) - 1) > width:  # then headings take several lines
        words = (max(map(cell_len, name.split()), default=0) for name in names)
        widths = [max(at, word) for at, word in zip(held, words, strict=True)]
    left = list(range(1, len(names)))
    while left:
        room, taken = width - widths[0], 0
        while taken < len(left) and (not taken or widths[left[taken]] + GAP <= room):
            room -= widths[left[taken]] + GAP
            taken += 1
        chosen, left = [0, *left[:taken]], left[taken:]
        table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, GAP, 0, 0))
        for i in chosen:
            side = headings[names[i]]
            table.add_column(
                names[i],
                justify="right" if side == "right" else "left",
                overflow="fold",
                max_width=max(1, min(widths[i], width)),
            )
        for row in cells:
            if any(row[i].plain.strip() for i in chosen[1:]):
                table.add_row(*(row[i] for i in chosen))
        yield table


def print_report(
    screen: Screen,
    report: Report,
    *,
    ledger: bool = False,
    compared: Sequence[Check] = (),
    require_audit: bool = False,
    steps: Sequence[Sequence[str]] = (),
) -> None:
    """What did not pass and why, artifacts, notes, the verdict, and what to do next.

    ``ledger`` shows the passes too. ``compared`` are the answers of a comparison with a baseline,
    ``steps`` the commands that make sense next.
    """
    out = screen.out
    if report.model is not None:
        out.print(_headline(report.model))
    for line in _wrong(report, compared, require_audit=require_audit):
        out.print(line, soft_wrap=not out.is_terminal)  # a reason stays one line in a log
    for remark in () if report.model is None else report.model.remarks:
        out.print(Text(remark, style="dim"))
    for assumption in () if report.model is None else report.model.assumptions:
        out.print(Text(f"assumption: {assumption}"))
    if ledger and report.passes:
        _print_passes(screen, report)
    for kind, found in report.searches.items():
        _print_search(screen, kind, found)
    _print_artifacts(screen, report)
    for note in (*_notes(report), *_notes_on_baseline(compared)):
        out.print(Text(note, style="dim"))
    _print_end(screen, report, steps)


def _print_end(screen: Screen, report: Report, steps: Sequence[Sequence[str]]) -> None:
    """The verdict, where all of it is, and what makes sense next."""
    from levit_export.storage.export_directory import PAGE

    out = screen.out
    verdict = Text(report.verdict, style=f"bold {COLOURS[report.verdict]}")
    where = f"  {report.output}" if report.output else ""
    out.print(Text.assemble(verdict, where), soft_wrap=True)
    if report.output is not None:
        out.print(Text(f"report: {report.output / PAGE}"), soft_wrap=True)
    for number, step in enumerate(steps):
        lead = "next: " if number == 0 else "      "
        out.print(Text(f"{lead}{shlex.join(step)}"), soft_wrap=True)


def _headline(model: ModelInfo) -> Text:
    """The model, its size and where it comes from."""
    heads = "1 classifier head" if model.heads == 1 else f"{model.heads} classifier heads"
    return Text.assemble(
        (model.name, "bold"),
        f"  {model.parameters / 1e6:.2f} M parameters, {model.macs / 1e6:.0f} M MACs, {heads}",
        (f"  {model.checkpoint} sha256 {model.checkpoint_sha256[:12]}", "dim"),
    )


def _wrong(report: Report, compared: Sequence[Check], *, require_audit: bool) -> Iterator[Text]:
    """What did not pass, the gravest first; equal reasons once, with all that they concern."""
    from levit_export.core.values import GRAVEST_FIRST
    from levit_export.reports import figures, gate
    from levit_export.reports.report import labels

    named = dict(zip(labels(report.artifacts), report.artifacts, strict=True))
    found = [*compared]
    if any(artifact.parity.was_asked for artifact in report.artifacts):
        # What drift found is said below each reason, so that equal reasons stay equal.
        bare = [replace(artifact, drift=None) for artifact in report.artifacts]
        found = [*gate.of_report(bare, require_audit=require_audit), *compared]
    for name, artifact in named.items():
        if (accuracy := artifact.accuracy) is not None and accuracy.exceeded:
            words = f"{accuracy.drop:.2f} points are lost, and {accuracy.max_drop:g} may be"
            found.append(gate.Check(name, artifact.path, "accuracy", "fail", words))
    concerned: dict[tuple[Verdict, str, str], list[str]] = {}
    for check in sorted(found, key=lambda check: GRAVEST_FIRST.index(check.verdict)):
        if check.verdict != "pass":
            key = (check.verdict, check.name, check.reason)
            concerned.setdefault(key, []).append(check.artifact)
    for (verdict, about, reason), names in concerned.items():
        said = "" if verdict == "fail" else f" {figures.WORDS[verdict]}"
        words = f" {about}{said}: {reason}"
        signed = f"{figures.MARKS[verdict]} {', '.join(names)}"
        yield Text.assemble((signed, COLOURS[verdict]), words)
    for name, artifact in named.items():
        if artifact.drift is not None and artifact.parity.verdict == "fail":
            words = f" drift: {artifact.drift.sentence}"
            yield Text.assemble((f"{figures.MARKS['fail']} {name}", COLOURS["fail"]), words)


def _notes_on_baseline(compared: Sequence[Check]) -> Iterator[str]:
    """What a comparison that passes has to say, and how many comparisons pass."""
    for check in compared:
        if check.verdict == "pass" and check.reason:
            yield f"{check.artifact} {check.name}: {check.reason}"
    if compared:
        passed = sum(check.verdict == "pass" for check in compared)
        yield f"{passed} of {len(compared)} checks against the baseline pass"


def _notes(report: Report) -> Iterator[str]:
    """What the table has no room for: remarks, where it was checked and how timed."""
    from levit_export.checks.timing import RULES
    from levit_export.reports.report import labels

    concerned: dict[str, list[str]] = {}
    for name, artifact in zip(labels(report.artifacts), report.artifacts, strict=True):
        for note in _notes_on(artifact):
            concerned.setdefault(note, []).append(name)
    yield from (f"{', '.join(names)}: {note}" for note, names in concerned.items())
    yield from figures.accuracy_notes(report)
    outputs = [output for artifact in report.artifacts for output in artifact.parity.outputs]
    if any(output.tolerance.origin == "given" for output in outputs):
        yield "held against a tolerance that was given (--atol, --rtol), not the derived one"
    runtimes = {a.parity.runtime for a in report.artifacts if a.parity.runtime}
    if report.vouching is not None and report.vouching.by != "checkpoint":
        yield report.vouching.sentence
    if runtimes:
        yield f"checked on {', '.join(sorted(runtimes))}"
    timed = [a for a in report.artifacts if a.timing and a.timing.verdict == "pass"]
    timings = [a.timing for a in timed if a.timing]
    # How devices measured stands in their own notes.
    if here := [a.timing for a in timed if a.timing and not a.device]:
        threads = "1 thread" if here[0].threads == 1 else f"{here[0].threads} threads"
        how = "median and its 95 % interval, timed interleaved"
        if here[0].rules:
            how = RULES[here[0].rules].in_words
        yield f"latency: {how}, {threads}, batch {here[0].batch}"
    if any(timing.noisy for timing in (*timings, *report.baselines.values())):
        yield f"{NOISY} {figures.NOISE}"
    if any(timing.efficiency is not None for timing in timings):
        yield figures.GEMM_SHARE


def _notes_on(artifact: ArtifactReport) -> Iterator[str]:
    """What is said of one artifact beside its figures."""
    if artifact.parity.verdict == "pass" and artifact.parity.reason:
        yield artifact.parity.reason
    if artifact.timing is not None and artifact.timing.verdict == "not-run":
        yield f"not timed: {artifact.timing.reason}"
    yield from artifact.notes


def _print_passes(screen: Screen, report: Report) -> None:
    """The ledger, and below it why passes were left out."""
    applied = [record for record in report.passes if record.status == "applied"]
    rows = [
        (
            record.name,
            str(record.matches),
            figures.error(record.error),
            f"{record.nodes[0]} → {record.nodes[1]}",
            figures.change(record.bytes_added),
        )
        for record in applied
    ]
    headings = ("matches", "float64 error", "operators", "weights")
    sides = {"pass": "left", **dict.fromkeys(headings, "right")}
    for table in tables(screen.out.width, sides, rows) if rows else ():
        screen.out.print(table)
    for record in report.passes:
        if record.status != "applied":
            status = record.status.replace("-", " ")
            why = f": {record.reason}" if record.reason else ""
            screen.out.print(Text(f"{record.name}: {status}{why}", style="dim"))


def _print_artifacts(screen: Screen, report: Report) -> None:
    """A row for each artifact, then the baselines; columns only for what was looked at."""
    from levit_export.reports.report import labels

    columns = list(figures.columns(report, counts=True))
    timings = [a.timing for a in report.artifacts if a.timing and a.timing.seconds]
    # Where one latency bears a mark, a blank keeps the others in line with it.
    is_marked = any(timing.noisy for timing in (*timings, *report.baselines.values()))
    rows: list[list[Text]] = []
    for label, artifact in zip(labels(report.artifacts), report.artifacts, strict=True):
        row = [Text(label)]
        for column in columns:
            words, style = column.of_artifact(artifact), ""
            accuracy, timing = artifact.accuracy, artifact.timing
            if column.heading == figures.PARITY:
                style = COLOURS[artifact.parity.verdict]
            elif column.heading == figures.DROP and accuracy is not None and accuracy.exceeded:
                style = "red"
            elif column.heading == figures.LATENCY and is_marked:
                is_noisy = timing is not None and bool(timing.seconds) and timing.noisy
                words += NOISY if is_noisy else " "
            row.append(Text(words, style=style))
        rows.append(row)
    for name, timing in report.baselines.items():
        row = [Text(name, style="dim")]
        for column in columns:
            words = column.of_baseline(timing)
            if column.heading == figures.LATENCY and is_marked:
                words += NOISY if timing.noisy else " "
            row.append(Text(words))
        rows.append(row)
    sides = {"artifact": "left"} | {
        column.heading: "left" if column.heading == figures.PARITY else "right"
        for column in columns
    }
    for table in tables(screen.out.width, sides, rows):
        screen.out.print(table)


def _print_search(screen: Screen, kind: str, found: SearchResult) -> None:
    """What a search for a precision measured; the choice is marked."""
    rows = [
        (
            point.candidate.precision,
            "chosen" if point == found.chosen else "",
            f"{point.drop:.2f}",
            figures.size(point.bytes),
            figures.milliseconds(point.latency_ms),
            f"{len(point.candidate.keep)}" if point.candidate.keep else figures.NONE,
        )
        for point in found.points
    ]
    figures_of = ("points lost", "size", "latency", "blocks in float")
    sides = {f"{kind}: tried": "left", "": "left", **dict.fromkeys(figures_of, "right")}
    for table in tables(screen.out.width, sides, rows):
        screen.out.print(table)
    if keep := found.chosen.candidate.keep:
        screen.out.print(Text(f"{kind}: {', '.join(keep)} stay in float", style="dim"))


def print_plan(screen: Screen, lines: Sequence[str]) -> None:
    """What an export would do, a line each."""
    for line in lines:
        screen.out.print(Text(line), soft_wrap=True)


def print_models(screen: Screen, variants: Sequence[Variant]) -> None:
    """The zoo as a table; the most important columns first."""
    figures_of = ("parameters", "MACs", "image", "classes", "top-1")
    sides = {"model": "left", **dict.fromkeys(figures_of, "right")}
    sides |= dict.fromkeys(("licence", "dialects", "top-1 of"), "left")
    rows = [
        (
            known.name,
            f"{float(known.parameters.removesuffix('M')):.1f} M",
            known.macs,
            size_in_words(known.config.image_size),
            str(known.config.classes),
            f"{known.top1} %" if known.top1 else "untrained",
            known.licence,
            ", ".join(known.dialects).replace("fair", "authors'"),
            known.top1_on,
        )
        for known in variants
    ]
    for table in tables(screen.out.width, sides, rows):
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


def print_drift(screen: Screen, drift: DriftMap, *, whole: bool = False) -> None:
    """Who is at fault; then the taps of each file above their tolerance, and the nearest to it.

    Files of which no tap is above share a table of the nearest. With ``whole`` the chain before
    the files and the map of every tap follow.
    """
    out = screen.out
    samples = f"  {len(drift.samples)} samples: {', '.join(drift.samples)}"
    out.print(Text.assemble((drift.model, "bold"), (samples, "dim")))
    for finding in drift.findings:
        state = drift.state(finding)
        colour, word = {
            "clean": ("green", "clean"),
            "coarse": ("yellow", "over the band, answers unchanged"),
            "fault": ("red", finding.cause),
        }[state]
        line = Text.assemble((word, f"bold {colour}"), "  ", finding.sentence)
        out.print(line, soft_wrap=not out.is_terminal)
    files = [stage for stage in drift.stages if stage.kind == "artifact"]
    coarse = {f.subject for f in drift.findings if drift.state(f) == "coarse"}
    figures_of = dict.fromkeys(("of tolerance", "introduced", "tolerance", "accumulated"), "right")
    nearest: list[list[Text]] = []
    for stage in files:
        rows = list(_tap_rows(stage, is_coarse=stage.name in coarse))
        if stage.first_fault is None:  # one line each, which needs no heading of its own
            nearest += [[Text(stage.name), *row] for row in rows]
            continue
        for table in tables(out.width, {stage.name: "left", **figures_of}, rows):
            out.print(table)
        if (more := sum(row.is_fault for row in stage.rows) - MOST_TAPS) > 0:
            words = "tap is" if more == 1 else "taps are"
            out.print(Text(f"{stage.name}: {more} more {words} above tolerance", style="dim"))
    sides = {"file": "left", "nearest tap": "left", **figures_of}
    for table in tables(out.width, sides, nearest) if nearest else ():
        out.print(table)
    if whole:
        _print_whole(screen, drift, coarse)
    for note in _drift_notes(drift):
        out.print(Text(note, style="dim"))
    if not whole:
        out.print(Text("every tap of every stage: -v, or the page of --html", style="dim"))


def _tap_rows(stage: DriftStage, *, is_coarse: bool) -> Iterator[list[Text]]:
    """The taps of a file above their tolerance, largest shares first, and the nearest below."""

    def share(row: DriftRow) -> float:
        return row.of_tolerance or 0.0

    faults = sorted((row for row in stage.rows if row.is_fault), key=share, reverse=True)
    within = [row for row in stage.rows if not row.is_fault and row.of_tolerance is not None]
    nearest = sorted(within, key=share, reverse=True)[:1]
    for row in (*faults[:MOST_TAPS], *nearest):
        style = ("yellow" if is_coarse else "red") if row.is_fault else ""
        known = figures.NONE if row.of_tolerance is None else figures.share(row.of_tolerance)
        said = TAPS.get(row.status, known)
        if row.not_finite:
            said = f"{row.not_finite} not finite"
        yield [
            Text(row.tap),
            Text(said, style=style),
            Text(figures.error(row.introduced)),
            Text(figures.error(row.tolerance)),
            Text(figures.error(row.accumulated)),
        ]


def _print_whole(screen: Screen, drift: DriftMap, coarse: set[str]) -> None:
    """A line for each stage before the files, then every tap in every file."""
    before = [s for s in drift.stages if s.kind in ("checkpoint", "pass", "program")]
    chain = []
    for stage in before:
        worst = max(stage.rows, key=lambda row: row.of_tolerance or 0.0)
        fault = stage.first_fault or worst
        style = "red" if stage.first_fault else ""
        cells = (stage.name, figures.error(fault.introduced), figures.error(fault.tolerance))
        chain.append([Text(cell, style=style) for cell in (*cells, fault.tap, stage.against)])
    sides = {"stage": "left", "introduced": "right", "tolerance": "right"}
    for table in tables(screen.out.width, {**sides, "at": "left", "against": "left"}, chain):
        screen.out.print(table)
    exact = next((stage for stage in drift.stages if stage.kind == "precision"), None)
    peaks = {} if exact is None else {row.tap: row.peak for row in exact.rows}
    shown = [s for s in drift.stages if s.kind == "artifact"]
    shown += [s for s in drift.stages if s.kind == "precision" and not s.name.startswith("fp32")]
    cells_of = [{row.tap: row for row in stage.rows} for stage in shown]
    rows: list[list[Text]] = []
    for tap in dict.fromkeys(row.tap for stage in shown for row in stage.rows):
        peak = peaks.get(tap)
        of_files = [
            _tap_cell(found.get(tap), is_coarse=stage.name in coarse)
            for stage, found in zip(shown, cells_of, strict=True)
        ]
        rows.append([Text(tap), Text("" if peak is None else f"{peak:.3g}"), *of_files])
    names = {"tap": "left", "peak": "right", **{stage.name: "right" for stage in shown}}
    for table in tables(screen.out.width, names, rows):
        screen.out.print(table)
    screen.out.print(Text(LEGEND, style="dim"))


def _tap_cell(row: DriftRow | None, *, is_coarse: bool) -> Text:

    if row is None:
        return Text(figures.NONE, style="dim")
    colour = ("yellow" if is_coarse else "red") if row.is_fault else ""
    if row.status in TAPS:
        return Text(TAPS[row.status], style="dim" if row.status == "fused" else colour)
    if row.not_finite:
        return Text(f"{row.not_finite} not finite", style=colour or "yellow")
    return Text(
        f"{figures.error(row.introduced)} / {figures.error(row.accumulated)}", style=colour
    )


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
