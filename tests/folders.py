"""Folders of a small LeViT as its libraries leave them: weights, and JSON files beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from levit_export.models.architectures import build
from levit_export.models.architectures.random_weights import randomize_
from levit_export.models.checkpoints import timm
from levit_export.models.checkpoints.levit import Outline
from levit_export.models.zoo import LevitConfig

Tensors = dict[str, torch.Tensor]
TINY = LevitConfig((32, 48, 64), 16, (2, 3, 4), (1, 2, 1), image_size=(64, 64), classes=5)


def outline(config: LevitConfig) -> Outline:
    """Which layers a LeViT has."""
    return Outline(config.stem_stride.bit_length() - 1, config.depths, config.two_heads)


def tensors_of(config: LevitConfig) -> Tensors:
    """Seeded weights of a network."""
    return dict(randomize_(build(config), 0).state_dict())


def in_timm(config: LevitConfig, *, maps: bool = False) -> Tensors:
    """The same as timm stores them: without the index."""
    kept = {k: v for k, v in tensors_of(config).items() if not k.endswith("attention_bias_idxs")}
    return timm.to_theirs(kept, outline(config), maps=maps)


def same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    """Whether both hold equal tensors under equal names."""
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def in_a_file(folder: Path, content: object, name: str = "w.pth") -> Path:
    """``content`` as a pickle of PyTorch, or tensors as a safetensors file."""
    file = folder / name
    if name.endswith(".safetensors"):
        save_file(content, file)  # type: ignore[arg-type]
    else:
        torch.save(content, file)
    return file


def written(folder: Path, tensors: Mapping[str, torch.Tensor], **files: object) -> Path:
    """A folder with the weights and JSON files, as ``save_pretrained`` leaves it."""
    place = folder / "model"
    place.mkdir(parents=True, exist_ok=True)
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, place / "model.safetensors")
    for name, content in files.items():
        (place / f"{name}.json").write_text(json.dumps(content))
    return place
