"""What an export may be asked for, and everything that can be refused before the work begins.

A request becomes jobs, one for each artifact. What a request asks of every model is refused by
:func:`plan`, what it asks of one checkpoint by :func:`refuse`. Nothing here writes a file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from levit_export.checks.reference import Overrides
from levit_export.checks.timing import TimingPlan
from levit_export.core import machine
from levit_export.core.errors import (
    DownloadError,
    MissingDependencyError,
    OutputError,
    UnknownNameError,
    UsageError,
)
from levit_export.core.precisions import CALIBRATED, FLOATS
from levit_export.core.values import (
    FORMAT_ALIASES,
    Calibration,
    ExportOptions,
    Layout,
    RunOptions,
)
from levit_export.formats import Job, target
from levit_export.formats.onnx.target import INT8_OPSETS, OPSETS, newest_opset
from levit_export.models import loading
from levit_export.models.loading import ModelChoice
from levit_export.storage import export_directory
from levit_export.storage.export_directory import MANIFEST, read_manifest
from levit_export.workflows import precision_search
from levit_export.workflows.precision_search import AUTO, Promise

if TYPE_CHECKING:
    from levit_export.models.checkpoints import Checkpoint

TO_BE_READ = Calibration(np.empty((0, 3, 0, 0), np.float32), "to be read with the checkpoint")
"""In place of the images of a job until the checkpoint's preprocessing is known."""


@dataclass(frozen=True)
class ExportRequest:
    """Everything the ``export`` verb may be asked for.

    ``precisions`` are the artifacts to make of a format; one that is not named is made in its
    default precision. ``keep`` are the blocks that stay in a format's float precision. ``layouts``
    are what an earlier export had for a format and precision, in place of ``options.layout``.
    ``ort_min`` is the oldest ONNX Runtime that has to read the file; it chooses the opset.
    ``data`` are the images that ``int8`` is calibrated on and that ``auto`` keeps ``promise`` on.
    ``accuracy`` is whether the answers to the checkpoint's own labelled images are counted.
    ``command`` is what was typed, for the report.
    """

    choice: ModelChoice = field(default_factory=ModelChoice)
    formats: tuple[str, ...] = ("onnx", "openvino", "coreml")
    precisions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    options: ExportOptions = field(default_factory=ExportOptions)
    skip: tuple[str, ...] = ()
    seed: int = 0
    check: bool = True
    accuracy: bool = True
    bench: bool = True
    run: RunOptions = field(default_factory=RunOptions)
    plan: TimingPlan = field(default_factory=TimingPlan)
    overrides: Overrides = field(default_factory=Overrides)
    data: Path | None = None
    calibration_images: int = 200
    keep: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    layouts: Mapping[tuple[str, str], str] = field(default_factory=dict)
    promise: Promise = field(default_factory=Promise)
    ort_min: str | None = None
    output: Path | None = None
    command: str = ""


def parse_precisions(
    text: str | None, formats: Mapping[str, Sequence[str]]
) -> dict[str, tuple[str, ...]]:
    """The precisions asked of each format.

    ``text`` is ``int8`` or ``onnx=int8,coreml=fp16``; a format may be named several times.
    ``formats`` are those that are exported, each with what it can be exported in.
    """
    if not text:
        return {}
    given: dict[str, list[str]] = {}
    parts = [part.strip() for part in text.split(",")]
    if len(parts) == 1 and "=" not in text:
        return {name: (_known(parts[0], name, formats[name]),) for name in formats}
    for part in parts:
        name, equals, precision = (piece.strip().lower() for piece in part.partition("="))
        if not equals or not precision:
            raise UsageError(
                f"--precision {text} has a part {part!r} that is not of the form FORMAT=PRECISION",
                remedy="Give one precision, or pairs such as onnx=int8,coreml=fp16.",
            )
        name = FORMAT_ALIASES.get(name, name)
        if name not in formats:
            raise UnknownNameError("format of --precision", name, formats)
        wanted = _known(precision, name, formats[name])
        if wanted not in given.setdefault(name, []):
            given[name].append(wanted)
    return {name: tuple(precisions) for name, precisions in given.items()}


def _known(precision: str, name: str, known: Sequence[str]) -> str:
    if precision.lower() not in (AUTO, *known):
        raise UsageError(
            f"{name} cannot be exported as {precision}",
            remedy=f"It can be: {', '.join((*known, AUTO))}.",
        )
    return precision.lower()


@dataclass(frozen=True)
class EarlierSettings:
    """Formats, the precisions of each, the blocks that stay in float, and the layouts.

    ``layouts`` has one for each format and precision.
    """

    precisions: Mapping[str, tuple[str, ...]]
    keep: Mapping[str, tuple[str, ...]]
    layouts: Mapping[tuple[str, str], Layout]


def read_earlier_settings(path: Path) -> EarlierSettings:
    """What an earlier export was made with: its folder, or the manifest in it."""
    if not path.is_dir() and path.name != MANIFEST:
        raise UsageError(
            f"{path} is not an earlier export" if path.exists() else f"{path} does not exist",
            remedy=f"Give --recipe the folder of an export, or the {MANIFEST} in it.",
        )
    manifest = read_manifest(path if path.is_dir() else path.parent)
    wanted: dict[str, tuple[str, ...]] = {}
    keep: dict[str, tuple[str, ...]] = {}
    for entry in manifest.artifacts:
        if entry.format in keep and keep[entry.format] != entry.keep:
            raise UsageError(
                f"{path} holds two artifacts of {entry.format} with different blocks in float",
                remedy="Export them one after the other with --precision and --keep.",
            )
        wanted[entry.format] = (*wanted.get(entry.format, ()), entry.precision)
        keep[entry.format] = entry.keep
    layouts = {(entry.format, entry.precision): entry.layout for entry in manifest.artifacts}
    return EarlierSettings(wanted, keep, layouts)


def plan(request: ExportRequest) -> list[Job]:
    """The artifacts that a request stands for, each known to be possible here."""
    # A format may be named twice, and by several names.
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
    if request.ort_min is not None and "onnx" not in {job.format for job in jobs}:
        raise UsageError(
            "--ort-min is about ONNX files, and none is exported",
            remedy="Add --format onnx, or leave out --ort-min.",
        )
    if request.output is not None:
        refuse_output(request.output)
    return jobs


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
    keep = request.keep.get(kind.name, ())
    options = replace(request.options, precision=precision, layout=layout, keep=keep)
    if request.ort_min is not None and kind.name == "onnx":
        may_be_int8 = precision in (*CALIBRATED, AUTO)
        opset = newest_opset(request.ort_min, INT8_OPSETS if may_be_int8 else OPSETS)
        options = replace(options, opset=opset)
    # ``refuse`` has to see that there will be images, which are read with the checkpoint.
    if precision in CALIBRATED and (request.data is not None or request.choice.is_digits):
        options = replace(options, calibration=TO_BE_READ)
    if precision == AUTO:
        precision_search.order(kind.name, request.promise.prefer)
        kind.refuse(replace(options, precision=kind.precisions[0]))
        if request.data is None and not request.choice.is_digits:
            raise precision_search.no_images()
    else:
        kind.refuse(options)
    if "fuse_batchnorm" in request.skip:
        _refuse_batchnorms(kind.name, precision)
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
    kind.runs(request.run)
    return Job(kind.name, options)


def _refuse_batchnorms(kind: str, precision: str) -> None:
    """Raise where a format would fold BatchNorms by itself."""
    if kind == "coreml" and precision not in FLOATS:
        raise UsageError(
            f"coremltools folds BatchNorm into the weights that it compresses, so {precision} "
            "cannot be exported without fuse_batchnorm",
            remedy="Leave out --skip-pass fuse_batchnorm, or export --precision coreml=fp16.",
        )
    if kind == "coreai":
        raise UsageError(
            "Core AI computes a BatchNorm's deviation when the file is written, so that a file "
            "without fuse_batchnorm would not hold the variances",
            remedy="Leave out --skip-pass fuse_batchnorm, or --format coreai.",
        )


def refuse(request: ExportRequest, jobs: Sequence[Job], checkpoint: Checkpoint) -> None:
    """Raise for what a request asks of this checkpoint and cannot have."""
    from levit_export.models import graph_ends
    from levit_export.models.architectures.blocks import block_names
    from levit_export.models.passes import PASSES

    for name in request.skip:
        if name not in (known := [each.name for each in PASSES]):
            raise UnknownNameError("pass", name, known)
    machine.refuse_batch(request.options.batch or 1, checkpoint.config.image_size)
    names = graph_ends.blocks(block_names(checkpoint.config), request.options.embedded)
    known_blocks = dict.fromkeys(names.values())
    task, outputs = checkpoint.task, checkpoint.config.classes
    for options in (job.options for job in jobs):
        if options.classifier:
            graph_ends.refuse_task(task, outputs, graph_ends.CLASSIFIER)
        if options.embedded.softmax:
            graph_ends.refuse_task(task, outputs, "--softmax")
        if options.precision == AUTO and task != "single-label":
            raise UsageError(
                f"--precision auto keeps a promise on top-1, and the model's task is {task}",
                remedy="Give the precision that is meant.",
            )
        for block in options.keep:
            if block not in known_blocks:
                raise UnknownNameError("block", block, known_blocks)


def refuse_output(output: Path) -> None:
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


def calibrated(
    jobs: Sequence[Job], checkpoint: Checkpoint, request: ExportRequest
) -> tuple[list[Job], Calibration | None]:
    """``jobs`` with the images that some of them need, read as the checkpoint takes them."""
    if not any(job.options.precision in (*CALIBRATED, AUTO) for job in jobs):
        return list(jobs), None
    images = loading.calibration(
        checkpoint, request.data, count=request.calibration_images, seed=request.seed
    )
    ready = []
    for job in jobs:
        if job.options.precision in CALIBRATED:
            options = replace(job.options, calibration=images)
            target(job.format).refuse(options)
            job = replace(job, options=options)  # noqa: PLW2901 - the same job, made ready
        ready.append(job)
    return ready, images


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
        *(
            f"in opset {job.options.opset}, for ONNX Runtime {request.ort_min} and later"
            for job in jobs
            if job.format == "onnx" and request.ort_min is not None
        ),
        *["with normalisation inside: raw RGB bytes in"] * request.options.embedded.preprocessing,
        *["with the activation of its task inside: probabilities out"]
        * request.options.embedded.softmax,
        f"then {' and '.join(done) or 'neither check nor time it'}",
        f"write {request.output or 'exported/MODEL'}",
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


def rehearse(request: ExportRequest) -> ExportRequest:
    """Raise what :func:`export` would raise before it begins to work; nothing is written.

    The request comes back with the place of its output. Published weights that are not in the
    cache yet are not fetched, and not judged.
    """
    jobs = plan(request)
    choice = request.choice
    if choice.pretrained and not choice.offline:
        from levit_export.models.published import parse

        parse(choice.model or "")
        choice = replace(choice, offline=True)  # a rehearsal downloads nothing
    try:
        checkpoint = loading.load(choice)
    except DownloadError:
        if request.choice.offline:
            raise
        return request
    refuse(request, jobs, checkpoint)
    calibrated(jobs, checkpoint, request)
    output = request.output or Path("exported", checkpoint.name)
    refuse_output(output)
    return replace(request, output=output)
