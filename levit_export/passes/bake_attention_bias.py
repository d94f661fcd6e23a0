"""Turn every attention-bias table into the constant that it spells out.

*Given* ``softmax(S + B[:, index])`` with B ``(heads, offsets)``, *result* ``softmax(S + T)`` with
the constant T ``(heads, queries, keys)``: no gather at inference, for the bytes that T has more
than B.
"""

from __future__ import annotations

import torch
from torch import nn

from levit_export.architectures.levit import AttentionBias
from levit_export.passes.base import Matched, NotApplicable, Outcome, Pass


@torch.no_grad()
def apply(module: nn.Module) -> Outcome:
    """Bake the bias of every attention of ``module`` in place."""
    blocks = [m for m in module.modules() if isinstance(m, AttentionBias)]
    if not blocks:
        return NotApplicable("no attention biases in the model")
    blocks = [block for block in blocks if block.baked_bias is None]
    if not blocks:
        return NotApplicable("every attention bias is baked already")
    grown = 0
    for block in blocks:
        offsets = block.attention_biases.numel()
        block.bake_bias()
        grown += block.bias().numel() - offsets
    return Matched(len(blocks), bytes_added=4 * grown)


BAKE_ATTENTION_BIAS = Pass("bake_attention_bias", apply)
