"""What users call the parts of a network: ``stem.0``, ``stage1.block0.mlp``, ``shrink1.mlp``.

Stages are counted from 1 as in the paper, blocks and convolutions from 0. ``shrink1`` stands
between ``stage1`` and ``stage2``. The names are the same for every representation of a model.
"""

from __future__ import annotations

from collections.abc import Iterator

from levit_export.models.architectures.grafted import STAGE_DEPTHS
from levit_export.models.zoo import Config, GraftedConfig, LevitConfig, VitPytorchConfig


def block_names(config: Config) -> dict[str, str]:
    """For the path of each block's module, what users call the block, in the network's order."""
    if isinstance(config, LevitConfig):
        return dict(_levit(config))
    if isinstance(config, VitPytorchConfig):
        return dict(_vit_pytorch(config))
    return dict(_grafted(config))


def _levit(config: LevitConfig) -> Iterator[tuple[str, str]]:
    for index in range(config.stem_stride.bit_length() - 1):
        yield f"patch_embed.{2 * index}", f"stem.{index}"
    number = 0
    for stage, depth in enumerate(config.depths, start=1):
        names = [f"shrink{stage - 1}"] * (stage > 1)
        names += [f"stage{stage}.block{index}" for index in range(depth)]
        for name in names:
            yield f"blocks.{number}", f"{name}.attention"
            yield f"blocks.{number + 1}", f"{name}.mlp"
            number += 2
    yield "head", "head"
    if config.two_heads:
        yield "head_dist", "head_dist"


def _vit_pytorch(config: VitPytorchConfig) -> Iterator[tuple[str, str]]:
    for index in range(4):
        yield f"stem.{index}", f"stem.{index}"
    number = 0
    for stage, depth in enumerate(config.depths, start=1):
        names = [f"stage{stage}.block{index}" for index in range(depth)]
        names += [f"shrink{stage}"] * (stage < len(config.depths))
        for name in names:
            yield f"blocks.{number}", f"{name}.attention"
            yield f"blocks.{number + 1}", f"{name}.mlp"
            number += 2
    yield "head", "head"
    if config.distill_classes is not None:
        yield "distill_head", "distill_head"


def _grafted(config: GraftedConfig) -> Iterator[tuple[str, str]]:
    if config.stages:
        yield "trunk.conv1", "stem.0"
    for stage, depth in enumerate(STAGE_DEPTHS[: config.stages], start=1):
        for index in range(depth):
            yield f"trunk.layer{stage}.{index}", f"resnet{stage}.block{index}"
    if not config.layers:
        yield "fc", "head"
        return
    yield "transformer.patch_embed", "embedding"
    for index in range(config.layers):
        yield f"transformer.blocks.{index}.attn", f"layer{index}.attention"
        yield f"transformer.blocks.{index}.mlp", f"layer{index}.mlp"
        yield f"transformer.blocks.{index}", f"layer{index}"
    yield "transformer.norm", "norm"
    yield "transformer.head", "head"
