"""Networks for the passes: two that ship, and one whose attention scale is no power of two."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from levit_export.core.values import PassRecord
from levit_export.models.architectures.levit import Levit
from levit_export.models.architectures.random_weights import randomize_
from levit_export.models.passes import PASSES, apply_passes
from levit_export.models.zoo import LevitConfig, variant

NETWORKS = {
    # BatchNorms: stem 4, heads 2, attention 2 each, shrinking attention 3 each, MLP 2 each.
    # Attentions: the stages' and the shrinking ones.
    "digits": (variant("levit_digits").config, 4 + 2 + 6 * 2 + 2 * 3 + 8 * 2, 6 + 2),
    "128s": (variant("levit_128s").config, 4 + 2 + 9 * 2 + 2 * 3 + 11 * 2, 9 + 2),
    "odd-scale": (
        LevitConfig((64, 96), 32, (2, 3), (1, 1), image_size=(112, 112), classes=7),
        4 + 2 + 2 * 2 + 1 * 3 + 3 * 2,
        2 + 1,
    ),
}
SMALL = LevitConfig((32, 48), 16, (2, 3), (1, 1), image_size=(64, 64), classes=10)


@dataclass(frozen=True)
class Stage:
    """A float64 copy of the model after some of the passes, and what one call of it did."""

    module: nn.Module
    outputs: torch.Tensor
    nodes: int


@dataclass(frozen=True)
class Network:
    """A randomised model in eval mode, what the passes make of it, and what they are to match.

    ``pairs`` counts BatchNorms and ``blocks`` attentions, by hand from the paper's layout.
    ``stages`` are five: before all passes, and after each, made without the framework and run
    on two images (the proof takes two as well) that the proof has not seen.
    """

    model: Levit
    pairs: int
    blocks: int
    rewritten: nn.Module
    ledger: tuple[PassRecord, ...]
    stages: tuple[Stage, ...]


class _Operators(TorchDispatchMode):
    """Counts the operators that run under it."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def _stage(module: nn.Module, images: torch.Tensor) -> Stage:
    with _Operators() as operators:
        outputs = module(images)
    return Stage(module, outputs, operators.count)


def build(name: str) -> Network:
    """The network called ``name`` in ``NETWORKS``."""
    config, pairs, blocks = NETWORKS[name]
    shape = (3, *config.image_size)
    model = randomize_(Levit(config), seed=3).eval()
    rewritten, ledger = apply_passes(model, PASSES, input_shape=shape)
    generator = torch.Generator().manual_seed(99)
    images = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    stages = [_stage(copy.deepcopy(model).double(), images)]
    for each in PASSES:
        module = copy.deepcopy(stages[-1].module)
        each.apply(module)
        stages.append(_stage(module, images))
    return Network(model, pairs, blocks, rewritten, ledger, tuple(stages))
