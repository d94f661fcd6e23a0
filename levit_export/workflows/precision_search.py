"""``--precision auto``: measure candidates on real files for ``workflows.search``."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from levit_export.checks import parity, reference, timing
from levit_export.checks.timing import TimingPlan
from levit_export.core import hashing
from levit_export.core.errors import UsageError
from levit_export.core.progress import Progress
from levit_export.core.values import CALIBRATED, Artifact, Calibration, Prepared, RunOptions
from levit_export.formats import Job, target
from levit_export.inputs.samples import Samples
from levit_export.models.zoo import LOGITS
from levit_export.reports.report import Candidate, SearchPoint, SearchResult
from levit_export.workflows import search
from levit_export.workflows.search import Promise

if TYPE_CHECKING:
    from levit_export.models.checkpoints import Checkpoint
    from levit_export.models.preparation import Forms

SENSITIVITY_IMAGES = 16
"""Images that each block is tried on alone; the blocks are only ranked by them."""
BATCH = 16
QUICK = TimingPlan(warmup=5, iterations=20, budget_s=2.0)


@dataclass(frozen=True)
class Bench:
    """Everything that a candidate is measured with."""

    forms: Forms
    images: Calibration
    answers: np.ndarray
    run: RunOptions


def settle(
    job: Job,
    forms: Forms,
    images: Calibration | None,
    promise: Promise,
    *,
    run: RunOptions,
    progress: Progress,
) -> tuple[Job, SearchResult]:
    """``job`` with the precision and the blocks in float that the search found."""
    if images is None:
        raise UsageError(
            "--precision auto measures accuracy, and there are no images to measure it on",
            remedy="Give --data DIR with images of the kind that the model will see.",
        )
    session = reference.eager_session(forms.checkpoint)
    answers = parity.collect(session, as_samples(images), batch=BATCH)[LOGITS]
    bench = Bench(forms, images, answers, run)
    precisions = search.order(job.format, promise.prefer)
    progress.stage(f"ranking the blocks for {job.format}")
    model = forms.of(job.format, replace(job.options, precision="fp32"))
    checkpoint = forms.checkpoint
    ranked = {p: rank(model, checkpoint, p, images) for p in precisions if p != "fp32"}

    def measure(candidate: Candidate) -> SearchPoint:
        kept = f", {len(candidate.keep)} blocks in float" if candidate.keep else ""
        progress.stage(f"trying {job.format} as {candidate.precision}{kept}")
        return measured(job, candidate, bench)

    found = search.find(
        precisions,
        ranked,
        measure,
        max_drop=promise.max_drop,
        forced=_forced(job.format, model, images, precisions),
        prefer=promise.prefer,
    )
    return _with(job, found.chosen.candidate, images), found


def as_samples(images: Calibration) -> Samples:
    """The images as the inputs of a comparison."""
    count = len(images.inputs)
    labels = np.full(count, -1) if images.labels is None else images.labels
    return Samples(tuple(f"image-{i}" for i in range(count)), images.inputs, labels, {})


def rank(
    model: Prepared, checkpoint: Checkpoint, precision: str, images: Calibration
) -> tuple[str, ...]:
    """The blocks by how much the answers suffer when that block alone is in ``precision``."""
    from levit_export.checks import float16_overflow
    from levit_export.formats import simulated_quantisation as simulated

    blocks = list(dict.fromkeys(model.blocks.values()))
    if precision not in simulated.BITS:
        peaks = float16_overflow.peaks(model, images.inputs[:SENSITIVITY_IMAGES])
        return tuple(sorted(blocks, key=lambda block: (-peaks.get(block, 0.0), block)))
    few = replace(images, inputs=images.inputs[:SENSITIVITY_IMAGES], labels=None)
    exact = parity.collect(reference.eager_session(checkpoint), as_samples(few), batch=BATCH)
    inputs = simulated.ranges_of(checkpoint.build(), images) if precision in CALIBRATED else None
    errors: dict[str, float] = {}
    for block in blocks:
        paths = tuple(path for path, name in model.blocks.items() if name == block)
        module = simulated.quantise_(
            checkpoint.build(),
            precision,
            inputs,
            only=lambda path, paths=paths: path.startswith(tuple(f"{p}." for p in paths)),  # type: ignore[misc]
        )
        session = reference.session_of(checkpoint, module)
        answers = parity.collect(session, as_samples(few), batch=BATCH)[LOGITS]
        errors[block] = float(((answers - exact[LOGITS]) ** 2).mean())
    return tuple(sorted(blocks, key=lambda block: (-errors[block], block)))


def _forced(
    kind: str, model: Prepared, images: Calibration, precisions: Sequence[str]
) -> Mapping[str, tuple[str, ...]]:
    """For each precision that computes in float16, the blocks that leave its range."""
    from levit_export.checks import float16_overflow

    half = [p for p in precisions if target(kind).computes_in_half(p)]
    found = tuple(float16_overflow.overflows(model, images.inputs)) if half else ()
    return dict.fromkeys(half, tuple(block for block in found if block))


def measured(job: Job, candidate: Candidate, bench: Bench) -> SearchPoint:
    """Export the candidate and put the images through the file."""
    with tempfile.TemporaryDirectory(prefix="levit-export-") as folder:
        tried = _with(job, candidate, bench.images)
        made = tried.write(bench.forms.of(tried.format, tried.options), Path(folder))
        kind = target(made.format)
        with kind.open(made, bench.run) as session:
            answers = parity.collect(session, as_samples(bench.images), batch=BATCH)
            latency = _latency(session.run, made, bench) if kind.can_time().ok else None
        return SearchPoint(
            candidate,
            drop(bench.images, bench.answers, answers[LOGITS]),
            hashing.digest(made.files).bytes,
            latency,
        )


def _latency(run: object, made: Artifact, bench: Bench) -> float:
    batch = made.signature.batch or 1
    inputs = {
        made.signature.inputs[0].name: np.resize(
            bench.images.inputs, (batch, *bench.images.inputs.shape[1:])
        )
    }
    seconds = timing.measure({"it": lambda: run(inputs)}, QUICK)["it"]  # type: ignore[operator]
    return 1e3 * float(np.median(seconds))


def drop(images: Calibration, expected: np.ndarray, answers: np.ndarray) -> float:
    """Points of top-1 lost against the reference; of agreement with it where nothing is labelled.

    NaN answers are of no class and count as wrong.
    """
    known = np.zeros(len(expected), bool) if images.labels is None else images.labels >= 0
    right = expected.argmax(axis=1)
    given = np.where(np.isnan(answers).any(axis=1), -2, answers.argmax(axis=1))
    if not known.any():
        return 100.0 * float((given != right).mean())
    labels = np.asarray(images.labels)[known]
    return 100.0 * float((right[known] == labels).mean() - (given[known] == labels).mean())


def _with(job: Job, candidate: Candidate, images: Calibration) -> Job:
    options = replace(
        job.options,
        precision=candidate.precision,
        keep=candidate.keep,
        calibration=images if candidate.precision in CALIBRATED else None,
    )
    return replace(job, options=options)
