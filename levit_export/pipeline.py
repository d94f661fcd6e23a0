"""The flow from a checkpoint to a checked, timed and written export directory."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from levit_export import (
    atomic,
    bundle,
    checking,
    machine,
    parity,
    reference,
    report,
    search,
    sharing,
)
from levit_export.bundle import ArtifactEntry, GoldenEntry, Manifest
from levit_export.checking import Reference, Row
from levit_export.core import (
    CALIBRATED,
    Artifact,
    Calibration,
    Embedded,
    ExportOptions,
    Prepared,
    RunOptions,
    files,
)
from levit_export.drift import explaining
from levit_export.errors import MissingDependencyError, OutputError, UnknownNameError, UsageError
from levit_export.helper import Helper, Job
from levit_export.parity import ParityReport
from levit_export.precisions import AUTO
from levit_export.progress import Progress, Silent
from levit_export.reference import ModelChoice, Overrides
from levit_export.report import Accuracy, Report
from levit_export.search import Found, Promise
from levit_export.targets import target
from levit_export.targets.metadata import versions
from levit_export.timing import TimingPlan, TimingReport

if TYPE_CHECKING:
    from levit_export.checkpoints import Checkpoint
    from levit_export.drift import DriftMap
    from levit_export.preparation import Forms

TOOLCHAIN = (
    "levit-export",
    "torch",
    "numpy",
    "onnx",
    "onnxscript",
    "onnxsim",
    "onnxruntime",
    "openvino",
    "coremltools",
)
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
    atomic.refuse_foreign(place)
    atomic.refuse_foreign(failed(place))


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
        *["with a softmax inside: probabilities out"] * request.options.embedded.softmax,
        f"then {' and '.join(done) or 'neither check nor time it'}",
        f"write {request.output or 'exported/<model>'}",
    ]


def export(request: ExportRequest, progress: Progress | None = None) -> Report:
    """Load, prepare, export, check, time and write the export directory.

    When a check fails, the directory becomes ``<output>.failed`` and an earlier export at
    ``<output>`` stays as it was.
    """
    progress = progress or Silent()
    jobs = plan(request)
    with ExitStack() as stack:
        other = sharing.other_process(jobs, stack)
        # While that one imports the same.
        from levit_export.preparation import Forms
        from levit_export.targets.eager import cpu_threads

        stack.enter_context(cpu_threads(sharing.own_threads(other)))
        progress.stage("loading the checkpoint")
        checkpoint = reference.load(request.choice, progress)
        calibration = _calibration(jobs, checkpoint, request)
        jobs = [_calibrated(job, calibration) for job in jobs]
        question = sharing.Question(checkpoint, calibration, request.seed, request.overrides)
        asked = other is not None and sharing.ask_early(other, jobs, question)
        output = request.output or Path("exported", checkpoint.name)
        _refuse_output(output)
        stage = stack.enter_context(atomic.staged(output))
        progress.stage("fusing and proving")
        forms = Forms(checkpoint, request.skip, request.options.batch, request.options.embedded)
        _refuse_unknown_blocks(jobs, checkpoint, request.options.embedded)
        jobs, searches = _settled(jobs, forms, calibration, request=request, progress=progress)
        if other is not None:
            work = [(job, forms.of(job.format, job.options)) for job in jobs[1:]]
            other.start(work, stage.path)
        model = forms.of(jobs[0].format, jobs[0].options)
        made = sharing.export_all(jobs, other, forms, stage.path, progress)
        first = next(made)
        progress.stage("computing the reference")
        answered = (
            other.answer()
            if other is not None and asked
            else question.answer(jobs, machine.usable_cores())()
        )
        expected = reference.completed(answered, model.info, model.fingerprints)
        expected = expected.matching(model.signature)
        checks = _Checks(model, expected, request, progress)
        shared = request.check and sharing.checks_its_last(jobs, request.run.threads)
        theirs = other if shared else None
        if theirs is not None:
            theirs.ask_about_last(partial(checking.checked, expected, request.run))
        for job, artifact in zip(jobs, chain([first], made), strict=True):
            if theirs is not None and job is jobs[-1]:
                checks.answered(artifact, theirs)
            else:
                checks.add(artifact)
        model = replace(model, passes=forms.passes)
        result = _examined(checks, stage.path, checkpoint, model)
        subject = explaining.Subject(
            checkpoint,
            checks.expected,
            request.skip,
            calibration=calibration,
            programs={model.layout: model.program} if result.verdict == "fail" else {},
        )
        result, drawn = explaining.of_run(result, list(checks.found), subject, progress)
        final = failed(output) if result.verdict == "fail" else output
        result = replace(result, searches=searches, output=final)
        _describe(stage.path, model, checks, result, drawn=drawn)
        stage.commit(final)
    return result


def _refuse_unknown_blocks(
    jobs: Sequence[Job], checkpoint: Checkpoint, embedded: Embedded
) -> None:
    from levit_export import embedding
    from levit_export.architectures.blocks import block_names

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
) -> tuple[list[Job], dict[str, Found]]:
    """The jobs with a precision found for those that ask for it, and what the searches saw."""
    from levit_export import auto

    settled: list[Job] = []
    searches: dict[str, Found] = {}
    for job in jobs:
        if job.options.precision != AUTO:
            settled.append(job)
            continue
        found_job, searches[job.format] = auto.settle(
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


@dataclass
class _Checks:
    """Artifacts, each checked when it is there: the other process exports meanwhile."""

    model: Prepared
    expected: Reference
    request: ExportRequest
    progress: Progress
    found: dict[Row, tuple[ParityReport, Accuracy | None]] = field(default_factory=dict)

    def add(self, artifact: Artifact) -> None:
        """Check what is on disk, each way that it is to be executed."""
        self.expected = reference.with_quantised_weights(
            self.expected, self.model.weights, [artifact]
        )
        for row in checking.rows([artifact], self.request.run):
            self.found[row] = self._checked(row)

    def answered(self, artifact: Artifact, other: Helper) -> None:
        """Take what ``other`` found out about ``artifact``."""
        self.progress.stage(f"checking {artifact.id}")
        for row, (found, accuracy) in other.answer().items():
            self.found[row] = self._explained(row, found), accuracy

    @property
    def artifacts(self) -> list[Artifact]:
        """In the order in which they came; each has a row at least."""
        return list(dict.fromkeys(row.artifact for row in self.found))

    def _checked(self, row: Row) -> tuple[ParityReport, Accuracy | None]:
        if not self.request.check:
            return parity.not_run("--no-check"), None
        self.progress.stage(f"checking {row.artifact.id}")
        found, accuracy = checking.check(row, self.expected)
        return self._explained(row, found), accuracy

    def _explained(self, row: Row, found: ParityReport) -> ParityReport:
        """Where half precision is at fault, with the block that left its range."""
        if found.verdict == "fail" and checking.computes_in_half(row.artifact):
            from levit_export import ranges

            overflows = ranges.overflows(self.model, self.expected.samples.inputs)
            found = checking.with_overflows(found, row.artifact, overflows)
        return found


def _examined(checks: _Checks, folder: Path, checkpoint: Checkpoint, model: Prepared) -> Report:
    """What was found out about the artifacts, and how fast they are."""
    rows = tuple(checks.found)
    timings, baselines = _time_all(rows, checkpoint, model, checks.request, checks.progress)
    reports = tuple(
        checking.describe(row, folder, *found, timings.get(row))
        for row, found in checks.found.items()
    )
    return Report(
        verdict=report.overall(r.parity.verdict for r in reports),
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
    return checking.time_rows(
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
    checks: _Checks,
    result: Report,
    *,
    drawn: DriftMap | None,
) -> None:
    """Write everything of the export directory that is no artifact."""
    from levit_export.render import html

    expected = checks.expected
    files.write(folder / bundle.LABELS, "\n".join(model.info.labels) + "\n")
    bundle.write_golden(folder, expected.samples, expected.outputs)
    text = json.dumps(report.to_json(result), indent=1, allow_nan=False)
    files.write(folder / bundle.REPORT, text + "\n")
    page = html.page(result, drift=drawn, pixels=expected.samples.pixels)
    files.write(folder / atomic.REPORTS[1], page)
    manifest = Manifest(
        schema=bundle.SCHEMA,
        verdict=result.verdict,
        model=model.info,
        signature=model.signature,
        passes=model.passes,
        artifacts=tuple(
            _entry(artifact, artifact.path.relative_to(folder).as_posix(), result)
            for artifact in checks.artifacts
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
        files=bundle.list_files(folder),
        embedded=model.embedded,
    )
    bundle.write_manifest(folder, manifest)


def _entry(artifact: Artifact, path: str, result: Report) -> ArtifactEntry:
    """The manifest's line for an artifact; its verdict is that of all ways it was executed."""
    verdict = report.overall(r.parity.verdict for r in result.artifacts if r.path == path)
    return ArtifactEntry(
        format=artifact.format,
        precision=artifact.precision,
        path=path,
        verdict=verdict,
        notes=artifact.notes,
        keep=artifact.keep,
        layout=artifact.layout,
    )
