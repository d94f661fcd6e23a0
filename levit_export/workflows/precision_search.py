"""``--precision auto``: find the cheapest precision of a format that keeps a promise on accuracy.

Precisions are tried from the cheapest. Where one loses too much, the blocks that suffer most are
left in float, most sensitive first, until the promise is kept; how many it takes is bisected. A
block's sensitivity is the error of the outputs when that block alone is in the low precision.

:func:`find` decides and is pure: the same measurements give the same choice. :func:`search`
measures each candidate on a real file. Latencies are shown and never decide, because they would
not repeat.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from levit_export.checks import parity, reference, timing
from levit_export.checks.timing import TimingPlan
from levit_export.core import hashing
from levit_export.core.errors import UnknownNameError, UsageError
from levit_export.core.precisions import CALIBRATED, GRIDS, HINTED
from levit_export.core.progress import Progress
from levit_export.core.values import Calibration, Prepared, RunOptions, Target
from levit_export.formats import Job, target
from levit_export.inputs.samples import Samples, filled
from levit_export.models.zoo import LOGITS
from levit_export.reports.report import Candidate, SearchPoint, SearchResult

if TYPE_CHECKING:
    from levit_export.models.checkpoints import Checkpoint
    from levit_export.models.preparation import Forms

AUTO = "auto"
"""What ``--precision`` calls the precision that a search finds."""

Preference = Literal["latency", "size"]

ORDER: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "latency": {
        "onnx": ("int8", "fp32"),
        "openvino": ("int8", "bf16", "fp32"),
        "coreml": ("int8", "fp16", "fp32"),
        "coreai": ("fp16", "fp32"),
    },
    "size": {
        "onnx": ("int8", "w8", "fp16", "fp32"),
        "openvino": ("w4", "int8", "w8", "fp16", "fp32"),
        "coreml": ("w4", "w6", "int8", "w8", "fp16", "fp32"),
        "coreai": ("w4", "w6", "w8", "fp16", "fp32"),
    },
}
"""Precisions by what they save, the most first. The last is the network itself."""

MOST_KEPT = 0.5
"""Share of blocks left in float beyond which the next precision is the better answer."""

SENSITIVITY_IMAGES = 16
"""Images that each block is tried on alone; the blocks are only ranked by them."""

BATCH = 16
QUICK = TimingPlan(warmup=5, iterations=20, budget_s=2.0)


@dataclass(frozen=True)
class Promise:
    """At most so many points of top-1 lost on the images, or of agreement where none is labelled.

    ``prefer`` says what is saved for it.
    """

    max_drop: float = 0.5
    prefer: Preference = "latency"


def order(kind: str, prefer: Preference) -> tuple[str, ...]:
    """The precisions to try for a format."""
    known = ORDER[prefer]
    if kind not in known:
        raise UnknownNameError("format to search a precision for", kind, known)
    return known[kind]


def possible(kind: Target, precisions: Sequence[str], run: RunOptions) -> tuple[str, ...]:
    """``precisions`` but for hints that the runtime would not follow on this machine.

    By default it computes in what its processor is fast in, which is what a hint is good for.
    """
    default = replace(run, by_default=True)
    return tuple(
        each for each in precisions if each not in HINTED or kind.arithmetic(default).type == each
    )


def find(
    precisions: Sequence[str],
    ranked: Mapping[str, Sequence[str]],
    measure: Callable[[Candidate], SearchPoint],
    *,
    max_drop: float,
    forced: Mapping[str, Sequence[str]] | None = None,
    prefer: Preference = "latency",
) -> SearchResult:
    """The first of ``precisions`` that loses at most ``max_drop`` points, or the smallest.

    ``ranked`` are the blocks by sensitivity for each precision, the most sensitive first;
    ``forced`` are those that have to stay in float because they leave its range.
    """
    seen: dict[Candidate, SearchPoint] = {}

    def measured(precision: str, count: int) -> SearchPoint:
        must = tuple((forced or {}).get(precision, ()))
        rest = [block for block in ranked.get(precision, ()) if block not in must]
        candidate = Candidate(precision, (*must, *rest[:count]))
        if candidate not in seen:
            seen[candidate] = measure(candidate)
        return seen[candidate]

    kept: list[SearchPoint] = []
    for precision in precisions:
        most = int(MOST_KEPT * len(ranked.get(precision, ())))
        best = _fewest(lambda count, p=precision: measured(p, count), most, max_drop)  # type: ignore[misc]
        if best is not None:
            kept.append(best)
            if prefer == "latency":
                break
    if not kept:  # not even the network itself: then it is what there is
        kept.append(measured(precisions[-1], 0))
    chosen = kept[0] if prefer == "latency" else min(kept, key=lambda point: point.bytes)
    return SearchResult(chosen, tuple(seen.values()))


def _fewest(
    measured: Callable[[int], SearchPoint], most: int, max_drop: float
) -> SearchPoint | None:
    """The point with the fewest blocks kept that loses little enough; None up to ``most``.

    Doubles the count until the promise is kept, then bisects between the last two.
    """
    # The fewest first: each block in float costs what the precision was to save.
    below, count = -1, 0
    while measured(count).drop > max_drop:
        if count >= most:
            return None
        below, count = count, min(most, max(1, 2 * count))
    while count - below > 1:
        middle = (below + count) // 2
        if measured(middle).drop > max_drop:
            below = middle
        else:
            count = middle
    return measured(count)


def settle(
    jobs: Sequence[Job],
    forms: Forms,
    images: Calibration | None,
    promise: Promise,
    *,
    run: RunOptions,
    progress: Progress,
) -> tuple[list[Job], dict[str, SearchResult]]:
    """``jobs`` with a precision for each that asks for one, and by format what its search saw."""
    settled: list[Job] = []
    searches: dict[str, SearchResult] = {}
    for job in jobs:
        if job.options.precision != AUTO:
            settled.append(job)
            continue
        if images is None:
            raise no_images()
        found = search(job, forms, images, promise, run=run, progress=progress)
        searches[job.format] = found
        settled.append(_with(job, found.chosen.candidate, images))
    return settled, searches


def no_images() -> UsageError:
    """What is wrong with a search that has nothing to measure accuracy on."""
    return UsageError(
        "--precision auto measures accuracy, and there are no images to measure it on",
        remedy="Give --data DIR with images of the kind that the model will see.",
    )


def search(
    job: Job,
    forms: Forms,
    images: Calibration,
    promise: Promise,
    *,
    run: RunOptions,
    progress: Progress,
) -> SearchResult:
    """Export candidates for ``job``, put the images through each file, and choose one."""
    from levit_export.checks import float16_overflow

    kind, checkpoint = target(job.format), forms.checkpoint
    precisions = possible(kind, order(job.format, promise.prefer), run)
    shown = as_samples(images)
    expected = parity.collect(reference.eager_session(checkpoint), shown, batch=BATCH)[LOGITS]
    progress.stage(f"ranking the blocks for {job.format}")
    model = forms.of(job.format, replace(job.options, precision="fp32"))
    whole = ("fp32", *HINTED)  # no block can stay out of them
    ranked = {p: rank(model, checkpoint, p, images) for p in precisions if p not in whole}
    # Where a precision computes in float16, blocks that leave its range must stay in float.
    half = [precision for precision in precisions if kind.computes_in_half(precision)]
    overflowing = float16_overflow.overflows(model, images.inputs) if half else {}
    forced = dict.fromkeys(half, tuple(block for block in overflowing if block))

    def measure(candidate: Candidate) -> SearchPoint:
        kept = f", {len(candidate.keep)} blocks in float" if candidate.keep else ""
        progress.stage(f"trying {job.format} as {candidate.precision}{kept}")
        tried = _with(job, candidate, images)
        with tempfile.TemporaryDirectory(prefix="levit-export-") as folder:
            made = tried.write(forms.of(tried.format, tried.options), Path(folder))
            latency_ms = None
            with kind.open(made, run) as session:
                answers = parity.collect(session, shown, batch=BATCH)[LOGITS]
                if kind.can_time().ok:
                    batch = made.signature.batch or 1
                    inputs = {made.signature.inputs[0].name: filled(images.inputs[:batch], batch)}
                    seconds = timing.measure({"it": lambda: session.run(inputs)}, QUICK)["it"]
                    latency_ms = 1e3 * float(np.median(seconds))
            lost = drop(images, expected, answers)
            return SearchPoint(candidate, lost, hashing.digest(made.files).bytes, latency_ms)

    return find(
        precisions,
        ranked,
        measure,
        max_drop=promise.max_drop,
        forced=forced,
        prefer=promise.prefer,
    )


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
    if precision not in GRIDS:
        peaks = float16_overflow.peaks(model, images.inputs[:SENSITIVITY_IMAGES])
        return tuple(sorted(blocks, key=lambda block: (-peaks.get(block, 0.0), block)))
    few = replace(images, inputs=images.inputs[:SENSITIVITY_IMAGES], labels=None)
    exact = parity.collect(reference.eager_session(checkpoint), as_samples(few), batch=BATCH)
    inputs = simulated.ranges_of(checkpoint.build(), images) if precision in CALIBRATED else None
    # One block at a time, for there are too many sets of blocks to try.
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
