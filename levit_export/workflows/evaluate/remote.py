"""The groups of an evaluation on a Dask cluster, with the answers that this process would give.

Artifacts and a checkpoint go as parcels, images in loads; see ``cluster`` and ``carried``. A
worker keeps the sessions of the last artifacts that it was asked about.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from levit_export.core.values import Artifact
from levit_export.inputs.images import ImageSet
from levit_export.workflows.cluster import (
    Call,
    Cluster,
    Parcel,
    checkpoint_files,
    connected,
    identity,
    parcel,
)
from levit_export.workflows.evaluate.packed_images import Carried, Load, loads
from levit_export.workflows.evaluate.predict import (
    Answers,
    Entrant,
    Task,
    Weights,
    classified,
    entered,
    merge,
)

GROUPS_EACH = 2
"""Groups in a load: enough that sending does not count, few enough that nobody waits long."""


@dataclass(frozen=True)
class Setup:
    """A task but for its images: the same for all of its loads.

    ``sha256`` is of everything in it that can change an answer. ``names`` are the paths of the
    rows' artifacts, then of the checkpoint where there is one, each below a parcel's folder.
    """

    task: Task
    names: tuple[str, ...]
    sha256: str


def run(task: Task, scheduler: str, advance: Callable[[], None] = lambda: None) -> Answers:
    """The answers to ``task``, worked out by the workers of the Dask cluster at ``scheduler``.

    Raises what ``cluster.connected`` and ``answers.answer`` raise.
    """
    setup, parcels = _packed(task)
    with connected(scheduler) as cluster:
        try:
            return _collected(cluster, setup, parcels, task, advance)
        finally:
            cluster.everywhere(forget)


def _collected(
    cluster: Cluster,
    setup: Setup,
    parcels: tuple[Parcel, ...],
    task: Task,
    advance: Callable[[], None],
) -> Answers:
    sent: dict[str, Load] = {}

    def calls() -> Iterator[Call]:
        for load in loads(task.images, task.groups, GROUPS_EACH):
            key = f"answer-{setup.sha256}-{load.sha256}"
            sent[key] = replace(load, images=replace(load.images, store=Carried(())))
            yield Call(key, answer, (setup, load), parcels)

    results: dict[str, Answers] = {}
    with closing(cluster.run(calls())) as outcomes:
        for outcome in outcomes:
            if outcome.error is not None:
                raise outcome.error
            results[outcome.call.key] = outcome.result
            for _ in sent[outcome.call.key].groups:
                advance()
    return merge([_placed(results[key], load) for key, load in sent.items()])


def _placed(answers: Answers, load: Load) -> Answers:
    """``answers`` with the places that the images of ``load`` have in the whole set."""
    places = np.array(load.places, np.int64)
    found = tuple((load.places[row], why) for row, why in answers.unreadable)
    return replace(answers, rows=places[answers.rows], unreadable=(*load.unreadable, *found))


def _packed(task: Task) -> tuple[Setup, tuple[Parcel, ...]]:
    """A task without its images, and the files that it names as parcels."""
    parcels = [parcel(_artifact_files(row.artifact)) for row in task.rows]
    names = [row.artifact.path.name for row in task.rows]
    rows = [
        replace(row, artifact=replace(row.artifact, path=Path(name)))
        for row, name in zip(task.rows, names, strict=True)
    ]
    weights = task.reference
    if weights is not None and (path := weights.choice.checkpoint) is not None:
        parcels.append(parcel(checkpoint_files(path)))
        names.append(path.absolute().name)
        weights = Weights(replace(weights.choice, checkpoint=Path(names[-1])), weights.sha256)
    nothing = ImageSet("", (), Carried(()), "")
    bare = replace(task, images=nothing, rows=tuple(rows), reference=weights, groups=())
    addresses = [each.sha256 for each in parcels]
    text = repr((addresses, bare, sorted(identity().items())))
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    return Setup(bare, tuple(names), sha256), tuple(parcels)


def _artifact_files(artifact: Artifact) -> dict[str, Path]:
    above = artifact.path.parent
    return {path.relative_to(above).as_posix(): path for path in artifact.files}


_LOCK = threading.Lock()
_HELD: dict[str, tuple[ExitStack, tuple[Entrant, ...]]] = {}
"""In a worker: the sessions of the last setup, by its digest."""


def answer(setup: Setup, load: Load, *folders: Path) -> Answers:
    """The answers to one load; runs in a worker, one at a time whatever its threads.

    PyTorch's thread count is the process's, and not every runtime's session takes two callers.
    """
    with _LOCK:
        entrants = _sessions(setup, folders)
        return classified(replace(setup.task, images=load.images), entrants, load.groups)


def _sessions(setup: Setup, folders: Sequence[Path]) -> tuple[Entrant, ...]:
    if setup.sha256 not in _HELD:
        _close_all()
        with ExitStack() as stack:
            entrants = stack.enter_context(entered(_placed_task(setup, folders)))
            _HELD[setup.sha256] = stack.pop_all(), entrants
    return _HELD[setup.sha256][1]


def _placed_task(setup: Setup, folders: Sequence[Path]) -> Task:
    """The task with the paths that its files have on this worker."""
    places = [folder / name for folder, name in zip(folders, setup.names, strict=True)]
    rows = [
        replace(row, artifact=replace(row.artifact, path=place))
        for row, place in zip(setup.task.rows, places, strict=False)
    ]
    weights = setup.task.reference
    if weights is not None and weights.choice.checkpoint is not None:
        weights = Weights(replace(weights.choice, checkpoint=places[-1]), weights.sha256)
    return replace(setup.task, rows=tuple(rows), reference=weights)


def forget() -> None:
    """Close a worker's sessions, unless somebody is using them."""
    if _LOCK.acquire(blocking=False):
        try:
            _close_all()
        finally:
            _LOCK.release()


def _close_all() -> None:
    while _HELD:
        _HELD.popitem()[1][0].close()
