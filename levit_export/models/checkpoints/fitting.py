"""Hold a file's tensors against the network that they are said to belong to, name by name."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from levit_export.core.errors import CheckpointError
from levit_export.models.architectures import build
from levit_export.models.checkpoints.dialect import Found
from levit_export.models.zoo import Config, GraftedConfig, Variant, size_in_words

LISTED = 10
DERIVED = ("attention_bias_idxs", "num_batches_tracked")
"""Buffers that follow from the shapes or play no part at inference; they may be absent."""


def refuse_misfit(found: Found, source: str, model: Variant | None = None) -> None:
    """Raise unless the tensors are exactly those that the configuration has, derived ones aside.

    Names are the file's own. The first ten differences are listed, the rest counted. ``model`` is
    the one that was asked for by name.
    """
    with torch.device("meta"):
        expected = build(found.config).state_dict()
    lines = _differences(found, expected)
    if lines:
        shown = "; ".join(lines[:LISTED])
        rest = f"; and {len(lines) - LISTED} more" if len(lines) > LISTED else ""
        raise CheckpointError(
            f"{source} does not fit {described(found.config)}: {shown}{rest}",
            remedy=f"The file is not of {model.name}: leave out --model to let the shapes decide."
            if model
            else "The dimensions are those of its own first layers, so a part of the network was "
            "changed, added or lost. Save model.state_dict() of the network as its library "
            "builds it.",
        )


def _differences(found: Found, expected: Mapping[str, torch.Tensor]) -> list[str]:
    def spelled(name: str) -> str:
        return found.theirs.get(name, name)

    shapes = [
        f"{spelled(name)}: expected {list(expected[name].shape)}, found {list(tensor.shape)}"
        for name, tensor in found.tensors.items()
        if name in expected and tensor.shape != expected[name].shape
    ]
    tables = [
        f"{spelled(name)}: not the table that the grid gives"
        for name, tensor in found.tensors.items()
        if name.endswith(DERIVED[0])
        and name in expected
        and tensor.shape == expected[name].shape
        and not torch.equal(tensor, expected[name])
    ]
    strangers = [f"{name}: unexpected" for name in found.tensors if name not in expected]
    absent = [
        f"{spelled(name)}: missing"
        for name in expected
        if name not in found.tensors and not name.endswith(DERIVED)
    ]
    return [*shapes, *strangers, *tables, *absent]


def described(config: Config) -> str:
    """The network in a few words: its dimensions, classes, heads and image size."""
    many = "es" * (config.classes != 1)
    classes = f"{config.classes} class{many}, {size_in_words(config.image_size)} px"
    if isinstance(config, GraftedConfig):
        parts = f"{config.stages} ResNet-50 stages and {config.layers} DeiT layers"
        return f"a network of {parts}, dim {config.dim}, {classes}"
    sizes = f"dims {list(config.dims)}, depths {list(config.depths)}, heads {list(config.heads)}"
    heads = ("no", "one head", "two heads")[config.head_count]
    return f"a LeViT of {sizes}, key dim {config.key_dim}, {classes}, {heads}"
