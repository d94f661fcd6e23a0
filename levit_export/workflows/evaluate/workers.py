"""Several processes, each with sessions of its own, that take the images from one heap.

This process is one of them: it works from the first moment, while the others still import. Nobody
is dealt a share; whoever is done takes the next group, so none waits for a slower one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from threading import Condition
from time import perf_counter

from levit_export.core.packages import load_early
from levit_export.core.processes import Worker
from levit_export.workflows.evaluate.predict import (
    Answers,
    Entrant,
    Task,
    classified,
    entered,
    merge,
)

WARM = 2
"""Groups after which the pace is known; the first one's includes the runtimes' own warming up."""

Group = tuple[int, ...]


@contextmanager
def ready(count: int, imports: Sequence[str]) -> Iterator[list[Worker]]:
    """``count`` processes that import while this one still finds out what there is to do."""
    with ExitStack() as stack:
        waiting = [stack.enter_context(Worker()) for _ in range(count)]
        for worker in waiting:
            worker.submit(load_early, tuple(imports))
        yield waiting


def run(
    task: Task,
    workers: int | None,
    advance: Callable[[], None] = lambda: None,
    *,
    most: int = 1,
    worth_s: float = 0.0,
    waiting: Sequence[Worker] = (),
) -> Answers:
    """The answers to ``task``, the same for any number of ``workers``; 1 is this process.

    Processes are taken from those ``waiting`` as long as there are any. With ``workers`` None
    others are started once the pace is known: one for every ``worth_s`` seconds of work that this
    process has left, up to ``most`` of all. Raises what a worker raised, and
    ``RuntimeFailedError`` for one that died with images in its hands.
    """
    with ThreadPoolExecutor(max(most, workers or 1)) as threads, ExitStack() as stack:
        heap = _Heap(task, advance)
        unused, used = list(waiting), list[Worker]()

        def start(count: int) -> None:
            for _ in range(min(count, heap.left - 1)):
                used.append(unused.pop() if unused else stack.enter_context(Worker()))
                threads.submit(heap.worked_off_by, used[-1])

        def pay(left_s: float) -> None:
            if workers is None:
                start(min(most - 1, int(left_s / worth_s)))

        if workers is not None:
            start(workers - 1)
        try:
            with entered(task) as entrants:
                own = classified(task, entrants, heap.groups(pay), heap.done)
            return merge([own, *heap.finished()])
        finally:
            for worker in used:  # one that took nothing may still import: nobody waits for it
                worker.kill()


class _Heap:
    """The groups that nobody has taken yet, and what came of those that other processes took."""

    def __init__(self, task: Task, advance: Callable[[], None]) -> None:
        self._task = replace(task, groups=())
        self._groups = list(reversed(task.groups))
        self._advance = advance
        self._changed = Condition()
        self._taken = 0
        self._parts: list[Answers] = []
        self._failure: BaseException | None = None

    @property
    def left(self) -> int:
        """How many there are."""
        return len(self._groups)

    def done(self) -> None:
        """A group is done, here or elsewhere."""
        with self._changed:
            self._advance()

    def groups(self, pay: Callable[[float], None]) -> Iterator[Group]:
        """The groups for this process; ``pay`` is told once what it would take to do the rest."""
        number = 0
        while (group := self._take()) is not None:
            begun = perf_counter()
            yield group
            number += 1
            if number == WARM:
                pay((perf_counter() - begun) * self.left)
            if self._failure is not None:
                raise self._failure

    def worked_off_by(self, worker: Worker) -> None:
        """Hand ``worker`` a group at a time; in a thread of its own."""
        try:
            worker.submit(_enter, self._task).result()
            while (group := self._take(elsewhere=True)) is not None:
                part = worker.submit(_answer, group).result()
                self.done()
                with self._changed:
                    self._parts.append(part)
                    self._changed.notify()
        except BaseException as error:
            with self._changed:
                self._failure = error
                self._changed.notify()

    def finished(self) -> list[Answers]:
        """What the others found out, when all that they took is done."""
        with self._changed:
            self._changed.wait_for(lambda: self._failure or len(self._parts) == self._taken)
        if self._failure is not None:
            raise self._failure
        return self._parts

    def _take(self, *, elsewhere: bool = False) -> Group | None:
        with self._changed:
            if not self._groups:
                return None
            self._taken += elsewhere
            return self._groups.pop()


# What a worker does. It keeps the sessions of its task open until it ends.

_entered: list[tuple[Task, tuple[Entrant, ...]]] = []
_sessions = ExitStack()


def _enter(task: Task) -> None:
    _sessions.close()
    _entered[:] = [(task, _sessions.enter_context(entered(task)))]


def _answer(group: Group) -> Answers:
    ((task, entrants),) = _entered
    return classified(task, entrants, (group,))
