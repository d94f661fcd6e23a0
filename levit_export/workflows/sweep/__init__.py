"""Models by formats by precisions, from a small TOML file: resumable, with one report."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue

from levit_export.core import files, machine
from levit_export.core.errors import DataError, LevitExportError
from levit_export.core.packages import TOOLCHAIN, versions
from levit_export.core.processes import Worker
from levit_export.core.progress import Progress, Silent
from levit_export.core.values import Verdict, overall
from levit_export.storage import export_directory
from levit_export.workflows.cluster import (
    Call,
    both_said,
    checkpoint_files,
    connected,
    parcel,
    write_files,
)
from levit_export.workflows.sweep.cell import Cell, CellStore, Result, failure, perform
from levit_export.workflows.sweep.plan import Plan, read
from levit_export.workflows.sweep.report import SweepReport, SweepRow, report_files

__all__ = ["Plan", "SweepReport", "SweepRequest", "SweepRow", "plan", "sweep"]

STORE = "store"
Done = tuple[Cell, Path | None, Result]
"""A cell, the folder of the store that it has now, and what came of it."""

ALONE = (
    "latency was not measured: {}, and what runs side by side is timed with its neighbours' load"
)


@dataclass(frozen=True)
class SweepRequest:
    """What ``sweep`` may be asked for: its file, where to write, and where to run.

    ``command`` is what was typed, for the report.
    """

    file: Path
    output: Path | None = None
    workers: int = 1
    scheduler: str | None = None
    command: str = ""

    @property
    def untimed(self) -> str:
        """Why latency cannot be measured, or empty."""
        if self.scheduler is not None:
            return ALONE.format("the cells ran on a cluster")
        return ALONE.format(f"{self.workers} cells ran at a time") if self.workers > 1 else ""


def plan(request: SweepRequest) -> Plan:
    """The cells that a request stands for. Raises ``UsageError`` and ``DataError``."""
    if request.scheduler is not None and request.workers > 1:
        raise both_said(request.workers)
    return read(request.file, output=request.output, timed=not request.untimed)


def sweep(request: SweepRequest, progress: Progress | None = None) -> SweepReport:
    """Do every cell that the store does not hold yet, and write the report.

    A cell that ends with an error is a row with its reason. Raises ``UsageError`` for a file that
    cannot be used, and what ``cluster.connected`` raises.
    """
    progress = progress or Silent()
    wanted = plan(request)
    store = CellStore(wanted.output / STORE)
    store.tidy()
    found: dict[str, Done] = {}
    for cell in wanted.cells:
        if (known := store.find(cell)) is not None:
            found[cell.key] = (cell, *known)
    missing = {cell.key: cell for cell in wanted.cells if cell.key not in found}
    progress.stage(f"{len(missing)} of {len(wanted.cells)} cells to do")
    progress.steps(len(missing))
    to_do = list(missing.values())
    if to_do and request.scheduler is not None:
        results = remotely(to_do, store, request.scheduler)
    else:
        results = locally(to_do, store, request.workers)
    with closing(results):
        for done in results:
            found[done[0].key] = done
            progress.advance()
    result = _report(request, wanted, found, fresh=set(missing))
    try:
        wanted.output.mkdir(parents=True, exist_ok=True)
        for name, text in report_files(result).items():
            files.write(wanted.output / name, text)
    except OSError as error:
        raise export_directory.unwritable(wanted.output, error) from error
    return result


def _report(
    request: SweepRequest, wanted: Plan, found: dict[str, Done], *, fresh: set[str]
) -> SweepReport:
    rows = []
    for cell in wanted.cells:
        _, folder, result = found[cell.key]
        path = ""  # of the artifact, where there is one
        if folder is not None and result.artifact is not None:
            place = folder / result.folder / result.artifact.path
            path = place.relative_to(wanted.output).as_posix()
        rows.append(SweepRow(cell, result, path=path, fresh=cell.key in fresh))
    verdict: Verdict = overall(row.result.verdict for row in rows)
    return SweepReport(
        file=str(request.file),
        output=wanted.output,
        verdict=verdict,
        rows=tuple(rows),
        notes=tuple(filter(None, (request.untimed, *wanted.left_out))),
        machine=machine.describe(),
        toolchain=versions(TOOLCHAIN),
        command=request.command,
    )


def locally(cells: Sequence[Cell], store: CellStore, workers: int) -> Generator[Done, None, None]:
    """Do ``cells`` in ``workers`` processes, each of which does one after the other.

    So cells of one model share what a process has loaded of it, and a cell that crashes, or eats
    the memory, takes no other with it: the next one gets a new process. Those that run when the
    generator is closed, or interrupted, are ended.
    """
    idle: SimpleQueue[Worker] = SimpleQueue()

    def one(cell: Cell) -> Done:
        worker = idle.get()
        try:
            with store.staged() as work:
                return cell, *_kept(store, work, cell, _performed(worker, cell, work))
        finally:
            idle.put(worker)

    with ThreadPoolExecutor(workers) as pool, ExitStack() as stack:
        for _ in range(min(workers, len(cells))):
            idle.put(stack.enter_context(Worker()))
        stack.callback(pool.shutdown, wait=False, cancel_futures=True)
        futures = [pool.submit(one, cell) for cell in cells]
        for future in as_completed(futures):
            yield future.result()


def _performed(worker: Worker, cell: Cell, folder: Path) -> Result:
    """``perform`` in a process; what it raises is the row's reason."""
    try:
        return worker.submit(_perform_in, cell, folder).result()
    except LevitExportError as error:
        return failure(error)


def _perform_in(cell: Cell, folder: Path) -> Result:
    os.chdir(folder)  # an empty folder: no file named digits, or with code, can interfere
    return perform(cell, folder)


def _kept(store: CellStore, work: Path, cell: Cell, result: Result) -> tuple[Path | None, Result]:
    """Store the cell if it made an artifact. After an error the next sweep does it again."""
    if result.artifact is None:
        return None, result
    return store.commit(work, cell, result), result


def remotely(
    cells: Sequence[Cell], store: CellStore, scheduler: str
) -> Generator[Done, None, None]:
    """Do ``cells`` on the Dask cluster at ``scheduler``; what they made travels back here.

    Raises what ``cluster.connected`` raises.
    """

    def calls() -> Iterator[Call]:
        for cell in cells:
            parcels = []
            if (checkpoint := cell.choice.checkpoint) is not None:
                try:
                    parcels.append(parcel(checkpoint_files(checkpoint)))
                except OSError as error:
                    raise DataError(
                        f"{checkpoint} cannot be read: {error}", remedy="Check it."
                    ) from error
            yield Call(f"cell-{cell.key}", away, (cell,), tuple(parcels))

    with connected(scheduler) as cluster, closing(cluster.run(calls())) as finished:
        for call, found in finished:
            (cell,) = call.arguments
            if isinstance(found, LevitExportError):
                yield cell, None, failure(found)
                continue
            result, made = found
            with store.staged() as work:
                write_files(made, work)
                yield cell, *_kept(store, work, cell, result)


def away(cell: Cell, *folders: Path) -> tuple[Result, Mapping[str, bytes]]:
    """Do a cell on a worker: what came of it, and the files that it made."""
    if cell.choice.checkpoint is not None:
        place = folders[0] / cell.choice.checkpoint.absolute().name
        cell = replace(cell, choice=replace(cell.choice, checkpoint=place))
    with files.temporary_folder() as folder:
        with Worker() as worker:
            result = _performed(worker, cell, folder)
        made = [path for path in folder.rglob("*") if path.is_file()]
        contents = {path.relative_to(folder).as_posix(): files.read_bytes(path) for path in made}
    return result, contents if result.artifact is not None else {}
