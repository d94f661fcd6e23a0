"""The unit of work: some images through some sessions, to the classes that these answer.

A :class:`Task` is plain data and :func:`answer` a pure function of it and of the files it names,
so that any process may do any part. A group of images is always run in the same batches, whoever
runs it: how the groups are dealt out cannot change an answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np

from levit_export.checks import reference
from levit_export.checks.execution import Row
from levit_export.checks.reference import ModelChoice
from levit_export.core.errors import ArtifactError, CheckpointError, RuntimeFailedError
from levit_export.core.values import PROBABILITIES, Preprocessing, Session
from levit_export.formats import target
from levit_export.inputs import preprocessing
from levit_export.inputs.images import ImageSet, Unreadable, batches
from levit_export.models.zoo import LOGITS

BEST = 5
"""Classes of an answer that are kept, best first."""

NOT_A_NUMBER = -1
"""The class of an answer that holds NaN or infinity: that of no image."""


@dataclass(frozen=True)
class Weights:
    """The model that is the reference, and the hash by which another process knows it again."""

    choice: ModelChoice
    sha256: str


@dataclass(frozen=True)
class Task:
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
class Answer:
    """The best classes ``(n, min(5, classes))`` int32 of the readable images, or a failure."""

    best: np.ndarray
    runtime: str = ""
    failure: str = ""


@dataclass(frozen=True)
class Answers:
    """What came of a task: ``rows`` are the places of the images that could be read.

    ``answers`` are those of the task's rows in their order, then the reference's where there is
    one.
    """

    rows: np.ndarray
    answers: tuple[Answer, ...]
    unreadable: tuple[tuple[int, Unreadable], ...]


@dataclass(frozen=True)
class Entrant:
    """A session that takes part in a task, or why it could not be opened."""

    session: Session | None
    failure: str = ""


@contextmanager
def entered(task: Task) -> Iterator[tuple[Entrant, ...]]:
    """Open what ``task`` asks: its rows in their order, then the reference where there is one.

    Raises ``ArtifactError`` for a file that does not fit the recipe and ``CheckpointError`` where
    the reference is another than when the evaluation began.
    """
    openings = [_opening(row) for row in task.rows]
    if task.reference is not None:
        openings.append(_eager(task.reference))
    with ExitStack() as stack:
        yield tuple(_entrant(stack, opening, task) for opening in openings)


def answer(task: Task, advance: Callable[[], None] = lambda: None) -> Answers:
    """Classify the images of ``task``; ``advance`` is called after each group.

    Raises what :func:`entered` and :func:`classified` raise.
    """
    with entered(task) as entrants:
        return classified(task, entrants, task.groups, advance)


def classified(
    task: Task,
    entrants: Sequence[Entrant],
    groups: Iterable[Sequence[int]],
    advance: Callable[[], None] = lambda: None,
) -> Answers:
    """The answers of ``entrants`` to ``groups``, each taken when the one before it is done.

    A runtime that fails is said in its answer. Raises ``DataError`` for a damaged store.
    """
    rows: list[int] = []
    unreadable: list[tuple[int, Unreadable]] = []
    ballots = [_Ballot(entrant, task) for entrant in entrants]
    for batch in batches(task.images, task.recipe, groups):
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
    order = np.argsort(rows)
    answers = tuple(
        Answer(
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


Opening = Callable[[ExitStack, int], Session]


def _opening(row: Row) -> Opening:
    def enter(stack: ExitStack, threads: int) -> Session:
        del threads  # which the row's own options say
        return stack.enter_context(target(row.artifact.format).open(row.artifact, row.run))

    return enter


def _eager(weights: Weights) -> Opening:
    def enter(stack: ExitStack, threads: int) -> Session:
        del stack
        checkpoint = reference.load(weights.choice)
        if checkpoint.sha256 != weights.sha256:
            raise CheckpointError(
                f"the checkpoint has SHA-256 {checkpoint.sha256[:12]}… here and "
                f"{weights.sha256[:12]}… where the evaluation began",
                remedy="Do not change it meanwhile.",
            )
        return reference.eager_session(checkpoint, threads=threads)

    return enter


def _entrant(stack: ExitStack, opening: Opening, task: Task) -> Entrant:
    try:
        session = opening(stack, task.threads)
    except RuntimeFailedError as error:
        return Entrant(None, str(error))
    _refuse_misfit(session, task)
    return Entrant(session)


class _Ballot:
    """What one entrant has answered so far."""

    def __init__(self, entrant: Entrant, task: Task) -> None:
        self._session = entrant.session
        self._failure = entrant.failure
        self._task = task
        self._best = [np.empty((0, min(BEST, task.classes)), np.int32)]

    def see(self, inputs: np.ndarray) -> None:
        """Classify one group."""
        if self._session is None or self._failure:
            return
        try:
            self._best.append(_best(self._session, inputs, self._task))
        except RuntimeFailedError as error:
            self._failure = str(error)

    def answer(self) -> Answer:
        """Everything seen, or the reason why not."""
        best = self._best[0] if self._failure else np.concatenate(self._best)
        return Answer(best, self._session.runtime if self._session else "", self._failure)


def _refuse_misfit(session: Session, task: Task) -> None:
    spec = session.signature.inputs[0]
    size = task.recipe.crop
    if (spec.dtype, spec.shape[1:]) not in (("float32", (3, *size)), ("uint8", (*size, 3))):
        raise ArtifactError(
            f"the model takes {spec.dtype} {spec.shape}, and its recipe gives float32 "
            f"{(3, *size)} or uint8 {(*size, 3)}",
            remedy="Give the --checkpoint and --imgsz that it was exported with.",
        )


def _best(session: Session, inputs: np.ndarray, task: Task) -> np.ndarray:
    """The best classes of each of ``inputs``; a fixed batch is filled up with the last image."""
    spec = session.signature.inputs[0]
    size = session.signature.batch or task.batch
    if spec.dtype == "uint8":  # the model normalises by itself
        inputs = preprocessing.pixels_of(task.recipe, inputs)
    pieces = [np.empty((0, min(BEST, task.classes)), np.int32)]
    for start in range(0, len(inputs), size):
        piece = inputs[start : start + size]
        missing = size - len(piece) if session.signature.batch else 0
        filled = np.concatenate([piece, np.repeat(piece[-1:], missing, axis=0)])
        values = _scores(session.run({spec.name: filled}), len(filled), task.classes)
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
