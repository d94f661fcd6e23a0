"""Hold one session's answers against another's. Pure: values in, a report out.

Nothing here prints, raises on a mismatch, or has a default tolerance; and nothing passes because
there was nothing to compare.

With ``r`` the reference's answers, ``c`` the artifact's and ``a`` the allowance of the tolerance,
row i of an output fails when ``e_i = max_j |c_ij - r_ij| > a_i``. That shows a fault wherever it
happens. That a row stays within its allowance shows something only where another network would
not: row i *decides* when it lies farther from the mean answer than its allowance and than what
float16 can tell apart,

    d_i = max_j |r_ij - mean_k r_kj| > max(a_i, VARIATION * max_kj |r_kj|)

so that a network which always gives the mean answer would fail there. Where no row decides, a
check without failures is inconclusive.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np

from levit_export.checks.findings import Finding, Part, sentences
from levit_export.checks.tolerance import FALSE_ALARM
from levit_export.checks.weights import WeightAudit
from levit_export.core.errors import RuntimeFailedError
from levit_export.core.values import (
    Session,
    Signature,
    Tensors,
    Tolerance,
    Tolerances,
    Verdict,
    overall,
)
from levit_export.inputs.samples import Samples

VARIATION = 2.0**-10
"""Least share of the reference's size by which a row must differ from the mean answer to decide.

Below it, float16 (unit roundoff 2**-11) gives such rows the same answer, and a check would accept
any network that answers with a constant.
"""


SHOWN = 5
"""Names that a message lists before it counts the rest."""


@dataclass(frozen=True)
class Flip:
    """A sample whose top-1 changed, and whether rounding does not excuse it."""

    sample: str
    reference_class: int
    artifact_class: int
    decided: bool


@dataclass(frozen=True)
class OutputParity:
    """One output: the distance to the reference, and what it did to the predictions.

    ``errors`` are the largest ``|c - r|`` of each row, ``scales`` its largest ``|r|``, ``spreads``
    how far it lies from the mean answer, and ``rows`` the names of the samples, so that another
    tolerance can be applied later. ``undecided_rows`` are those that decide nothing.
    ``max_abs``, ``max_rel`` (the largest ``max|c - r| / max|r|`` of a row), ``mean_abs``,
    ``cosine`` and ``snr_db`` are over the rows that decide, NaN where none does. ``worst_ratio``
    is the largest share of its allowance that a row used, above 1 where it failed, and
    ``worst_sample`` names that row. Agreements are shares of all rows. A *decided* flip changed
    top-1 although rounding does not explain it; an undecided one is a near-tie.
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
    spreads: tuple[float, ...] = ()
    rows: tuple[str, ...] = ()
    undecided_rows: tuple[str, ...] = ()
    flipped: tuple[Flip, ...] = ()

    def rejudged(self, tolerance: Tolerance) -> OutputParity:
        """The same answers judged by ``tolerance``, as far as their distances go.

        ``mean_abs``, ``cosine`` and ``snr_db`` stay those of the rows that decided before.
        """
        if not self.errors:
            return replace(self, tolerance=tolerance)
        errors, scales = np.array(self.errors), np.array(self.scales)
        allowed = tolerance.for_scales(scales)
        ratio = _used(errors, allowed)
        worst = int(ratio.argmax())
        decides = _decides(np.array(self.spreads), scales, allowed)
        relative = _share(errors, scales)[decides]
        return replace(
            self,
            tolerance=tolerance,
            max_abs=float(errors[decides].max()) if decides.any() else math.nan,
            max_rel=float(relative.max()) if decides.any() else math.nan,
            worst_ratio=float(ratio[worst]),
            worst_sample=self.rows[worst],
            undecided_rows=tuple(
                name for name, decided in zip(self.rows, decides, strict=True) if not decided
            ),
        )

    def findings(self) -> list[Finding]:
        """What follows from the distances, by the tolerance, and from the flips."""
        if not self.errors:
            return []
        found = []
        worst = self.rows.index(self.worst_sample)
        scales = np.array(self.scales)
        allowed = self.tolerance.for_scales(scales)
        if self.worst_ratio > 1:
            found.append(
                Finding(
                    "too-far",
                    {
                        "error": self.errors[worst],
                        "sample": self.worst_sample,
                        "allowed": float(allowed[worst]),
                    },
                    self.name,
                )
            )
        if self.decided_flips:
            found.append(Finding("decided-flips", {"count": self.decided_flips}, self.name))
        deciding = len(self.rows) - len(self.undecided_rows)
        if not deciding:
            values: dict[str, float | str] = {
                "spread": max(self.spreads),
                "scale": float(scales.max()),
                "allowed": float(allowed.max()),
            }
            found.append(Finding("no-row-decides", values, self.name))
        elif self.undecided_rows:
            values = {
                "count": deciding,
                "rows": len(self.rows),
                "names": _shortened(self.undecided_rows),
            }
            found.append(Finding("some-rows-decide", values, self.name))
        return found


@dataclass(frozen=True)
class ParityReport:
    """What a check of one artifact found, and everything it rests on."""

    runtime: str
    samples: int
    outputs: tuple[OutputParity, ...] = ()
    weights: WeightAudit | None = None
    findings: tuple[Finding, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """The verdict of the gravest finding; a check that compared nothing was not run."""
        found = [finding.verdict for finding in self.findings]
        return overall([*found, "pass"] if self.outputs else found)

    @property
    def reason(self) -> str:
        """All findings in words; empty where there is nothing to say."""
        return sentences(self.findings)

    @property
    def was_asked(self) -> bool:
        """Whether parity was to be checked at all."""
        return all(finding.kind != "not-asked" for finding in self.findings)

    @property
    def fault(self) -> str:
        """The parts that alone make the verdict what it is, where it is not the answers.

        Of a pass, ``answers only`` where nobody looked at the weights.
        """
        if self.verdict == "pass" and any(f.kind == "answers-only" for f in self.findings):
            return "answers only"
        answers = overall([*(f.verdict for f in self.of("answers", "shape")), "pass"])
        if self.verdict in (answers, "pass"):
            return ""
        parts = (f.part for f in self.findings if f.verdict == self.verdict)
        return ", ".join(dict.fromkeys(parts))

    @property
    def max_rel(self) -> float | None:
        """The largest of the outputs' ``max_rel``; None where no row decides."""
        known = [o.max_rel for o in self.outputs if not math.isnan(o.max_rel)]
        return max(known, default=None)

    def of(self, *parts: Part) -> tuple[Finding, ...]:
        """The findings about some parts alone."""
        return tuple(finding for finding in self.findings if finding.part in parts)

    def joined(self, *findings: Finding) -> ParityReport:
        """This report with more findings."""
        return replace(self, findings=(*self.findings, *findings))

    def rejudged(self, tolerance: Tolerance) -> ParityReport:
        """The same answers judged by another tolerance; what it cannot mend stays.

        That two files agree is not said again: the share was one of their own tolerances.
        """
        outputs = tuple(output.rejudged(tolerance) for output in self.outputs)
        left_out = (*BY_TOLERANCE, "runtimes-agree")
        kept = [finding for finding in self.findings if finding.kind not in left_out]
        judged = [
            finding
            for output in outputs
            for finding in output.findings()
            if finding.kind in BY_TOLERANCE
        ]
        return replace(self, outputs=outputs, findings=(*kept, *judged))


BY_TOLERANCE = ("too-far", "no-row-decides", "some-rows-decide")
"""Kinds of findings that another tolerance may change."""


def not_run(reason: str, runtime: str = "") -> ParityReport:
    """A check that was asked for and did not happen: neither pass nor fail."""
    return ParityReport(runtime, 0, findings=(Finding("not-run", {"text": reason}),))


NOT_ASKED = ParityReport("", 0, findings=(Finding("not-asked"),))
"""What stands in reports of a run that only measured."""


def with_weights(report: ParityReport, audit: WeightAudit) -> ParityReport:
    """``report`` joined by what was found of the weights; missing or strange ones fail it.

    Weights that could not be looked at leave it undecided, but for a file of others: its answers
    are all there is to know.
    """
    found = []
    if audit.missing:
        values: dict[str, float | str] = {
            "count": len(audit.missing),
            "tensors": audit.tensors,
            "names": _shortened(audit.missing),
        }
        found.append(Finding("missing-weights", values))
    if audit.strange:
        values = {"count": len(audit.strange), "names": _shortened(audit.strange)}
        found.append(Finding("strange-constants", values))
    if audit.unread:
        kind = "answers-only" if audit.answers_only else "weights-not-looked-at"
        found.append(Finding(kind, {} if audit.answers_only else {"text": audit.unread}))
    return replace(report, weights=audit).joined(*found)


def _shortened(names: Sequence[str]) -> str:
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
    pieces = samples.batches(session.signature.batch or batch)
    return gather(session, (({spec.name: inputs}, rows) for inputs, rows in pieces))


def gather(session: Session, batches: Iterable[tuple[Tensors, int]]) -> dict[str, np.ndarray]:
    """Every output for ``batches`` of inputs, of each of which the first so many rows count.

    Raises ``RuntimeFailedError`` as :func:`collect` does.
    """
    pieces: dict[str, list[np.ndarray]] = {}
    for inputs, rows in batches:
        size = len(next(iter(inputs.values())))
        for name, value in session.run(inputs).items():
            array, parts = np.asarray(value), pieces.setdefault(name, [])
            row = parts[0].shape[1:] if parts else array.shape[1:]
            if array.shape != (size, *row):
                raise RuntimeFailedError(
                    f"output {name!r} has shape {array.shape} for a batch of {size}",
                    remedy="The artifact has to give one row for each image; export it again.",
                )
            parts.append(array[:rows])
    return {name: np.concatenate(parts) for name, parts in pieces.items()}


def run_failed(error: RuntimeFailedError, runtime: str, samples: Samples) -> ParityReport:
    """The report on a candidate that could not be run, or (no ``runtime``) not be loaded."""
    found = Finding("run-failed", {"text": str(error)})
    return ParityReport(runtime, len(samples), findings=(found,))


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
    found = [Finding("untrained", {"text": doubt})] if doubt else []
    if len(samples) == 0:
        found.append(Finding("no-samples"))
    if not expected.outputs:
        found.append(Finding("no-outputs"))
    outputs = []
    for spec in expected.outputs:
        if spec.name not in candidate:
            found.append(Finding("missing-output", {"name": spec.name}))
        elif len(samples):
            output, findings = _compare_output(
                spec.name,
                reference[spec.name],
                candidate[spec.name],
                samples,
                tolerances[spec.name],
            )
            outputs.append(output)
            found += findings
    return ParityReport(runtime, len(samples), tuple(outputs), findings=tuple(found))


def _compare_output(
    name: str,
    reference: np.ndarray,
    candidate: np.ndarray,
    samples: Samples,
    tolerance: Tolerance,
) -> tuple[OutputParity, list[Finding]]:
    unfit = _unfit(name, reference, candidate, samples)
    if unfit is not None:
        return _incomparable(name, tolerance), [unfit]
    # In float64, so that what is measured is the artifact's rounding and not this function's.
    r = reference.reshape(len(reference), -1).astype(np.float64)
    c = candidate.reshape(len(candidate), -1).astype(np.float64)
    errors, scales = np.abs(c - r).max(axis=1), np.abs(r).max(axis=1)
    spreads = np.abs(r - r.mean(axis=0)).max(axis=1)
    allowed = tolerance.for_scales(scales)
    decides = _decides(spreads, scales, allowed)
    flipped = _flips(r, c, _used(errors, allowed), allowed, samples.names)
    decided = sum(flip.decided for flip in flipped)
    # Rows that decide nothing take no part in the means.
    mean_abs, cosine, snr_db = _distances(r[decides], c[decides])
    output = OutputParity(
        name=name,
        max_abs=math.nan,
        max_rel=math.nan,
        mean_abs=mean_abs,
        cosine=cosine,
        snr_db=snr_db,
        worst_ratio=0.0,
        worst_sample="",
        top1_agreement=_agreement(r, c, 1),
        top5_agreement=_agreement(r, c, 5),
        decided_flips=decided,
        undecided_flips=len(flipped) - decided,
        flipped=flipped,
        tolerance=tolerance,
        errors=tuple(errors.tolist()),
        scales=tuple(scales.tolist()),
        spreads=tuple(spreads.tolist()),
        rows=samples.names,
    ).rejudged(tolerance)
    return output, output.findings()


def _unfit(
    name: str, reference: np.ndarray, candidate: np.ndarray, samples: Samples
) -> Finding | None:
    """Why the two cannot be compared at all."""
    if candidate.shape != reference.shape:
        shapes = {"found": str(candidate.shape), "expected": str(reference.shape)}
        return Finding("wrong-shape", shapes, name)
    if not reference.size:
        return Finding("no-values", output=name)
    if not np.issubdtype(candidate.dtype, np.floating):
        return Finding("wrong-type", {"found": str(candidate.dtype)}, name)
    # What the artifact gives where the reference has numbers comes first: that is its own fault.
    broken, unknown = (
        ~np.isfinite(values).reshape(len(values), -1).all(axis=1)
        for values in (candidate, reference)
    )
    for kind, bad in (("not-finite", broken & ~unknown), ("reference-not-finite", unknown)):
        if bad.any():
            first = samples.names[int(bad.argmax())]
            counts: dict[str, float | str] = {
                "count": int(bad.sum()),
                "rows": len(samples),
                "sample": first,
            }
            return Finding(kind, counts, name)
    return None


def _incomparable(name: str, tolerance: Tolerance) -> OutputParity:
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
    )


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """``part / whole``, where a whole of zero makes a part of zero 0 and any other infinite."""
    with np.errstate(over="ignore"):
        shares: np.ndarray = part / np.maximum(whole, np.finfo(np.float64).tiny)
    return shares


def _used(errors: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """Each row's share of its allowance; one that is not finite refuses nothing."""
    return np.where(np.isfinite(allowed), _share(errors, allowed), 0.0)


def _decides(spreads: np.ndarray, scales: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """Which rows decide, by the module's formula; none whose allowance is not finite."""
    least = np.maximum(allowed, VARIATION * scales.max())
    decides: np.ndarray = np.isfinite(allowed) & (spreads > least)
    return decides


def _distances(r: np.ndarray, c: np.ndarray) -> tuple[float, float, float]:
    """Mean absolute error, smallest cosine of a row, and signal to noise in dB."""
    if not len(r):
        return math.nan, math.nan, math.nan
    norms = np.linalg.norm(r, axis=1) * np.linalg.norm(c, axis=1)
    noise = float(((c - r) ** 2).sum())
    signal = float((r**2).sum())
    return (
        float(np.abs(c - r).mean()),
        float(_share((r * c).sum(axis=1), norms).min()),
        float(10 * np.log10(signal / noise)) if noise and signal else math.inf,
    )


def _agreement(r: np.ndarray, c: np.ndarray, k: int) -> float:
    """Share of rows whose k best classes are the same set in both."""
    # A stable sort, so that equal scores have one order in both.
    k = min(k, r.shape[1])
    best_r = np.sort(np.argsort(-r, axis=1, kind="stable")[:, :k], axis=1)
    best_c = np.sort(np.argsort(-c, axis=1, kind="stable")[:, :k], axis=1)
    return float((best_r == best_c).all(axis=1).mean())


def _flips(
    r: np.ndarray,
    c: np.ndarray,
    shares: np.ndarray,
    allowed: np.ndarray,
    names: Sequence[str],
) -> tuple[Flip, ...]:
    """Every top-1 change; decided are those that rounding cannot explain.

    A row's own error always explains its own flip, so a flip is judged by the errors of the other
    rows: their shares ``e_k / a_k`` of their allowances show how roughly the artifact computes, in
    units in which a row near chaos and a quiet one are alike. With
    ``x = excess(rows, numbers)``, the factor by which rounding may exceed what was seen elsewhere,
    a flip of row i is decided when

        margin_i > 2 * a_i * min(1, x * max_{k != i} e_k / a_k)
    """
    before, after = r.argmax(axis=1), c.argmax(axis=1)
    factor = excess(len(r) - 1, r.shape[1])
    found = []
    for row in np.flatnonzero(before != after):
        best, second = np.sort(r[row])[::-1][:2]
        elsewhere = np.delete(shares, row)  # the row's own error always explains its own flip
        if not np.isfinite(allowed[row]):
            found.append(Flip(names[row], int(before[row]), int(after[row]), decided=False))
            continue
        level = min(1.0, factor * elsewhere.max()) if elsewhere.size else 0.0
        decided = best - second > 2 * allowed[row] * level
        found.append(Flip(names[row], int(before[row]), int(after[row]), bool(decided)))
    return tuple(found)


def excess(rows: int, numbers: int) -> float:
    """How far the errors of one row may exceed the largest of ``rows`` others, in equal units.

    Each row has ``numbers`` errors. If all are draws of one normal error of unit size, one row
    stays below ``sqrt(2 ln(2 numbers / p))`` but with probability p, and the largest of the M =
    rows * numbers others lies above ``q``, ``P(max |N| < q) = p``, but with probability p:
    ``(2 Phi(q) - 1)**M = p``. The ratio of the two bounds exceeds what rounding does. p is the
    share of false alarms of the tolerances.
    """
    if rows < 1:
        return math.inf
    p = FALSE_ALARM
    highest = math.sqrt(2 * math.log(2 * numbers / p))
    lowest = NormalDist().inv_cdf((1 + p ** (1 / (rows * numbers))) / 2)
    return highest / lowest
