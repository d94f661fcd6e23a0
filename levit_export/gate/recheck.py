"""Other tolerances for a report that was saved: nothing is run again.

A report keeps the error and the scale of every sample, so the distances can be judged anew. All
that no tolerance can mend stays as it was found: outputs that are missing or hold NaN, flips that
rounding does not excuse, weights, an altered directory, a check that proves nothing.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from levit_export import parity, report
from levit_export.core import Tolerance
from levit_export.errors import DataError
from levit_export.gate.baseline import share_of
from levit_export.gate.checks import labels, without_weights
from levit_export.parity import OutputParity, ParityReport
from levit_export.report import ArtifactReport, Report

TOO_FAR = "exceeds the tolerance"
"""How the one failure that depends on the tolerance reads."""


def recheck(saved: Report, tolerance: Tolerance) -> Report:
    """``saved`` with every output judged by ``tolerance``, a single number for all samples.

    Raises ``DataError`` for a report that does not keep the errors of its samples.
    """
    artifacts = tuple(
        replace(artifact, parity=_again(artifact, label, tolerance))
        for label, artifact in zip(labels(saved.artifacts), saved.artifacts, strict=True)
    )
    verdict = report.overall(artifact.parity.verdict for artifact in artifacts)
    return replace(saved, verdict=verdict, artifacts=artifacts)


def _again(artifact: ArtifactReport, label: str, tolerance: Tolerance) -> ParityReport:
    before = artifact.parity
    if before.verdict == "not-run":
        return before
    outputs = tuple(_judge(output, label, tolerance) for output in before.outputs)
    general = _general(before)
    named = [f"{output.name}: {failure}" for output in outputs for failure in output.failures]
    failures = [*([general] if general else []), *named]
    judged = replace(
        before,
        verdict="fail" if failures else "pass",
        reason="; ".join(failures),
        outputs=outputs,
        weights=None,
    )
    return judged if before.weights is None else parity.with_weights(judged, before.weights)


def _general(before: ParityReport) -> str:
    """What a report says that concerns neither a single output nor the weights."""
    reason = without_weights(before).reason
    for output in before.outputs:
        for failure in output.failures:
            reason = reason.replace(f"{output.name}: {failure}", "", 1)
    return "; ".join(part for part in reason.split("; ") if part)


def _judge(output: OutputParity, label: str, tolerance: Tolerance) -> OutputParity:
    kept = tuple(failure for failure in output.failures if TOO_FAR not in failure)
    if not output.errors:
        if kept:
            return replace(output, tolerance=tolerance)
        raise DataError(
            f"the report does not keep the errors of {label} {output.name!r} by sample",
            remedy="Make it anew with this version: levit-export check PATH --json FILE.",
        )
    share = share_of(output, tolerance) or 0.0
    failures = [*kept, *_too_far(output, tolerance, share), *_proves_nothing(output, tolerance)]
    return replace(
        output, worst_ratio=share, tolerance=tolerance, failures=tuple(dict.fromkeys(failures))
    )


def _too_far(output: OutputParity, tolerance: Tolerance, share: float) -> list[str]:
    if share <= 1:
        return []
    errors, scales = np.array(output.errors), np.array(output.scales)
    allowed = tolerance.atol + tolerance.rtol[0] * scales
    worst = int((errors / np.maximum(allowed, np.finfo(np.float64).tiny)).argmax())
    return [
        f"error {errors[worst]:.2e} on sample {worst + 1} of {len(errors)} {TOO_FAR} "
        f"{allowed[worst]:.2e}"
    ]


def _proves_nothing(output: OutputParity, tolerance: Tolerance) -> list[str]:
    """Whether a network that always answers zero, whose errors are the scales, would pass."""
    scales = np.array(output.scales)
    allowed = tolerance.atol + tolerance.rtol[0] * scales
    if not (scales <= allowed).all():
        return []
    return [
        "this check proves nothing: the tolerance accepts a network that always answers 0, the "
        f"values reach {scales.max():.1e}"
    ]
