"""Several processes, each with sessions of its own, that take the images from one heap.

This process is one of them: it works from the first moment, while the others still import. Nobody
is dealt a share; whoever is done takes the next group, so none waits for a slower one.

Plain subprocesses, as in ``helper``; messages are pickles of this package's own values.
"""

from __future__ import annotations

import pickle
import queue
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from threading import Lock
from time import perf_counter
from typing import Any

from levit_export import launch
from levit_export.errors import LevitExportError, RuntimeFailedError
from levit_export.evaluation.answers import Answers, Task, classified, entered, merge
from levit_export.evaluation.process import Process, conversing
from levit_export.helper import import_early

NEXT = "next"
"""What a worker says that wants a group, having done those that it had."""

WARM = 2
"""Groups after which the pace is known; the first one's includes the runtimes' own warming up."""

Group = tuple[int, ...]


@contextmanager
def ready(count: int, imports: Sequence[str]) -> Iterator[list[Process]]:
    """``count`` processes that import while this one still finds out what there is to do.

    For :func:`run`'s ``waiting``. Whoever takes one from the list ends it; the others end here.
    """
    waiting: list[Process] = []
    try:
        waiting.extend(Process(_code(imports)) for _ in range(count))
        yield waiting
    finally:
        for process in waiting:
            process.end()
            process.close()


def _code(imports: Sequence[str]) -> str:
    return f"from levit_export.evaluation.workers import main; main({tuple(imports)!r})"


def run(
    task: Task,
    workers: int | None,
    advance: Callable[[], None] = lambda: None,
    *,
    most: int = 1,
    worth_s: float = 0.0,
    waiting: list[Process] | None = None,
) -> Answers:
    """The answers to ``task``, the same for any number of ``workers``; 1 is this process.

    Processes are taken from those ``waiting`` as long as there are any. With ``workers`` None
    others are started once the pace is known: one for every ``worth_s`` seconds of work that this
    process has left, up to ``most`` of all. Raises what a worker raised, and
    ``RuntimeFailedError`` for one that died with images in its hands.
    """
    with ExitStack() as stack:
        pool = _Pool(task, stack, advance, [] if waiting is None else waiting)
        if workers is not None:
            pool.start(workers - 1)

        def pay(left_s: float) -> None:
            if workers is None:
                pool.start(min(most - 1, int(left_s / worth_s)))

        with entered(task) as entrants:
            own = classified(task, entrants, pool.groups(pay), pool.advance)
        return merge([own, *pool.results()])


class _Pool:
    """The heap of groups, and the other processes that take from it."""

    def __init__(
        self,
        task: Task,
        stack: ExitStack,
        advance: Callable[[], None],
        waiting: list[Process],
    ) -> None:
        self._task = replace(task, groups=())
        self._stack = stack
        self._waiting = waiting
        self._groups = list(reversed(task.groups))
        self._advance = advance
        self._lock = Lock()
        self._workers: list[Process] = []
        self._busy: set[Process] = set()
        self._results: queue.Queue[tuple[Process, Any]] = queue.Queue()
        self._failure: BaseException | None = None

    def start(self, count: int) -> None:
        """Start so many processes more, as far as there are groups for them."""
        for _ in range(min(count, len(self._groups) - 1)):
            process = self._waiting.pop() if self._waiting else Process(_code(()))
            conversation = conversing(process, self._task, self._heard)
            self._workers.append(self._stack.enter_context(conversation))

    def advance(self) -> None:
        """A group is done, here or elsewhere."""
        with self._lock:
            self._advance()

    def groups(self, pay: Callable[[float], None]) -> Iterator[Group]:
        """The groups for this process; ``pay`` is told once what it would take to do the rest."""
        done = 0
        while (group := self._take(None)) is not None:
            begun = perf_counter()
            yield group
            done += 1
            if done == WARM:
                pay((perf_counter() - begun) * len(self._groups))
            if self._failure is not None:
                raise self._failure

    def results(self) -> list[Answers]:
        """Wait for those who took something; whoever did not is not needed any more."""
        found: list[Answers] = []
        while self._failure is None and self._busy:
            process, result = self._results.get()
            if isinstance(result, BaseException):
                raise result
            self._busy.discard(process)
            found.append(result)
        if self._failure is not None:
            raise self._failure
        return found

    def _take(self, worker: Process | None) -> Group | None:
        with self._lock:
            if not self._groups:
                return None
            if worker is not None:
                self._busy.add(worker)
            return self._groups.pop()

    def _heard(self, worker: Process, message: Any) -> None:
        """Answer a worker; in a thread of its own."""
        if message == NEXT:
            if worker in self._busy:
                self.advance()
            worker.say(self._take(worker))
            return
        if isinstance(message, BaseException):
            self._failure = message
        self._results.put((worker, message))


def _serve(requests: Any, channel: Any) -> None:
    def say(message: Any) -> None:
        pickle.dump(message, channel)
        channel.flush()

    def groups() -> Iterator[Group]:
        while True:
            say(NEXT)
            group = pickle.load(requests)  # noqa: S301 - from our own parent
            if group is None:
                return
            yield group

    try:
        task = pickle.load(requests)  # noqa: S301 - from our own parent
        with entered(task) as entrants:
            result: Any = classified(task, entrants, groups())
    except LevitExportError as error:
        result = error
    except Exception as error:
        result = RuntimeFailedError(
            f"a worker process raised {type(error).__name__}: {error}",
            remedy="This is a bug in levit-export; please report it.",
        )
    say(result)


def main(imports: Sequence[str]) -> None:
    """Be a worker; ``imports`` are what its task is going to need."""
    channel = launch.as_child()
    import_early(imports)
    _serve(sys.stdin.buffer, channel)
