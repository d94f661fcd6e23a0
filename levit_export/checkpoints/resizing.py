"""Give a trained model another image size by interpolating what it learned per position.

An approximation: the model was never trained at that size. An attention-bias table ``(heads,
side**2)`` is a map over the offsets ``(|dy|, |dx|)``; it is interpolated bicubically with its
corners kept, so that offset 0 keeps its bias. Position embeddings are interpolated as DeiT does.
"""

from __future__ import annotations

from dataclasses import replace
from math import isqrt

import torch
from torch.nn.functional import interpolate

from levit_export.architectures import build
from levit_export.checkpoints.fitting import DERIVED
from levit_export.checkpoints.found import Found
from levit_export.zoo import GraftedConfig

BIASES = "attention_biases"
POSITIONS = "pos_embed"


def resized(found: Found, image_size: int) -> Found:
    """``found`` for inputs of ``image_size``; a remark says what was approximated."""
    before, config = found.config.image_size, replace(found.config, image_size=image_size)
    with torch.device("meta"):
        shapes = {name: t.shape for name, t in build(config).state_dict().items()}
    tensors = {
        name: _resized(name, tensor, shapes[name])
        for name, tensor in found.tensors.items()
        if not name.endswith(DERIVED[0])
    }
    changed = sum(tensors[name].shape != found.tensors[name].shape for name in tensors)
    remark = (
        f"an approximation: trained at {before} px, {changed} tables of positions were "
        f"interpolated for {image_size} px (--resize-bias); evaluate it on real images"
    )
    return replace(
        found, config=config, tensors=tensors, remarks=(*found.remarks, *[remark] * (changed > 0))
    )


def holds_positions(found: Found) -> bool:
    """Whether the weights fix the image size; a plain ResNet's do not."""
    return not (isinstance(found.config, GraftedConfig) and found.config.layers == 0)


def _resized(name: str, tensor: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    if tensor.shape == shape:
        return tensor
    if name.endswith(BIASES):
        old, new = isqrt(tensor.shape[1]), isqrt(shape[1])
        table = tensor.double().reshape(1, -1, old, old)
        table = interpolate(table, size=(new, new), mode="bicubic", align_corners=True)
        return table.reshape(shape).to(tensor.dtype)
    if name.endswith(POSITIONS):
        own, grid = tensor[:, :1], tensor[:, 1:]
        old, new = isqrt(grid.shape[1]), isqrt(shape[1] - 1)
        maps = grid.double().reshape(1, old, old, -1).permute(0, 3, 1, 2)
        maps = interpolate(maps, size=(new, new), mode="bicubic", align_corners=False)
        rows = maps.permute(0, 2, 3, 1).reshape(1, new * new, -1).to(tensor.dtype)
        return torch.cat([own, rows], dim=1)
    return tensor
