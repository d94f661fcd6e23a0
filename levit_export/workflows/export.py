"""The flow from a checkpoint to a checked, timed and written export directory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from levit_export.checks import execution, parity, reference
from levit_export.checks.agreement import Witness, witnessed
from levit_export.checks.execution import Checked, Row
from levit_export.checks.reference import Answered, Reference
from levit_export.checks.timing import EAGER, TimingReport
from levit_export.core import files, machine, serialisation
from levit_export.core.packages import TOOLCHAIN, load_early, versions
from levit_export.core.progress import Progress, Silent
from levit_export.core.quiet import quiet
from levit_export.core.values import Artifact, Calibration, Layout, Prepared, overall
from levit_export.formats import Job
from levit_export.models import loading
from levit_export.reports import report
from levit_export.reports.report import Report, SearchResult
from levit_export.storage import export_directory
from levit_export.storage.export_directory import ArtifactEntry, GoldenEntry, Manifest
from levit_export.workflows import explain, precision_search
from levit_export.workflows.export_plan import (
    ExportRequest,
    calibrated,
    failed,
    plan,
    refuse,
    refuse_output,
)

if TYPE_CHECKING:
    from levit_export.checks.drift import DriftMap
    from levit_export.core.network import Network
    from levit_export.models.checkpoints import Checkpoint

__all__ = ["ExportRequest", "Shared", "export"]

COMPUTED_IN_BFLOAT16 = ("fp32", "fp16")
"""Precisions of OpenVINO that a processor with bfloat16 computes in it unless it is told.

Their tolerance belongs to the directory wherever it was written: it may be checked there.
"""

PACKAGES = {
    "onnx": ("onnx", "onnxruntime"),
    "openvino": ("openvino",),
    "coreml": ("coremltools",),
}
"""What an export of a format imports, early: while PyTorch computes in another thread."""

FEW_IMAGES = 100
"""Fewer images than this do not show a quantiser the range of a network's values."""

Made = TypeVar("Made")


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
    progress.plan(3 + len(jobs) + request.check + request.bench)
    progress.stage("loading the checkpoint")
    shared.about(request)
    checkpoint = shared.once("checkpoint", partial(loading.load, request.choice, progress))
    refuse(request, jobs, checkpoint)
    jobs, images = calibrated(jobs, checkpoint, request)
    output = request.output or Path("exported", checkpoint.name)
    refuse_output(output)  # again, for the default place is known only now
    with export_directory.staged(output) as stage:
        # checkpoint -> prepared module -> network -> artifacts on disk, beside the reference
        made = _made(
            stage.path, checkpoint, jobs, images, request, shared=shared, progress=progress
        )
        model, expected = made.model, made.expected

        # artifacts <-> reference
        checked = _checked(made.artifacts, model, expected, request, progress)
        timings, baselines = _timed(list(checked), checkpoint, model, request, progress)

        # report -> export directory
        found = _report(checked, stage.path, model, timings, baselines)
        subject = explain.Subject(
            checkpoint, expected, request.skip, calibration=images, networks=made.networks
        )
        explained, drawn = explain.explained(
            found.artifacts, list(checked), lambda: subject, progress
        )
        # An export that failed is kept where it can be looked at, and replaces no good one.
        final = failed(output) if found.verdict == "fail" else output
        found = replace(
            found,
            artifacts=explained,
            searches=made.searches,
            output=final,
            command=request.command,
        )
        _write(stage.path, model, expected, made.artifacts, found, drawn=drawn)
        stage.commit(final)
    return found


@dataclass(frozen=True)
class _Made:
    """Artifacts on disk, with the model that they were written from and what it must answer.

    ``networks`` has one for each layout that an artifact has.
    """

    model: Prepared
    networks: Mapping[Layout, Network]
    artifacts: tuple[Artifact, ...]
    expected: Reference
    searches: Mapping[str, SearchResult]


def _made(
    folder: Path,
    checkpoint: Checkpoint,
    jobs: Sequence[Job],
    images: Calibration | None,
    request: ExportRequest,
    *,
    shared: Shared,
    progress: Progress,
) -> _Made:
    """Rewrite and prove the model and write the artifacts, while another thread computes what
    they must answer: the reference, and a tolerance for each precision.
    """
    from levit_export.formats.pytorch import cpu_threads
    from levit_export.models.preparation import Forms

    threads = max(1, machine.usable_cores() // 2)
    # Around both threads, for PyTorch's count is the process's: one thread must not put it back
    # while the other computes.
    with _beside() as beside, cpu_threads(threads):
        answer = partial(reference.answered, checkpoint, seed=request.seed, threads=threads)
        plain = beside.submit(shared.once, ("answered", request.seed), answer)

        progress.stage("fusing and proving")
        graph = request.skip, request.options.batch, request.options.embedded
        forms = shared.once(("forms", *graph), partial(Forms, checkpoint, *graph))
        forms.prove()
        # Now, while PyTorch computes in the other thread.
        with quiet():
            load_early([package for job in jobs for package in PACKAGES.get(job.format, ())])
        jobs, searches = precision_search.settle(
            jobs, forms, images, request.promise, run=request.run, progress=progress
        )
        tolerances = beside.submit(
            lambda: _with_tolerances(plain.result(), jobs, request, images, threads)
        )

        models: list[Prepared] = []
        artifacts: list[Artifact] = []
        for job in jobs:
            progress.stage(f"exporting {job.format}")
            models.append(forms.of(job.format, job.options))
            artifacts.append(_noted(job.write(models[-1], folder), job))

        progress.stage("computing the reference")
        ledgers = (each.passes for each in models)  # layouts share all passes but the last
        model = replace(models[0], passes=max(ledgers, key=len))
        answered = tolerances.result()
    written = {artifact.precision for artifact in artifacts}
    digests = {each: found for each, found in model.fingerprints.items() if each in written}
    expected = reference.completed(answered, model.info, digests)
    expected = reference.with_stored_weights(expected, model.weights, artifacts, model.blocks)
    networks = {each.layout: each.network for each in models}
    expected = expected.matching(model.signature)
    return _Made(model, networks, tuple(artifacts), expected, searches)


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


def _with_tolerances(
    plain: Answered,
    jobs: Sequence[Job],
    request: ExportRequest,
    images: Calibration | None,
    threads: int,
) -> Reference:
    """The answers, with a tolerance for each precision that the jobs are in."""
    kept: dict[str, frozenset[str]] = {}
    for job in jobs:  # for each precision the blocks that all of its artifacts leave in float
        blocks = frozenset(job.options.keep)
        kept[job.options.precision] = kept.get(job.options.precision, blocks) & blocks
        if job.format == "openvino" and job.options.precision in COMPUTED_IN_BFLOAT16:
            kept.setdefault("bf16", frozenset())
    return reference.with_tolerances(
        plain,
        set(kept),
        threads=threads,
        overrides=request.overrides,
        calibration=images,
        keep=kept,
    )


def _noted(artifact: Artifact, job: Job) -> Artifact:
    """``artifact`` with a note on the images that gave its activations their ranges."""
    images = job.options.calibration
    if images is None:
        return artifact
    few = len(images.inputs) < FEW_IMAGES
    warning = f"; fewer than {FEW_IMAGES} images may not show the range of the values"
    note = f"calibrated on {images.source}{warning if few else ''}"
    return replace(artifact, notes=(*artifact.notes, note))


def _checked(
    artifacts: Sequence[Artifact],
    model: Prepared,
    expected: Reference,
    request: ExportRequest,
    progress: Progress,
) -> dict[Row, Checked]:
    """What checks find in the files on disk, each executed in every way that was asked for.

    Checks run side by side, because runtimes let go of the interpreter. A failure of float16 is
    followed to the block whose values left its range.
    """
    from levit_export.checks import float16_overflow  # which needs torch

    rows = execution.rows(artifacts, request.run)
    if not request.check:
        return {row: Checked(parity.not_run("--no-check")) for row in rows}
    progress.stage(f"checking {', '.join(artifact.id for artifact in artifacts)}")
    if not request.accuracy:
        expected = replace(expected, images=None)
    at_a_time = max(1, machine.usable_cores() // request.run.threads)
    with ThreadPoolExecutor(at_a_time) as pool:
        found = list(pool.map(lambda row: execution.check(row, expected), rows))
    inputs = expected.samples.inputs
    return {
        row: replace(
            checked,
            parity=float16_overflow.explained(checked.parity, row.artifact, model, inputs),
        )
        for row, checked in zip(rows, found, strict=True)
    }


def _timed(
    rows: Sequence[Row],
    checkpoint: Checkpoint,
    model: Prepared,
    request: ExportRequest,
    progress: Progress,
) -> tuple[dict[Row, TimingReport], dict[str, TimingReport]]:
    """Latencies of the artifacts and of PyTorch; nothing where they were not asked for."""
    if not request.bench:
        return {}, {}
    progress.stage("timing")
    eager = reference.eager_session(checkpoint, threads=request.run.threads)
    return execution.time_rows(
        rows,
        request.run.threads,
        request.plan,
        macs=model.info.macs,
        others={EAGER: eager},
        progress=progress,
    )


def _report(
    checked: Mapping[Row, Checked],
    folder: Path,
    model: Prepared,
    timings: Mapping[Row, TimingReport],
    baselines: Mapping[str, TimingReport],
) -> Report:
    """What was found out about the artifacts, and how fast they are."""
    witnesses = []
    for row, found in checked.items():
        timed = timings.get(row)
        described = execution.describe(row, folder, found.parity, found.accuracy, timed)
        witnesses.append(Witness(described, found.answers))
    reports = witnessed(witnesses)
    return Report(
        verdict=overall(r.parity.verdict for r in reports),
        model=model.info,
        passes=model.passes,
        artifacts=tuple(reports),
        baselines=baselines,
        machine=machine.describe(),
        toolchain=versions(TOOLCHAIN),
    )


def _write(
    folder: Path,
    model: Prepared,
    expected: Reference,
    artifacts: Sequence[Artifact],
    found: Report,
    *,
    drawn: DriftMap | None,
) -> None:
    """Write everything of the export directory that is not an artifact."""
    from levit_export.reports import html

    files.write(folder / export_directory.LABELS, "\n".join(model.info.labels) + "\n")
    export_directory.write_golden(folder, expected.samples, expected.outputs)
    text = serialisation.to_text(report.to_json(found))
    files.write(folder / export_directory.REPORT, text)
    page = html.page(found, drift=drawn, pixels=expected.samples.pixels)
    files.write(folder / export_directory.PAGE, page)
    entries = []
    for artifact in artifacts:
        path = artifact.path.relative_to(folder).as_posix()
        entries.append(
            ArtifactEntry(
                format=artifact.format,
                precision=artifact.precision,
                path=path,
                # The verdict on an artifact is that of all ways in which it was executed.
                verdict=overall(r.parity.verdict for r in found.artifacts if r.path == path),
                notes=artifact.notes,
                keep=artifact.keep,
                layout=artifact.layout,
                runs_on=artifact.runs_on,
            )
        )
    manifest = Manifest(
        schema=export_directory.SCHEMA,
        verdict=found.verdict,
        model=model.info,
        signature=model.signature,
        passes=model.passes,
        artifacts=tuple(entries),
        golden=GoldenEntry(
            samples=expected.samples.names,
            labels=tuple(int(label) for label in expected.samples.labels),
            pixels=tuple(expected.samples.pixels),
            tolerances=expected.tolerances,
            weights=expected.weights,
            doubt=expected.doubt,
        ),
        toolchain=found.toolchain,
        files=export_directory.list_files(folder),
        embedded=model.embedded,
    )
    export_directory.write_manifest(folder, manifest)
