"""Networks for the passes: two that ship, and one whose attention scale is no power of two."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from levit_export.architectures.levit import Levit
from levit_export.architectures.random_weights import randomize_
from levit_export.core import PassRecord
from levit_export.passes import PASSES, apply_passes
from levit_export.zoo import LevitConfig, variant


@dataclass(frozen=True)
class Network:
    """A randomised model in eval mode, what the passes make of it, and what they are to match.

    ``pairs`` counts BatchNorms and ``blocks`` attentions, both by hand from the paper's layout.
    """

    model: Levit
    pairs: int
    blocks: int
    rewritten: nn.Module
    ledger: tuple[PassRecord, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one image."""
        side = self.model.config.image_size
        return (3, side, side)

    def images(self, dtype: torch.dtype = torch.float64) -> torch.Tensor:
        """Three images that the proof has not seen."""
        generator = torch.Generator().manual_seed(99)
        return torch.randn(3, *self.shape, generator=generator, dtype=dtype)


NETWORKS = {
    # Stem 4, heads 2, attention 2 each, shrinking attention 3 each, MLP 2 each.
    "digits": (variant("levit_digits").config, 4 + 2 + 6 * 2 + 2 * 3 + 8 * 2, 6 + 2),
    "128s": (variant("levit_128s").config, 4 + 2 + 9 * 2 + 2 * 3 + 11 * 2, 9 + 2),
    "odd-scale": (
        LevitConfig((64, 96), 32, (2, 3), (1, 1), image_size=112, classes=7),
        4 + 2 + 2 * 2 + 1 * 3 + 3 * 2,
        2 + 1,
    ),
}


@pytest.fixture(scope="session", params=NETWORKS)
def network(request: pytest.FixtureRequest) -> Network:
    """Each of ``NETWORKS``; do not change its model."""
    config, pairs, blocks = NETWORKS[request.param]
    model = randomize_(Levit(config), seed=3).eval()
    rewritten, ledger = apply_passes(
        model, PASSES, input_shape=(3, config.image_size, config.image_size)
    )
    return Network(model, pairs, blocks, rewritten, ledger)


@pytest.fixture
def small() -> Levit:
    """A small randomised model that a test may change."""
    config = LevitConfig((32, 48), 16, (2, 3), (1, 1), image_size=64, classes=10)
    return randomize_(Levit(config), seed=5).eval()
