"""Turn every attention-bias table into the constant that it spells out.

*Given* ``softmax(S + B[:, index])`` with B ``(heads, offsets)``, *result* ``softmax(S + T)`` with
the constant T ``(heads, queries, keys)``: no gather at inference, for the bytes that T has more
than B.

*Given* a single key, ``softmax(S + B)`` is 1 whatever S and B are, and the attention is
``proj(v)``: *result* that, without the table and without the rows that make q and k. Small images
have such attentions where the last grid is one token (up to 64 px for three stages of stride 16).
No answer depends on those numbers, so no file has to hold them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import cast

import torch
from torch import nn

from levit_export.core.errors import PassError
from levit_export.models.architectures.layers import ConvBN, LinearBN
from levit_export.models.architectures.levit import AttentionBias
from levit_export.models.passes.base import (
    Matched,
    NotApplicable,
    Outcome,
    Pass,
    Probe,
    example,
    stored_numbers,
)


def _keep_rows(layer: nn.Module, rows: torch.Tensor) -> nn.Module:
    """``layer``, or its halves where it is normalised, with these rows of its output alone."""
    if isinstance(layer, LinearBN | ConvBN):
        for half in layer.children():
            _keep_rows(half, rows)
        return layer
    if not isinstance(layer, nn.Linear | nn.Conv2d | nn.BatchNorm1d | nn.BatchNorm2d):
        raise PassError(
            f"v is made by a {type(layer).__name__}, whose rows this pass cannot tell apart",
            remedy="Export with --skip-pass bake_attention_bias.",
        )
    for name, tensor in (*layer.named_parameters(), *layer.named_buffers()):
        if tensor.dim():  # but the BatchNorm's counter
            kept = tensor[rows].clone()
            is_weight = isinstance(tensor, nn.Parameter)
            setattr(layer, name, nn.Parameter(kept, requires_grad=False) if is_weight else kept)
    count = int(rows.sum())
    if isinstance(layer, nn.Linear):
        layer.out_features = count
    elif isinstance(layer, nn.Conv2d):
        layer.out_channels = count
    else:
        layer.num_features = count
    return layer


@torch.no_grad()
def apply(module: nn.Module) -> Outcome:
    """Bake the bias of every attention of ``module`` in place; one of a single key is its v."""
    blocks = {name: m for name, m in module.named_modules() if isinstance(m, AttentionBias)}
    if not blocks:
        return NotApplicable("no attention biases in the model")
    blocks = {name: block for name, block in blocks.items() if block.baked_bias is None}
    if not blocks:
        return NotApplicable("every attention bias is baked already")
    before = stored_numbers(module)
    for name, block in blocks.items():
        if block.has_one_key:
            # The softmax over one key is 1 whatever its bias: queries and keys cannot matter.
            values = _keep_rows(*block.value_rows())
            proj = cast("nn.Module", block.proj)
            # A new module is in train mode, whatever it is made of.
            alone = nn.Sequential(OrderedDict(v=values, proj=proj))
            module.set_submodule(name, alone.train(mode=block.training))
        else:
            block.bake_bias()
    return Matched(len(blocks), bytes_added=4 * (stored_numbers(module) - before))


def probes(module: nn.Module) -> Mapping[str, Probe]:
    """The bias of every pair of positions; of a single key what the whole attention computes."""
    blocks = {n: m for n, m in module.named_modules() if isinstance(m, AttentionBias)}
    return {name: _probe(name, block) for name, block in blocks.items()}


def _probe(place: str, block: AttentionBias) -> Probe:
    if not block.has_one_key:
        return lambda network: cast("AttentionBias", network.get_submodule(place)).bias()
    layer = block.value_rows()[0]
    x = example(layer, place)
    x = x[..., :1, :1] if x.dim() == 4 else x[:, :1]  # there is one token
    return lambda network: network.get_submodule(place)(x)


BAKE_ATTENTION_BIAS = Pass("bake_attention_bias", apply, probes)
