"""Give a trained model another image size by interpolating what it learned per position.

An approximation: the model was never trained at that size. An attention-bias table ``(heads,
rows * columns)`` is a map over the offsets ``(|dy|, |dx|)``; it is interpolated bicubically with
its corners kept, so that offset 0 keeps its bias. Position embeddings are interpolated as DeiT
does.
"""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import torch
from torch import nn
from torch.nn.functional import interpolate

from levit_export.core.values import Size
from levit_export.models.architectures import build
from levit_export.models.architectures.grafted import Transformer
from levit_export.models.architectures.levit import AttentionBias
from levit_export.models.checkpoints.dialect import Found
from levit_export.models.checkpoints.fitting import DERIVED
from levit_export.models.zoo import GraftedConfig, size_in_words

BIASES = "attention_biases"
POSITIONS = "pos_embed"


def resized(found: Found, image_size: Size) -> Found:
    """``found`` for inputs of ``image_size``; a remark says what was approximated."""
    before, config = found.config.image_size, replace(found.config, image_size=image_size)
    with torch.device("meta"):
        old, new = build(found.config), build(config)
    tensors = {n: t for n, t in found.tensors.items() if not n.endswith(DERIVED[0])}
    grids = {name: (_grid(old, name), _grid(new, name)) for name in tensors}
    changed = [name for name, (own, other) in grids.items() if own != other]
    tensors |= {name: _resized(name, tensors[name], *grids[name]) for name in changed}
    remark = (
        f"an approximation: trained at {size_in_words(before)} px, {len(changed)} tables of "
        f"positions were interpolated for {size_in_words(image_size)} px (--resize-bias); "
        "evaluate it on real images"
    )
    return replace(
        found, config=config, tensors=tensors, remarks=(*found.remarks, *[remark] * bool(changed))
    )


def holds_positions(found: Found) -> bool:
    """Whether the weights fix the image size; a plain ResNet's do not."""
    return not (isinstance(found.config, GraftedConfig) and found.config.layers == 0)


def _grid(module: nn.Module, name: str) -> Size:
    """Rows and columns of the tokens that a table of positions has entries for; else (0, 0)."""
    if name.endswith(BIASES):
        return cast("AttentionBias", module.get_submodule(name.rpartition(".")[0])).keys
    if name.endswith(POSITIONS):
        return cast("Transformer", module.get_submodule(name.rpartition(".")[0])).grid
    return (0, 0)


def _resized(name: str, tensor: torch.Tensor, old: Size, new: Size) -> torch.Tensor:
    if name.endswith(BIASES):
        table = tensor.double().reshape(1, -1, *old)
        table = interpolate(table, size=new, mode="bicubic", align_corners=True)
        return table.flatten(2)[0].to(tensor.dtype)
    own, rest = tensor[:, :1], tensor[:, 1:]
    maps = rest.double().reshape(1, *old, -1).permute(0, 3, 1, 2)
    maps = interpolate(maps, size=new, mode="bicubic", align_corners=False)
    rows = maps.permute(0, 2, 3, 1).flatten(1, 2).to(tensor.dtype)
    return torch.cat([own, rows], dim=1)
