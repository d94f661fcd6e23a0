"""The checks of one report by itself: parity and weights of every artifact."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from levit_export.checks.findings import sentences
from levit_export.checks.results import ArtifactReport
from levit_export.core.values import Verdict, overall


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
    """Parity of every artifact, and its weights and claims where they were looked at.

    With ``require_audit`` weights that nobody vouches for are a check that was not run.
    The first of them that failed says where, if drift knows.
    """
    found: list[Check] = []
    for label, artifact in zip(labels(artifacts), artifacts, strict=True):
        found += _located(_of_part(label, artifact, require_audit=require_audit), artifact)
    return tuple(found)


def _located(checks: Sequence[Check], artifact: ArtifactReport) -> list[Check]:
    """``checks`` with the words of drift behind the first failure."""
    failed = next((check for check in checks if check.verdict == "fail"), None)
    if failed is None or artifact.drift is None:
        return list(checks)
    where = replace(failed, reason=f"{failed.reason}. Drift: {artifact.drift.sentence}")
    return [where if check is failed else check for check in checks]


def verdict_of(checks: Iterable[Check]) -> Verdict:
    """The gravest answer; ``not-run`` where there is none."""
    return overall(check.verdict for check in checks)


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


def _of_part(label: str, artifact: ArtifactReport, *, require_audit: bool) -> list[Check]:
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
    asides = found.of("hint") if verdict == "fail" else ()
    checks = [(verdict, "parity", sentences((*answers, *asides)))]
    if audit is not None:
        is_lacking = require_audit and audit.answers_only
        least: Verdict = "not-run" if is_lacking else "pass"
        checks.append(
            (overall([*(w.verdict for w in weights), least]), "weights", sentences(weights))
        )
    if claims:
        checks.append((overall(each.verdict for each in claims), "claims", sentences(claims)))
    return [Check(label, artifact.path, name, verdict, reason) for verdict, name, reason in checks]
