"""Fold every BatchNorm into the convolution or linear layer beside it.

In eval mode a BatchNorm is ``BN(x) = s * x + t`` per channel, with ``s = gamma / sqrt(var + eps)``
and ``t = beta - mean * s``.

*Given* ``BN(W x + c)``, *result* ``(s W) x + (s c + t)``: Conv+BN and Linear+BN, s over rows.

*Given* ``W BN(x) + c``, *result* ``(W s) x + (c + W t)``: BN+Linear, s over columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import nn

from levit_export.core.errors import PassError
from levit_export.models.architectures.layers import BNLinear, ConvBN, LinearBN
from levit_export.models.passes.base import (
    Matched,
    NotApplicable,
    Outcome,
    Pass,
    Probe,
    of_layer,
    stored_numbers,
)

BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d


def scale_and_shift(norm: BatchNorm, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The ``s`` and ``t`` of a BatchNorm in eval mode, each ``(C,)``."""
    if norm.running_mean is None or norm.running_var is None:
        raise PassError(
            f"{name} keeps no running statistics, so it cannot become a constant",
            remedy="Export with --skip-pass fuse_batchnorm, or train with running statistics.",
        )
    gamma = norm.weight if norm.affine else torch.ones_like(norm.running_mean)
    beta = norm.bias if norm.affine else torch.zeros_like(norm.running_mean)
    s = gamma / torch.sqrt(norm.running_var + norm.eps)
    return s, beta - norm.running_mean * s


def _bias_of(layer: nn.Conv2d | nn.Linear) -> torch.Tensor:
    """The layer's bias ``c``, zeros where it has none."""
    return layer.weight.new_zeros(layer.weight.shape[0]) if layer.bias is None else layer.bias


def _with(
    layer: nn.Conv2d | nn.Linear, weight: torch.Tensor, bias: torch.Tensor
) -> nn.Conv2d | nn.Linear:
    layer.weight = nn.Parameter(weight, requires_grad=False)
    layer.bias = nn.Parameter(bias, requires_grad=False)
    return layer


def _fused(pair: nn.Module, name: str) -> nn.Module | None:
    """The single layer that ``pair`` becomes, or None when it is not a pair."""
    if not isinstance(pair, ConvBN | LinearBN | BNLinear):
        return None
    s, t = scale_and_shift(cast("BatchNorm", pair.bn), f"{name}.bn")
    if isinstance(pair, BNLinear):
        after = cast("nn.Linear", pair.l)
        return _with(after, after.weight * s, _bias_of(after) + after.weight @ t)
    before = cast("nn.Conv2d | nn.Linear", pair.c)
    rows = s.reshape(-1, *[1] * (before.weight.dim() - 1))
    return _with(before, before.weight * rows, _bias_of(before) * s + t)


@torch.no_grad()
def apply(module: nn.Module) -> Outcome:
    """Replace every pair of ``module`` in place; a BatchNorm without a partner is refused."""
    norms = [n for n, m in module.named_modules() if isinstance(m, BatchNorm)]
    if not norms:
        return NotApplicable("no BatchNorm in the model: found fused")
    before = stored_numbers(module)
    pairs = 0
    for name, pair in list(module.named_modules()):  # a list: they are exchanged on the way
        if (single := _fused(pair, name)) is not None:
            module.set_submodule(name, single)
            pairs += 1
    if left := [n for n, m in module.named_modules() if isinstance(m, BatchNorm)]:
        raise PassError(
            f"{len(left)} of {len(norms)} BatchNorms have no layer to fold into, first {left[0]}",
            remedy="Export with --skip-pass fuse_batchnorm, or report the architecture.",
        )
    return Matched(pairs, bytes_added=4 * (stored_numbers(module) - before))


def probes(module: nn.Module) -> Mapping[str, Probe]:
    """What every pair computes."""
    kinds = ConvBN | LinearBN | BNLinear
    pairs = {name: m for name, m in module.named_modules() if isinstance(m, kinds)}
    return {name: of_layer(name, pair) for name, pair in pairs.items()}


FUSE_BATCHNORM = Pass("fuse_batchnorm", apply, probes)
