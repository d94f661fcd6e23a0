"""How large the values inside a network become: what float16 can hold and what it cannot."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from levit_export.core.values import FLOAT16_MAX
from levit_export.inputs.samples import in_batches
from levit_export.models.evaluate import steps

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
