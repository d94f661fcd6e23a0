"""Hold a Core AI asset and a Core ML package of one network against each other.

Off macOS a package is computed by this project's evaluator, and an asset everywhere by Apple's own
runtime: where both answer alike, each is a witness for the other.

Both were held against the same reference. With ``a_i`` and ``b_i`` what their tolerances allow
for row i, both ``lambda`` times the spread of rounding (``checks.tolerance``), the distance of two
sound files spreads by the root of the sum of squares, because they round independently. So the
same lambda allows

    max_j |asset_ij - package_ij| <= sqrt(a_i^2 + b_i^2)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from levit_export.checks.findings import Finding
from levit_export.checks.parity import OutputParity
from levit_export.checks.results import ArtifactReport
from levit_export.core.precisions import FLOATS
from levit_export.core.values import Tensors

ASSET, PACKAGE = "coreai", "coreml"


@dataclass(frozen=True)
class Witness:
    """A report on an artifact, and what it answered to the samples.

    Without answers, as where it ran elsewhere or not at all, nothing is said of it.
    """

    report: ArtifactReport
    answers: Tensors = field(default_factory=dict, repr=False)


def witnessed(witnesses: Sequence[Witness]) -> list[ArtifactReport]:
    """Their reports with what the assets and packages among them say of each other.

    Agreement is said of the asset where both pass by themselves; a difference fails both, for
    either may be wrong. Of answers that are wrong by themselves, or were not held against the same
    reference, nothing is said.
    """
    found = [witness.report for witness in witnesses]
    for one, asset in enumerate(witnesses):
        for other, package in enumerate(witnesses):
            a, b = asset.report, package.report
            if (a.format, b.format) != (ASSET, PACKAGE):
                continue
            if a.precision != b.precision or a.precision not in FLOATS:
                continue
            if not (_is_right(asset) and _is_right(package)):
                continue
            both_pass = a.parity.verdict == b.parity.verdict == "pass"
            for finding in _compared(asset, package):
                if finding.verdict != "fail" and not both_pass:
                    continue  # files that pass by themselves are witnesses, others are not
                found[one] = _joined(found[one], finding)
                if finding.verdict == "fail":
                    found[other] = _joined(found[other], finding)
    return found


def _is_right(witness: Witness) -> bool:
    """Whether there are answers that are right by themselves."""
    found = witness.report.parity.of("answers", "shape")
    return bool(witness.answers) and all(finding.verdict != "fail" for finding in found)


def _joined(report: ArtifactReport, finding: Finding) -> ArtifactReport:
    return replace(report, parity=report.parity.joined(finding))


def _compared(asset: Witness, package: Witness) -> Iterator[Finding]:
    """One finding for each output that both give."""
    theirs = {output.name: output for output in package.report.parity.outputs}
    for output in asset.report.parity.outputs:
        other = theirs.get(output.name)
        if other is not None and _is_of_one_reference(output, other):
            yield _distance(output, other, asset, package)


def _is_of_one_reference(one: OutputParity, other: OutputParity) -> bool:
    """Whether two outputs were held against the same answers to the same samples."""
    return bool(one.errors) and (one.rows, one.scales, one.spreads) == (
        other.rows,
        other.scales,
        other.spreads,
    )


def _distance(one: OutputParity, other: OutputParity, asset: Witness, package: Witness) -> Finding:
    runtimes: dict[str, float | str] = {
        "asset": asset.report.parity.runtime,
        "package": package.report.parity.runtime,
    }
    a, b = (each.answers[one.name].astype(np.float64) for each in (asset, package))
    scales = np.array(one.scales)
    errors = np.abs(a - b).reshape(len(a), -1).max(axis=1)
    allowed = np.hypot(one.tolerance.for_scales(scales), other.tolerance.for_scales(scales))
    share = errors / np.maximum(allowed, np.finfo(np.float64).tiny)
    worst = int(share.argmax())
    if not share[worst] <= 1:  # so written that NaN fails
        values = runtimes | {
            "error": float(errors[worst]),
            "sample": one.rows[worst],
            "allowed": float(allowed[worst]),
        }
        return Finding("runtimes-differ", values, one.name)
    same = (a.reshape(len(a), -1).argmax(1) == b.reshape(len(b), -1).argmax(1)).sum()
    values = runtimes | {
        "precision": asset.report.precision,
        "error": float((errors / np.maximum(scales, np.finfo(np.float64).tiny)).max()),
        "share": 100 * float(share[worst]),
        "same": float(same),
        "rows": float(len(a)),
    }
    return Finding("runtimes-agree", values, one.name)
