"""The LeViT of the package ``vit-pytorch``: another network than the paper's, under its name.

Against the paper's: feature maps in place of token lists; a stem of plain convolutions without
BatchNorm and activation; q, k and v from a 1x1 convolution each; GELU before the output
projection; an MLP without BatchNorm; and the attention bias divided by the scale,

    softmax(s * q^T k + b / s),    s = key_dim ** -0.5.

Written after vit-pytorch 1.26.11 (MIT). ``checkpoints.vit_pytorch`` translates the names.
"""

from __future__ import annotations

import itertools
from math import prod
from typing import cast

import torch
from torch import nn

from levit_export.core.values import Size
from levit_export.models.architectures.layers import ConvBN, Residual
from levit_export.models.architectures.levit import AttentionBias
from levit_export.models.zoo import VitPytorchConfig, halving

STEM_WIDTHS = (3, 32, 64, 128)
"""Channels between the stem's convolutions; the last one leads to the first stage's width."""
SHRINKING_MLP_RATIO = 2
"""Expansion of the MLP behind a shrinking attention; the model's ``mlp_ratio`` is not used."""


class MapAttention(AttentionBias):
    """Attention over a feature map: ``(B, dim, *grid) -> (B, dim_out, *grid_out)``.

    With ``stride`` 2 the queries come from every other row and column, with 1 from all of them.
    Offsets are numbered ``dy * columns + dx``, which is the order in which
    :func:`levit.attention_bias_index` meets them: the query at (0, 0) looks at all of them, row
    by row.
    """

    def __init__(
        self,
        dim: int,
        dim_out: int,
        *,
        key_dim: int,
        value_dim: int,
        heads: int,
        grid: Size,
        stride: int,
    ) -> None:
        grid_out = grid if stride == 1 else halving(grid, 2)[1]
        super().__init__(heads, grid_out, grid, stride=stride)
        self.grid_out = grid_out
        self.heads, self.key_dim, self.value_dim = heads, key_dim, value_dim
        self.tokens, self.tokens_out = prod(grid), prod(grid_out)
        self.scale = key_dim**-0.5
        # A constant of its own: folding the scale into q sets ``scale`` to 1 and must not touch b.
        self.bias_divisor = self.scale
        self.q = ConvBN(dim, heads * key_dim, kernel=1, stride=stride)
        self.k = ConvBN(dim, heads * key_dim, kernel=1, stride=1)
        self.v = ConvBN(dim, heads * value_dim, kernel=1, stride=1)
        self.proj = nn.Sequential(
            nn.GELU(),
            ConvBN(heads * value_dim, dim_out, kernel=1, stride=1, bias=True, bn_weight=0.0),
        )

    def query_rows(self) -> tuple[nn.Module, torch.Tensor]:
        """The layer that makes q, and a mask over its output rows that belong to q."""
        return self.q, torch.ones(self.heads * self.key_dim, dtype=torch.bool)

    def value_rows(self) -> tuple[nn.Module, torch.Tensor]:
        """The layer that makes v, and a mask over its output rows that belong to v."""
        return self.v, torch.ones(self.heads * self.value_dim, dtype=torch.bool)

    def bias(self) -> torch.Tensor:
        """``b / s`` of every pair, ``(heads, queries, keys)``; baked, it is divided already."""
        if self.baked_bias is not None:
            return self.baked_bias
        divided: torch.Tensor = super().bias() / self.bias_divisor
        return divided

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q = self.q(x).reshape(-1, self.heads, self.key_dim, self.tokens_out)
        k = self.k(x).reshape(-1, self.heads, self.key_dim, self.tokens)
        v = self.v(x).reshape(-1, self.heads, self.value_dim, self.tokens)
        scores = q.transpose(2, 3) @ k
        if self.scale != 1.0:
            scores = scores * self.scale
        weights = (scores + self.bias()).softmax(dim=-1)
        # v W^T rather than W v^T: its result has the channels first, as the next layer wants them.
        mixed = v @ weights.transpose(2, 3)
        maps = mixed.reshape(-1, self.heads * self.value_dim, *self.grid_out)
        return cast("torch.Tensor", self.proj(maps))


def _mlp(dim: int, ratio: int) -> Residual:
    """1x1 convolution to ``ratio`` times the width, Hardswish, 1x1 convolution back."""
    return Residual(
        nn.Sequential(
            nn.Conv2d(dim, ratio * dim, 1), nn.Hardswish(), nn.Conv2d(ratio * dim, dim, 1)
        )
    )


class VitPytorchLevit(nn.Module):
    """Images ``(B, 3, *image_size)`` to logits ``(B, classes)``.

    With ``distill_classes`` the result is ``(logits, distill)``, the second
    ``(B, distill_classes)``: the two heads may differ in width and are not averaged.
    """

    residual_gain = 0.25
    """What seeded weights of its branches, which nothing normalises, are multiplied by."""

    def __init__(self, config: VitPytorchConfig) -> None:
        super().__init__()
        self.config = config
        # Four 3x3 convolutions of stride 2 with nothing between them.
        widths = itertools.pairwise((*STEM_WIDTHS, config.dims[0]))
        self.stem = nn.Sequential(*(nn.Conv2d(low, high, 3, 2, padding=1) for low, high in widths))
        self.blocks = nn.Sequential(*_blocks(config))
        self.head = nn.Linear(config.dims[-1], config.classes)
        if config.distill_classes is not None:
            self.distill_head = nn.Linear(config.dims[-1], config.distill_classes)

    def forward(self, input: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        pooled = self.blocks(self.stem(input)).mean((2, 3))
        logits = cast("torch.Tensor", self.head(pooled))
        if hasattr(self, "distill_head"):
            return logits, cast("torch.Tensor", self.distill_head(pooled))
        return logits


def _blocks(config: VitPytorchConfig) -> list[nn.Module]:
    """Attention and MLP in turn: a stage's ``depth`` pairs, then the pair that shrinks the map."""
    blocks: list[nn.Module] = []
    sizes = {"key_dim": config.key_dim, "value_dim": config.value_dim}
    above = [*config.dims[1:], None]
    stages = zip(config.dims, above, config.heads, config.depths, config.grids, strict=True)
    for dim, dim_above, heads, depth, grid in stages:
        for _ in range(depth):
            attention = MapAttention(dim, dim, heads=heads, grid=grid, stride=1, **sizes)
            blocks += [Residual(attention), _mlp(dim, config.mlp_ratio)]
        if dim_above is not None:
            shrink = MapAttention(dim, dim_above, heads=2 * heads, grid=grid, stride=2, **sizes)
            blocks += [shrink, _mlp(dim_above, SHRINKING_MLP_RATIO)]
    return blocks
