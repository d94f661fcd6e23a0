"""A Dask cluster on loopback, in processes of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import levit_export
from levit_export.core.errors import DataError

START_S = 60
TESTS = Path(__file__).parent
CHECKOUT = Path(levit_export.__file__).parents[1]
"""Workers must import the package that is under test, wherever another one is installed."""


@dataclass(frozen=True)
class Worker:
    """One worker process."""

    process: subprocess.Popen[bytes]

    def kill(self) -> None:
        """End it as the system does that is out of memory."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@dataclass(frozen=True)
class Running:
    """A scheduler's address, and its workers."""

    address: str
    workers: tuple[Worker, ...]


@contextmanager
def cluster(folder: Path, count: int = 2, *, path: Path | None = None) -> Iterator[Running]:
    """A scheduler and ``count`` workers of one thread; all are gone when the block ends.

    Plain subprocesses, which take nothing from the process that runs the tests. Each worker has
    a folder of its own as its current one: a relative path of the client's leads nowhere there.
    ``path`` stands first on the workers' import path.
    """
    with ExitStack() as stack:
        file = folder / "scheduler.txt"
        scheduler = ("scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard")
        stack.enter_context(_process(folder, *scheduler, "--scheduler-file", str(file)))
        address = _address(file)
        workers = []
        for i in range(count):
            place = folder / f"worker{i}"
            place.mkdir()
            options = ("--nthreads", "1", "--no-nanny", "--no-dashboard", "--local-directory")
            process = _process(place, "worker", address, *options, str(place), path=path)
            workers.append(Worker(stack.enter_context(process)))
        yield Running(address, tuple(workers))


@contextmanager
def _process(
    folder: Path, *arguments: str, path: Path | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    import_path = os.pathsep.join(map(str, (path or TESTS, CHECKOUT)))
    with (folder / f"{arguments[0]}.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "distributed.cli.dask_" + arguments[0], *arguments[1:]],
            cwd=folder,
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": import_path,
            },
            stdout=log,
            stderr=log,
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def _address(file: Path) -> str:
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        try:
            return str(json.loads(file.read_text())["address"])
        except (OSError, ValueError):
            time.sleep(0.05)
    raise AssertionError("the scheduler did not start")


def note(file: str, text: str, *folders: Path) -> list[str]:
    """A call for workers: write that it was made; returns what lies in the parcels' folders."""
    with Path(file).open("a") as stream:
        stream.write(f"{text}\n")
    return [path.name for folder in folders for path in sorted(folder.rglob("*"))]


def refuse(what: str) -> None:
    """A call that ends with an error on purpose."""
    raise DataError(what, remedy="none")


def crash() -> None:
    """A call that ends with an error of somebody else's."""
    raise ZeroDivisionError("by nothing")
