"""Open artifacts and find out about them: parity, accuracy and timing of what is on disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, sleep

import numpy as np

from levit_export import machine, parity, timing
from levit_export.core import Artifact, RunOptions, Session, Signature, Tolerance
from levit_export.errors import RuntimeFailedError
from levit_export.parity import ParityReport
from levit_export.report import Accuracy
from levit_export.samples import Samples
from levit_export.targets import target
from levit_export.timing import TimingPlan, TimingReport

IMAGE_BATCH = 16
"""How many labelled images an artifact that takes any batch is given at a time."""

GEMM_CALLS = 10
BLAS_SPIN_S = 0.05
"""OpenBLAS lets idle threads spin for 2**26 cycles, some 25 ms, before they sleep."""


@dataclass(frozen=True)
class Reference:
    """What the artifacts are held against: samples, the answers to them, tolerances by precision.

    ``images`` are labelled inputs for accuracy, with the reference's own predictions.
    """

    signature: Signature
    samples: Samples
    outputs: Mapping[str, np.ndarray]
    tolerances: Mapping[str, Tolerance]
    doubt: str = ""
    images: Samples | None = None
    dataset: str = ""
    predictions: np.ndarray | None = None


def check(
    artifact: Artifact, reference: Reference, options: RunOptions
) -> tuple[ParityReport, Accuracy | None]:
    """Parity of one artifact, and its accuracy where the reference has labelled images."""
    kind = target(artifact.format)
    available = kind.can_run()
    if not available.ok:
        return parity.not_run(f"{available.reason}: {available.fix}"), None
    with kind.open(artifact, options) as session:
        try:
            outputs = parity.collect(session, reference.samples)
        except RuntimeFailedError as error:
            return _failed(str(error), session, reference), None
        report = parity.compare_outputs(
            reference.outputs,
            outputs,
            reference.samples,
            reference.tolerances[artifact.precision],
            expected=reference.signature,
            runtime=session.runtime,
            doubt=reference.doubt,
        )
        return report, _accuracy(session, reference)


def _failed(reason: str, session: Session, reference: Reference) -> ParityReport:
    return ParityReport("fail", reason, session.runtime, samples=len(reference.samples))


def _accuracy(session: Session, reference: Reference) -> Accuracy | None:
    images, expected = reference.images, reference.predictions
    first = reference.signature.outputs[0].name
    if images is None or expected is None:
        return None
    outputs = parity.collect(session, images, batch=IMAGE_BATCH)
    if first not in outputs:
        return None
    predictions = outputs[first].argmax(axis=1)
    return Accuracy(
        dataset=reference.dataset,
        images=len(images),
        correct=int((predictions == images.labels).sum()),
        reference_correct=int((expected == images.labels).sum()),
        agreement=float((predictions == expected).mean()),
    )


@dataclass(frozen=True)
class _Entrant:
    """A session that takes part in a timed run."""

    session: Session
    load_s: float
    batch: int
    call: Callable[[], object]


def time_artifacts(
    artifacts: Sequence[Artifact],
    options: RunOptions,
    plan: TimingPlan,
    *,
    macs: int = 0,
    others: Mapping[str, Session] | None = None,
    progress: Callable[[], None] = lambda: None,
) -> tuple[dict[Path, TimingReport], dict[str, TimingReport]]:
    """Latency of every artifact and of ``others`` (by name), all measured round robin.

    The first result is keyed by the artifacts' paths. ``macs`` of one image, where known, gives
    the efficiency against the machine's GEMM rate, measured just before and just after.
    """
    reports: dict[Path, TimingReport] = {}
    with ExitStack() as stack:
        entrants: dict[Path | str, _Entrant] = {}
        for artifact in artifacts:
            available = target(artifact.format).can_time()
            if available.ok:
                entrants[artifact.path] = _enter(stack, artifact, options)
            else:
                reports[artifact.path] = timing.not_timed(available.reason)
        batch = next((entrant.batch for entrant in entrants.values()), 1)
        for name, session in (others or {}).items():
            entrants[name] = _Entrant(session, 0.0, batch, _call(session, batch))
        before = _gemm_seconds(options.threads)
        seconds = timing.measure(
            {key: e.call for key, e in entrants.items()}, plan, progress=progress
        )
        products = before + _gemm_seconds(options.threads)
    rate = machine.gemm_operations() / float(np.median(products))
    baselines: dict[str, TimingReport] = {}
    for key, entrant in entrants.items():
        timed = _timed(entrant, seconds[key], options, macs=macs, rate=rate)
        if isinstance(key, Path):
            reports[key] = timed
        else:
            baselines[key] = timed
    return reports, baselines


def _gemm_seconds(threads: int) -> tuple[float, ...]:
    """Not in the rounds: a BLAS keeps its threads spinning, which would slow the next session."""
    multiply = machine.gemm(threads)
    multiply()
    seconds = timing.series(multiply, GEMM_CALLS)
    sleep(BLAS_SPIN_S)
    return seconds


def _enter(stack: ExitStack, artifact: Artifact, options: RunOptions) -> _Entrant:
    start = perf_counter()
    session = stack.enter_context(target(artifact.format).open(artifact, options))
    load_s = perf_counter() - start
    batch = session.signature.batch or 1
    return _Entrant(session, load_s, batch, _call(session, batch))


def _call(session: Session, batch: int) -> Callable[[], object]:
    generator = np.random.default_rng(0)
    inputs = {
        spec.name: generator.standard_normal((batch, *map(_fixed, spec.shape[1:]))).astype(
            spec.dtype
        )
        for spec in session.signature.inputs
    }
    return lambda: session.run(inputs)


def _fixed(dimension: int | None) -> int:
    return 1 if dimension is None else dimension


def _timed(
    entrant: _Entrant,
    seconds: tuple[float, ...],
    options: RunOptions,
    *,
    macs: int,
    rate: float,
) -> TimingReport:
    ideal = 2 * macs * entrant.batch / rate
    return TimingReport(
        verdict="pass",
        runtime=entrant.session.runtime,
        threads=options.threads,
        batch=entrant.batch,
        load_s=entrant.load_s,
        efficiency=ideal / float(np.median(seconds)) if macs else None,
        seconds=seconds,
    )
