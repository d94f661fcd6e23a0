"""How the work of a run is shared: this process, and the helper where there is one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from levit_export import helper, machine, reference
from levit_export.checking import Reference
from levit_export.core import Artifact, Calibration
from levit_export.helper import Helper, Job
from levit_export.precisions import AUTO
from levit_export.progress import Progress
from levit_export.reference import Overrides

if TYPE_CHECKING:
    from levit_export.checkpoints import Checkpoint
    from levit_export.preparation import Forms

FEW_IMAGES = 100
"""Fewer images than this do not show a quantiser the range of a network's values."""


@dataclass(frozen=True)
class Question:
    """What the reference of a run follows from, but for the jobs."""

    checkpoint: Checkpoint
    calibration: Calibration | None
    seed: int
    overrides: Overrides

    def answer(self, jobs: Sequence[Job], threads: int) -> Callable[[], Reference]:
        """The call, for this process or another, that computes what artifacts are held against."""
        return partial(
            reference.answers,
            self.checkpoint,
            {job.options.precision for job in jobs},
            seed=self.seed,
            threads=threads,
            overrides=self.overrides,
            calibration=self.calibration,
            keep=_kept_in_all(jobs),
        )


def other_process(jobs: Sequence[Job], stack: ExitStack) -> Helper | None:
    """A helper where there is work for it and a core."""
    if len(jobs) < 2 or machine.usable_cores() < 2:
        return None
    other = stack.enter_context(helper.helper())
    other.get_ready(("torch",))
    return other


def own_threads(other: Helper | None) -> int:
    """How many threads PyTorch takes in each process, so that none waits for another's core.

    On two cores of which one is taken, proofs on two threads last twice as long as on one.
    """
    cores = machine.usable_cores()
    return cores if other is None else cores // 2


def ask_early(other: Helper, jobs: Sequence[Job], question: Question) -> bool:
    """Let the helper compute the reference while this process proves, where it can already."""
    known = all(job.options.precision != AUTO for job in jobs)
    if known:
        other.ask(question.answer(jobs, own_threads(other)))
    for job in jobs[1:]:
        other.get_ready(helper.PACKAGES.get(job.format, ()))
    return known


def _kept_in_all(jobs: Sequence[Job]) -> dict[str, frozenset[str]]:
    """For each precision the blocks that all of its artifacts leave in float."""
    kept: dict[str, frozenset[str]] = {}
    for job in jobs:
        blocks = frozenset(job.options.keep)
        kept[job.options.precision] = kept.get(job.options.precision, blocks) & blocks
    return kept


def export_all(
    jobs: Sequence[Job],
    other: Helper | None,
    forms: Forms,
    folder: Path,
    progress: Progress,
) -> Iterator[Artifact]:
    """Each artifact when it is there: the first job's from here, the others from the helper.

    Without one all are made here.
    """
    for job in jobs if other is None else jobs[:1]:
        progress.stage(f"exporting {job.format}")
        made = helper.run(job, forms.of(job.format, job.options), folder)
        yield _with_calibration_note(made, jobs)
    if other is not None:
        progress.stage(f"exporting {', '.join(job.format for job in jobs[1:])}")
        for made in other.results():
            yield _with_calibration_note(made, jobs)


def _with_calibration_note(artifact: Artifact, jobs: Sequence[Job]) -> Artifact:
    """Where the ranges of an artifact's activations come from, and whether that is little."""
    used = {(job.format, job.options.precision): job.options.calibration for job in jobs}
    images = used[artifact.format, artifact.precision]
    if images is None:
        return artifact
    few = len(images.inputs) < FEW_IMAGES
    warning = f"; fewer than {FEW_IMAGES} images may not show the range of the values"
    note = f"calibrated on {images.source}{warning if few else ''}"
    return replace(artifact, notes=(*artifact.notes, note))


def checks_its_last(jobs: Sequence[Job], threads: int) -> bool:
    """Whether the helper is to check what it makes last, while this process checks the others.

    Both on ``threads`` threads.

    What a quantised artifact must hold is worked out from weights that are here.
    """
    from levit_export.targets import simulated

    cores = machine.usable_cores() // threads
    return cores > 1 and jobs[-1].options.precision not in simulated.BITS
