"""An existing Dask cluster: reach it, make sure that its workers are as we are, hand out calls.

A call is a function of this package, its arguments, and parcels, which are files that travel by
their content. No shared file system is needed. Both are plain Dask tasks under a key that says
what determines them, so Dask sends each parcel once, and after a worker's death does again what
died with it.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import logging
import os
import platform
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from levit_export.core import files
from levit_export.core.errors import (
    ClusterError,
    LevitExportError,
    MissingDependencyError,
    RuntimeFailedError,
    UsageError,
)
from levit_export.core.packages import TOOLCHAIN

if TYPE_CHECKING:
    from distributed import Client, Future

CONNECT_S = 10
PATIENCE_S = 60.0
"""How long a cluster may be without any worker before it is given up."""

POLL_S = 2.0
AHEAD = 2
"""Calls that wait at each of a worker's threads, so that it never waits for the next."""

PACKAGES = (*TOOLCHAIN, "pillow", "nncf")
"""What decides an answer or an artifact; workers must have what the client has."""

SAME = "Install the same versions on all workers, or run without --scheduler."

log = logging.getLogger("levit_export")


@dataclass(frozen=True)
class Parcel:
    """Files by name, and the digest of the names and contents, which is their address."""

    sha256: str
    files: Mapping[str, bytes]

    def unpacked(self, root: Path) -> Path:
        """The folder below ``root`` that holds the files; it is written once, and whole.

        Raises ``RuntimeFailedError`` where it cannot be written.
        """
        place = root / "levit-export" / self.sha256
        try:
            if not place.is_dir():
                place.parent.mkdir(parents=True, exist_ok=True)
                with files.temporary_folder(place.parent) as work:
                    filled = work / "files"
                    write_files(self.files, filled)
                    os.rename(filled, place)  # noqa: PTH104 - fails where another was first
        except OSError as error:
            if not place.is_dir():
                raise RuntimeFailedError(
                    f"a worker cannot write to {root}: {error}",
                    remedy="Give it another --local-directory, with room for the artifacts.",
                ) from error
        return place


def parcel(places: Mapping[str, Path]) -> Parcel:
    """The files at these paths, under these names (POSIX, relative). Raises ``OSError``."""
    contents = {name: files.read_bytes(path) for name, path in sorted(places.items())}
    digest = hashlib.sha256()
    for name, content in contents.items():
        digest.update(f"{hashlib.sha256(content).hexdigest()}  {name}\n".encode())
    return Parcel(digest.hexdigest(), contents)


def checkpoint_files(path: Path) -> dict[str, Path]:
    """What :func:`parcel` takes for a checkpoint: its file, or the files right in its folder.

    Below a parcel's folder the checkpoint has the name that it has here.
    """
    place = path.absolute()
    if not place.is_dir():
        return {place.name: place}
    return {f"{place.name}/{each.name}": each for each in place.iterdir() if each.is_file()}


def write_files(contents: Mapping[str, bytes], folder: Path) -> None:
    """Write files by their names (POSIX, relative) below ``folder``."""
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write(path, content)


@cache
def identity() -> Mapping[str, str]:
    """What decides a result: versions, and the digest of this package's own files."""
    found = {"Python": ".".join(platform.python_version_tuple()[:2])}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "absent"
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(each for each in root.rglob("*") if each.is_file()):
        if path.suffix != ".pyc":
            digest.update(f"{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes())
    return {**found, "source of levit-export": digest.hexdigest()[:12]}


def refuse_other(found: Mapping[str, str], ours: Mapping[str, str], worker: str) -> None:
    """Raise unless ``worker``, which has ``found``, has all that is ``ours``."""
    for name, version in ours.items():
        if found.get(name) != version:
            raise MissingDependencyError(
                f"worker {worker} has {name} {found.get(name, 'absent')}, here it is {version}",
                remedy=SAME,
            )


@dataclass(frozen=True)
class Call:
    """``function(*arguments, *folders)``, where the folders hold the files of ``parcels``.

    ``key`` names the result: calls of one key are one.
    """

    key: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    parcels: tuple[Parcel, ...] = ()


class Cluster:
    """A cluster that was reached, and whose workers can do what this process can."""

    def __init__(self, client: Client, address: str) -> None:
        self._client = client
        self._address = address
        self._sent: dict[str, Future[Parcel]] = {}

    def run(self, calls: Iterable[Call]) -> Generator[tuple[Call, Any], None, None]:
        """Each call with its result, or with the ``LevitExportError`` that it ended with.

        They come as they are done, and ``calls`` are taken as workers get free, so what is not
        sent yet need not be in memory. Raises ``ClusterError`` when the scheduler, or every
        worker, is gone. Close the generator to stop early.
        """
        # Of calls with one key one is made: a cluster forgets a result once it was fetched.
        seen: set[str] = set()
        waiting = (call for call in calls if call.key not in seen)
        pending: dict[Future[Any], Call] = {}
        try:
            while True:
                room = AHEAD * max(1, self._threads()) + 1 - len(pending)
                for call in islice(waiting, max(0, room)):
                    seen.add(call.key)
                    pending[self._submit(call)] = call
                if not pending:
                    return
                for future in self._done(pending):
                    yield pending.pop(future), self._result(future)
        finally:
            self._client.cancel(list(pending))

    def everywhere(self, function: Callable[[], object]) -> None:
        """Call ``function`` once in every worker; what comes of it does not matter."""
        try:
            self._client.run(function, on_error="ignore")
        except Exception as error:
            log.debug("the cluster could not be tidied up: %s", error)

    def _submit(self, call: Call) -> Future[Any]:
        import dask

        # A parcel is a task and not scattered data: the scheduler keeps its content, and gives it
        # to another worker when the one that held it dies. That it is large is no mistake.
        with dask.config.set({"distributed.admin.large-graph-warning-threshold": "1TiB"}):
            for each in call.parcels:
                if each.sha256 not in self._sent:
                    key = f"levit-export-parcel-{each.sha256}"
                    self._sent[each.sha256] = self._client.submit(_itself, each, key=key)
            return self._client.submit(
                _perform,
                dict(identity()),
                call.function,
                call.arguments,
                *(self._sent[each.sha256] for each in call.parcels),
                key=f"levit-export-{call.key}",
            )

    def _done(self, pending: Mapping[Future[Any], Call]) -> list[Future[Any]]:
        """At least one that is done, as soon as there is one."""
        from distributed import wait

        alone_since = None
        while True:
            try:
                with self._client.as_current():
                    wait(list(pending), timeout=POLL_S, return_when="FIRST_COMPLETED")
            except TimeoutError:
                # Dask itself would wait for a first worker for ever.
                alone_since = None if self._threads() else alone_since or monotonic()
                if alone_since and monotonic() - alone_since > PATIENCE_S:
                    raise ClusterError(
                        f"the cluster at {self._address} has had no worker for {PATIENCE_S:g} s",
                        remedy="Start workers: dask worker ADDRESS --nthreads 1.",
                    ) from None
            except Exception as error:
                raise self._lost(error) from error
            if done := [future for future in pending if future.done()]:
                return done
            if self._client.status in ("closed", "closing"):
                raise self._lost(None)

    def _result(self, future: Future[Any]) -> Any:
        try:
            return future.result()
        except LevitExportError as error:
            return error
        except Exception as error:
            if future.status != "error":
                raise self._lost(error) from error
            return RuntimeFailedError(
                f"a worker of the cluster failed with {type(error).__name__}: {error}",
                remedy="Look into the worker's log; is there enough memory?",
            )

    def _lost(self, error: Exception | None) -> ClusterError:
        return ClusterError(
            f"the cluster at {self._address} was lost{f': {error}' if str(error or '') else ''}",
            remedy="Is the scheduler still running? Start again; what a sweep finished is kept.",
        )

    def _threads(self) -> int:
        return sum(map(int, self._client.nthreads().values()))


def both_said(workers: int) -> UsageError:
    """What is raised where ``--workers`` and ``--scheduler`` are both given."""
    return UsageError(
        f"--workers {workers} are processes here, and with --scheduler the workers are those of "
        "the cluster",
        remedy="Give one of them.",
    )


@contextmanager
def connected(address: str) -> Iterator[Cluster]:
    """The cluster whose scheduler listens at ``address``, such as ``tcp://10.0.0.1:8786``.

    Raises ``MissingDependencyError`` where Dask is not installed, or a worker has no levit-export
    or other versions, and ``ClusterError`` where nobody answers or there are no workers.
    """
    try:
        from distributed import Client
    except ImportError as error:
        raise MissingDependencyError(
            f"--scheduler needs Dask: {error}", remedy="pip install 'levit-export[cluster]'"
        ) from error
    try:
        client = Client(address, timeout=CONNECT_S, set_as_default=False)
    except Exception as error:
        raise ClusterError(
            f"no Dask scheduler answers at {address}: {error or type(error).__name__}",
            remedy="Give the address that `dask scheduler` prints, such as tcp://10.0.0.1:8786.",
        ) from error
    with client:
        _refuse_strangers(client, address)
        yield Cluster(client, address)


def _refuse_strangers(client: Client, address: str) -> None:
    """Raise unless every worker has this package, and the versions that this process has."""
    try:
        client.wait_for_workers(1, timeout=CONNECT_S)
    except Exception as error:
        raise ClusterError(
            f"the cluster at {address} has no workers",
            remedy=f"Start some: dask worker {address} --nthreads 1.",
        ) from error
    # A function of the standard library is understood by a worker that has no levit-export.
    version = importlib.metadata.version
    for worker, found in client.run(version, "levit-export", on_error="return").items():
        if isinstance(found, BaseException):
            raise MissingDependencyError(
                f"worker {worker} has no levit-export: {found}", remedy=SAME
            )
    for worker, found in client.run(identity, on_error="return").items():
        if isinstance(found, BaseException):
            raise MissingDependencyError(
                f"worker {worker} has another levit-export: {found}", remedy=SAME
            )
        refuse_other(found, identity(), worker)


def _itself(each: Parcel) -> Parcel:
    """What makes a parcel a result, which workers fetch from one another and can make again."""
    return each


def _perform(
    ours: Mapping[str, str],
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    *parcels: Parcel,
) -> Any:
    """Do a call on a worker, which may have joined after the others were looked at."""
    from distributed import get_worker

    worker = get_worker()
    refuse_other(identity(), ours, worker.address)
    root = Path(worker.local_directory)
    return function(*arguments, *(each.unpacked(root) for each in parcels))
