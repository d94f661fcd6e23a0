"""What float16 cannot hold: how large values become in a network, and what a check says of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from levit_export.checks.findings import Finding
from levit_export.checks.parity import ParityReport
from levit_export.core.values import FLOAT16_MAX, Artifact
from levit_export.formats import target
from levit_export.inputs.samples import in_batches
from levit_export.models.interpreter import steps

if TYPE_CHECKING:
    from levit_export.core.values import Prepared

BATCH = 8


def peaks(model: Prepared, inputs: np.ndarray) -> dict[str, float]:
    """The largest ``|x|`` that each block computes for ``inputs`` ``(n, 3, H, W)``, in float32.

    Values of no block, such as the pooled tokens, count under the empty name.
    """
    found: dict[str, float] = {}
    (taken,) = model.signature.inputs
    size = model.signature.batch or BATCH
    for images in in_batches(inputs, size):
        for op, results in steps(model.network, {taken.name: images}):
            largest = max(float(r.abs().max()) for r in results)
            found[op.block] = max(found.get(op.block, 0.0), largest)
    return found


def overflows(model: Prepared, inputs: np.ndarray) -> dict[str, float]:
    """The blocks with a value that float16 turns into infinity, and how large it is."""
    return {block: peak for block, peak in peaks(model, inputs).items() if peak > FLOAT16_MAX}


def explained(
    report: ParityReport, artifact: Artifact, model: Prepared, inputs: np.ndarray
) -> ParityReport:
    """``report``; a failure in float16 with the block whose values float16 does not hold.

    ``model`` is what the artifact was made of, ``inputs`` are those of the check. Blocks that the
    artifact keeps in float are not at fault.
    """
    if report.verdict != "fail" or not target(artifact.format).computes_in_half(
        artifact.precision
    ):
        return report
    found = {b: peak for b, peak in overflows(model, inputs).items() if b not in artifact.keep}
    if not found:
        return report
    block, peak = next(iter(found.items()))
    values: dict[str, float | str] = {
        "block": block,
        "peak": peak,
        "more": f" (and {len(found) - 1} more blocks)" if len(found) > 1 else "",
        "format": artifact.format,
    }
    return report.joined(Finding("float16-overflow", values))
