"""Records as Markdown, for a terminal and for pages alike."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from benchmarking import evaluator, growth, tool
from benchmarking.plot import Bar, bars
from benchmarking.values import (
    EAGER,
    OURS,
    Cell,
    Circumstances,
    Command,
    EvaluatorRecord,
    GrowthRecord,
    LatencyRecord,
    ModelRecord,
    Row,
    StartupRecord,
    ToolRecord,
    is_alternative,
    is_of,
    ratio,
    spread,
)

RUNTIMES = {"onnx": "ONNX Runtime", "openvino": "OpenVINO", "coreml": "Core ML"}
KINDS = tuple((form, precision) for form in ("onnx", "openvino") for precision in ("fp32", "int8"))
RIGHT, LEFT = "---:", "---"


def table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others are numbers."""
    rule = [LEFT, *(RIGHT for _ in header[1:])]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *lines)) + "\n"


def show(record: ModelRecord) -> str:
    """Everything that a record of one model says."""
    parts: Iterator[str]
    if isinstance(record, LatencyRecord):
        parts = _latency(record)
    elif isinstance(record, ToolRecord):
        parts = _tool(record)
    elif isinstance(record, StartupRecord):
        parts = iter([_commands(record.commands)])
    elif isinstance(record, GrowthRecord):
        parts = iter([_growth(record)])
    else:
        parts = iter([_evaluator(record)])
    return "\n".join([*parts, circumstances(record.circumstances)])


def circumstances(found: Circumstances) -> str:
    """When, where and with what, and what a reader has to know."""
    here = found.machine
    packages = ", ".join(f"{name} {version}" for name, version in found.packages.items())
    others = ", ".join(f"{name} {version}" for name, version in found.alternatives.items())
    cores = f"{here.cores} core{'s' * (here.cores != 1)}"
    where = f"{here.processor} ({', '.join(here.instructions)}), {cores}, {here.system}"
    lines = [f"{found.date}, {where}, Python {here.python}; {packages}."]
    lines += [f"Alternatives: {others}."] if others else []
    lines += [f"{note[0].upper()}{note[1:]}." for note in found.notes]
    return "\n".join(lines) + "\n"


def number(value: float) -> str:
    """Three significant digits."""
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:.{digits}f}"


def interval(values: tuple[float, float, float]) -> str:
    """A value and its interval."""
    middle, low, high = values
    return f"{number(middle)} ({number(low)}–{number(high)})"


def _not_run(reason: str) -> str:
    return f"not run: {reason.replace('|', '/')}"


# --- latency ---------------------------------------------------------------------------------


def _latency(record: LatencyRecord) -> Iterator[str]:
    yield from (f"{line}  " for line in int8_lines(record))
    yield "\n" + _summary(record)
    for cell in record.cells:
        yield f"{title(cell)}, {cell.gemm_rate / 1e9:.0f} GFLOP/s in matrix products:\n"
        yield _cell(cell, record.macs)
    yield (
        "Latency of a call with its 95 % bootstrap interval; *against ours*: latency over that of "
        "ours in the same format and precision (PyTorch: over the faster of ours in fp32); *GEMM "
        "share* 1 is the rate at which this machine multiplies float32 matrices; *noise* is the "
        "interquartile range over the median.\n"
    )


def first(record: LatencyRecord) -> tuple[Cell, list[Row]]:
    """The cell and the rows that a reader looks for: one image, as many threads as there are.

    They are PyTorch, ours in each format and precision, and the fastest that others give.
    """
    cell = min(record.cells, key=lambda cell: (cell.batch, -cell.threads))
    others = [row for row in cell.rows if row.seconds and is_alternative(row)]
    eager = cell.row(EAGER)
    best = min(
        (row for row in others if row is not eager), key=lambda row: row.median_ms, default=None
    )
    ours = [cell.row(OURS, form, precision) for form, precision in KINDS]
    return cell, [row for row in (eager, *ours, best) if row is not None]


def few(record: LatencyRecord) -> str:
    """A table of :func:`first`."""
    cell, rows = first(record)
    eager = cell.row(EAGER)
    lines = [
        (
            named(row),
            interval((row.median_ms, *row.interval_ms)),
            number(1e3 * cell.batch / row.median_ms),
            interval(ratio(eager, row)) if eager and eager is not row else "",
            f"{row.bytes / 1e6:.1f}" if row.bytes else "",
        )
        for row in rows
    ]
    return table(("", "ms", "images/s", "times PyTorch's speed", "MB"), lines)


def drawing(record: LatencyRecord) -> str:
    """:func:`first` as bars."""
    cell, rows = first(record)
    where = record.circumstances.machine.processor
    return bars(
        f"{record.model}: milliseconds a call, {title(cell)}, {where}",
        [
            Bar(
                named(row),
                row.median_ms,
                row.interval_ms,
                f"{number(row.median_ms)} ms",
                is_ours=row.name == OURS,
            )
            for row in rows
        ],
    )


def named(row: Row) -> str:
    """What a row is called: ``ours, onnx int8``."""
    return f"{row.name}, {row.format} {row.precision}" if row.format else row.name


def int8_lines(record: LatencyRecord) -> Iterator[str]:
    """What int8 gains over our own fp32 in the same runtime, one line for each cell."""
    for form in ("onnx", "openvino"):
        for cell in record.cells:
            fp32, int8 = (cell.row(OURS, form, precision) for precision in ("fp32", "int8"))
            if fp32 and int8:
                yield (
                    f"{record.model} int8 / fp32 in {RUNTIMES[form]}: "
                    f"{interval(ratio(fp32, int8))} times the speed, {title(cell)}"
                )


def title(cell: Cell) -> str:
    """What a cell is called: ``batch 16, 1 thread``."""
    return f"batch {cell.batch}, {cell.threads} thread{'s' * (cell.threads != 1)}"


def _summary(record: LatencyRecord) -> str:
    """Ours against the best of the alternatives, cell by cell."""
    lines = []
    for cell in record.cells:
        for form, precision in KINDS:
            ours = cell.row(OURS, form, precision)
            best = best_alternative(cell, form, precision)
            if ours and best:
                lines.append(
                    (
                        f"{title(cell)}, {form} {precision}",
                        number(ours.median_ms),
                        f"{cell.efficiency(ours, record.macs):.2f}",
                        f"{best.name} {number(best.median_ms)}",
                        interval(ratio(best, ours)),
                    )
                )
    header = ("", "ours, ms", "GEMM share", "best alternative, ms", "ours is … times as fast")
    return table(header, lines)


def best_alternative(cell: Cell, form: str, precision: str) -> Row | None:
    """The fastest of what a user could run in place of ours."""
    rows = [r for r in cell.group(form, precision) if r.seconds and is_alternative(r)]
    return min(rows, key=lambda row: row.median_ms, default=None)


def _cell(cell: Cell, macs: int) -> str:
    header = ("", "ms", "images/s", "against ours", "GEMM share", "noise", "MB")
    return table(header, (_row(row, cell, macs) for row in cell.rows))


def _row(row: Row, cell: Cell, macs: int) -> tuple[str, ...]:
    if not row.seconds:
        return (named(row), _not_run(row.reason), *[""] * 5)
    base = _base(row, cell)
    return (
        named(row),
        interval((row.median_ms, *row.interval_ms)),
        number(1e3 * cell.batch / row.median_ms),
        interval(ratio(row, base)) if base and base is not row else "",
        f"{cell.efficiency(row, macs):.2f}",
        f"{100 * row.noise:.0f} %",
        f"{row.bytes / 1e6:.1f}" if row.bytes else "",
    )


def _base(row: Row, cell: Cell) -> Row | None:
    """Ours in the same format and precision; for PyTorch the faster of ours in fp32."""
    ours = [each for each in cell.rows if each.name == OURS and each.seconds]
    if row.format:
        return next((each for each in ours if is_of(each, row.format, row.precision)), None)
    floats = [each for each in ours if each.precision == "fp32"]
    return min(floats, key=lambda each: each.median_ms, default=None)


# --- commands --------------------------------------------------------------------------------


def _tool(record: ToolRecord) -> Iterator[str]:
    yield _commands(record.commands)
    for name in (tool.ALL, tool.ALL_TIMED):
        found = tool.share(record, name)
        if found:
            runs = max(len(command.runs) for command in record.commands)
            said = interval(found) if runs > 1 else number(found[0])
            yield f"`{name}` over the sum of both alternatives: {said}  "
    for title, stages in (
        ("As one run, formats side by side, imports done", record.as_run),
        ("Each part alone", record.one_by_one),
    ):
        if stages:
            yield f"\n{title}:\n"
            lines = [(stage.name, f"{stage.seconds:.2f}") for stage in stages]
            total = sum(stage.seconds for stage in stages)
            yield table(("", "s"), [*lines, ("sum", f"{total:.2f}")])


def _commands(commands: Sequence[Command]) -> str:
    header = ("", "wall clock, s", "processor, s", "peak memory, MiB", "runs")
    return table(header, (_command(command) for command in commands))


def _command(command: Command) -> tuple[str, ...]:
    if not command.runs:
        return (f"`{command.name}`", _not_run(command.reason), *[""] * 3)
    wall = spread([run.wall_s for run in command.runs])
    status = f", EXIT STATUS {command.failures}" if command.failures else ""
    return (
        f"`{command.name}`{status}",
        interval(wall) if len(command.runs) > 1 else number(wall[0]),
        number(command.cpu_s),
        f"{command.peak_bytes / 2**20:.0f}",
        str(len(command.runs)),
    )


# --- growth and the evaluator ----------------------------------------------------------------


def _growth(record: GrowthRecord) -> str:
    counts = sorted({point.samples for point in record.points})
    header = ("seconds", *(f"{count} samples" for count in counts), "ms a sample")
    lines = []
    for name in dict.fromkeys(point.name for point in record.points):
        found = {p.samples: p.seconds for p in record.points if p.name == name}
        slope = growth.per_sample(record.points, name)
        lines.append(
            (
                name,
                *(number(found[count]) if count in found else "" for count in counts),
                "" if slope is None else number(1e3 * slope) if slope > 0 else "lost in noise",
            )
        )
    return table(header, lines)


def _evaluator(record: EvaluatorRecord) -> str:
    eager = next(row for row in record.rows if row.name == evaluator.EAGER)
    lines = [
        (
            f"{row.name} {row.precision}",
            interval((row.median_ms, *row.interval_ms)),
            "" if row is eager else interval(ratio(row, eager)),
        )
        for row in record.rows
    ]
    return table((f"{record.threads} threads", "ms", "times PyTorch"), lines)


# --- several models --------------------------------------------------------------------------


def export_over_size(records: Sequence[ToolRecord]) -> str:
    """How long an export takes, over the size of the model."""
    lines = []
    for record in sorted(records, key=lambda each: each.parameters):
        by_name = {command.name: command for command in record.commands if command.runs}
        names = (tool.ALL, *tool.OF_THEIRS)
        walls = [f"{by_name[n].wall_s:.1f}" if n in by_name else "" for n in names]
        found = tool.share(record)
        is_single = all(len(by_name[n].runs) == 1 for n in names if n in by_name)
        part = "" if found is None else number(found[0]) if is_single else interval(found)
        lines.append((record.model, f"{record.parameters / 1e6:.1f}", *walls, part))
    titles = ("ours, three formats, checked, s", *(f"{name}, s" for name in tool.OF_THEIRS))
    return table(("", "parameters, M", *titles, "ours over their sum"), lines)


def overview(records: Sequence[LatencyRecord], batch: int) -> str:
    """Every model at one batch on all threads: ours, and the best of what others make of it."""
    lines = []
    for record in sorted(records, key=lambda each: each.macs):
        cells = [cell for cell in record.cells if cell.batch == batch]
        cell = max(cells, key=lambda each: each.threads, default=None)
        if cell is not None:
            lines.append((record.model, *(_overview(cell, *kind) for kind in KINDS)))
    return table(("ms", *(f"{form} {precision}" for form, precision in KINDS)), lines)


def _overview(cell: Cell, form: str, precision: str) -> str:
    ours, best = cell.row(OURS, form, precision), best_alternative(cell, form, precision)
    if ours is None:
        return "not run"
    beside = f" ({best.name} {number(best.median_ms)})" if best else ""
    return f"{number(ours.median_ms)}{beside}"
