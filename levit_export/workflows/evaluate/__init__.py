"""Accuracy of artifacts on a user's images, and agreement with PyTorch on the same images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from levit_export.checks import execution, parity
from levit_export.checks.execution import Row
from levit_export.checks.results import Accuracy, ArtifactReport
from levit_export.core.errors import ArtifactError, MissingDependencyError, UsageError
from levit_export.core.machine import usable_cores
from levit_export.core.packages import needs
from levit_export.core.processes import Worker
from levit_export.core.progress import Progress, Silent
from levit_export.core.values import (
    ModelInfo,
    Preprocessing,
    RunOptions,
    Task,
    Verdict,
    overall,
)
from levit_export.formats import target
from levit_export.inputs.images import ImageSet, open_images, refuse_too_many
from levit_export.models import loading
from levit_export.models.loading import ModelChoice
from levit_export.reports.report import Report
from levit_export.storage import export_directory
from levit_export.storage.located import Located, locate
from levit_export.workflows.check import build_report
from levit_export.workflows.cluster import both_said
from levit_export.workflows.evaluate import on_cluster, predict, score
from levit_export.workflows.evaluate.predict import Answers, Weights, Workload

if TYPE_CHECKING:
    from levit_export.models.checkpoints import Checkpoint

__all__ = ["EvaluateRequest", "evaluate"]

WORTH_A_WORKER = 8.0
"""Seconds of work left to one process for which one more is started.

Measured: a worker spends 2.1 s of processor time until it takes its first group of the bundled
model's images, 3.5 s of LeViT-256's. With R seconds left and S to start, a second one saves
(R - S) / 2; at 8 s that is more than a quarter. A number of images would not do: they take 64 ms
each with LeViT-256 (ONNX and PyTorch, JPEGs), and a small part of that with the bundled model.
"""

MOST_WORKERS = 8
"""Processes that are started unasked: each holds its own sessions, and perhaps PyTorch."""

NO_REFERENCE = (
    "agreement was not looked at: it is not known which checkpoint this is an export of; "
    "add --checkpoint FILE"
)
NO_TORCH = "agreement was not looked at: PyTorch is not installed"
OTHER_RECIPE = "images go through this recipe: {}; not through {}: {}"


@dataclass(frozen=True)
class EvaluateRequest:
    """What ``evaluate`` may be asked for.

    ``data`` is what ``images.open_images`` takes. ``limit`` takes that many images, evenly spread.
    ``workers`` None lets the work and the cores decide; ``scheduler`` is the address of a Dask
    cluster, whose workers do the work instead. ``max_drop`` is in points.
    """

    paths: tuple[Path, ...]
    data: str | Path
    choice: ModelChoice = field(default_factory=ModelChoice)
    run: RunOptions = field(default_factory=RunOptions)
    limit: int | None = None
    batch: int = 16
    workers: int | None = None
    scheduler: str | None = None
    max_drop: float | None = None


@dataclass(frozen=True)
class _Result:
    """What came of one row."""

    verdict: Verdict
    reason: str = ""
    accuracy: Accuracy | None = None


def evaluate(request: EvaluateRequest, progress: Progress | None = None) -> Report:
    """Classify the images by everything at ``paths``, and by the reference where it is known.

    An export directory's ``report.json`` is updated. Raises ``DataError`` for images that cannot
    be used and ``UsageError`` where nothing could be found out.
    """
    progress = progress or Silent()
    if request.scheduler is not None and request.workers is not None:
        raise both_said(request.workers)
    # Processes that were asked for start to import now, as far as there is a core for each.
    others = min((request.workers or 1) - 1, usable_cores())
    with predict.ready(others, () if request.choice.is_default else ("torch",)) as waiting:
        return _evaluated(request, progress, waiting)


def _evaluated(request: EvaluateRequest, progress: Progress, waiting: list[Worker]) -> Report:
    own_stages = 0 if request.choice.is_default else 1
    progress.plan(own_stages + 1)
    all_subjects = subjects(request.paths, request.choice, request.run, progress)
    different = dict.fromkeys(subject.shared for subject in all_subjects)
    progress.plan(own_stages + len(different))
    data = {
        subject.labels: open_images(request.data, labels=subject.labels)
        for subject in all_subjects
    }
    for subject in all_subjects:
        _refuse_pointless(subject, data[subject.labels], request)
    answers = partial(_answers, request, progress, waiting)
    results: dict[tuple[int, Row], _Result] = {}
    # Paths of one recipe and one reference go through the images together, which are decoded once.
    for shared in different:
        members = [(i, s) for i, s in enumerate(all_subjects) if s.shared == shared]
        rows = [(i, row) for i, subject in members for row in subject.rows]
        images = data[members[0][1].labels].limited(request.limit)
        found = _evaluate([row for _, row in rows], members[0][1], images, request, answers)
        results |= dict(zip(rows, found, strict=True))
    reports = [
        each
        for i, subject in enumerate(all_subjects)
        for each in _described(
            subject,
            [results[i, row] for row in subject.rows],
            alone=len(all_subjects) == 1,
        )
    ]
    verdict = overall(result.verdict for result in results.values())
    return build_report(reports, [subject.found for subject in all_subjects], verdict=verdict)


@dataclass(frozen=True)
class EvaluationSubject:
    """One path: its artifacts and ways to execute them, its recipe, classes and reference."""

    found: Located
    rows: tuple[Row, ...]
    recipe: Preprocessing
    labels: tuple[str, ...]
    reference: Weights | None
    remarks: tuple[str, ...]

    @property
    def shared(self) -> tuple[object, ...]:
        """Subjects of which this is equal see the same inputs and one reference."""
        sha256 = None if self.reference is None else self.reference.sha256
        return self.recipe, self.labels, sha256, self.remarks


def subjects(
    paths: Sequence[Path], choice: ModelChoice, run: RunOptions, progress: Progress
) -> list[EvaluationSubject]:
    """Everything at ``paths``; a bare artifact needs ``choice``, a directory has its own recipe.

    Raises ``UsageError`` where it does not fit together, ``ArtifactError`` for a directory that
    was altered.
    """
    found = [locate(path) for path in dict.fromkeys(paths)]
    checkpoint = None
    if not choice.is_default:
        if not (torch := needs("torch")).ok:
            raise MissingDependencyError(
                f"--checkpoint and --model need PyTorch: {torch.reason}", remedy=torch.fix
            )
        progress.stage("reading the checkpoint")
        checkpoint = loading.load(choice, progress)
    if checkpoint is not None:
        _refuse_task(checkpoint.task, checkpoint.source)
    return [_subject(each, choice, checkpoint, run) for each in found]


def _refuse_task(task: Task, of: object) -> None:
    """Raise for models whose outputs are not one class of several, which is what is counted."""
    if task != "single-label":
        raise UsageError(
            f"evaluate counts how often the class with the largest output is right, and the task "
            f"of {of} is {task}",
            remedy="Judge its outputs by a measure of your own; check holds them against PyTorch.",
        )


def _subject(
    each: Located, choice: ModelChoice, checkpoint: Checkpoint | None, run: RunOptions
) -> EvaluationSubject:
    rows = execution.rows(each.artifacts, run, also_by_default=True)
    if each.manifest is None:
        if checkpoint is None:
            raise UsageError(
                f"{each.artifacts[0].path} does not say which recipe and classes it has",
                remedy="Add --checkpoint FILE (or --model levit_digits for the bundled model).",
            )
        own = Weights(choice, checkpoint.sha256)
        return EvaluationSubject(each, rows, checkpoint.preprocessing, checkpoint.labels, own, ())
    if damage := export_directory.damage(each.folder, each.manifest):
        raise ArtifactError(
            f"{each.folder} was altered after it was written: {'; '.join(damage[:3])}",
            remedy="Copy it again, or export anew.",
        )
    info = each.manifest.model
    _refuse_task(info.task, each.folder)
    labels = choice.labels or info.labels
    if len(labels) != len(info.labels):
        raise UsageError(
            f"{len(labels)} labels for the {len(info.labels)} classes of {each.folder}",
            remedy="Give one label on each line, in the order of the classes.",
        )
    weights, remarks = _reference(info, choice, checkpoint, each.folder)
    recipe = choice.preprocessing or info.preprocessing
    loaded = info.preprocessing if checkpoint is None else checkpoint.preprocessing
    for other, whose in ((info.preprocessing, "the export's"), (loaded, "the checkpoint's own")):
        if other != recipe:
            remarks += (OTHER_RECIPE.format(recipe.in_words(), whose, other.in_words()),)
    return EvaluationSubject(each, rows, recipe, labels, weights, remarks)


def _reference(
    info: ModelInfo, choice: ModelChoice, checkpoint: Checkpoint | None, folder: Path
) -> tuple[Weights | None, tuple[str, ...]]:
    """What a directory is held against: the model that was named, else the bundled one."""
    if checkpoint is None:
        if info.checkpoint_sha256 != loading.bundled_sha256():
            return None, (NO_REFERENCE,)
        if not needs("torch").ok:
            return None, (NO_TORCH,)
        return Weights(ModelChoice(), info.checkpoint_sha256), ()
    if checkpoint.config.classes != len(info.labels):
        raise UsageError(
            f"the checkpoint has {checkpoint.config.classes} classes, the export in {folder} "
            f"{len(info.labels)}",
            remedy="Give the checkpoint that was exported.",
        )
    if checkpoint.preprocessing.crop != info.preprocessing.crop:
        ours, theirs = checkpoint.preprocessing.crop, info.preprocessing.crop
        raise UsageError(
            f"the checkpoint takes {ours[0]} x {ours[1]} px (height x width), the export in "
            f"{folder} {theirs[0]} x {theirs[1]}",
            remedy="Give the --imgsz that it was exported with.",
        )
    return Weights(choice, checkpoint.sha256), ()


def _refuse_pointless(
    subject: EvaluationSubject, images: ImageSet, request: EvaluateRequest
) -> None:
    if subject.reference is not None:
        return
    where = subject.found.folder
    if request.max_drop is not None:
        raise UsageError(
            f"--max-drop {request.max_drop:g} compares with PyTorch's answers, and for {where} "
            f"there are none: {'; '.join(subject.remarks)}",
            remedy="Give the checkpoint, where PyTorch is installed.",
        )
    if not images.labelled:
        raise UsageError(
            f"nothing can be found out about {where}: the classes of {images.source} are not "
            f"known, and {'; '.join(subject.remarks)}",
            remedy="Give labelled images (a folder for each class), or the checkpoint.",
        )


def _evaluate(
    rows: Sequence[Row],
    subject: EvaluationSubject,
    images: ImageSet,
    request: EvaluateRequest,
    answers: Callable[[Workload], Answers],
) -> list[_Result]:
    """A result for each of ``rows``, which all go with ``subject``'s recipe and reference."""
    runnable, reasons = [], {}
    for row in rows:
        available = target(row.artifact.format).can_run()
        if available.ok:
            runnable.append(row)
        else:
            reasons[row] = f"{available.reason}: {available.fix}"
    if not runnable:
        return [_Result("not-run", reasons[row]) for row in rows]
    # Groups are as large as the largest batch, so that none is cut short in the middle.
    sizes = [row.artifact.signature.batch or request.batch for row in runnable]
    size, places = max(request.batch, *sizes), range(len(images))
    workload = Workload(
        images=images,
        recipe=subject.recipe,
        classes=len(subject.labels),
        rows=tuple(runnable),
        reference=subject.reference,
        groups=tuple(tuple(places[start : start + size]) for start in places[::size]),
        batch=request.batch,
        threads=request.run.threads,
    )
    found = answers(workload)
    refuse_too_many([each for _, each in found.unreadable], len(images), images.source)
    judged = dict(zip(runnable, _judged(found, workload, subject, request), strict=True))
    return [judged[row] if row in judged else _Result("not-run", reasons[row]) for row in rows]


def _answers(
    request: EvaluateRequest, progress: Progress, waiting: list[Worker], workload: Workload
) -> Answers:
    """The answers to ``workload``, which are the same wherever they are worked out."""
    progress.stage(f"evaluating on {len(workload.images)} images")
    progress.steps(len(workload.groups))
    if request.scheduler is not None:
        return on_cluster.run(workload, request.scheduler, progress)
    most = min(MOST_WORKERS, max(1, usable_cores() // request.run.threads))
    return predict.run(
        workload,
        request.workers,
        progress,
        most=most,
        worth_s=WORTH_A_WORKER,
        waiting=waiting,
    )


def _judged(
    answers: Answers, workload: Workload, subject: EvaluationSubject, request: EvaluateRequest
) -> list[_Result]:
    expected = answers.answers[-1] if workload.reference is not None else None
    score.refuse_broken(expected)
    results = []
    for index in range(len(workload.rows)):
        answer = answers.answers[index]
        if answer.failure:
            results.append(_Result("not-run", answer.failure))
            continue
        accuracy = score.judge(
            answers,
            index,
            workload.images,
            classes=workload.classes,
            expected=expected,
            max_drop=request.max_drop,
            remarks=subject.remarks,
        )
        results.append(_Result(*score.verdict(answer, accuracy), accuracy))
    return results


def _described(
    subject: EvaluationSubject, results: Sequence[_Result], *, alone: bool
) -> list[ArtifactReport]:
    """What was found out about each row of a subject, written into its directory as well."""
    found = subject.found
    unwritten = ""
    if found.manifest is not None:
        by_path: dict[str, list[Accuracy | None]] = {}
        for row, result in zip(subject.rows, results, strict=True):
            path = execution.shown_path(row.artifact, found.folder)
            by_path.setdefault(path, []).append(result.accuracy)
        unwritten = score.record(found.folder, by_path)
    reports = []
    for row, result in zip(subject.rows, results, strict=True):
        skipped = parity.NOT_ASKED
        described = execution.describe(
            row, found.folder if alone else None, skipped, result.accuracy, None
        )
        notes = [*described.notes, unwritten]
        if result.verdict == "not-run":
            notes.append(f"not evaluated: {result.reason}")
        else:
            notes += [result.reason, *target(row.artifact.format).remarks(row.artifact, row.run)]
        reports.append(replace(described, notes=tuple(filter(None, notes))))
    return reports
