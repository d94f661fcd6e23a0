"""ResNet-50 as torchvision names it, DeiT as timm names it, and the two grafted together.

A grafted network has torchvision's names below (``conv1``, ``bn1``, ``layer1``, …) and timm's
above (``patch_embed.proj``, ``cls_token``, ``blocks``, …); nothing is called the same in both.
``to_theirs(to_ours(tensors, config), config)`` is ``tensors``, bit for bit.
"""

from __future__ import annotations

import torch

from levit_export.core.errors import CheckpointError, UsageError
from levit_export.models.architectures.grafted import EXPANSION, PATCH, STAGE_DEPTHS, trunk_width
from levit_export.models.checkpoints import positions, timm
from levit_export.models.checkpoints.dialect import (
    Found,
    Settled,
    Stored,
    Tensors,
    renamed,
    shape_of,
)
from levit_export.models.checkpoints.levit import NORM, count
from levit_export.models.loading import ModelChoice
from levit_export.models.zoo import GraftedConfig, size_in_words

NAME = "grafted"
STEMS = ("conv1.weight", "patch_embed.proj.weight")
HEAD_DIM = 64
"""Channels of a head in every DeiT. No tensor's shape tells how many heads there are."""
RESNET_IMAGE_SIZE = (224, 224)
"""What ResNet-50 was trained at. Its weights fit every size, so none can be told from them."""
AFFINE = ("weight", "bias")
LAYER = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
KNOWN = "ResNet-50, DeiT and ViT with 16x16 patches and 64 channels a head, and the two grafted"


def recognises(tensors: Tensors) -> bool:
    """Whether the tensors have this dialect's names; other ResNets and ViTs have them as well."""
    resnet = {"conv1.weight", "layer1.0.conv1.weight"}
    transformer = {"patch_embed.proj.weight", "blocks.0.attn.qkv.weight"}
    return resnet <= tensors.keys() or transformer <= tensors.keys()


def understand(stored: Stored, source: str, choice: ModelChoice) -> Found:
    """Configuration and tensors. Raises ``CheckpointError`` for other ResNets and ViTs."""
    config = infer_config(stored.tensors, source)
    if config.layers:
        built_with, usual = timm.sizes_said(stored.config, source)
        settled = positions.settle(
            config,
            positions.fitting([stored.tensors["pos_embed"].shape[1] - 1], PATCH),
            choice,
            source,
            built_with=built_with,
            usual=usual,
        )
        assumed = f"{config.heads} heads, at {HEAD_DIM} channels each: the shapes do not tell"
    else:
        settled = Settled(config)
        size = size_in_words(RESNET_IMAGE_SIZE)
        assumed = f"image size {size}: ResNet-50's weights fit every size"
    return Found(
        dialect=NAME,
        config=settled.value,
        tensors=to_ours(stored.tensors, config),
        theirs=renaming(config),
        remarks=settled.remarks,
        assumptions=(assumed, *settled.assumptions),
    )


def to_ours(tensors: Tensors, config: GraftedConfig) -> dict[str, torch.Tensor]:
    """The tensors under our names; those of no such network keep their own."""
    return renamed(tensors, renaming(config))


def to_theirs(tensors: Tensors, config: GraftedConfig) -> dict[str, torch.Tensor]:
    """Our tensors as torchvision's and timm's modules load them, strictly."""
    return renamed(tensors, {theirs: name for name, theirs in renaming(config).items()})


# --- names ----------------------------------------------------------------------------------


def renaming(config: GraftedConfig) -> dict[str, str]:
    """For each tensor of our module, what torchvision or timm calls it."""
    names = _pair("conv1", "conv1", "bn1") if config.stages else {}
    for stage, depth in enumerate(STAGE_DEPTHS[: config.stages], start=1):
        for index in range(depth):
            for number in (1, 2, 3):
                conv = f"layer{stage}.{index}.conv{number}"
                names |= _pair(conv, conv, f"layer{stage}.{index}.bn{number}")
        first = f"layer{stage}.0.downsample"
        names |= _pair(first, f"{first}.0", f"{first}.1")
    if not config.layers:
        return names | {f"fc.{leaf}": f"fc.{leaf}" for leaf in ("weight", "bias")}
    parts = ["patch_embed.proj", "norm", "head"]
    parts += [f"blocks.{index}.{part}" for index in range(config.layers) for part in LAYER]
    theirs = ["cls_token", "pos_embed", *(f"{p}.{leaf}" for p in parts for leaf in AFFINE)]
    return names | {f"transformer.{name}": name for name in theirs}


def _pair(ours: str, conv: str, norm: str) -> dict[str, str]:
    leaves = {f"trunk.{ours}.bn.{leaf}": f"{norm}.{leaf}" for leaf in NORM}
    return {f"trunk.{ours}.c.weight": f"{conv}.weight", **leaves}


# --- shapes ---------------------------------------------------------------------------------


def infer_config(tensors: Tensors, source: str) -> GraftedConfig:
    """The configuration whose names and shapes are these.

    ``pos_embed`` is ``(1, 1 + tokens, dim)``, a token for 16x16 pixels; of the images that have so
    many, the squarest is given. Heads are taken to have 64 channels each and a ResNet-50 to see
    224 pixels, which no shape tells. Raises ``CheckpointError`` for
    other ResNets and other ViTs.
    """
    try:
        config = _config(tensors)
    except UsageError as error:
        raise _misfit(source, error.what) from error
    except (KeyError, ValueError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise _misfit(source, reason) from error
    # Distillation tokens, layer scales, norms of q and the like make it another function.
    known = set(renaming(config).values())
    if strangers := [name for name in tensors if name not in known]:
        raise _misfit(source, f"it also holds {strangers[0]} ({len(strangers)} such tensors)")
    return config


def _misfit(source: str, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{source} looks like a ResNet-50, a DeiT or both, but {reason}",
        remedy=f"Known: {KNOWN}. Save the whole model.state_dict().",
    )


def _config(tensors: Tensors) -> GraftedConfig:
    stages = sum(f"layer{stage}.0.conv1.weight" in tensors for stage in range(1, 5))
    for stage in range(1, stages + 1):
        _refuse_other_stage(tensors, stage)
    layers = count(tensors, "blocks.{}.")
    if not layers and stages == len(STAGE_DEPTHS):  # the whole of ResNet-50, with its own head
        classes = shape_of(tensors, "fc.weight", 2)[0]
        return GraftedConfig(stages, 0, image_size=RESNET_IMAGE_SIZE, classes=classes)
    _, tokens, dim = shape_of(tensors, "pos_embed", 3)
    shape_of(tensors, "cls_token", 3)
    if dim % HEAD_DIM:
        raise ValueError(f"its {dim} channels are not a multiple of {HEAD_DIM}, those of a head")
    patch = 1 if stages else PATCH  # behind ResNet stages a token is a pixel of their maps
    expected = [dim, trunk_width(stages), patch, patch]
    projection = list(shape_of(tensors, "patch_embed.proj.weight", 4))
    if projection != expected:
        raise ValueError(f"patch_embed.proj.weight is {projection}, expected {expected}")
    hidden = shape_of(tensors, "blocks.0.mlp.fc1.weight", 2)[0]
    if hidden % dim:
        raise ValueError(f"its MLP of {hidden} rows is not a multiple of its {dim} channels")
    return GraftedConfig(
        stages,
        layers,
        dim=dim,
        heads=dim // HEAD_DIM,
        mlp_ratio=hidden // dim,
        image_size=positions.fitting([tokens - 1], PATCH)[0],
        classes=shape_of(tensors, "head.weight", 2)[0],
    )


def _refuse_other_stage(tensors: Tensors, stage: int) -> None:
    """ResNet-18 and -34 have basic blocks, -101 and -152 more of them, ResNeXt wider ones."""
    depth, width = count(tensors, f"layer{stage}.{{}}."), trunk_width(stage)
    if f"layer{stage}.0.conv3.weight" not in tensors:
        raise ValueError(f"layer{stage} is of basic blocks, ResNet-50's are bottlenecks")
    if depth != STAGE_DEPTHS[stage - 1]:
        raise ValueError(f"layer{stage} has {depth} blocks, ResNet-50 {STAGE_DEPTHS[stage - 1]}")
    shape = list(shape_of(tensors, f"layer{stage}.0.conv3.weight", 4))
    if shape != [width, width // EXPANSION, 1, 1]:
        raise ValueError(
            f"layer{stage}.0.conv3.weight is {shape}, ResNet-50's "
            f"{[width, width // EXPANSION, 1, 1]}"
        )
