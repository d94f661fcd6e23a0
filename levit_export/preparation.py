"""From a checkpoint to one exported program that every target reads."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping

import numpy as np
import torch
from torch import nn

from levit_export import embedding, weights
from levit_export.architectures.blocks import block_names
from levit_export.architectures.levit import AttentionBias
from levit_export.checkpoints import Checkpoint
from levit_export.core import Embedded, Fingerprints, PassRecord, Prepared, Preprocessing
from levit_export.errors import ExportFailedError
from levit_export.passes import PASSES, apply_passes
from levit_export.targets.eager import signature_of

NOTHING = Embedded()
LARGEST_BATCH = 65535
"""Upper bound that is declared for an open batch."""


def prepare(
    checkpoint: Checkpoint,
    *,
    batch: int | None = 1,
    skip: Collection[str] = (),
    embedded: Embedded = NOTHING,
) -> Prepared:
    """Build the module, apply and prove the passes, and export it once with ``torch.export``.

    All shapes are fixed but for the batch, which is left open when it is None. ``embedded`` is
    what the graph does beside the network.
    """
    config = checkpoint.config
    module, records = rewrite(checkpoint, skip=skip)
    # Before the exporters touch the module.
    tensors = weights_of(module, checkpoint.preprocessing if embedded.preprocessing else None)
    module = embedding.around(module, checkpoint.preprocessing, embedded)
    signature = embedding.signature(signature_of(config, batch), embedded)
    (taken,) = signature.inputs
    # An example of 1 would be taken for a dimension that broadcasts.
    shape = [batch or 2, *(side or 1 for side in taken.shape[1:])]
    example = torch.zeros(shape, dtype=getattr(torch, taken.dtype))
    shapes = ({0: torch.export.Dim("batch", min=1, max=LARGEST_BATCH)},) if batch is None else None
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
        signature=signature,
        passes=records,
        fingerprints=fingerprint(tensors),
        blocks=embedding.blocks(block_names(config), embedded),
        weights=tensors,
        program=program,
        embedded=embedded,
    )


def rewrite(
    checkpoint: Checkpoint, *, skip: Collection[str] = ()
) -> tuple[nn.Module, tuple[PassRecord, ...]]:
    """A fresh build of the checkpoint with the passes applied and proven, and their ledger."""
    side = checkpoint.config.image_size
    return apply_passes(checkpoint.build(), PASSES, input_shape=(3, side, side), skip=skip)


def weights_of(module: nn.Module, recipe: Preprocessing | None = None) -> dict[str, np.ndarray]:
    """The rewritten weights by name, and the constants of ``recipe`` where one is embedded.

    None when a pass was left out that the exporters then do in their own way: they fold BatchNorm
    and gather tables themselves, and the result is no tensor of ours.
    """
    for part in module.modules():
        is_norm = isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d)
        if is_norm or (isinstance(part, AttentionBias) and part.baked_bias is None):
            return {}
    tensors = {
        name: tensor.numpy()
        for name, tensor in module.state_dict().items()
        if tensor.is_floating_point()
    }
    return tensors if recipe is None else {**embedding.constants(recipe), **tensors}


def fingerprint(tensors: Mapping[str, np.ndarray]) -> Fingerprints:
    """The digests of rewritten weights, by precision."""
    if not tensors:
        return {}
    return {precision: weights.fingerprints(tensors, precision) for precision in weights.ROUNDED}
