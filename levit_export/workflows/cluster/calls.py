"""Calls, the cluster that makes them, and how it is reached."""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from levit_export.core.errors import (
    ClusterError,
    LevitExportError,
    MissingDependencyError,
    RuntimeFailedError,
)
from levit_export.workflows.cluster.identity import SAME, identity, refuse_other
from levit_export.workflows.cluster.parcels import Parcel, unpacked

if TYPE_CHECKING:
    from distributed import Client, Future

CONNECT_S = 10
PATIENCE_S = 60.0
"""How long a cluster may be without any worker before it is given up."""

POLL_S = 2.0
AHEAD = 2
"""Calls that wait at each of a worker's threads, so that it never waits for the next."""

log = logging.getLogger("levit_export")


@dataclass(frozen=True)
class Call:
    """``function(*arguments, *folders)``, where the folders hold the files of ``parcels``.

    ``key`` names the result: calls of one key are one.
    """

    key: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    parcels: tuple[Parcel, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What became of a call: its result, or the error that it ended with."""

    call: Call
    result: Any = None
    error: LevitExportError | None = None


class Cluster:
    """A cluster that was reached, and whose workers can do what this process can."""

    def __init__(self, client: Client, address: str) -> None:
        self._client = client
        self._address = address
        self._sent: dict[str, Future[Parcel]] = {}

    def run(self, calls: Iterable[Call]) -> Generator[Outcome, None, None]:
        """An outcome for each key, as they come; ``calls`` are taken as workers get free.

        A worker that dies loses nothing: what it had is done again by another. Raises
        ``ClusterError`` when the scheduler, or every worker, is gone. Close it to stop early.
        """
        waiting = _distinct(calls)
        pending: dict[Future[Any], Call] = {}
        try:
            while True:
                room = AHEAD * max(1, self._threads()) + 1 - len(pending)
                pending |= {self._submit(call): call for call in _first(waiting, room)}
                if not pending:
                    return
                for future in self._done(pending):
                    yield _outcome(future, pending.pop(future), self._address)
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

        # That a parcel is large is why it is sent once.
        with dask.config.set({"distributed.admin.large-graph-warning-threshold": "1TiB"}):
            for each in call.parcels:
                if each.sha256 not in self._sent:
                    self._sent[each.sha256] = self._client.submit(
                        _itself, each, key=f"levit-export-parcel-{each.sha256}"
                    )
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
                alone_since = None if self._threads() else alone_since or monotonic()
                if alone_since and monotonic() - alone_since > PATIENCE_S:
                    raise ClusterError(
                        f"the cluster at {self._address} has had no worker for {PATIENCE_S:g} s",
                        remedy="Start workers: dask worker ADDRESS --nthreads 1.",
                    ) from None
            except Exception as error:
                raise _lost(self._address, error) from error
            if done := [future for future in pending if future.done()]:
                return done
            if self._client.status in ("closed", "closing"):
                raise _lost(self._address, None)

    def _threads(self) -> int:
        return sum(_workers(self._client).values())


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


def _workers(client: Client) -> dict[str, int]:
    """The threads of each worker."""
    return {address: int(threads) for address, threads in client.nthreads().items()}


def _distinct(calls: Iterable[Call]) -> Iterator[Call]:
    """``calls`` without those whose key another had: a cluster forgets what was fetched."""
    seen: set[str] = set()
    for call in calls:
        if call.key not in seen:
            seen.add(call.key)
            yield call


def _first(calls: Iterator[Call], count: int) -> Iterator[Call]:
    for _ in range(count):
        call = next(calls, None)
        if call is None:
            return
        yield call


def _outcome(future: Future[Any], call: Call, address: str) -> Outcome:
    try:
        return Outcome(call, future.result())
    except LevitExportError as error:
        return Outcome(call, error=error)
    except Exception as error:
        if future.status != "error":
            raise _lost(address, error) from error
        return Outcome(
            call,
            error=RuntimeFailedError(
                f"a worker of the cluster failed with {type(error).__name__}: {error}",
                remedy="Look into the worker's log; is there enough memory?",
            ),
        )


def _lost(address: str, error: Exception | None) -> ClusterError:
    return ClusterError(
        f"the cluster at {address} was lost{f': {error}' if str(error or '') else ''}",
        remedy="Is the scheduler still running? Start again; finished work of a sweep is kept.",
    )


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
    return function(*arguments, *(unpacked(each, root) for each in parcels))
