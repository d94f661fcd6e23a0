"""The flow from a checkpoint to a checked, timed and written export directory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np

from levit_export.checks import execution, parity, reference
from levit_export.checks.execution import Reference, Row
from levit_export.checks.parity import ParityReport
from levit_export.checks.reference import Answered, ModelChoice, Overrides
from levit_export.checks.results import Accuracy
from levit_export.checks.timing import TimingPlan, TimingReport
from levit_export.core import files, machine, serialisation
from levit_export.core.constants import ROUNDED
from levit_export.core.errors import (
    DownloadError,
    MissingDependencyError,
    OutputError,
    UnknownNameError,
    UsageError,
)
from levit_export.core.packages import load_early, versions
from levit_export.core.progress import Progress, Silent
from levit_export.core.quiet import quiet
from levit_export.core.values import (
    CALIBRATED,
    Artifact,
    Calibration,
    Embedded,
    ExportOptions,
    Prepared,
    RunOptions,
    overall,
)
from levit_export.formats import Job, target
from levit_export.reports import report
from levit_export.reports.report import Report, SearchResult
from levit_export.storage import export_directory
from levit_export.storage.export_directory import ArtifactEntry, GoldenEntry, Manifest
from levit_export.workflows import explain, search
from levit_export.workflows.precisions import AUTO
from levit_export.workflows.search import Promise

if TYPE_CHECKING:
    from levit_export.checks.drift import DriftMap
    from levit_export.models.checkpoints import Checkpoint
    from levit_export.models.preparation import Forms

TOOLCHAIN = (
    "levit-export",
    "torch",
    "numpy",
    "onnx",
    "onnxsim",
    "onnxruntime",
    "openvino",
    "coremltools",
)
PACKAGES = {
    "onnx": ("onnx", "onnxruntime"),
    "openvino": ("openvino",),
    "coreml": ("coremltools",),
}
"""What an export of a format imports, early: while PyTorch computes in another thread."""

FEW_IMAGES = 100
"""Fewer images than this do not show a quantiser the range of a network's values."""

Made = TypeVar("Made")
BASELINE = "PyTorch eager"
TO_BE_READ = Calibration(np.empty((0, 3, 0, 0), np.float32), "to be read with the checkpoint")


@dataclass(frozen=True)
class ExportRequest:
    """Everything the ``export`` verb may be asked for.

    ``precisions`` are the artifacts to make of a format; one that is not named is made in its
    default precision. ``keep`` are the blocks that stay in a format's float precision. ``layouts``
    are what an earlier export had for a format and precision, in place of ``options.layout``.
    ``data`` are the images that ``int8`` is calibrated on and that ``auto`` keeps ``promise`` on.
    """

    choice: ModelChoice = field(default_factory=ModelChoice)
    formats: tuple[str, ...] = ("onnx", "openvino", "coreml")
    precisions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    options: ExportOptions = field(default_factory=ExportOptions)
    skip: tuple[str, ...] = ()
    seed: int = 0
    check: bool = True
    bench: bool = True
    run: RunOptions = field(default_factory=RunOptions)
    plan: TimingPlan = field(default_factory=TimingPlan)
    overrides: Overrides = field(default_factory=Overrides)
    data: Path | None = None
    calibration_images: int = 200
    keep: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    layouts: Mapping[tuple[str, str], str] = field(default_factory=dict)
    promise: Promise = field(default_factory=Promise)
    output: Path | None = None


def plan(request: ExportRequest) -> list[Job]:
    """The artifacts that a request stands for, each known to be possible here."""
    kinds = dict.fromkeys(target(name).name for name in request.formats)
    jobs = [
        _job(name, precision, request)
        for name in kinds
        for precision in request.precisions.get(name, target(name).precisions[:1])
    ]
    if idle := [name for name in request.precisions if name not in kinds]:
        raise UsageError(
            f"a precision was given for {idle[0]}, which is not exported",
            remedy=f"Add --format {idle[0]}, or leave the precision out.",
        )
    if not jobs:
        raise UsageError("no format was given", remedy="Leave out --format for all of them.")
    if request.options.classifier and "coreml" not in {job.format for job in jobs}:
        raise UsageError(
            "only a Core ML model can be a classifier",
            remedy="Add --format coreml, or leave out --classifier.",
        )
    if request.output is not None:
        _refuse_output(request.output)
    return jobs


def _refuse_output(output: Path) -> None:
    """Raise when the export, or its failure, could not be put there in the end."""
    here = Path.cwd()
    place = output.absolute()
    if place.resolve() in (here, *here.parents):
        raise OutputError(
            f"{output} is the current folder or holds it, and would be replaced",
            remedy="Give --output a folder of its own.",
        )
    export_directory.refuse_foreign(place)
    export_directory.refuse_foreign(failed(place))


def failed(output: Path) -> Path:
    """Where an export whose check failed is kept."""
    return output.with_name(output.name + ".failed")


def _job(name: str, precision: str, request: ExportRequest) -> Job:
    kind = target(name)
    if precision not in (*kind.precisions, AUTO):
        raise UsageError(
            f"{kind.name} cannot be exported as {precision}",
            remedy=f"It can be: {', '.join((*kind.precisions, AUTO))}.",
        )
    available = kind.can_export()
    if not available.ok:
        raise MissingDependencyError(
            f"{kind.name} cannot be exported here: {available.reason}", remedy=available.fix
        )
    layout = request.layouts.get((kind.name, precision), request.options.layout)
    options = replace(request.options, precision=precision, layout=layout)
    if precision in CALIBRATED and (request.data is not None or request.choice.is_digits):
        options = replace(options, calibration=TO_BE_READ)
    if precision == AUTO:
        search.order(kind.name, request.promise.prefer)
        kind.refuse(replace(options, precision=kind.precisions[0]))
        _refuse_no_images(request)
    else:
        kind.refuse(options)
    if kind.name == "coreml" and precision not in ROUNDED and "fuse_batchnorm" in request.skip:
        raise UsageError(
            f"coremltools folds BatchNorm into the weights that it compresses, so {precision} "
            "cannot be exported without fuse_batchnorm",
            remedy="Leave out --skip-pass fuse_batchnorm, or export --precision coreml=fp16.",
        )
    _refuse_embedded(options)
    kind.runs(request.run)
    return Job(kind.name, replace(options, keep=request.keep.get(kind.name, ())))


def _refuse_embedded(options: ExportOptions) -> None:
    """Raise where something is to be embedded that the precision does not go with."""
    if options.embedded.preprocessing and options.precision in (*CALIBRATED, AUTO):
        raise UsageError(
            f"{options.precision} is calibrated on normalised images, and with "
            "--embed-preprocessing the model takes raw ones",
            remedy="Leave one of them out, or use --precision w8.",
        )
    if options.embedded.softmax and options.precision == AUTO:
        raise UsageError(
            "--precision auto judges by logits, and with --softmax the model gives none",
            remedy="Search without --softmax, then export with --recipe and --softmax.",
        )


def _refuse_task(jobs: Sequence[Job], checkpoint: Checkpoint) -> None:
    """Raise where something is asked for that the model's outputs do not mean."""
    from levit_export.models import embedding

    task, outputs = checkpoint.task, checkpoint.config.classes
    for options in (job.options for job in jobs):
        if options.classifier:
            embedding.refuse_task(task, outputs, embedding.CLASSIFIER)
        if options.embedded.softmax:
            embedding.refuse_task(task, outputs, "--softmax")
        if options.precision == AUTO and task != "single-label":
            raise UsageError(
                f"--precision auto keeps a promise on top-1, and the model's task is {task}",
                remedy="Give the precision that is meant.",
            )


def _refuse_no_images(request: ExportRequest) -> None:
    if request.data is None and not request.choice.is_digits:
        raise UsageError(
            "--precision auto measures accuracy, and there are no images to measure it on",
            remedy="Give --data DIR with images of the kind that the model will see.",
        )


def describe(request: ExportRequest, jobs: Sequence[Job]) -> list[str]:
    """What :func:`export` would do, a sentence each."""
    choice = request.choice
    model = str(choice.checkpoint or choice.model or "the bundled digits model")
    size = request.options.batch
    batch = "any batch" if size is None else f"batch {size}"
    done = ["check parity"] * request.check + ["measure latency"] * request.bench
    return [
        f"load {model} and prepare it for {batch}",
        *(f"export {job.format} as {job.options.precision}" for job in jobs),
        *["with normalisation inside: raw RGB bytes in"] * request.options.embedded.preprocessing,
        *["with the activation of its task inside: probabilities out"]
        * request.options.embedded.softmax,
        f"then {' and '.join(done) or 'neither check nor time it'}",
        f"write {request.output or 'exported/<model>'}",
    ]


def planned(request: ExportRequest, jobs: Sequence[Job]) -> dict[str, Any]:
    """What :func:`export` would do, as plain data for programs."""
    choice = request.choice
    return {
        "model": choice.model,
        "checkpoint": None if choice.checkpoint is None else str(choice.checkpoint),
        "batch": request.options.batch,
        "artifacts": [{"format": job.format, "precision": job.options.precision} for job in jobs],
        "check": request.check,
        "bench": request.bench,
        "output": None if request.output is None else str(request.output),
    }


def rehearse(request: ExportRequest) -> None:
    """Raise what :func:`export` would raise before it begins to work; nothing is written.

    Published weights that are not in the cache yet are not fetched, and not judged.
    """
    jobs = plan(request)
    choice = request.choice
    if choice.pretrained and not choice.offline:
        from levit_export.models.published import parse

        parse(choice.model or "")
        choice = replace(choice, offline=True)
    try:
        checkpoint = reference.load(choice)
    except DownloadError:
        if request.choice.offline:
            raise
        return
    refuse(request, jobs, checkpoint)
    calibration = _calibration(jobs, checkpoint, request)
    for job in jobs:
        _calibrated(job, calibration)
    _refuse_output(request.output or Path("exported", checkpoint.name))


def refuse(request: ExportRequest, jobs: Sequence[Job], checkpoint: Checkpoint) -> None:
    """Raise for what a request asks of this checkpoint and cannot have."""
    from levit_export.models.passes import PASSES

    for name in request.skip:
        if name not in (known := [each.name for each in PASSES]):
            raise UnknownNameError("pass", name, known)
    machine.refuse_batch(request.options.batch or 1, checkpoint.config.image_size)
    _refuse_task(jobs, checkpoint)
    _refuse_unknown_blocks(jobs, checkpoint, request.options.embedded)


@dataclass
class Shared:
    """What follows from a model alone, made once for all exports that are given the same one.

    It holds one model at a time.
    """

    _key: object = None
    _found: dict[object, Any] = field(default_factory=dict)

    def about(self, request: ExportRequest) -> None:
        """Forget what is of another model than that of ``request``."""
        if self._key != (key := repr(request.choice)):
            self._key = key
            self._found.clear()

    def once(self, key: object, make: Callable[[], Made]) -> Made:
        """What ``make`` gave when it was first asked for ``key``."""
        if key not in self._found:
            self._found[key] = make()
        return cast("Made", self._found[key])


def export(
    request: ExportRequest, progress: Progress | None = None, shared: Shared | None = None
) -> Report:
    """Load, prepare, export, check, time and write the export directory.

    When a check fails, the directory becomes ``<output>.failed`` and an earlier export at
    ``<output>`` stays as it was.
    """
    progress, shared = progress or Silent(), shared or Shared()
    jobs = plan(request)
    progress.stage("loading the checkpoint")
    shared.about(request)
    checkpoint = shared.once("checkpoint", partial(reference.load, request.choice, progress))
    refuse(request, jobs, checkpoint)
    calibration = _calibration(jobs, checkpoint, request)
    jobs = [_calibrated(job, calibration) for job in jobs]
    output = request.output or Path("exported", checkpoint.name)
    _refuse_output(output)
    with export_directory.staged(output) as stage, _beside() as beside:
        threads = max(1, machine.usable_cores() // 2)
        plain = beside.submit(_answered, checkpoint, request, shared, threads)
        progress.stage("fusing and proving")
        forms = _forms(checkpoint, request, shared, threads)
        with quiet():
            load_early([package for job in jobs for package in PACKAGES.get(job.format, ())])
        jobs, searches = _settled(jobs, forms, calibration, request=request, progress=progress)
        tolerances = beside.submit(_with_tolerances, plain, jobs, request, calibration, threads)
        models, artifacts = [], []
        for job in jobs:
            progress.stage(f"exporting {job.format}")
            models.append(forms.of(job.format, job.options))
            made = job.write(models[-1], stage.path)
            artifacts.append(_with_calibration_note(made, job))
        progress.stage("computing the reference")
        ledgers = (each.passes for each in models)  # layouts share all passes but the last
        model = replace(models[0], passes=max(ledgers, key=len))
        expected = reference.completed(tolerances.result(), model.info, model.fingerprints)
        expected = reference.with_quantised_weights(
            expected, model.weights, artifacts, model.blocks
        )
        expected = expected.matching(model.signature)
        found = _checked(artifacts, model, expected, request, progress)
        timings = _time_all(tuple(found), checkpoint, model, request, progress)
        result = _examined(found, stage.path, model, *timings)
        networks = {each.layout: each.network for each in models}
        subject = explain.Subject(
            checkpoint, expected, request.skip, calibration=calibration, networks=networks
        )
        result, drawn = explain.of_run(result, list(found), subject, progress)
        final = failed(output) if result.verdict == "fail" else output
        result = replace(result, searches=searches, output=final)
        _describe(stage.path, model, expected, artifacts, result, drawn=drawn)
        stage.commit(final)
    return result


@contextmanager
def _beside() -> Iterator[ThreadPoolExecutor]:
    """A thread for what can be computed meanwhile: PyTorch lets go of the interpreter.

    It has half of the cores, and the main thread the other half: if each used all of them, either
    would wait for a core of the other's.
    """
    with ThreadPoolExecutor(1) as pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _answered(
    checkpoint: Checkpoint, request: ExportRequest, shared: Shared, threads: int
) -> Answered:
    answer = partial(reference.answered, checkpoint, seed=request.seed, threads=threads)
    return shared.once(("answered", request.seed), answer)


def _with_tolerances(
    plain: Future[Answered],
    jobs: Sequence[Job],
    request: ExportRequest,
    calibration: Calibration | None,
    threads: int,
) -> Reference:
    """What artifacts are held against."""
    kept: dict[str, frozenset[str]] = {}
    for job in jobs:  # for each precision the blocks that all of its artifacts leave in float
        blocks = frozenset(job.options.keep)
        kept[job.options.precision] = kept.get(job.options.precision, blocks) & blocks
    return reference.with_tolerances(
        plain.result(),
        set(kept),
        threads=threads,
        overrides=request.overrides,
        calibration=calibration,
        keep=kept,
    )


def _forms(checkpoint: Checkpoint, request: ExportRequest, shared: Shared, threads: int) -> Forms:
    """The rewritten model, proven."""
    from levit_export.formats.pytorch import cpu_threads
    from levit_export.models.preparation import Forms

    options = request.options
    key = ("forms", request.skip, options.batch, options.embedded)
    make = partial(Forms, checkpoint, request.skip, options.batch, options.embedded)
    forms = shared.once(key, make)
    with cpu_threads(threads):
        forms.prove()
    return forms


def _with_calibration_note(artifact: Artifact, job: Job) -> Artifact:
    """Where the ranges of an artifact's activations come from, and whether that is little."""
    images = job.options.calibration
    if images is None:
        return artifact
    few = len(images.inputs) < FEW_IMAGES
    warning = f"; fewer than {FEW_IMAGES} images may not show the range of the values"
    note = f"calibrated on {images.source}{warning if few else ''}"
    return replace(artifact, notes=(*artifact.notes, note))


def _refuse_unknown_blocks(
    jobs: Sequence[Job], checkpoint: Checkpoint, embedded: Embedded
) -> None:
    from levit_export.models import embedding
    from levit_export.models.architectures.blocks import block_names

    names = embedding.blocks(block_names(checkpoint.config), embedded)
    known = dict.fromkeys(names.values())
    for job in jobs:
        for block in job.options.keep:
            if block not in known:
                raise UnknownNameError("block", block, known)


def _settled(
    jobs: Sequence[Job],
    forms: Forms,
    calibration: Calibration | None,
    *,
    request: ExportRequest,
    progress: Progress,
) -> tuple[list[Job], dict[str, SearchResult]]:
    """The jobs with a precision found for those that ask for it, and what the searches saw."""
    from levit_export.workflows import precision_search

    settled: list[Job] = []
    searches: dict[str, SearchResult] = {}
    for job in jobs:
        if job.options.precision != AUTO:
            settled.append(job)
            continue
        found_job, searches[job.format] = precision_search.settle(
            job,
            forms,
            calibration,
            request.promise,
            run=request.run,
            progress=progress,
        )
        settled.append(found_job)
    return settled, searches


def _calibration(
    jobs: Sequence[Job], checkpoint: Checkpoint, request: ExportRequest
) -> Calibration | None:
    """The images that some of the jobs need, read with the checkpoint's preprocessing."""
    if not any(job.options.precision in (*CALIBRATED, AUTO) for job in jobs):
        return None
    return reference.calibration(
        checkpoint, request.data, count=request.calibration_images, seed=request.seed
    )


def _calibrated(job: Job, calibration: Calibration | None) -> Job:
    if job.options.precision not in CALIBRATED:
        return job
    options = replace(job.options, calibration=calibration)
    target(job.format).refuse(options)
    return replace(job, options=options)


Checked = dict[Row, tuple[ParityReport, Accuracy | None]]


def _checked(
    artifacts: Sequence[Artifact],
    model: Prepared,
    expected: Reference,
    request: ExportRequest,
    progress: Progress,
) -> Checked:
    """Check what is on disk, each way that it is to be executed, side by side: runtimes let go."""
    rows = execution.rows(artifacts, request.run)
    if not request.check:
        return {row: (parity.not_run("--no-check"), None) for row in rows}
    progress.stage(f"checking {', '.join(artifact.id for artifact in artifacts)}")
    at_a_time = max(1, machine.usable_cores() // request.run.threads)
    with ThreadPoolExecutor(at_a_time) as pool:
        found = list(pool.map(lambda row: execution.check(row, expected), rows))
    return {
        row: (_explained(row, parity_report, model, expected), accuracy)
        for row, (parity_report, accuracy) in zip(rows, found, strict=True)
    }


def _explained(
    row: Row, found: ParityReport, model: Prepared, expected: Reference
) -> ParityReport:
    """Where half precision is at fault, with the block that left its range."""
    if found.verdict == "fail" and execution.computes_in_half(row.artifact):
        from levit_export.checks import float16_overflow

        overflows = float16_overflow.overflows(model, expected.samples.inputs)
        found = execution.with_overflows(found, row.artifact, overflows)
    return found


def _examined(
    checked: Checked,
    folder: Path,
    model: Prepared,
    timings: Mapping[Row, TimingReport],
    baselines: Mapping[str, TimingReport],
) -> Report:
    """What was found out about the artifacts, and how fast they are."""
    reports = tuple(
        execution.describe(row, folder, *found, timings.get(row)) for row, found in checked.items()
    )
    return Report(
        verdict=overall(r.parity.verdict for r in reports),
        model=model.info,
        passes=model.passes,
        artifacts=reports,
        baselines=baselines,
        machine=machine.describe(),
        toolchain=versions(TOOLCHAIN),
    )


def _time_all(
    rows: Sequence[Row],
    checkpoint: Checkpoint,
    model: Prepared,
    request: ExportRequest,
    progress: Progress,
) -> tuple[dict[Row, TimingReport], dict[str, TimingReport]]:
    if not request.bench:
        return {}, {}
    progress.stage("timing")
    progress.steps(request.plan.iterations)
    eager = reference.eager_session(checkpoint, threads=request.run.threads)
    return execution.time_rows(
        rows,
        request.run.threads,
        request.plan,
        macs=model.info.macs,
        others={BASELINE: eager},
        progress=progress.advance,
    )


def _describe(
    folder: Path,
    model: Prepared,
    expected: Reference,
    artifacts: Sequence[Artifact],
    result: Report,
    *,
    drawn: DriftMap | None,
) -> None:
    """Write everything of the export directory that is not an artifact."""
    from levit_export.reports import html

    files.write(folder / export_directory.LABELS, "\n".join(model.info.labels) + "\n")
    export_directory.write_golden(folder, expected.samples, expected.outputs)
    text = serialisation.to_text(report.to_json(result))
    files.write(folder / export_directory.REPORT, text)
    page = html.page(result, drift=drawn, pixels=expected.samples.pixels)
    files.write(folder / export_directory.PAGE, page)
    manifest = Manifest(
        schema=export_directory.SCHEMA,
        verdict=result.verdict,
        model=model.info,
        signature=model.signature,
        passes=model.passes,
        artifacts=tuple(
            _entry(artifact, artifact.path.relative_to(folder).as_posix(), result)
            for artifact in artifacts
        ),
        golden=GoldenEntry(
            samples=expected.samples.names,
            labels=tuple(int(label) for label in expected.samples.labels),
            pixels=tuple(expected.samples.pixels),
            tolerances=expected.tolerances,
            weights=expected.weights,
            doubt=expected.doubt,
        ),
        toolchain=result.toolchain,
        files=export_directory.list_files(folder),
        embedded=model.embedded,
    )
    export_directory.write_manifest(folder, manifest)


def _entry(artifact: Artifact, path: str, result: Report) -> ArtifactEntry:
    """The manifest's line for an artifact; its verdict is that of all ways it was executed."""
    verdict = overall(r.parity.verdict for r in result.artifacts if r.path == path)
    return ArtifactEntry(
        format=artifact.format,
        precision=artifact.precision,
        path=path,
        verdict=verdict,
        notes=artifact.notes,
        keep=artifact.keep,
        layout=artifact.layout,
        runs_on=artifact.runs_on,
    )
