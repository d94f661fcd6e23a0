"""The paper's first experiment (arXiv 2104.01136, table 1): a ResNet-50 trunk below a DeiT-S.

The first ``k`` stages of ResNet-50 (v1.5: a stage's stride is in its 3x3 convolution), average
pooling down to the grid of ``image_size / 16``, a 1x1 convolution to the transformer's
width, class token and position embedding, then DeiT layers. No stage is DeiT-S itself, whose
patch embedding is a 16x16 convolution; four stages are ResNet-50 itself.

The paper does not say how the trunk's channels become the transformer's. Counting does. The
table's convolution figures are multiply-accumulates of the convolutions plus two operations for
each output of a BatchNorm and one for each of a ReLU. With a 1x1 convolution behind the pooling
that gives 820, 1876, 3385 and 4119 M, the table's own figures; in front of the pooling, or with
a larger kernel, it does not. (The first row's 57 M is 57.8 M cut off.) Convolutions alone give
57.8, 805, 1852, 3355 and 4087 M.

The other columns are matched less closely. Parameters are 22.05, 16.76, 12.75, 14.72 and 25.56 M
for the table's 22.0, 17.1, 13.1, 15.1 and 25.5 M: each of the three graftings lacks 0.385 M,
which is one more Linear(384, 1000). DeiT-S has one classifier and nothing in the paper asks for a
second, so none is built. Matrix products of the transformer are 4541, 3406, 2271 and 1136 M for
the table's 4519, 3389, 2260 and 1130 M, 0.5 % more: the class token, which the table seems not to
count (its figures fit 196 tokens).
"""

from __future__ import annotations

from collections import OrderedDict
from math import prod
from typing import cast

import torch
from torch import nn
from torch.nn import functional

from levit_export.models.architectures.layers import ConvBN
from levit_export.models.zoo import GraftedConfig, grid_of

STAGE_DEPTHS = (3, 4, 6, 3)
"""Bottleneck blocks in each stage of ResNet-50."""
STEM_WIDTH = 64
EXPANSION = 4
"""A bottleneck block's output has this many times the channels of its 3x3 convolution."""
PATCH = 16
NORM_EPSILON = 1e-6
"""DeiT's, not PyTorch's default of 1e-5."""


def trunk_width(stages: int) -> int:
    """Channels of the feature map behind ``stages`` of ResNet-50; those of the image for none."""
    return EXPANSION * STEM_WIDTH * 2 ** (stages - 1) if stages else 3


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolution beside a shortcut: ``(B, C_in, H, W) -> (B, 4 C, H', W')``.

    The 3x3 convolution carries the stride. The shortcut is a 1x1 convolution where the shape
    changes, and the input itself elsewhere.
    """

    def __init__(self, in_channels: int, channels: int, *, stride: int) -> None:
        super().__init__()
        out_channels = EXPANSION * channels
        self.conv1 = ConvBN(in_channels, channels, kernel=1, stride=1)
        self.conv2 = ConvBN(channels, channels, kernel=3, stride=stride)
        self.conv3 = ConvBN(channels, out_channels, kernel=1, stride=1)
        self.relu = nn.ReLU()
        self.downsample = (
            ConvBN(in_channels, out_channels, kernel=1, stride=stride)
            if stride != 1 or in_channels != out_channels
            else None
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = self.relu(self.conv2(self.relu(self.conv1(x))))
        shortcut = x if self.downsample is None else self.downsample(x)
        return cast("torch.Tensor", self.relu(self.conv3(inner) + shortcut))


def _trunk(stages: int) -> nn.Sequential:
    """ResNet-50 up to and with stage ``stages``, empty for none; stride ``2 ** (1 + stages)``."""
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    if stages:
        parts["conv1"] = ConvBN(3, STEM_WIDTH, kernel=7, stride=2)
        parts["relu"] = nn.ReLU()
        parts["maxpool"] = nn.MaxPool2d(3, 2, padding=1)
    below = STEM_WIDTH
    for number, depth in enumerate(STAGE_DEPTHS[:stages], start=1):
        above = trunk_width(number)
        widths = [below] + [above] * (depth - 1)
        strides = [1 if number == 1 else 2] + [1] * (depth - 1)
        parts[f"layer{number}"] = nn.Sequential(
            *(
                Bottleneck(width, above // EXPANSION, stride=stride)
                for width, stride in zip(widths, strides, strict=True)
            )
        )
        below = above
    return nn.Sequential(parts)


class SelfAttention(nn.Module):
    """Multi-head attention ``(B, tokens, dim) -> (B, tokens, dim)``: ``softmax(s * q k^T) v``.

    ``s = (dim / heads) ** -0.5``. The rows of ``qkv`` are ordered ``[q, k, v]``, head by head
    within each.
    """

    def __init__(self, dim: int, *, heads: int, tokens: int) -> None:
        super().__init__()
        self.dim, self.heads, self.tokens = dim, heads, tokens
        self.head_dim = dim // heads
        self.scale = self.head_dim**-0.5
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def query_rows(self) -> tuple[nn.Module, torch.Tensor]:
        """The layer that makes q, and a mask over its output rows that belong to q."""
        return self.qkv, torch.arange(3 * self.dim) < self.dim

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(-1, self.tokens, self.heads, self.head_dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = map(self._heads, self.qkv(x).split(self.dim, dim=2))
        scores = q.transpose(1, 2) @ k.permute(0, 2, 3, 1)
        if self.scale != 1.0:
            scores = scores * self.scale
        mixed = scores.softmax(dim=-1) @ v.transpose(1, 2)
        joined = mixed.transpose(1, 2).reshape(-1, self.tokens, self.dim)
        return cast("torch.Tensor", self.proj(joined))


class Layer(nn.Module):
    """``x + attn(norm1(x))``, then ``x + mlp(norm2(x))``: ``(B, tokens, dim)`` to the same."""

    def __init__(self, dim: int, *, heads: int, mlp_ratio: int, tokens: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPSILON)
        self.attn = SelfAttention(dim, heads=heads, tokens=tokens)
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPSILON)
        self.mlp = nn.Sequential(
            OrderedDict[str, nn.Module](
                fc1=nn.Linear(dim, mlp_ratio * dim),
                act=nn.GELU(),
                fc2=nn.Linear(mlp_ratio * dim, dim),
            )
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.norm1(x))
        return cast("torch.Tensor", x + self.mlp(self.norm2(x)))


class Transformer(nn.Module):
    """DeiT over what the trunk gives: ``(B, C, H, W) -> (B, classes)``.

    Where the trunk is empty, ``patch_embed.proj`` takes 16x16 pixels to a token; behind a trunk
    the map is averaged down to the token grid first and ``proj`` is a 1x1 convolution.
    """

    def __init__(self, config: GraftedConfig) -> None:
        super().__init__()
        dim = config.dim
        self.grid = grid_of(config.image_size, PATCH)
        self.tokens = prod(self.grid) + 1
        patch = 1 if config.stages else PATCH
        window = 2 ** (3 - config.stages) if config.stages else 1
        self.pool = nn.AvgPool2d(window) if window > 1 else nn.Identity()
        projection = nn.Conv2d(trunk_width(config.stages), dim, patch, patch)
        self.patch_embed = nn.Sequential(OrderedDict(proj=projection))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, self.tokens, dim))
        self.blocks = nn.Sequential(
            *(
                Layer(dim, heads=config.heads, mlp_ratio=config.mlp_ratio, tokens=self.tokens)
                for _ in range(config.layers)
            )
        )
        self.norm = nn.LayerNorm(dim, eps=NORM_EPSILON)
        self.head = nn.Linear(dim, config.classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.patch_embed(self.pool(x)).flatten(2).transpose(1, 2)
        # The class token joins the batch by being added to a row of zeros. Expanded to the batch,
        # exporters would store it as often as a fixed batch has images, and compute shapes for an
        # open one.
        zeros = functional.pad(tokens, (0, 0, 1, 0))[:, :1]
        seen = self.blocks(torch.cat([zeros + self.cls_token, tokens], dim=1) + self.pos_embed)
        # Normalised token by token, so the one that is classified is enough.
        return cast("torch.Tensor", self.head(self.norm(seen[:, 0])))


class Grafted(nn.Module):
    """Images ``(B, 3, *image_size)`` to logits ``(B, classes)``."""

    def __init__(self, config: GraftedConfig) -> None:
        super().__init__()
        self.config = config
        self.trunk = _trunk(config.stages)
        if config.layers:
            self.transformer = Transformer(config)
        else:
            self.fc = nn.Linear(trunk_width(config.stages), config.classes)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        features = self.trunk(input)
        if hasattr(self, "transformer"):
            return cast("torch.Tensor", self.transformer(features))
        return cast("torch.Tensor", self.fc(features.mean((2, 3))))
