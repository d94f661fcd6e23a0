"""Open artifacts and find out about them: parity, accuracy and timing of what is on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter, sleep

import numpy as np

from levit_export.checks import parity, peak_memory, timing, weights
from levit_export.checks.findings import Finding
from levit_export.checks.parity import ParityReport
from levit_export.checks.reference import Reference
from levit_export.checks.results import Accuracy, ArtifactReport
from levit_export.checks.timing import Regimes, TimingPlan, TimingReport
from levit_export.checks.weights import WeightAudit
from levit_export.core import hashing, machine
from levit_export.core.errors import (
    ArtifactError,
    MissingDependencyError,
    NotRunError,
    RuntimeFailedError,
)
from levit_export.core.precisions import HINTED, UNIT_ROUNDOFF
from levit_export.core.progress import Progress, Silent
from levit_export.core.values import (
    Artifact,
    RunOptions,
    Session,
    Tensors,
)
from levit_export.formats import target
from levit_export.inputs.samples import seeded

IMAGE_BATCH = 16
"""How many labelled images an artifact that takes any batch is given at a time."""

NO_DIGESTS = (
    "it is not known which tensors the file must hold: there are no digests of them in the "
    "manifest, or its files name other passes than one another. Export it anew, or check each "
    "file with --checkpoint"
)

OTHER_TENSORS = "the file does not name its passes, and most of what all of them make is not in it"
MOST = 0.5
"""Share of the tensors whose absence shows that a file was made in another way."""

GEMM_CALLS = 10
SPIN_S = 0.05
"""OpenBLAS lets idle threads spin for 2**26 cycles, some 25 ms; OpenMP's go on for some 20."""


@dataclass(frozen=True)
class Row:
    """One artifact and one way to execute it: a line of the report."""

    artifact: Artifact
    run: RunOptions


@dataclass(frozen=True)
class Checked:
    """What a check of one row found.

    ``accuracy`` is None where the reference has no labelled images. ``answers`` are every output
    for every sample, and there are none where the artifact did not run.
    """

    parity: ParityReport
    accuracy: Accuracy | None = None
    answers: Tensors = field(default_factory=dict, repr=False)


def judged_as(row: Row) -> str:
    """The precision by whose tolerance a row's answers are judged.

    It is the artifact's own, or what its runtime computes in where that is coarser and accepted.
    """
    computed = target(row.artifact.format).arithmetic(row.run)
    accepted = computed.type if computed.is_accepted else "fp32"
    return coarser_of(row.artifact.precision, accepted)


def coarser_of(precision: str, computed: str) -> str:
    """``precision``, or the type that answers were computed in where that rounds more."""
    is_coarser = UNIT_ROUNDOFF[computed] > UNIT_ROUNDOFF.get(precision, 1.0)
    return computed if is_coarser else precision


def rows(
    artifacts: Sequence[Artifact], options: RunOptions, *, also_by_default: bool = False
) -> tuple[Row, ...]:
    """Every artifact, once for each way that ``options`` ask its target to execute it.

    With ``also_by_default`` once more as its runtime computes unless it is told, where that is
    coarser, and the artifact does not say itself what it is to be computed in.
    """
    asked = replace(options, also_by_default=also_by_default)
    return tuple(
        Row(artifact, run)
        for artifact in artifacts
        for run in target(artifact.format).runs(asked)
        if not (run.by_default and artifact.precision in HINTED)
    )


def check(
    row: Row,
    reference: Reference,
    claims: tuple[str, ...] = (),
    opened: Callable[[Row], AbstractContextManager[Session]] | None = None,
) -> Checked:
    """Parity of one artifact, its answers, and its accuracy on the labelled images.

    ``claims`` are what it says of itself and is not true. ``opened`` loads it in place of the
    runtime that is installed here; a ``RuntimeFailedError`` of it is a failure of the artifact.
    """
    untrue = [Finding("contradiction", {"text": claim}) for claim in claims]
    kind = target(row.artifact.format)
    available = kind.can_run()
    if opened is None and not available.ok:
        return Checked(parity.not_run(f"{available.reason}: {available.fix}"))
    judged = judged_as(row)
    if judged not in reference.tolerances:
        reason = f"no tolerance for answers in {judged} is known: add --checkpoint FILE"
        return Checked(parity.not_run(reason))
    with ExitStack() as stack:
        try:
            session = stack.enter_context(
                kind.open(row.artifact, row.run) if opened is None else opened(row)
            )
        except NotRunError as error:
            return Checked(parity.not_run(str(error)))
        except RuntimeFailedError as error:
            return Checked(parity.run_failed(error, "", reference.samples).joined(*untrue))
        expected = reference.matching(session.signature)
        try:
            outputs = parity.collect(session, expected.samples)
            accuracy = _accuracy(session, expected)
        except RuntimeFailedError as error:
            failed = parity.run_failed(error, session.runtime, expected.samples)
            return Checked(failed.joined(*untrue))
        report = parity.compare_outputs(
            expected.outputs,
            outputs,
            expected.samples,
            expected.tolerances[judged],
            expected=expected.signature,
            runtime=session.runtime,
            doubt=expected.doubt,
        )
    if report.verdict == "fail":
        report = report.joined(*_in_float32(row, reference))
    artifact = row.artifact
    # A quantised file has digests of its own, for each quantiser settles its grids differently.
    digests = expected.weights.get(artifact.id, expected.weights.get(artifact.precision, {}))
    report = parity.with_weights(report, _audit(artifact, digests)).joined(*untrue)
    return Checked(report, accuracy, outputs)


def _in_float32(row: Row, reference: Reference) -> Iterator[Finding]:
    """That answers which fail are right where the runtime is told to compute in float32."""
    computed = target(row.artifact.format).arithmetic(row.run)
    if computed.type == "fp32" or computed.is_accepted or computed.exact is None:
        return
    exact = check(replace(row, run=computed.exact), replace(reference, images=None)).parity
    if all(finding.part != "answers" or finding.verdict == "pass" for finding in exact.findings):
        yield Finding(
            "coarser-arithmetic",
            {
                "error": max(output.max_rel for output in exact.outputs),
                "type": computed.type,
                "remedy": computed.remedy,
            },
        )


def _audit(artifact: Artifact, digests: Mapping[str, str]) -> WeightAudit:
    """The tensors of ``digests`` looked for in an artifact.

    A file that does not name its passes is taken to hold what all of them make. Where it does not
    hold most of that, nobody knows what it should hold.
    """
    is_foreign = artifact.passes is None and artifact.claims is None
    if not digests:
        return WeightAudit(0, unread=NO_DIGESTS, answers_only=is_foreign)
    try:
        stored = target(artifact.format).constants(artifact)
        found = weights.audit(digests, stored, artifact.precision)
    except (MissingDependencyError, ArtifactError) as error:
        return WeightAudit(len(digests), unread=str(error), answers_only=is_foreign)
    # The passes decide which tensors there are, so a file that names none may hold others.
    if artifact.passes is None and len(found.missing) > MOST * found.tensors:
        return WeightAudit(len(digests), unread=OTHER_TENSORS, answers_only=is_foreign)
    return found


def describe(
    row: Row,
    folder: Path | None,
    parity_report: ParityReport,
    accuracy: Accuracy | None = None,
    timed: TimingReport | None = None,
) -> ArtifactReport:
    """What was found out about an artifact; its path is relative to ``folder``, if given."""
    artifact = row.artifact
    entry = hashing.digest(artifact.files)
    remarks: tuple[str, ...] = ()
    # Where nothing ran there is nothing to say of how.
    if parity_report.runtime or (timed is not None and timed.runtime):
        remarks = target(artifact.format).remarks(artifact, row.run)
    return ArtifactReport(
        format=artifact.format,
        precision=artifact.precision,
        path=shown_path(artifact, folder),
        bytes=entry.bytes,
        sha256=entry.sha256,
        parity=parity_report,
        timing=timed,
        accuracy=accuracy,
        notes=(*artifact.notes, *remarks),
    )


def shown_path(artifact: Artifact, folder: Path | None) -> str:
    """The artifact's path below ``folder``, or as it was given where several folders are shown."""
    path = artifact.path if folder is None else artifact.path.relative_to(folder)
    return path.as_posix()


def _accuracy(session: Session, reference: Reference) -> Accuracy | None:
    images, expected = reference.images, reference.predictions
    first = reference.signature.outputs[0].name
    if images is None or expected is None:
        return None
    outputs = parity.collect(session, images, batch=IMAGE_BATCH)
    if first not in outputs or outputs[first].ndim != 2:
        return None  # which parity calls a failure
    predictions = outputs[first].argmax(axis=1)
    return Accuracy(
        dataset=reference.dataset,
        images=len(images),
        correct=int((predictions == images.labels).sum()),
        reference_correct=int((expected == images.labels).sum()),
        agreement=float((predictions == expected).mean()),
    )


@dataclass(frozen=True)
class _TimedSession:
    """A session that takes part in a timed run."""

    session: Session
    load_s: float
    batch: int
    call: Callable[[], object]
    first_s: float = 0.0


def time_rows(
    rows: Sequence[Row],
    threads: int,
    plan: TimingPlan,
    *,
    macs: int = 0,
    others: Mapping[str, Session] | None = None,
    progress: Progress | None = None,
) -> tuple[dict[Row, TimingReport], dict[str, TimingReport]]:
    """Latency of every row and of ``others`` (by name), measured round robin or by rules.

    ``macs`` of one image, where known, gives the efficiency against the machine's GEMM rate on
    ``threads`` threads, measured just before and just after. Rows have their regimes as well; a
    cold start there does not load the runtime itself.
    """
    progress = progress or Silent()
    rules = plan.rules
    measured = (
        plan.iterations if rules is None else int(rules.seconds) * (len(rows) + len(others or {}))
    )
    progress.steps(measured + int(plan.sustain_s) * len(rows))
    reports: dict[Row, TimingReport] = {}
    # Peak memory first: the processes that it is measured in would disturb the timing.
    able = [row for row in rows if target(row.artifact.format).can_time().ok]
    found = peak_memory.peaks([(row.artifact, row.run) for row in able], threads)
    peaks = dict(zip(able, found, strict=True))
    with ExitStack() as stack:
        entrants: dict[Row | str, _TimedSession] = {}
        for row in rows:
            available = target(row.artifact.format).can_time()
            if not available.ok:
                reports[row] = timing.not_timed(available.reason)
                continue
            kind, start = target(row.artifact.format), perf_counter()
            try:
                session = stack.enter_context(kind.open(row.artifact, row.run))
            except NotRunError as error:
                reports[row] = timing.not_timed(str(error))
                continue
            load_s, batch = perf_counter() - start, session.signature.batch or 1
            call = _call(session, batch)
            (first_s,) = timing.series(call, 1)
            entrants[row] = _TimedSession(session, load_s, batch, call, first_s)
        # PyTorch takes any batch, and is timed with that of the files it stands beside.
        batch = next((entrant.batch for entrant in entrants.values()), 1)
        for name, session in (others or {}).items():
            entrants[name] = _TimedSession(session, 0.0, batch, _call(session, batch))
        # Measured before and after, because the machine's speed drifts during a run.
        before = gemm_seconds(threads)
        calls = {key: entrant.call for key, entrant in entrants.items()}

        def rest(key: Row | str) -> None:
            """Wait after a call of PyTorch on several threads until they sleep.

            Without it LeViT-128S took ONNX Runtime 6.1 ms on two threads after PyTorch, and 4.8 ms
            after another session of ONNX Runtime; after 30 ms both took 4.9 ms.
            """
            if threads > 1 and key in (others or {}):
                sleep(SPIN_S)

        seconds = timing.measure(calls, plan, progress=progress, rest=rest)
        products = before + gemm_seconds(threads)
        sustained = {
            row: timing.in_a_row(entrants[row].call, 0, plan.sustain_s, progress=progress)
            for row in rows
            if row in entrants
        }
    rate = machine.gemm_operations() / float(np.median(products))
    baselines: dict[str, TimingReport] = {}
    for key, entrant in entrants.items():
        timed = _timed(entrant, seconds[key], threads, macs=macs, rate=rate)
        timed = replace(timed, rules="" if rules is None else rules.name)
        if isinstance(key, Row):
            cold_s = entrant.load_s + entrant.first_s
            regimes = Regimes(cold_s, entrant.first_s, sustained[key])
            reports[key] = replace(timed, peak_bytes=peaks[key], regimes=regimes)
        else:
            baselines[key] = timed
    return reports, baselines


def gemm_seconds(threads: int) -> tuple[float, ...]:
    """Not in the rounds: a BLAS keeps its threads spinning, which would slow the next session."""
    multiply = machine.gemm(threads)
    multiply()
    seconds = timing.series(multiply, GEMM_CALLS)
    sleep(SPIN_S)
    return seconds


def _call(session: Session, batch: int) -> Callable[[], object]:
    inputs = {
        spec.name: seeded(replace(spec, shape=(batch, *spec.shape[1:])))
        for spec in session.signature.inputs
    }
    return lambda: session.run(inputs)


def _timed(
    entrant: _TimedSession,
    seconds: tuple[float, ...],
    threads: int,
    *,
    macs: int,
    rate: float,
) -> TimingReport:
    ideal = 2 * macs * entrant.batch / rate
    return TimingReport(
        verdict="pass",
        runtime=entrant.session.runtime,
        threads=threads,
        batch=entrant.batch,
        load_s=entrant.load_s,
        efficiency=ideal / float(np.median(seconds)) if macs else None,
        seconds=seconds,
    )
