"""What users call the parts of a network."""

from __future__ import annotations

import pytest
import torch

from levit_export.models.architectures import build
from levit_export.models.architectures.blocks import block_names
from levit_export.models.zoo import VARIANTS, Variant, variant


@pytest.mark.parametrize("known", VARIANTS, ids=lambda known: known.name)
def test_blocks_are_modules_of_the_network(known: Variant) -> None:
    """Every named block is a module, every layer of the network is in one, names are unique."""
    config = known.config
    with torch.device("meta"):
        module = build(config)
    blocks = block_names(config)
    paths = dict(module.named_modules())
    assert set(blocks) <= set(paths)
    assert len(set(blocks.values())) == len(blocks)
    layers = (torch.nn.Linear, torch.nn.Conv2d)
    homeless = [
        path
        for path, part in paths.items()
        if isinstance(part, layers) and not any(path.startswith(block) for block in blocks)
    ]
    assert homeless == []


def test_blocks_of_the_paper() -> None:
    """Stages count from 1 as in the paper, blocks from 0; shrinking blocks stand between them."""
    names = list(block_names(variant("levit_128s").config).values())
    assert names[:6] == [
        "stem.0",
        "stem.1",
        "stem.2",
        "stem.3",
        "stage1.block0.attention",
        "stage1.block0.mlp",
    ]
    assert names[8:10] == ["shrink1.attention", "shrink1.mlp"]
    assert names[-4:] == ["stage3.block3.attention", "stage3.block3.mlp", "head", "head_dist"]
