"""The unit of a sweep: one model in one format and precision, exported, checked, evaluated.

A :class:`Cell` is plain data, and its :attr:`Cell.key` a digest of everything that determines its
result, so that a result can be found again and no cell is done twice. A :class:`CellStore` keeps
finished cells on disk, each in a folder that is called by its key and written whole.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from levit_export.checks.results import ArtifactReport
from levit_export.checks.timing import TimingPlan
from levit_export.core import files, hashing, machine, serialisation
from levit_export.core.errors import DataError, LevitExportError
from levit_export.core.hashing import sha256_of
from levit_export.core.values import (
    ExportOptions,
    ModelInfo,
    RunOptions,
    Verdict,
    files_of,
    overall,
)
from levit_export.models.loading import ModelChoice
from levit_export.reports import report
from levit_export.storage import export_directory
from levit_export.storage.export_directory import MANIFEST
from levit_export.workflows.cluster import identity

if TYPE_CHECKING:
    from levit_export.workflows import export

EXPORT = "export"
DIGITS = "digits"
SCHEMA = 1
"""Of the file ``result.json`` in a store."""

RESULT = "result.json"
log = logging.getLogger("levit_export")


@dataclass(frozen=True)
class Settings:
    """What cells share. ``batch`` None leaves it open; ``max_drop`` is in points."""

    batch: int | None = 1
    opset: int = 18
    seed: int = 0
    threads: int = 1
    limit: int | None = None
    calibration_images: int = 200
    max_drop: float | None = None
    warmup: int = 30
    iterations: int = 50


@dataclass(frozen=True)
class Images:
    """A folder or file of images, or ``digits``, and the digest of what it holds."""

    path: str
    sha256: str


@dataclass(frozen=True)
class Cell:
    """One cell. ``weights`` is what identifies the tensors that ``choice`` stands for.

    ``data`` are the images for accuracy, ``calibration`` those for ``int8``. ``timed`` says
    whether latency is measured as well, which only makes sense where nothing runs beside it.
    """

    label: str
    choice: ModelChoice
    weights: str
    format: str
    precision: str
    settings: Settings = field(default_factory=Settings)
    data: Images | None = None
    calibration: Images | None = None
    timed: bool = False

    @property
    def id(self) -> str:
        """``onnx-fp32``."""
        return f"{self.format}-{self.precision}"

    @property
    def key(self) -> str:
        """SHA-256 of everything that determines the result; paths and labels do not."""
        # ``weights`` says what lies at the path of the checkpoint, wherever that is.
        choice = replace(self.choice, checkpoint=None, offline=False)
        parts: dict[str, object] = {
            "weights": self.weights,
            "choice": choice,
            "artifact": self.id,
            "settings": self.settings,
            "data": self.data and self.data.sha256,
            "calibration": self.calibration and self.calibration.sha256,
            "identity": sorted(identity().items()),
        }
        if self.timed:  # a latency is one of this machine
            here = machine.describe()
            parts["timed"] = here.processor, here.cores
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def as_good(self) -> tuple[Cell, ...]:
        """This cell, then others whose result is as good: one that was timed besides."""
        return (self,) if self.timed else (self, replace(self, timed=True))


@dataclass(frozen=True)
class Result:
    """What came of a cell.

    ``artifact`` and ``model`` are None where there is no artifact. ``folder`` is the export below
    the cell's own folder.
    """

    verdict: Verdict
    reason: str = ""
    artifact: ArtifactReport | None = None
    model: ModelInfo | None = None
    folder: str = ""


def failure(error: LevitExportError) -> Result:
    """The result of a cell that ended with an error: its own row, and nobody else's."""
    return Result("fail" if error.exit_status == 1 else "not-run", str(error))


def weights_identity(choice: ModelChoice) -> str:
    """What identifies the tensors of ``choice``: the digest of files, a seed, a published name."""
    from levit_export.models import published

    if choice.checkpoint is not None:
        return content_digest(choice.checkpoint)
    if choice.pretrained:
        return repr(published.parse(choice.model or ""))
    if choice.random_seed is not None:
        return f"random {choice.random_seed}"
    return "bundled"


def images_at(path: str) -> Images:
    """The images at ``path``, by what it holds now. Raises ``DataError`` where it is not there.

    ``digits`` are the bundled ones, whatever the current folder holds.
    """
    if path == DIGITS:
        return Images(path, DIGITS)
    return Images(path, content_digest(Path(path)))


@cache
def content_digest(path: Path) -> str:
    """Digest of a file's content, or of the names and contents of all files below a folder.

    Computed once in a process. Raises ``DataError``.
    """
    try:
        if not path.is_dir():
            return sha256_of(path)
        digest = hashlib.sha256()
        for file in sorted(each for each in path.rglob("*") if each.is_file()):
            digest.update(f"{sha256_of(file)}  {file.relative_to(path).as_posix()}\n".encode())
        return digest.hexdigest()
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror or error}", remedy="Check the path."
        ) from error


@cache
def _shared() -> export.Shared:
    """What the cells of one model share that one process does, one after the other."""
    from levit_export.workflows import export

    return export.Shared()


def perform(cell: Cell, folder: Path) -> Result:
    """Do the work of ``cell`` in this process, into ``folder``.

    Raises what ``export.export`` and ``evaluate.evaluate`` raise.
    """
    from levit_export.workflows import export

    for images in filter(None, (cell.data, cell.calibration)):
        if images_at(images.path).sha256 != images.sha256:
            raise DataError(
                f"{images.path} holds other files here than where the sweep began",
                remedy="On a cluster, images must lie under the same path on every worker.",
            )
    calibration = None  # the bundled model brings its own images
    if cell.calibration is not None and cell.calibration.path != DIGITS:
        calibration = Path(cell.calibration.path)
    settings = cell.settings
    run = RunOptions(threads=settings.threads)
    found = export.export(
        export.ExportRequest(
            choice=cell.choice,
            formats=(cell.format,),
            precisions={cell.format: (cell.precision,)},
            options=ExportOptions(batch=settings.batch, opset=settings.opset),
            seed=settings.seed,
            accuracy=cell.data is None,  # else it is counted on the cell's images below
            bench=cell.timed,
            run=run,
            plan=TimingPlan(warmup=settings.warmup, iterations=settings.iterations),
            data=calibration,
            calibration_images=settings.calibration_images,
            output=folder / EXPORT,
        ),
        shared=_shared(),
    )
    place = found.output or folder / EXPORT
    (artifact,) = found.artifacts
    result = Result(found.verdict, artifact.parity.reason, artifact, found.model, place.name)
    return result if cell.data is None else _evaluated(cell, result, artifact, place)


def _evaluated(cell: Cell, result: Result, artifact: ArtifactReport, place: Path) -> Result:
    """``result`` with the accuracy on the cell's images; a gate that fails fails the cell."""
    from levit_export.workflows.evaluate import EvaluateRequest, evaluate

    assert cell.data is not None  # noqa: S101 - for the type checker
    found = evaluate(
        EvaluateRequest(
            (place,),
            cell.data.path,
            choice=cell.choice,
            run=RunOptions(threads=cell.settings.threads),
            limit=cell.settings.limit,
            workers=1,
            max_drop=cell.settings.max_drop,
        )
    )
    evaluated = found.artifacts[0]
    reasons = [result.reason, *evaluated.notes] if found.verdict != "pass" else [result.reason]
    return replace(
        result,
        verdict=overall((result.verdict, found.verdict)),
        reason="; ".join(filter(None, reasons)),
        artifact=replace(artifact, accuracy=evaluated.accuracy),
    )


@dataclass(frozen=True)
class CellStore:
    """The folder ``root``: a folder for each finished cell. Several sweeps may share one."""

    root: Path

    def find(self, cell: Cell) -> tuple[Path, Result] | None:
        """The folder and the result of ``cell``, where it was done before.

        A stored verdict holds for the stored bytes alone: they are hashed before it is believed.
        """
        for each in cell.as_good():
            place = self.root / each.key
            if place.is_dir() and (result := _sound(place)) is not None:
                return place, result
        return None

    @contextmanager
    def staged(self) -> Iterator[Path]:
        """A new folder to fill; it disappears again. ``OSError`` becomes ``OutputError``."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with files.temporary_folder(self.root, f"{files.PARTIAL}{os.getpid()}-") as work:
                yield work
        except OSError as error:
            raise export_directory.unwritable(self.root, error) from error

    def commit(self, work: Path, cell: Cell, result: Result) -> Path:
        """Put a staged folder in its place in one step; what somebody else put there stays."""
        # What a reader of the store wants to know of a key.
        described = {"model": cell.label, "artifact": cell.id, "settings": asdict(cell.settings)}
        artifact = None if result.artifact is None else report.artifact_to_json(result.artifact)
        content = {"schema": SCHEMA, "cell": described, **vars(result), "artifact": artifact}
        files.write(work / RESULT, serialisation.to_text(content))
        place = self.root / cell.key
        if place.is_dir() and _sound(place) is None:
            shutil.rmtree(place)
        work.chmod(0o755)  # temporary folders are their owner's alone
        try:
            os.rename(work, place)  # noqa: PTH104 - replaces no folder that holds something
        except OSError:
            if not place.is_dir():
                raise
        return place

    def tidy(self) -> None:
        """Remove what runs that were killed left behind."""
        for left in files.abandoned(self.root, files.PARTIAL):
            shutil.rmtree(left, ignore_errors=True)


def _sound(place: Path) -> Result | None:
    """The result of a finished cell, unless its files were changed since."""
    result = _read(place / RESULT)
    if result is None or result.artifact is None:
        return result
    folder = place / result.folder
    try:
        found = hashing.digest(files_of(folder / result.artifact.path)).sha256
        changed = [] if found == result.artifact.sha256 else [result.artifact.path]
        if (folder / MANIFEST).exists():
            changed += export_directory.damage(folder, export_directory.read_manifest(folder))
    except (OSError, LevitExportError) as error:
        changed = [str(error)]
    if not changed:
        return result
    log.warning(
        "%s was altered after it was checked, and is done again: %s",
        folder,
        "; ".join(changed[:3]),
    )
    return None


def _read(path: Path) -> Result | None:
    """A stored result; one that cannot be read counts as not there, and is done again."""
    try:
        content = serialisation.parse(files.read_text(path), SCHEMA)
        return serialisation.structure(content, Result, strict=False, hooks=report.HOOKS)
    except serialisation.OtherSchemaError:
        return None
    except (OSError, ValueError) as error:
        log.warning("%s cannot be read and is done again: %s", path, error)
        return None
