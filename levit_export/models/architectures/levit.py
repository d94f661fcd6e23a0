"""LeViT (arXiv 2104.01136), with the parameter names of the authors' checkpoints.

A convolutional stem divides the resolution by 16; three stages of attention and MLP follow, with
a shrinking attention between them; the tokens are averaged and classified by one or two heads.

The module holds no state that ``train()`` or ``eval()`` changes besides BatchNorm's own, and it
gathers the attention biases from their parameter on every call: the cached tables of the original
implementation go stale when weights are loaded in eval mode (pytorch-image-models#2795).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import cache
from math import prod, sqrt
from typing import cast

import torch
from torch import nn

from levit_export.core.values import Layout, Size
from levit_export.models.architectures.layers import (
    BNLinear,
    ConvBN,
    LinearBN,
    Residual,
    without_norms_,
)
from levit_export.models.zoo import LevitConfig

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "hardswish": nn.Hardswish,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "relu": nn.ReLU,
}

PAPER_BRANCHES = 24
"""Residual branches of the paper's deepest networks, an attention and an MLP in each block."""


@cache
def attention_bias_index(queries: Size, keys: Size, stride: int) -> tuple[torch.Tensor, int]:
    """Which entry of a head's bias row belongs to each pair of positions of two grids.

    A query at grid point q looks at a key at k with the bias of the offset
    ``(|stride*q_y - k_y|, |stride*q_x - k_x|)``: the paper's translation-invariant bias (§4.2).
    Entries are numbered in the order in which the pairs (q outer, k inner, row-major) first
    show an offset, which is the order of the authors' checkpoints; timm's is the same, of grids
    that are not square as well.

    Returns the index, int64 ``(queries, keys)``, and the number of offsets.
    """
    (rows, columns), (key_rows, key_columns) = queries, keys
    down, across = _distances(rows, key_rows, stride), _distances(columns, key_columns, stride)
    # The first query stands at offset 0, so its keys show every offset in row-major order.
    index = down[:, None, :, None] * key_columns + across[None, :, None, :]
    offsets = key_rows * key_columns
    return index.reshape(rows * columns, offsets), offsets


def _distances(queries: int, keys: int, stride: int) -> torch.Tensor:
    """``|stride * q - k|`` along one axis, ``(queries, keys)``."""
    # On the CPU also where modules are built without storage: it follows from the arguments alone.
    places = stride * torch.arange(queries, device="cpu")
    return (places[:, None] - torch.arange(keys, device="cpu")).abs()


class AttentionBias(nn.Module):
    """A learned bias per head and offset; subclasses look it up for every pair of positions.

    ``attention_biases`` is ``(heads, offsets)``, ``attention_bias_idxs`` ``(queries, keys)``.
    Once baked, ``baked_bias`` ``(heads, queries, keys)`` is all that is left of them. ``layout``
    is what the layers take and give, see ``passes.lay_out_maps``.
    """

    layout: Layout = "tokens"
    attention_biases: nn.Parameter
    attention_bias_idxs: torch.Tensor
    baked_bias: torch.Tensor | None

    def __init__(self, heads: int, queries: Size, keys: Size, *, stride: int) -> None:
        super().__init__()
        index, offsets = attention_bias_index(queries, keys, stride)
        self.keys = keys
        self.attention_biases = nn.Parameter(torch.zeros(heads, offsets))
        self.register_buffer("attention_bias_idxs", index.clone())
        self.register_buffer("baked_bias", None)

    @property
    def has_one_key(self) -> bool:
        """Whether the softmax is over one score, and therefore 1 whatever the score is."""
        return self.keys == (1, 1)

    def value_rows(self) -> tuple[nn.Module, torch.Tensor]:
        """The layer that makes v, and a mask over its output rows that belong to v."""
        raise NotImplementedError

    def bias(self) -> torch.Tensor:
        """The bias of every pair, ``(heads, queries, keys)``."""
        if self.baked_bias is not None:
            return self.baked_bias
        return self.attention_biases[:, self.attention_bias_idxs]

    def bake_bias(self) -> None:
        """Replace parameter and index by the table that they spell out."""
        self.baked_bias = self.bias().detach().contiguous()
        del self.attention_biases, self.attention_bias_idxs


class Attention(AttentionBias):
    """Multi-head attention over a grid of N tokens: ``(B, N, dim) -> (B, N, dim)``.

    ``softmax(s * q k^T + b) v`` per head with ``s = key_dim ** -0.5``, an activation, and an
    output projection. The rows of ``qkv`` are ordered head by head, ``[q, k, v]`` within each.
    """

    def __init__(
        self,
        dim: int,
        *,
        key_dim: int,
        heads: int,
        grid: Size,
        activation: Callable[[], nn.Module],
    ) -> None:
        super().__init__(heads, grid, grid, stride=1)
        self.heads, self.key_dim, self.value_dim = heads, key_dim, 2 * key_dim
        self.grid, self.tokens = grid, prod(grid)
        self.scale = key_dim**-0.5
        self.qkv = LinearBN(dim, heads * (2 * key_dim + self.value_dim))
        self.proj = nn.Sequential(
            activation(), LinearBN(heads * self.value_dim, dim, bn_weight=0.0)
        )

    def query_rows(self) -> tuple[nn.Module, torch.Tensor]:
        """The layer that makes q, and a mask over its output rows that belong to q."""
        per_head = torch.arange(2 * self.key_dim + self.value_dim) < self.key_dim
        return self.qkv, per_head.repeat(self.heads)

    def value_rows(self) -> tuple[nn.Module, torch.Tensor]:
        """The layer that makes v, and a mask over its output rows that belong to v."""
        per_head = torch.arange(2 * self.key_dim + self.value_dim) >= 2 * self.key_dim
        return self.qkv, per_head.repeat(self.heads)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        qkv, sizes = self.qkv(x), [self.key_dim, self.key_dim, self.value_dim]
        if self.layout == "maps":
            q, k, v = qkv.reshape(-1, self.heads, sum(sizes), self.tokens).split(sizes, dim=2)
            return attend_in_maps(
                q, k, v, scale=self.scale, bias=self.bias(), proj=self.proj, grid=self.grid
            )
        q, k, v = qkv.reshape(-1, self.tokens, self.heads, sum(sizes)).split(sizes, dim=3)
        return attend(
            q, k, v, scale=self.scale, bias=self.bias(), proj=self.proj, tokens=self.tokens
        )


class AttentionSubsample(AttentionBias):
    """The shrinking attention between stages: ``(B, N, dim) -> (B, N_out, dim_out)``.

    Queries come from every other row and column of the grid; values have ``4 * key_dim``
    channels; there is no residual (paper §4.2).
    """

    def __init__(
        self,
        dim: int,
        dim_out: int,
        *,
        key_dim: int,
        heads: int,
        grid: Size,
        grid_out: Size,
        activation: Callable[[], nn.Module],
    ) -> None:
        super().__init__(heads, grid_out, grid, stride=2)
        self.heads, self.key_dim, self.value_dim = heads, key_dim, 4 * key_dim
        self.grid_out, self.tokens, self.tokens_out = grid_out, prod(grid), prod(grid_out)
        self.scale = key_dim**-0.5
        self.kv = LinearBN(dim, heads * (key_dim + self.value_dim))
        # The authors' q is (subsampling, projection), hence the projection's index 1.
        self.q = nn.Sequential(Subsample(grid), LinearBN(dim, heads * key_dim))
        self.proj = nn.Sequential(activation(), LinearBN(heads * self.value_dim, dim_out))

    def query_rows(self) -> tuple[nn.Module, torch.Tensor]:
        """The layer that makes q, and a mask over its output rows that belong to q."""
        return self.q[1], torch.ones(self.heads * self.key_dim, dtype=torch.bool)

    def value_rows(self) -> tuple[nn.Module, torch.Tensor]:
        """The layer that makes v, and a mask over its output rows that belong to v."""
        per_head = torch.arange(self.key_dim + self.value_dim) >= self.key_dim
        return self.kv, per_head.repeat(self.heads)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kv, q, sizes = self.kv(x), self.q(x), [self.key_dim, self.value_dim]
        if self.layout == "maps":
            k, v = kv.reshape(-1, self.heads, sum(sizes), self.tokens).split(sizes, dim=2)
            heads = q.reshape(-1, self.heads, self.key_dim, self.tokens_out)
            return attend_in_maps(
                heads, k, v, scale=self.scale, bias=self.bias(), proj=self.proj, grid=self.grid_out
            )
        k, v = kv.reshape(-1, self.tokens, self.heads, sum(sizes)).split(sizes, dim=3)
        q = q.reshape(-1, self.tokens_out, self.heads, self.key_dim)
        return attend(
            q, k, v, scale=self.scale, bias=self.bias(), proj=self.proj, tokens=self.tokens_out
        )


class Subsample(nn.Module):
    """Every other row and column of the token grid: ``(B, N, C) -> (B, N_out, C)``."""

    layout: Layout = "tokens"

    def __init__(self, grid: Size) -> None:
        super().__init__()
        self.grid = grid

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.layout == "maps":
            return x[:, :, ::2, ::2]
        grid = x.reshape(-1, *self.grid, x.shape[2])
        return grid[:, ::2, ::2].flatten(1, 2)


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    scale: float,
    bias: torch.Tensor,
    proj: nn.Module,
    tokens: int,
) -> torch.Tensor:
    """``proj(concat_heads(softmax(s * q k^T + b) v))``.

    q is ``(B, queries, heads, D)``, k and v ``(B, keys, heads, ...)``, b ``(heads, queries,
    keys)``; the result is ``(B, queries, C)``. A scale of exactly 1 leaves no multiplication.
    """
    scores = q.transpose(1, 2) @ k.permute(0, 2, 3, 1)
    if scale != 1.0:
        scores = scores * scale
    mixed = (scores + bias).softmax(dim=-1) @ v.transpose(1, 2)
    joined = mixed.transpose(1, 2).reshape(-1, tokens, v.shape[2] * v.shape[3])
    return cast("torch.Tensor", proj(joined))


def attend_in_maps(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    scale: float,
    bias: torch.Tensor,
    proj: nn.Module,
    grid: Size,
) -> torch.Tensor:
    """:func:`attend` with q ``(B, heads, D, queries)``, k and v ``(B, heads, ..., keys)``.

    The result is ``(B, C, *grid)``, the grid that of the queries. No axis has to be moved.
    """
    scores = q.transpose(2, 3) @ k
    if scale != 1.0:
        scores = scores * scale
    mixed = v @ (scores + bias).softmax(dim=-1).transpose(2, 3)
    joined = mixed.reshape(-1, v.shape[1] * v.shape[2], *grid)
    return cast("torch.Tensor", proj(joined))


def _stem(width: int, stride: int, activation: Callable[[], nn.Module]) -> nn.Sequential:
    """3x3 convolutions of stride 2, each twice as wide, the activation between them.

    Four of them for a stride of 16 (paper §4.1), three for timm's stride of 8.
    """
    count = stride.bit_length() - 1
    widths = (3, *(width >> below for below in reversed(range(count))))
    layers: list[nn.Module] = []
    for below, above in itertools.pairwise(widths):
        layers += [ConvBN(below, above), activation()]
    return nn.Sequential(*layers[:-1])


def _mlp(dim: int, activation: Callable[[], nn.Module]) -> Residual:
    """Linear to twice the width, activation, Linear back (paper §4.2: expansion 2)."""
    return Residual(
        nn.Sequential(LinearBN(dim, 2 * dim), activation(), LinearBN(2 * dim, dim, bn_weight=0.0))
    )


class Levit(nn.Module):
    """Images ``(B, 3, *image_size)`` to logits ``(B, classes)``.

    With two heads (the paper's classifier and distillation heads) the logits are their mean.
    """

    layout: Layout = "tokens"
    head: nn.Module
    head_dist: nn.Module

    def __init__(self, config: LevitConfig) -> None:
        super().__init__()
        self.config = config
        activation = ACTIVATIONS[config.activation]
        self.patch_embed = _stem(config.dims[0], config.stem_stride, activation)
        self.blocks = nn.Sequential(*_blocks(config, activation))
        for name in ("head", "head_dist")[: config.head_count]:
            kind = nn.Linear if name in config.linear_heads else BNLinear
            setattr(self, name, kind(config.dims[-1], config.classes))
        if config.fused:
            without_norms_(self)

    @property
    def residual_gain(self) -> float:
        """What seeded weights of the branches are multiplied by in networks of great depth.

        A branch of gain g multiplies the variance by ``1 + g**2``. With n branches ``(1 + g**2)**n
        = 2**24``, as in the paper's deepest networks, whose 24 branches have a gain of 1: twice as
        many would leave the range of float16.
        """
        branches = 2 * sum(self.config.depths)
        return min(1.0, sqrt(2.0 ** (PAPER_BRANCHES / branches) - 1))

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        maps = self.patch_embed(input)
        if self.layout == "maps":
            pooled = self.blocks(maps).mean((2, 3))
        else:
            pooled = self.blocks(maps.flatten(2).transpose(1, 2)).mean(1)
        logits = self.head(pooled)
        if hasattr(self, "head_dist"):
            logits = (logits + self.head_dist(pooled)) / 2
        return cast("torch.Tensor", logits)


def _blocks(config: LevitConfig, activation: Callable[[], nn.Module]) -> list[nn.Module]:
    blocks: list[nn.Module] = []
    stages = zip(config.dims, config.heads, config.depths, config.grids, strict=True)
    below: tuple[int, Size] | None = None
    for dim, heads, depth, grid in stages:
        if below is not None:
            dim_below, grid_below = below
            shrink = AttentionSubsample(
                dim_below,
                dim,
                key_dim=config.key_dim,
                heads=dim_below // config.key_dim,
                grid=grid_below,
                grid_out=grid,
                activation=activation,
            )
            blocks += [shrink, _mlp(dim, activation)]
        for _ in range(depth):
            attention = Attention(
                dim, key_dim=config.key_dim, heads=heads, grid=grid, activation=activation
            )
            blocks += [Residual(attention), _mlp(dim, activation)]
        below = (dim, grid)
    return blocks
