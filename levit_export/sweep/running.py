"""Where cells are done: in processes here, or by the workers of a Dask cluster."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from levit_export.cluster import Call, checkpoint_files, connected, parcel
from levit_export.errors import DataError
from levit_export.evaluation.process import Process
from levit_export.sweep.cells import Cell, Result, failure
from levit_export.sweep.isolated import isolated
from levit_export.sweep.store import Store

Done = tuple[Cell, Path | None, Result]
"""A cell, the folder of the store that it has now, and what came of it."""


def locally(cells: Sequence[Cell], store: Store, workers: int) -> Iterator[Done]:
    """Do ``cells``, ``workers`` at a time, each in a process of its own.

    Those that run when the generator is closed, or interrupted, are ended.
    """
    processes: list[Process] = []
    with ThreadPoolExecutor(workers) as pool:
        try:
            futures = [pool.submit(_one, cell, store, processes.append) for cell in cells]
            for future in as_completed(futures):
                yield future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in processes:
                process.end()
            raise


def _one(cell: Cell, store: Store, begun: Callable[[Process], None]) -> Done:
    with store.staged() as work:
        return cell, *_kept(store, work, cell, isolated(cell, work, begun))


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
            result, files = outcome.result
            with store.staged() as work:
                _write(files, work)
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
    with tempfile.TemporaryDirectory() as folder:
        result = isolated(cell, Path(folder))
        files = [path for path in Path(folder).rglob("*") if path.is_file()]
        contents = {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
    return result, contents if result.artifact is not None else {}


def _write(files: Mapping[str, bytes], folder: Path) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
