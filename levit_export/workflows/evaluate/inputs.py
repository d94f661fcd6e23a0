"""What is evaluated together: artifacts of one recipe and one set of classes, and a reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from levit_export.checks import execution, reference
from levit_export.checks.execution import Row
from levit_export.checks.reference import ModelChoice
from levit_export.core.errors import ArtifactError, MissingDependencyError, UsageError
from levit_export.core.packages import needs
from levit_export.core.progress import Progress
from levit_export.core.values import ModelInfo, Preprocessing, RunOptions, Task
from levit_export.storage import export_directory
from levit_export.storage.located import Located, locate
from levit_export.workflows.evaluate.predict import Weights

if TYPE_CHECKING:
    from levit_export.models.checkpoints import Checkpoint

NO_REFERENCE = (
    "agreement was not looked at: it is not known which checkpoint this is an export of; "
    "add --checkpoint FILE"
)
NO_TORCH = "agreement was not looked at: PyTorch is not installed"
OTHER_RECIPE = "images go through this recipe: {}; not through {}: {}"


@dataclass(frozen=True)
class Subject:
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
) -> list[Subject]:
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
        checkpoint = reference.load(choice, progress)
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
) -> Subject:
    rows = execution.rows(each.artifacts, run)
    if each.manifest is None:
        if checkpoint is None:
            raise UsageError(
                f"{each.artifacts[0].path} does not say which recipe and classes it has",
                remedy="Add --checkpoint FILE (or --model levit_digits for the bundled model).",
            )
        own = Weights(choice, checkpoint.sha256)
        return Subject(each, rows, checkpoint.preprocessing, checkpoint.labels, own, ())
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
    return Subject(each, rows, recipe, labels, weights, remarks)


def _reference(
    info: ModelInfo, choice: ModelChoice, checkpoint: Checkpoint | None, folder: Path
) -> tuple[Weights | None, tuple[str, ...]]:
    """What a directory is held against: the model that was named, else the bundled one."""
    if checkpoint is None:
        if info.checkpoint_sha256 != reference.bundled_sha256():
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
