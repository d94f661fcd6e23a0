"""Hold one session's answers against another's. Pure: values in, a report out.

Nothing here prints, raises on a mismatch, or has a default tolerance; and nothing passes because
there was nothing to compare.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from levit_export.core import Session, Signature, Tensors, Tolerance, Tolerances, Verdict
from levit_export.errors import RuntimeFailedError
from levit_export.samples import Samples
from levit_export.weights import WeightAudit

VARIATION = 2.0**-10
"""Least share of its own size by which a reference must vary over the samples.

Below it, float16 (unit roundoff 2**-11) gives every sample the same answer, and a check would
accept any network that answers with a constant.
"""


SHOWN = 5
"""Names that a message lists before it counts the rest."""


@dataclass(frozen=True)
class Flip:
    """A sample whose top-1 changed, and whether rounding is no excuse for it."""

    sample: str
    reference_class: int
    artifact_class: int
    decided: bool


@dataclass(frozen=True)
class OutputParity:
    """One output: the distance to the reference, and what it did to the predictions.

    ``max_rel`` is the largest ``max|c - r| / max|r|`` of a row; ``worst_ratio`` the largest share
    of its allowance that a row used, above 1 where it failed; ``worst_sample`` names that row.
    Agreements are shares of rows. A *decided* flip changed top-1 although the reference's margin
    exceeds twice the largest error on all other rows; an undecided one is a near-tie. ``errors``
    are the largest ``|c - r|`` of each row and ``scales`` its largest ``|r|``, so that another
    tolerance can be applied later.
    """

    name: str
    max_abs: float
    max_rel: float
    mean_abs: float
    cosine: float
    snr_db: float
    worst_ratio: float
    worst_sample: str
    top1_agreement: float
    top5_agreement: float
    decided_flips: int
    undecided_flips: int
    tolerance: Tolerance
    errors: tuple[float, ...] = ()
    scales: tuple[float, ...] = ()
    flipped: tuple[Flip, ...] = ()
    failures: tuple[str, ...] = ()


@dataclass(frozen=True)
class ParityReport:
    """The verdict on one artifact and everything it rests on."""

    verdict: Verdict
    reason: str
    runtime: str
    samples: int
    outputs: tuple[OutputParity, ...] = ()
    weights: WeightAudit | None = None


NOT_ASKED = "parity was not asked for"
"""The reason in reports of a run that only measured."""


def not_run(reason: str, runtime: str = "") -> ParityReport:
    """A check that was asked for and did not happen: neither pass nor fail."""
    return ParityReport("not-run", reason, runtime, samples=0)


def with_weights(report: ParityReport, audit: WeightAudit) -> ParityReport:
    """``report`` joined by what was found of the weights; missing or strange ones fail it."""
    failures = [report.reason] if report.reason else []
    if audit.missing:
        failures.append(
            f"{len(audit.missing)} of {audit.tensors} weight tensors are not in the file as the "
            f"checkpoint has them: {_shortened(audit.missing)}"
        )
    if audit.strange:
        failures.append(
            f"{len(audit.strange)} constants of the file are no tensor of the checkpoint: "
            f"{_shortened(audit.strange)}"
        )
    verdict = "fail" if audit.missing or audit.strange else report.verdict
    return replace(report, verdict=verdict, reason="; ".join(failures), weights=audit)


def _shortened(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def collect(
    session: Session, samples: Samples, *, batch: int | None = None
) -> dict[str, np.ndarray]:
    """Every output of ``session`` for every sample, ``{name: (samples, ...)}``.

    A session with a fixed batch is fed full batches; one without is fed batches of ``batch``, or
    of mixed sizes where none is given. Raises ``RuntimeFailedError`` when an output has not one
    row for each input, all of one shape: such rows could not be told apart.
    """
    spec = session.signature.inputs[0]
    pieces: dict[str, list[np.ndarray]] = {}
    for inputs, rows in samples.batches(session.signature.batch or batch):
        for name, value in session.run({spec.name: inputs}).items():
            array, parts = np.asarray(value), pieces.setdefault(name, [])
            if array.shape[:1] != (len(inputs),) or array.shape[1:] != _row_shape(parts, array):
                raise RuntimeFailedError(
                    f"output {name!r} has shape {array.shape} for a batch of {len(inputs)}",
                    remedy="The artifact has to give one row for each image; export it again.",
                )
            parts.append(array[:rows])
    return {name: np.concatenate(parts) for name, parts in pieces.items()}


def _row_shape(parts: list[np.ndarray], first: np.ndarray) -> tuple[int, ...]:
    """The shape of a row of what was collected so far, or of ``first``."""
    return (parts[0] if parts else first).shape[1:]


def compare(
    reference: Session, candidate: Session, samples: Samples, tolerances: Tolerances
) -> ParityReport:
    """Run both sessions on ``samples`` and compare what they answer.

    A candidate that cannot be run fails.
    """
    try:
        outputs = collect(candidate, samples)
    except RuntimeFailedError as error:
        return ParityReport("fail", str(error), candidate.runtime, samples=len(samples))
    return compare_outputs(
        collect(reference, samples),
        outputs,
        samples,
        tolerances,
        expected=reference.signature,
        runtime=candidate.runtime,
    )


def compare_outputs(
    reference: Tensors,
    candidate: Tensors,
    samples: Samples,
    tolerances: Tolerances,
    *,
    expected: Signature,
    runtime: str,
    doubt: str = "",
) -> ParityReport:
    """Compare collected outputs. ``doubt`` is a known reason why passing would prove nothing."""
    general = [f"this check proves nothing: {doubt}"] if doubt else []
    if len(samples) == 0:
        general.append("no samples were compared")
    missing = [s.name for s in expected.outputs if s.name not in candidate]
    general += [f"output {name!r} is missing" for name in missing]
    outputs = tuple(
        _compare_output(
            spec.name,
            reference[spec.name],
            candidate[spec.name],
            samples,
            tolerances[spec.name],
        )
        for spec in expected.outputs
        if spec.name in candidate and len(samples)
    )
    if not expected.outputs:
        general.append("the reference has no outputs")
    failures = [*general, *_named(outputs)]
    return ParityReport(
        verdict="fail" if failures else "pass",
        reason="; ".join(failures),
        runtime=runtime,
        samples=len(samples),
        outputs=outputs,
    )


def _named(outputs: Iterable[OutputParity]) -> list[str]:
    return [f"{output.name}: {failure}" for output in outputs for failure in output.failures]


def _compare_output(
    name: str,
    reference: np.ndarray,
    candidate: np.ndarray,
    samples: Samples,
    tolerance: Tolerance,
) -> OutputParity:
    if refused := _unfit(reference, candidate, samples):
        return _incomparable(name, refused, tolerance)
    r = reference.reshape(len(reference), -1).astype(np.float64)
    c = candidate.reshape(len(candidate), -1).astype(np.float64)
    error = np.abs(c - r).max(axis=1)
    allowed = tolerance.allowed(r)
    ratio = _share(error, allowed)
    worst = int(ratio.argmax())
    flipped = _flips(r, c, error, samples.names)
    decided = sum(flip.decided for flip in flipped)
    failures = [*_proves_nothing(r, allowed, samples)]
    if ratio[worst] > 1:
        failures.append(
            f"error {error[worst]:.2e} on {samples.names[worst]} exceeds the tolerance "
            f"{allowed[worst]:.2e}"
        )
    if decided:
        failures.append(f"{decided} top-1 flips that rounding does not excuse")
    return OutputParity(
        name=name,
        **_distances(r, c),
        worst_ratio=float(ratio[worst]),
        worst_sample=samples.names[worst],
        top1_agreement=_agreement(r, c, 1),
        top5_agreement=_agreement(r, c, 5),
        decided_flips=decided,
        undecided_flips=len(flipped) - decided,
        flipped=flipped,
        tolerance=tolerance,
        errors=tuple(error.tolist()),
        scales=tuple(np.abs(r).max(axis=1).tolist()),
        failures=tuple(failures),
    )


def _unfit(reference: np.ndarray, candidate: np.ndarray, samples: Samples) -> str:
    """Why the two cannot be compared at all, or empty."""
    if candidate.shape != reference.shape:
        return f"shape {candidate.shape}, expected {reference.shape}"
    if not reference.size:
        return "the output has no values"
    if not np.issubdtype(candidate.dtype, np.floating):
        return f"type {candidate.dtype}, expected floating point"
    if not np.isfinite(reference).all():
        return "the reference holds NaN or infinity"
    bad = ~np.isfinite(candidate).reshape(len(candidate), -1).all(axis=1)
    if bad.any():
        first = samples.names[int(bad.argmax())]
        return f"NaN or infinity on {int(bad.sum())} of {len(samples)} samples, first {first}"
    return ""


def _incomparable(name: str, failure: str, tolerance: Tolerance) -> OutputParity:
    nan = float("nan")
    return OutputParity(
        name=name,
        max_abs=nan,
        max_rel=nan,
        mean_abs=nan,
        cosine=nan,
        snr_db=nan,
        worst_ratio=float("inf"),
        worst_sample="",
        top1_agreement=0.0,
        top5_agreement=0.0,
        decided_flips=0,
        undecided_flips=0,
        tolerance=tolerance,
        failures=(failure,),
    )


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """``part / whole``, where a whole of zero makes a part of zero 0 and any other infinite."""
    with np.errstate(over="ignore"):
        shares: np.ndarray = part / np.maximum(whole, np.finfo(np.float64).tiny)
    return shares


def _proves_nothing(r: np.ndarray, allowed: np.ndarray, samples: Samples) -> list[str]:
    """Whether any answer would pass, or that of a network which always gives the mean of ``r``."""
    if (bad := ~np.isfinite(allowed)).any():
        first = int(bad.argmax())
        return [
            f"this check proves nothing: the tolerance on {samples.names[first]} "
            f"is {allowed[first]}"
        ]
    deviation = np.abs(r - r.mean(axis=0)).max(axis=1)
    scale = np.abs(r).max()
    if (deviation <= allowed).all() or deviation.max() <= VARIATION * scale:
        return [
            f"this check proves nothing: the reference varies by {deviation.max():.1e} "
            f"over the samples, its values reach {scale:.1e}"
        ]
    return []


def _distances(r: np.ndarray, c: np.ndarray) -> Mapping[str, float]:
    error = np.abs(c - r)
    norms = np.linalg.norm(r, axis=1) * np.linalg.norm(c, axis=1)
    noise = float(((c - r) ** 2).sum())
    signal = float((r**2).sum())
    return {
        "max_abs": float(error.max()),
        "max_rel": float(_share(error.max(axis=1), np.abs(r).max(axis=1)).max()),
        "mean_abs": float(error.mean()),
        "cosine": float(_share((r * c).sum(axis=1), norms).min()),
        "snr_db": float(10 * np.log10(signal / noise)) if noise and signal else float("inf"),
    }


def _agreement(r: np.ndarray, c: np.ndarray, k: int) -> float:
    """Share of rows whose k best classes are the same set in both."""
    k = min(k, r.shape[1])
    best_r = np.sort(np.argsort(-r, axis=1, kind="stable")[:, :k], axis=1)
    best_c = np.sort(np.argsort(-c, axis=1, kind="stable")[:, :k], axis=1)
    return float((best_r == best_c).all(axis=1).mean())


def _flips(
    r: np.ndarray, c: np.ndarray, error: np.ndarray, names: Sequence[str]
) -> tuple[Flip, ...]:
    """Every top-1 change; decided are those that the error on the other rows cannot explain.

    A row's own error always explains its own flip, which is why the other rows must: a flip is
    *decided* when the reference's margin exceeds twice the largest error seen elsewhere.
    """
    before, after = r.argmax(axis=1), c.argmax(axis=1)
    found = []
    for row in np.flatnonzero(before != after):
        best, second = np.sort(r[row])[::-1][:2]
        elsewhere = np.delete(error, row)
        decided = best - second > 2 * (elsewhere.max() if elsewhere.size else 0.0)
        found.append(Flip(names[row], int(before[row]), int(after[row]), bool(decided)))
    return tuple(found)
