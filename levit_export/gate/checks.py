"""The checks of one report by itself: parity and weights of every artifact."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from levit_export import parity, report
from levit_export.core import Verdict
from levit_export.parity import ParityReport
from levit_export.report import ArtifactReport
from levit_export.weights import WeightAudit


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


def of_report(artifacts: Sequence[ArtifactReport]) -> tuple[Check, ...]:
    """Parity of every artifact, and its weights where they were looked for.

    The first of the two that failed says where, if drift knows.
    """
    found: list[Check] = []
    for label, artifact in zip(labels(artifacts), artifacts, strict=True):
        checks = [Check(label, artifact.path, "parity", *_parity(artifact.parity))]
        if artifact.parity.weights is not None:
            audit = _weights(artifact.parity.weights)
            checks.append(Check(label, artifact.path, "weights", *audit))
        found += _located(checks, artifact)
    return tuple(found)


def _located(checks: Sequence[Check], artifact: ArtifactReport) -> list[Check]:
    """``checks`` with the words of drift behind the first failure."""
    failed = next((check for check in checks if check.verdict == "fail"), None)
    if failed is None or artifact.drift is None:
        return list(checks)
    where = replace(failed, reason=f"{failed.reason}. Drift: {artifact.drift.sentence}")
    return [where if check is failed else check for check in checks]


def overall(checks: Iterable[Check]) -> Verdict:
    """``fail`` if any check failed; ``not-run`` if any was not run, or there is none.

    Weights that could not be looked for leave the verdict to parity, as in a report.
    """
    return report.overall(
        check.verdict for check in checks if (check.name, check.verdict) != ("weights", "not-run")
    )


def labels(artifacts: Sequence[ArtifactReport]) -> tuple[str, ...]:
    """A name for each artifact: its id, with path and device where the id is not enough."""
    ids = Counter(artifact.id for artifact in artifacts)
    places = Counter((artifact.id, artifact.path) for artifact in artifacts)
    return tuple(
        " ".join(
            (
                artifact.id,
                *([artifact.path] if ids[artifact.id] > 1 else []),
                *([device(artifact)] if places[artifact.id, artifact.path] > 1 else []),
            )
        ).rstrip()
        for artifact in artifacts
    )


def device(artifact: ArtifactReport) -> str:
    """``cpu_and_ne`` of ``Core ML (cpu_and_ne)``: what the runtime ran on; empty if it did not."""
    timed = "" if artifact.timing is None else artifact.timing.runtime
    return (artifact.parity.runtime or timed).partition("(")[2].partition(")")[0]


def without_weights(report: ParityReport) -> ParityReport:
    """``report`` as it was before ``parity.with_weights`` added what was found of the weights."""
    audit = report.weights
    words = "" if audit is None else weights_failure(audit)
    if not words or not report.reason.endswith(words):
        return report
    reason = report.reason.removesuffix(words).removesuffix("; ")
    return replace(report, verdict="fail" if reason else "pass", reason=reason, weights=None)


def weights_failure(audit: WeightAudit) -> str:
    """What ``parity.with_weights`` says of an audit; empty when nothing is wrong."""
    return parity.with_weights(ParityReport("pass", "", "", samples=0), audit).reason


def _parity(report: ParityReport) -> tuple[Verdict, str]:
    alone = without_weights(report)
    return alone.verdict, "" if alone.verdict == "pass" else alone.reason or "no reason is given"


def _weights(audit: WeightAudit) -> tuple[Verdict, str]:
    if audit.unread:
        return "not-run", f"weights not looked at: {audit.unread}"
    failure = weights_failure(audit)
    return ("fail", failure) if failure else ("pass", "")
