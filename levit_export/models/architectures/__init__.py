"""The networks, and one way to build each from its configuration."""

from __future__ import annotations

from torch import nn

from levit_export.models.architectures.grafted import Grafted
from levit_export.models.architectures.levit import Levit
from levit_export.models.architectures.vit_pytorch import VitPytorchLevit
from levit_export.models.zoo import Config, GraftedConfig, LevitConfig

__all__ = ["build"]


def build(config: Config) -> nn.Module:
    """The network that ``config`` shapes, with the weights it would start training from."""
    if isinstance(config, LevitConfig):
        return Levit(config)
    if isinstance(config, GraftedConfig):
        return Grafted(config)
    return VitPytorchLevit(config)
