"""Let a LeViT compute on maps ``(B, C, H, W)`` where it computed on tokens ``(B, N, C)``.

*Given* ``Y = X Wᵀ + b`` for tokens ``X (B, N, C)``, *result* the 1x1 convolution of
``(B, C, H, W)`` with the kernel ``W (O, C, 1, 1)``: the same products in another order of axes.
Queries, keys and values are then ``(B, heads, D, N)``, and attention is ``softmax(s * qᵀ k + b)``
and ``v softmax(…)ᵀ`` with no axis moved. It is the form of timm's ``levit_conv`` models.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import nn

from levit_export.core.errors import PassError
from levit_export.core.values import LAID_OUT_AS_MAPS
from levit_export.models.architectures.layers import LinearBN
from levit_export.models.architectures.levit import AttentionBias, Levit, Subsample
from levit_export.models.passes.base import Matched, NotApplicable, Outcome, Pass, Probe, example


def _pointwise(linear: nn.Linear) -> nn.Conv2d:
    """The 1x1 convolution with the layer's own numbers."""
    # On the meta device, where no weights are drawn that would be thrown away.
    layer = nn.Conv2d(linear.in_features, linear.out_features, 1, device="meta")
    layer.weight = nn.Parameter(linear.weight[:, :, None, None], requires_grad=False)
    layer.bias = nn.Parameter(linear.bias, requires_grad=False)
    return layer


def apply(module: nn.Module) -> Outcome:
    """Lay out every block of ``module`` in place; the heads, which see no positions, stay."""
    if not isinstance(module, Levit):
        return NotApplicable(f"a {type(module).__name__} has one layout")
    if module.layout == "maps":
        return NotApplicable("laid out as maps already")
    if unfused := [name for name, m in module.named_modules() if isinstance(m, LinearBN)]:
        raise PassError(
            f"{len(unfused)} layers still have a BatchNorm over tokens, first {unfused[0]}",
            remedy="Keep fuse_batchnorm, or export with --layout tokens.",
        )
    linear = [(n, m) for n, m in module.blocks.named_modules() if isinstance(m, nn.Linear)]
    for name, layer in linear:
        module.blocks.set_submodule(name, _pointwise(layer))
    for part in module.modules():
        if isinstance(part, Levit | AttentionBias | Subsample):
            part.layout = "maps"
    return Matched(len(linear))


def probes(module: nn.Module) -> Mapping[str, Probe]:
    """What every layer makes of a token."""
    if not isinstance(module, Levit) or module.layout == "maps":
        return {}
    layers = {n: m for n, m in module.blocks.named_modules() if isinstance(m, nn.Linear)}
    return {f"blocks.{name}": _of_tokens(f"blocks.{name}", m) for name, m in layers.items()}


def _of_tokens(place: str, layer: nn.Linear) -> Probe:
    tokens = example(layer, place)

    def probe(network: nn.Module) -> torch.Tensor:
        found = network.get_submodule(place)
        if isinstance(found, nn.Conv2d):
            return cast("torch.Tensor", found(tokens.mT[..., None])[..., 0].mT)
        return cast("torch.Tensor", found(tokens))

    return probe


LAY_OUT_MAPS = Pass(LAID_OUT_AS_MAPS, apply, probes)
