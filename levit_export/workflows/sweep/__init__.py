"""Models by formats by precisions, from a small TOML file: resumable, with one report."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from levit_export.core import files, machine
from levit_export.core.errors import OutputError, UsageError
from levit_export.core.packages import TOOLCHAIN, versions
from levit_export.core.progress import Progress, Silent
from levit_export.core.values import Verdict, overall
from levit_export.workflows.sweep import running, show
from levit_export.workflows.sweep.cell import Cell, Result
from levit_export.workflows.sweep.plan import Plan, read
from levit_export.workflows.sweep.report import Row, SweepReport
from levit_export.workflows.sweep.running import Done
from levit_export.workflows.sweep.store import Store

__all__ = ["Plan", "Row", "SweepReport", "SweepRequest", "plan", "sweep"]

STORE = "store"
ALONE = (
    "latency was not measured: {}, and what runs side by side is timed with its neighbours' load"
)


@dataclass(frozen=True)
class SweepRequest:
    """What ``sweep`` may be asked for: its file, where to write, and where to run."""

    file: Path
    output: Path | None = None
    workers: int = 1
    scheduler: str | None = None

    @property
    def untimed(self) -> str:
        """Why latency cannot be measured, or empty."""
        if self.scheduler is not None:
            return ALONE.format("the cells ran on a cluster")
        return ALONE.format(f"{self.workers} cells ran at a time") if self.workers > 1 else ""


def plan(request: SweepRequest) -> Plan:
    """The cells that a request stands for. Raises ``UsageError`` and ``DataError``."""
    if request.scheduler is not None and request.workers > 1:
        raise UsageError(
            f"--workers {request.workers} are processes here, and with --scheduler the "
            "workers are those of the cluster",
            remedy="Give one of them.",
        )
    return read(request.file, output=request.output, timed=not request.untimed)


def sweep(request: SweepRequest, progress: Progress | None = None) -> SweepReport:
    """Do every cell that the store does not hold yet, and write the report.

    A cell that ends with an error is a row with its reason. Raises ``UsageError`` for a file that
    cannot be used, and what ``cluster.connected`` raises.
    """
    progress = progress or Silent()
    wanted = plan(request)
    store = Store(wanted.output / STORE)
    store.tidy()
    found: dict[str, Done] = {}
    for cell in wanted.cells:
        if (known := store.find(cell)) is not None:
            found[cell.key] = (cell, *known)
    missing = {cell.key: cell for cell in wanted.cells if cell.key not in found}
    progress.stage(f"{len(missing)} of {len(wanted.cells)} cells to do")
    progress.steps(len(missing))
    with closing(_done(list(missing.values()), store, request)) as results:
        for done in results:
            found[done[0].key] = done
            progress.advance()
    result = _report(request, wanted, found, fresh=set(missing))
    _write(result, wanted.output)
    return result


def _done(cells: list[Cell], store: Store, request: SweepRequest) -> Generator[Done, None, None]:
    if cells and request.scheduler is not None:
        yield from running.remotely(cells, store, request.scheduler)
    elif cells:
        yield from running.locally(cells, store, request.workers)


def _report(
    request: SweepRequest, wanted: Plan, found: dict[str, Done], *, fresh: set[str]
) -> SweepReport:
    rows = []
    for cell in wanted.cells:
        _, folder, result = found[cell.key]
        path = _path(folder, result, wanted.output)
        rows.append(Row(cell, result, path=path, fresh=cell.key in fresh))
    verdict: Verdict = overall(row.result.verdict for row in rows)
    return SweepReport(
        file=str(request.file),
        output=wanted.output,
        verdict=verdict,
        rows=tuple(rows),
        notes=tuple(filter(None, (request.untimed, *wanted.left_out))),
        machine=machine.describe(),
        toolchain=versions(TOOLCHAIN),
    )


def _path(folder: Path | None, result: Result, output: Path) -> str:
    """Where the artifact lies, relative to the sweep's folder; empty where there is none."""
    if folder is None or result.artifact is None:
        return ""
    place = folder / result.folder / str(result.artifact["path"])
    return place.relative_to(output).as_posix()


def _write(result: SweepReport, output: Path) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
        for name, text in show.files(result).items():
            files.write(output / name, text)
    except OSError as error:
        raise OutputError(
            f"{output} cannot be written: {error.strerror or error}",
            remedy="Check permissions and free space, or give --output another folder.",
        ) from error
