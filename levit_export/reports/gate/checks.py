"""The questions about one report by itself: parity, weights and claims of every artifact."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from levit_export.checks.findings import sentences
from levit_export.checks.results import ArtifactReport
from levit_export.core.errors import DataError
from levit_export.core.values import Tolerance, Verdict, overall
from levit_export.reports.report import Report, labels


@dataclass(frozen=True)
class Check:
    """One question asked of one artifact, and the answer; only a pass can do without a reason.

    ``artifact`` is what people call it, ``path`` where it lies as the report says.
    """

    artifact: str
    path: str
    name: str
    verdict: Verdict
    reason: str = ""


def of_report(
    artifacts: Sequence[ArtifactReport], *, require_audit: bool = False
) -> tuple[Check, ...]:
    """Parity of every artifact, and weights, claims and placement where they were looked at.

    With ``require_audit`` weights that nobody vouches for are a check that was not run.
    The first of them that failed says where, if drift knows.
    """
    found: list[Check] = []
    for label, artifact in zip(labels(artifacts), artifacts, strict=True):
        checks = _of_parts(label, artifact, require_audit=require_audit)
        failed = next((check for check in checks if check.verdict == "fail"), None)
        if failed is not None and artifact.drift is not None:
            where = f"{failed.reason}. Drift: {artifact.drift.sentence}"
            checks[checks.index(failed)] = replace(failed, reason=where)
        found += checks
    return tuple(found)


def verdict_of(checks: Iterable[Check]) -> Verdict:
    """The gravest answer; ``not-run`` where there is none."""
    return overall(check.verdict for check in checks)


def _of_parts(label: str, artifact: ArtifactReport, *, require_audit: bool) -> list[Check]:
    """A check for each part that was looked at: the answers always, with hints at the cause."""
    found, audit = artifact.parity, artifact.parity.weights
    answers, weights, claims = (
        found.of("answers", "shape"),
        found.of("weights"),
        found.of("claims"),
    )
    # Where nothing but the answers was looked at, they are what a verdict without findings is of.
    looked_at = bool(found.outputs or weights or claims)
    verdict = overall([each.verdict for each in answers] + ["pass"] * looked_at)
    # A hint explains a failure; without one it would read like an accusation.
    asides = found.of("hint") if verdict == "fail" else ()
    checks = [(verdict, "parity", sentences((*answers, *asides)))]
    if audit is not None:
        is_lacking = require_audit and audit.answers_only
        least: Verdict = "not-run" if is_lacking else "pass"
        checks.append(
            (overall([*(w.verdict for w in weights), least]), "weights", sentences(weights))
        )
    for part, name in ((claims, "claims"), (found.of("placement"), "neural engine")):
        if part:
            checks.append((overall(each.verdict for each in part), name, sentences(part)))
    return [Check(label, artifact.path, name, verdict, reason) for verdict, name, reason in checks]


def recheck(saved: Report, tolerance: Tolerance) -> Report:
    """``saved`` with every output judged by ``tolerance``, a single number for all samples.

    Nothing is run again: a report keeps the error and the scale of every sample. All that no
    tolerance can mend stays as it was found: outputs that are missing or hold NaN, flips that
    rounding does not excuse, weights, an altered directory, an untrained network, and that two
    runtimes differ. Raises ``DataError`` for a report that does not keep its samples' errors.
    """
    for artifact, label in zip(saved.artifacts, labels(saved.artifacts), strict=True):
        incomparable = {finding.output for finding in artifact.parity.findings}
        for output in artifact.parity.outputs:
            kept = output.errors and len(output.spreads) == len(output.errors)
            if not kept and (output.errors or output.name not in incomparable):
                raise DataError(
                    f"the report does not keep the errors of {label} {output.name!r} by sample",
                    remedy="Make it anew with this version: levit-export check PATH --json FILE.",
                )
    artifacts = tuple(
        replace(artifact, parity=artifact.parity.rejudged(tolerance))
        for artifact in saved.artifacts
    )
    verdict = overall(artifact.parity.verdict for artifact in artifacts)
    return replace(saved, verdict=verdict, artifacts=artifacts)
