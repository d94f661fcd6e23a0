"""Other tolerances for a report that was saved: nothing is run again.

A report keeps the error and the scale of every sample, so the distances can be judged anew. All
that no tolerance can mend stays as it was found: outputs that are missing or hold NaN, flips that
rounding does not excuse, weights, an altered directory, an untrained network.
"""

from __future__ import annotations

from dataclasses import replace

from levit_export.core.errors import DataError
from levit_export.core.values import Tolerance, overall
from levit_export.reports.gate.checks import labels
from levit_export.reports.report import Report


def recheck(saved: Report, tolerance: Tolerance) -> Report:
    """``saved`` with every output judged by ``tolerance``, a single number for all samples.

    Raises ``DataError`` for a report that does not keep the errors of its samples.
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
        replace(artifact, parity=artifact.parity.held_against(tolerance))
        for artifact in saved.artifacts
    )
    verdict = overall(artifact.parity.verdict for artifact in artifacts)
    return replace(saved, verdict=verdict, artifacts=artifacts)
