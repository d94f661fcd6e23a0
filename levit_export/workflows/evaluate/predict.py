"""From images to the classes that artifacts answer, in this process or in several.

A :class:`Workload` is plain data, and its answers follow from it and from the files it names, so
that any process may do any part. A group of images is always run in the same batches,
whoever runs it: how the groups are dealt out cannot change an answer.

:func:`run` takes the groups from one heap. This process is one of those that do: it works from
the first moment, while the others still import. Nobody is dealt a share; whoever is done takes
the next group, so none waits for a slower one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from threading import Condition
from time import perf_counter

import numpy as np

from levit_export.checks import reference
from levit_export.checks.execution import Row
from levit_export.core.errors import (
    ArtifactError,
    CheckpointError,
    NotRunError,
    RuntimeFailedError,
)
from levit_export.core.packages import load_early
from levit_export.core.processes import Worker
from levit_export.core.progress import Progress, Silent
from levit_export.core.values import PROBABILITIES, Preprocessing, Session
from levit_export.formats import target
from levit_export.inputs import preprocessing
from levit_export.inputs.images import ImageSet, Unreadable, batches
from levit_export.inputs.samples import filled
from levit_export.models import loading
from levit_export.models.loading import ModelChoice
from levit_export.models.zoo import LOGITS

BEST = 5
"""Classes of an answer that are kept, best first."""

NOT_A_NUMBER = -1
"""The class of an answer that holds NaN or infinity: that of no image."""

WARM = 2
"""Groups after which the pace is known; the first one's includes the runtimes' own warming up."""

Group = tuple[int, ...]


@dataclass(frozen=True)
class Weights:
    """The model that is the reference, and the hash by which another process knows it again."""

    choice: ModelChoice
    sha256: str


@dataclass(frozen=True)
class Workload:
    """Images to be classified: ``groups`` are places in ``images``.

    ``batch`` is for artifacts that leave it open and for the reference.
    """

    images: ImageSet
    recipe: Preprocessing
    classes: int
    rows: tuple[Row, ...]
    reference: Weights | None
    groups: tuple[tuple[int, ...], ...]
    batch: int
    threads: int


@dataclass(frozen=True)
class Ranking:
    """The best classes ``(n, min(5, classes))`` int32 of the readable images, or a failure."""

    best: np.ndarray
    runtime: str = ""
    failure: str = ""


@dataclass(frozen=True)
class Answers:
    """What came of a workload: ``rows`` are the places of the images that could be read.

    ``answers`` are those of the workload's rows in their order, then the reference's where there
    is one.
    """

    rows: np.ndarray
    answers: tuple[Ranking, ...]
    unreadable: tuple[tuple[int, Unreadable], ...]


@dataclass(frozen=True)
class Entrant:
    """A session that takes part in a workload, or why it could not be opened."""

    session: Session | None
    failure: str = ""


@contextmanager
def entered(workload: Workload) -> Iterator[tuple[Entrant, ...]]:
    """Open what ``workload`` asks: its rows in their order, then the reference where there is one.

    Raises ``ArtifactError`` for a file that does not fit the recipe and ``CheckpointError`` where
    the reference is another than when the evaluation began.
    """
    with ExitStack() as stack:

        def opened(row: Row) -> Session:
            return stack.enter_context(target(row.artifact.format).open(row.artifact, row.run))

        entrants = [_entrant(partial(opened, row), workload) for row in workload.rows]
        if (weights := workload.reference) is not None:
            entrants.append(_entrant(partial(_eager, weights, workload.threads), workload))
        yield tuple(entrants)


def classified(
    workload: Workload,
    entrants: Sequence[Entrant],
    groups: Iterable[Sequence[int]],
    advance: Callable[[], None] = lambda: None,
) -> Answers:
    """The answers of ``entrants`` to ``groups``, each taken when the one before it is done.

    A runtime that fails is said in its answer. Raises ``DataError`` for a damaged store.
    """
    rows: list[int] = []
    unreadable: list[tuple[int, Unreadable]] = []
    ballots = [_Ballot(entrant, workload) for entrant in entrants]
    for batch in batches(workload.images, workload.recipe, groups):
        rows += batch.rows
        unreadable += batch.unreadable
        for ballot in ballots:
            ballot.see(batch.inputs)
        advance()
    answers = tuple(ballot.answer() for ballot in ballots)
    return Answers(np.array(rows, np.int64), answers, tuple(unreadable))


def merge(parts: Sequence[Answers]) -> Answers:
    """The answers of several tasks on different images as one, in the order of the images."""
    rows = np.concatenate([part.rows for part in parts])
    order = np.argsort(rows)  # parts come in the order in which they were done
    answers = tuple(
        Ranking(
            np.concatenate([each.best for each in of_one])[order]
            if not any(each.failure for each in of_one)
            else of_one[0].best[:0],
            of_one[0].runtime,
            next((each.failure for each in of_one if each.failure), ""),
        )
        for of_one in zip(*(part.answers for part in parts), strict=True)
    )
    unreadable = sorted((each for part in parts for each in part.unreadable), key=lambda e: e[0])
    return Answers(rows[order], answers, tuple(unreadable))


@contextmanager
def ready(count: int, imports: Sequence[str]) -> Iterator[list[Worker]]:
    """``count`` processes that import while this one still finds out what there is to do."""
    with ExitStack() as stack:
        waiting = [stack.enter_context(Worker()) for _ in range(count)]
        for worker in waiting:
            worker.submit(load_early, tuple(imports))
        yield waiting


def run(
    workload: Workload,
    workers: int | None,
    progress: Progress | None = None,
    *,
    most: int = 1,
    worth_s: float = 0.0,
    waiting: Sequence[Worker] = (),
) -> Answers:
    """The answers to ``workload``, the same for any number of ``workers``; 1 is this process.

    Processes are taken from those ``waiting`` as long as there are any. With ``workers`` None
    others are started once the pace is known: one for every ``worth_s`` seconds of work that this
    process has left, up to ``most`` of all. Raises what a worker raised, and
    ``RuntimeFailedError`` for one that died with images in its hands.
    """
    with ThreadPoolExecutor(max(most, workers or 1)) as threads, ExitStack() as stack:
        heap = _Heap(workload, (progress or Silent()).advance)
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
            with entered(workload) as entrants:
                own = classified(workload, entrants, heap.groups(pay), heap.done)
            return merge([own, *heap.finished()])
        finally:
            for worker in used:  # one that took nothing may still import: nobody waits for it
                worker.kill()


def _entrant(opened: Callable[[], Session], workload: Workload) -> Entrant:
    """The session that ``opened`` gives; one that cannot be opened is an entrant that failed."""
    try:
        session = opened()
    except (NotRunError, RuntimeFailedError) as error:
        return Entrant(None, str(error))
    spec, size = session.signature.inputs[0], workload.recipe.crop
    if (spec.dtype, spec.shape[1:]) not in (("float32", (3, *size)), ("uint8", (*size, 3))):
        raise ArtifactError(
            f"the model takes {spec.dtype} {spec.shape}, and its recipe gives float32 "
            f"{(3, *size)} or uint8 {(*size, 3)}",
            remedy="Give the --checkpoint and --imgsz that it was exported with.",
        )
    return Entrant(session)


def _eager(weights: Weights, threads: int) -> Session:
    """PyTorch on the checkpoint, if it is the one that the evaluation began with."""
    checkpoint = loading.load(weights.choice)
    if checkpoint.sha256 != weights.sha256:
        raise CheckpointError(
            f"the checkpoint has SHA-256 {checkpoint.sha256} here and "
            f"{weights.sha256} where the evaluation began",
            remedy="Do not change it meanwhile.",
        )
    return reference.eager_session(checkpoint, threads=threads)


class _Ballot:
    """What one entrant has answered so far."""

    def __init__(self, entrant: Entrant, workload: Workload) -> None:
        self._session = entrant.session
        self._failure = entrant.failure
        self._workload = workload
        self._best = [np.empty((0, min(BEST, workload.classes)), np.int32)]

    def see(self, inputs: np.ndarray) -> None:
        """Classify one group."""
        if self._session is None or self._failure:
            return
        try:
            self._best.append(_best(self._session, inputs, self._workload))
        except RuntimeFailedError as error:
            self._failure = str(error)

    def answer(self) -> Ranking:
        """Everything seen, or the reason why not."""
        best = self._best[0] if self._failure else np.concatenate(self._best)
        return Ranking(best, self._session.runtime if self._session else "", self._failure)


def _best(session: Session, inputs: np.ndarray, workload: Workload) -> np.ndarray:
    """The best classes of each of ``inputs``; a fixed batch is filled up with the last image."""
    spec = session.signature.inputs[0]
    size = session.signature.batch or workload.batch
    if spec.dtype == "uint8":  # the model normalises by itself
        inputs = preprocessing.pixels_of(workload.recipe, inputs)
    pieces = [np.empty((0, min(BEST, workload.classes)), np.int32)]
    for start in range(0, len(inputs), size):
        piece = inputs[start : start + size]
        batch = filled(piece, size) if session.signature.batch else piece
        values = _scores(session.run({spec.name: batch}), len(batch), workload.classes)
        pieces.append(_ranked(values[: len(piece)]))
    return np.concatenate(pieces)


def _scores(outputs: object, rows: int, classes: int) -> np.ndarray:
    """Logits or probabilities ``(rows, classes)``, by name, else the first output."""
    named = dict(outputs)  # type: ignore[call-overload]
    name = next((name for name in (LOGITS, PROBABILITIES) if name in named), next(iter(named), ""))
    values = np.asarray(named.get(name))
    if values.shape != (rows, classes):
        raise RuntimeFailedError(
            f"output {name!r} has shape {values.shape}, and {rows} images of {classes} classes "
            f"need {(rows, classes)}",
            remedy="Is it the model that --checkpoint and --labels describe?",
        )
    return values


def _ranked(values: np.ndarray) -> np.ndarray:
    """Classes by falling score, the lower number first where scores are equal."""
    best = np.argsort(-values.astype(np.float64), axis=1, kind="stable")[:, :BEST]
    best[~np.isfinite(values).all(axis=1)] = NOT_A_NUMBER
    return best.astype(np.int32)


class _Heap:
    """The groups that nobody has taken yet, and what came of those that other processes took."""

    def __init__(self, workload: Workload, advance: Callable[[], None]) -> None:
        self._workload = replace(workload, groups=())
        self._groups = list(reversed(workload.groups))
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
            if number == WARM:  # the group just done shows the pace
                pay((perf_counter() - begun) * self.left)
            if self._failure is not None:
                raise self._failure

    def worked_off_by(self, worker: Worker) -> None:
        """Hand ``worker`` a group at a time; in a thread of its own."""
        try:
            worker.submit(_enter, self._workload).result()
            while (group := self._take(elsewhere=True)) is not None:
                part = worker.submit(_answer, group).result()
                self.done()
                with self._changed:
                    self._parts.append(part)
                    self._changed.notify()
        except BaseException as error:  # raised where the answers are put together
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


# What a worker does. It keeps the sessions of its workload open until it ends.

_entered: list[tuple[Workload, tuple[Entrant, ...]]] = []
_sessions = ExitStack()


def _enter(workload: Workload) -> None:
    _sessions.close()
    _entered[:] = [(workload, _sessions.enter_context(entered(workload)))]


def _answer(group: Group) -> Answers:
    ((workload, entrants),) = _entered
    return classified(workload, entrants, (group,))
