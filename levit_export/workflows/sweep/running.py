"""Where cells are done: in processes here, or by the workers of a Dask cluster."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue

from levit_export.core import files
from levit_export.core.errors import DataError, LevitExportError
from levit_export.core.processes import Worker
from levit_export.workflows.cluster import Call, checkpoint_files, connected, parcel
from levit_export.workflows.sweep.cell import Cell, Result, failure, perform
from levit_export.workflows.sweep.store import Store

Done = tuple[Cell, Path | None, Result]
"""A cell, the folder of the store that it has now, and what came of it."""


def locally(cells: Sequence[Cell], store: Store, workers: int) -> Iterator[Done]:
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
    os.chdir(folder)  # where nothing is called digits, or could be imported
    return perform(cell, folder)


def _kept(store: Store, work: Path, cell: Cell, result: Result) -> tuple[Path | None, Result]:
    """Commit what is a result; an error is not, for it may be another one next time."""
    if result.artifact is None:
        return None, result
    return store.commit(work, cell, result), result


def remotely(cells: Sequence[Cell], store: Store, scheduler: str) -> Iterator[Done]:
    """Do ``cells`` on the Dask cluster at ``scheduler``; what they made travels back here.

    Raises what ``cluster.connected`` raises.
    """
    by_key = {f"cell-{cell.key}": cell for cell in cells}
    calls = (_call(key, cell) for key, cell in by_key.items())
    with connected(scheduler) as cluster, closing(cluster.run(calls)) as outcomes:
        for outcome in outcomes:
            cell = by_key[outcome.call.key]
            if outcome.error is not None:
                yield cell, None, failure(outcome.error)
                continue
            result, made = outcome.result
            with store.staged() as work:
                _write(made, work)
                yield cell, *_kept(store, work, cell, result)


def _call(key: str, cell: Cell) -> Call:
    checkpoint = cell.choice.checkpoint
    if checkpoint is None:
        return Call(key, away, (cell,))
    try:
        parcels = (parcel(checkpoint_files(checkpoint)),)
    except OSError as error:
        raise DataError(f"{checkpoint} cannot be read: {error}", remedy="Check it.") from error
    return Call(key, away, (cell,), parcels)


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


def _write(contents: Mapping[str, bytes], folder: Path) -> None:
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write(path, content)
