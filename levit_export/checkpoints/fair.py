"""The authors' own checkpoints: which LeViT a set of tensors belongs to, told by shapes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from levit_export.errors import CheckpointError
from levit_export.zoo import STEM_STRIDE, LevitConfig

NAME = "fair"
STEM = "patch_embed.6.c.weight"


def recognises(tensors: Mapping[str, torch.Tensor]) -> bool:
    """Whether the tensors have this dialect's names."""
    return STEM in tensors and any(name.startswith("blocks.0.m.qkv.") for name in tensors)


@dataclass(frozen=True)
class _Stage:
    dim: int
    heads: int
    key_dim: int
    side: int
    depth: int


def infer_config(tensors: Mapping[str, torch.Tensor], source: str) -> LevitConfig:
    """The configuration whose shapes are these, Hardswish assumed.

    An attention block has as many bias rows as heads and ``side ** 2`` offsets; its ``qkv`` has
    ``4 * key_dim`` rows a head. Raises ``CheckpointError`` where the shapes fit no LeViT.
    """
    try:
        return _config(tensors)
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else f"its shapes: {error}"
        raise CheckpointError(
            f"{source} looks like a LeViT of the authors' form, but {reason}",
            remedy="Save the whole model.state_dict().",
        ) from error


def _config(tensors: Mapping[str, torch.Tensor]) -> LevitConfig:
    stages = _stages(tensors)
    classes = tensors["head.l.weight"].shape[0]
    sizes = [classes, *(n for s in stages for n in (s.dim, s.heads, s.key_dim, s.side))]
    if min(sizes) < 1:
        raise ValueError("a tensor without elements")
    return LevitConfig(
        dims=tuple(s.dim for s in stages),
        key_dim=stages[0].key_dim,
        heads=tuple(s.heads for s in stages),
        depths=tuple(s.depth for s in stages),
        image_size=STEM_STRIDE * stages[0].side,
        classes=classes,
        two_heads="head_dist.l.weight" in tensors,
    )


def _stages(tensors: Mapping[str, torch.Tensor]) -> list[_Stage]:
    stages: list[_Stage] = []
    index, fresh = 0, True
    indices = {int(n.split(".")[1]) for n in tensors if n.startswith("blocks.")}
    for index in sorted(indices):
        if f"blocks.{index}.kv.c.weight" in tensors:
            fresh = True
        qkv = tensors.get(f"blocks.{index}.m.qkv.c.weight")
        if qkv is None:
            continue
        heads, offsets = tensors[f"blocks.{index}.m.attention_biases"].shape
        if fresh:
            side = math.isqrt(offsets)
            stages.append(_Stage(qkv.shape[1], heads, qkv.shape[0] // (4 * heads), side, 0))
            fresh = False
        last = stages[-1]
        stages[-1] = _Stage(last.dim, last.heads, last.key_dim, last.side, last.depth + 1)
    return stages
