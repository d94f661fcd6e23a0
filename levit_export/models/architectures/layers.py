"""The normalised layers that LeViT is built of, each a pair that BatchNorm fusion can name."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn


class ConvBN(nn.Sequential):
    """Conv2d, then BatchNorm2d: ``(B, C_in, H, W) -> (B, C_out, H', W')``.

    Padded so that a stride of 1 keeps the size. ``bn_weight`` is what the BatchNorm's scale
    starts from.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel: int = 3,
        stride: int = 2,
        bias: bool = False,
        bn_weight: float = 1.0,
    ) -> None:
        super().__init__()
        padding = kernel // 2
        self.add_module(
            "c", nn.Conv2d(in_channels, out_channels, kernel, stride, padding, bias=bias)
        )
        norm = nn.BatchNorm2d(out_channels)
        nn.init.constant_(norm.weight, bn_weight)
        self.add_module("bn", norm)

    def single(self) -> nn.Module:
        """A new layer of these dimensions with the BatchNorm inside, its weights not set."""
        conv = cast("nn.Conv2d", self.c)
        kernel, stride = conv.kernel_size[0], conv.stride[0]
        return nn.Conv2d(conv.in_channels, conv.out_channels, kernel, stride, padding=kernel // 2)


class LinearBN(nn.Sequential):
    """Linear without bias, then BatchNorm over channels: ``(B, N, C_in) -> (B, N, C_out)``.

    ``bn_weight`` is what the BatchNorm's scale starts from; the paper starts the last layer of
    each residual branch from 0, which is why an untrained LeViT's branches contribute nothing.
    """

    def __init__(self, in_features: int, out_features: int, *, bn_weight: float = 1.0) -> None:
        super().__init__()
        self.add_module("c", nn.Linear(in_features, out_features, bias=False))
        norm = nn.BatchNorm1d(out_features)
        nn.init.constant_(norm.weight, bn_weight)
        self.add_module("bn", norm)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = cast("nn.Linear", self.c)(x)
        normalised: torch.Tensor = cast("nn.BatchNorm1d", self.bn)(x.flatten(0, 1))
        return normalised.reshape(-1, *x.shape[1:])

    def single(self) -> nn.Module:
        """A new layer of these dimensions with the BatchNorm inside, its weights not set."""
        linear = cast("nn.Linear", self.c)
        return nn.Linear(linear.in_features, linear.out_features)


class BNLinear(nn.Sequential):
    """BatchNorm1d, then Linear with bias: ``(B, C) -> (B, classes)``. The classifier heads."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.add_module("bn", nn.BatchNorm1d(in_features))
        self.add_module("l", nn.Linear(in_features, out_features))

    def single(self) -> nn.Module:
        """A new layer of these dimensions with the BatchNorm inside, its weights not set."""
        linear = cast("nn.Linear", self.l)
        return nn.Linear(linear.in_features, linear.out_features)


class Residual(nn.Module):
    """``x + m(x)``. Stochastic depth belongs to training and has no weights; it is not kept."""

    def __init__(self, m: nn.Module) -> None:
        super().__init__()
        self.m = m

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + cast("torch.Tensor", self.m(x))


def last_layer(branch: Residual) -> nn.Linear:
    """The layer that makes what a residual branch adds; a BatchNorm where there is one.

    Whatever its type, it has a ``weight`` that all of its output is multiplied by.
    """
    parts = branch.modules()
    return cast(
        "nn.Linear", [p for p in parts if any(True for _ in p.parameters(recurse=False))][-1]
    )


def without_norms_(module: nn.Module) -> None:
    """Put a single layer in the place of every pair, as in checkpoints that were saved fused."""
    for name, pair in list(module.named_modules()):
        if isinstance(pair, ConvBN | LinearBN | BNLinear):
            module.set_submodule(name, pair.single())
