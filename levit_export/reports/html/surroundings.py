"""What was done before the artifacts, and on which machine with which versions."""

from __future__ import annotations

from collections.abc import Iterator

from levit_export.core.machine import Machine
from levit_export.core.values import PassRecord
from levit_export.reports.html import wording
from levit_export.reports.html.markup import Column, Markup, definitions, element, section, table
from levit_export.reports.report import Report, SearchPoint, SearchResult


def ledger(report: Report) -> Markup:
    """What every pass matched, its proof, and what it changed."""
    if not report.passes:
        return Markup("")
    columns = [
        Column("pass"),
        Column("status"),
        Column("matches", number=True),
        Column("float64 error", number=True),
        Column("operators", number=True),
        Column("parameters", number=True),
        Column("weights", number=True),
    ]
    rows = [(record.name, *_pass_cells(record)) for record in report.passes]
    words = (
        "Every rewrite was proven in float64 on random inputs before anything was exported. "
        "Operators are those that one call executes."
    )
    shown = table("Passes: before → after", columns, rows)
    return section("passes", "Passes", element("p", words), shown)


def _pass_cells(record: PassRecord) -> tuple[object, ...]:
    if record.status != "applied":
        status = f"{record.status}: {record.reason}" if record.reason else record.status
        return (status, *[wording.NONE] * 5)
    return (
        record.status,
        record.matches,
        wording.error(record.error),
        " → ".join(wording.count(number) for number in record.nodes),
        " → ".join(wording.count(number) for number in record.parameters),
        f"{record.bytes_added / 1e6:+.2f} MB",
    )


def searches(report: Report) -> Markup:
    """What the search for a precision measured, in that order."""
    if not report.searches:
        return Markup("")
    tables = [_search(name, found) for name, found in report.searches.items()]
    return section("searches", "Search for a precision", *tables)


def _search(name: str, found: SearchResult) -> Markup:
    columns = [
        Column("precision"),
        Column("drop in points", number=True),
        Column("size", number=True),
        Column("latency", number=True),
        Column("chosen"),
        Column("blocks kept in float"),
    ]
    rows = [_search_cells(point, chosen=point == found.chosen) for point in found.points]
    return table(f"Candidates for {name}", columns, rows)


def _search_cells(point: SearchPoint, *, chosen: bool) -> tuple[object, ...]:
    latency = point.latency_ms
    return (
        point.candidate.precision,
        f"{point.drop:.2f}",
        wording.size(point.bytes),
        wording.NONE if latency is None else wording.milliseconds(latency),
        "chosen" if chosen else "",
        ", ".join(point.candidate.keep) or "none",
    )


def environment(report: Report) -> Markup:
    """Model, machine, runtimes and versions."""
    return section("environment", "Environment", definitions(_environment(report)))


def _environment(report: Report) -> Iterator[tuple[object, object]]:
    model = report.model
    if model is not None:
        yield "checkpoint", model.checkpoint
        yield "checkpoint SHA-256", element("code", model.checkpoint_sha256)
        yield "dialect", model.dialect
        yield "preprocessing", model.preprocessing.in_words()
        if model.licence:
            yield "licence", model.licence
        yield from (("remark", remark) for remark in model.remarks)
        yield from (("assumption", assumption) for assumption in model.assumptions)
    yield "machine", _machine(report.machine)
    checked = sorted({a.parity.runtime for a in report.artifacts if a.parity.runtime})
    if checked:
        yield "checked on", ", ".join(checked)
    runs = [a.timing for a in report.artifacts if a.timing is not None and a.timing.seconds]
    if timed := sorted({run.runtime for run in runs}):
        yield "timed on", ", ".join(timed)
    yield "versions", ", ".join(f"{name} {known}" for name, known in report.toolchain.items())
    if report.output is not None:
        yield "written to", element("code", report.output)


def _machine(machine: Machine) -> str:
    sets = f"; {', '.join(machine.instructions)}" if machine.instructions else ""
    return (
        f"{machine.processor}, {machine.cores} cores, {machine.memory / 2**30:.0f} GiB, "
        f"{machine.system}, Python {machine.python}{sets}"
    )
