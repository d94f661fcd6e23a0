"""From a checkpoint to one exported program that every target reads."""

from __future__ import annotations

import warnings
from collections.abc import Collection

import torch

from levit_export.checkpoints import Checkpoint
from levit_export.core import Prepared
from levit_export.errors import ExportFailedError
from levit_export.passes import PASSES, apply_passes
from levit_export.targets.eager import signature_of

LARGEST_BATCH = 65535
"""Upper bound that is declared for an open batch."""


def prepare(
    checkpoint: Checkpoint, *, batch: int | None = 1, skip: Collection[str] = ()
) -> Prepared:
    """Build the module, apply and prove the passes, and export it once with ``torch.export``.

    All shapes are fixed but for the batch, which is left open when it is None.
    """
    config = checkpoint.config
    side = config.image_size
    module, records = apply_passes(
        checkpoint.build(), PASSES, input_shape=(3, side, side), skip=skip
    )
    # An example of 1 would be taken for a dimension that broadcasts.
    example = torch.zeros(batch or 2, 3, side, side)
    shapes = (
        {"input": {0: torch.export.Dim("batch", min=1, max=LARGEST_BATCH)}}
        if batch is None
        else None
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.export(module, (example,), dynamic_shapes=shapes)
    except Exception as error:
        raise ExportFailedError(
            f"torch.export could not capture {checkpoint.name}: {error}",
            remedy="Report the model; without passes it may work (--skip-pass …).",
        ) from error
    return Prepared(
        info=checkpoint.describe(),
        signature=signature_of(side, config.classes, batch),
        passes=records,
        program=program,
    )
