"""State dicts of ``vit_pytorch.levit.LeViT`` (vit-pytorch 1.26), told by shapes, and back again.

``to_theirs(to_ours(tensors, config), config)`` is ``tensors``, bit for bit.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping

import torch

from levit_export.core.errors import CheckpointError
from levit_export.models.checkpoints.dialect import (
    Found,
    Stored,
    Tensors,
    renamed,
    shape_of,
)
from levit_export.models.checkpoints.levit import NORM, count
from levit_export.models.loading import ModelChoice
from levit_export.models.zoo import VitPytorchConfig

NAME = "vit-pytorch"
STEMS = ("conv_embedding.0.weight",)
STEM_STRIDE = 16
STEM_CONVOLUTIONS = 4
TABLE = "attention_biases"
"""Stored there as ``(offsets, heads)``, the weight of an Embedding; here it is transposed."""


def recognises(tensors: Tensors) -> bool:
    """Whether the tensors have this dialect's names."""
    return STEMS[0] in tensors and "mlp_head.weight" in tensors


def understand(stored: Stored, source: str, choice: ModelChoice) -> Found:  # noqa: ARG001
    """Configuration and tensors; it builds squares only, so nothing is left to ``choice``."""
    config = infer_config(stored.tensors, source)
    return Found(
        dialect=NAME,
        config=config,
        tensors=to_ours(stored.tensors, config),
        theirs=renaming(config),
    )


def to_ours(tensors: Tensors, config: VitPytorchConfig) -> dict[str, torch.Tensor]:
    """The tensors under our names; those of no such network keep their own."""
    names = renaming(config)
    return _transposed(renamed(tensors, names), names)


def to_theirs(tensors: Tensors, config: VitPytorchConfig) -> dict[str, torch.Tensor]:
    """Our tensors as ``vit_pytorch`` loads them, strictly."""
    names = renaming(config)
    ours = {theirs: name for name, theirs in names.items()}
    return renamed(_transposed(tensors, names), ours)


def _transposed(tensors: Tensors, names: Mapping[str, str]) -> dict[str, torch.Tensor]:
    return {
        name: tensor.t().contiguous() if name.endswith(TABLE) and name in names else tensor
        for name, tensor in tensors.items()
    }


# --- names ----------------------------------------------------------------------------------


def renaming(config: VitPytorchConfig) -> dict[str, str]:
    """For each tensor of our module, what ``vit_pytorch`` calls it."""
    pairs = {f"stem.{i}": f"conv_embedding.{i}" for i in range(STEM_CONVOLUTIONS)}
    pairs["head"] = "mlp_head"
    if config.distill_classes is not None:
        pairs["distill_head"] = "distill_head"
    names: dict[str, str] = {}
    for index, (theirs, shrinks) in enumerate(_pairs(config.depths)):
        attention = f"blocks.{2 * index}" if shrinks else f"blocks.{2 * index}.m"
        names |= _attention(attention, f"{theirs}.0")
        mlp = f"blocks.{2 * index + 1}.m"
        # Between the two convolutions stand Hardswish and, there alone, a Dropout.
        pairs |= {f"{mlp}.0": f"{theirs}.1.net.0", f"{mlp}.2": f"{theirs}.1.net.3"}
    leaves = itertools.product(pairs.items(), ("weight", "bias"))
    return names | {f"{own}.{leaf}": f"{theirs}.{leaf}" for (own, theirs), leaf in leaves}


def _pairs(depths: tuple[int, ...]) -> Iterator[tuple[str, bool]]:
    """Their prefix of every attention and its MLP in order, and whether the attention shrinks."""
    for stage, depth in enumerate(depths):
        for layer in range(depth):
            yield f"backbone.{2 * stage}.layers.{layer}", False
        if stage + 1 < len(depths):
            yield f"backbone.{2 * stage + 1}.layers.0", True


def _attention(ours: str, theirs: str) -> dict[str, str]:
    names = {
        f"{ours}.{TABLE}": f"{theirs}.pos_bias.weight",
        f"{ours}.attention_bias_idxs": f"{theirs}.pos_indices",
        f"{ours}.proj.1.c.bias": f"{theirs}.to_out.1.bias",
    }
    layers = {"q": ("to_q", 0), "k": ("to_k", 0), "v": ("to_v", 0), "proj.1": ("to_out", 1)}
    for own, (other, first) in layers.items():
        names[f"{ours}.{own}.c.weight"] = f"{theirs}.{other}.{first}.weight"
        names |= {
            f"{ours}.{own}.bn.{leaf}": f"{theirs}.{other}.{first + 1}.{leaf}" for leaf in NORM
        }
    return names


# --- shapes ---------------------------------------------------------------------------------


def infer_config(tensors: Tensors, source: str) -> VitPytorchConfig:
    """The configuration whose shapes are these.

    A bias table is ``(side ** 2, heads)``; ``to_q`` has ``key_dim`` rows a head and ``to_v``
    ``value_dim``. Raises ``CheckpointError`` where the shapes fit no such network.
    """
    try:
        return _config(tensors)
    except (KeyError, ValueError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else f"its shapes: {error}"
        raise CheckpointError(
            f"{source} looks like a LeViT of vit-pytorch, but {reason}",
            remedy="Save the whole model.state_dict().",
        ) from error


def _config(tensors: Tensors) -> VitPytorchConfig:
    depths = tuple(
        count(tensors, f"backbone.{even}.layers.{{}}.")
        for even in range(0, max(1, count(tensors, "backbone.{}.")), 2)
    )
    firsts = [f"backbone.{2 * stage}.layers.0" for stage in range(len(depths))]
    heads = tuple(shape_of(tensors, f"{first}.0.pos_bias.weight", 2)[1] for first in firsts)
    for prefix, _ in _pairs(depths):  # each table is about to be transposed
        shape_of(tensors, f"{prefix}.0.pos_bias.weight", 2)
    first = firsts[0]
    query, dim = shape_of(tensors, f"{first}.0.to_q.0.weight", 4)[:2]
    offsets = shape_of(tensors, f"{first}.0.pos_bias.weight", 2)[0]
    side = STEM_STRIDE * math.isqrt(offsets)
    if side**2 != STEM_STRIDE**2 * offsets:
        raise ValueError(f"a bias table of {offsets} offsets is not that of a square grid")
    distills = "distill_head.weight" in tensors
    return VitPytorchConfig(
        dims=tuple(shape_of(tensors, f"{name}.0.to_q.0.weight", 4)[1] for name in firsts),
        heads=heads,
        depths=depths,
        key_dim=_times(query, heads[0], "rows of to_q", "heads"),
        value_dim=_times(
            shape_of(tensors, f"{first}.0.to_v.0.weight", 4)[0], heads[0], "rows of to_v", "heads"
        ),
        mlp_ratio=_times(
            shape_of(tensors, f"{first}.1.net.0.weight", 4)[0], dim, "rows of the MLP", "channels"
        ),
        image_size=(side, side),
        classes=shape_of(tensors, "mlp_head.weight", 2)[0],
        distill_classes=shape_of(tensors, "distill_head.weight", 2)[0] if distills else None,
    )


def _times(whole: int, part: int, wholes: str, parts: str) -> int:
    if whole % part:
        raise ValueError(f"{whole} {wholes} do not divide among {part} {parts}")
    return whole // part
