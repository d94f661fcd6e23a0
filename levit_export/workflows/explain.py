"""A failed check, explained: the block and the stage at fault, for the report.

Nothing here changes a verdict. What keeps drift from looking is said where its answer would be.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from levit_export.checks.drift import provenance
from levit_export.checks.drift.values import DriftFinding, DriftMap
from levit_export.checks.execution import Row
from levit_export.checks.reference import Reference
from levit_export.checks.results import ArtifactReport, Explanation
from levit_export.core.errors import LevitExportError, MissingDependencyError
from levit_export.core.packages import needs
from levit_export.core.progress import Progress, Silent
from levit_export.core.values import Artifact, Calibration, Layout

if TYPE_CHECKING:
    from levit_export.core.network import Network
    from levit_export.models.checkpoints import Checkpoint

SAMPLES = 3
"""The samples on which the failed artifacts lie farthest off, for their tolerance."""

NOT_LOOKED = "which block is at fault was not looked for"


@dataclass(frozen=True)
class Subject:
    """What artifacts were made of, and what they were held against.

    ``skip`` are passes that were left out, ``calibration`` the images of a quantiser. What is in
    ``networks`` by its layout is not captured again.
    """

    checkpoint: Checkpoint
    expected: Reference
    skip: tuple[str, ...] = ()
    is_ours: bool = True
    calibration: Calibration | None = None
    networks: Mapping[Layout, Network] = field(default_factory=dict)


def explained(
    reports: Sequence[ArtifactReport],
    rows: Sequence[Row],
    subject: Callable[[], Subject],
    progress: Progress | None = None,
) -> tuple[tuple[ArtifactReport, ...], DriftMap | None]:
    """``reports``, those that failed with an explanation; and the map that it was read from."""
    failed = [
        (report, row)
        for report, row in zip(reports, rows, strict=True)
        if report.parity.verdict == "fail"
    ]
    said: dict[int, Explanation] = {}
    able: list[tuple[ArtifactReport, Row]] = []
    for report, row in failed:
        if obstacle := _obstacle(row.artifact):
            said[id(report)] = Explanation(f"{NOT_LOOKED}: {obstacle}")
        else:
            able.append((report, row))
    drawn: DriftMap | None = None
    if able:
        (progress or Silent()).stage("looking for the block at fault")
        try:
            drawn = _drawn(able, subject())
            explanations = _of(drawn)
        except LevitExportError as error:
            explanations = [Explanation(f"{NOT_LOOKED}: {error}")] * len(able)
        except Exception as error:  # a bug here must not cost the verdict
            sentence = (
                f"{NOT_LOOKED}: unexpected {type(error).__name__}: {error}. This is a bug in "
                "levit-export; please report it with the output of levit-export drift -v"
            )
            explanations = [Explanation(sentence)] * len(able)
        said |= {id(r): e for (r, _), e in zip(able, explanations, strict=True)}
    return tuple(replace(r, drift=said[id(r)]) if id(r) in said else r for r in reports), drawn


def _obstacle(artifact: Artifact) -> str:
    """Why an artifact cannot be looked at, or empty."""
    try:
        if not (torch := needs("torch")).ok:
            raise MissingDependencyError(torch.reason, remedy=torch.fix)
        provenance.refuse_embedded(artifact)
    except LevitExportError as error:
        return str(error)
    return "" if artifact.path.exists() else "the file is gone"


def _drawn(able: Sequence[tuple[ArtifactReport, Row]], subject: Subject) -> DriftMap:
    from levit_export.checks.drift import chain
    from levit_export.checks.drift.tolerances import samples_of
    from levit_export.formats.pytorch import cpu_threads
    from levit_export.workflows.drift import accepted

    expected = subject.expected
    # A few samples tell where a fault is.
    chosen = telling([report for report, _ in able], len(expected.samples))
    model = chain.Model(
        subject.checkpoint,
        samples_of(expected.samples, chosen),
        skip=subject.skip,
        answers=accepted(expected.tolerances, expected.outputs, chosen),
        is_ours=subject.is_ours,
        layouts=provenance.layouts([row.artifact for _, row in able]),
    )
    with cpu_threads(chain.THREADS):
        against = chain.DriftReference(model, subject.calibration)
        rows = [(row.artifact, row.run) for _, row in able]
        return chain.draw(against, rows, known=subject.networks)


def _of(drawn: DriftMap) -> list[Explanation]:
    """One explanation for each artifact of the map."""
    from levit_export.checks.drift.verdict import accumulated

    stages = [stage for stage in drawn.stages if stage.kind == "artifact"]
    # The first finding is about the chain before any file.
    findings: list[DriftFinding] = [
        accumulated(stage) if finding.clean else finding
        for finding, stage in zip(drawn.findings[1:], stages, strict=True)
    ]
    return [Explanation(f.sentence, f.cause, f.stage, f.block, f.tap) for f in findings]


def telling(reports: Sequence[ArtifactReport], count: int) -> list[int]:
    """The samples, of ``count``, on which the artifacts use most of their tolerance."""
    worst = [0.0] * count
    for output in (output for report in reports for output in report.parity.outputs):
        rtol = output.tolerance.rtol
        measured = zip(output.errors, output.scales, strict=True)
        for sample, (error, scale) in enumerate(measured):
            if sample >= count:
                break
            allowed = output.tolerance.atol + rtol[sample if len(rtol) > 1 else 0] * scale
            share = error / allowed if allowed else math.inf
            # NaN compares with nothing, and an answer that holds it tells most of all.
            worst[sample] = max(worst[sample], share if math.isfinite(share) else math.inf)
    if not any(worst):
        step = max(1, count // SAMPLES)
        return list(range(0, count, step))[:SAMPLES]
    return sorted(sorted(range(count), key=lambda sample: -worst[sample])[:SAMPLES])
