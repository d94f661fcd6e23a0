"""What can be counted on a module: parameters, multiply-accumulates, branches that do nothing."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from levit_export.models.architectures.layers import Residual, last_layer
from levit_export.models.architectures.levit import AttentionBias


def count_parameters(module: nn.Module) -> int:
    """Learnable numbers; BatchNorm statistics are not among them."""
    return sum(p.numel() for p in module.parameters())


def count_macs(module: nn.Module, input_shape: tuple[int, ...]) -> int:
    """Multiply-accumulates of matrix products and convolutions for one input ``(3, H, W)``.

    Counted from the operators that a forward call dispatches, as in the paper's table (which calls
    them FLOPs); element-wise work is not included. ``module`` may live on the meta device, where
    counting takes longer than computing does elsewhere.
    """
    device = next(module.parameters()).device
    inputs = torch.zeros(1, *input_shape, device=device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(inputs)
    return int(counter.get_total_flops()) // 2


def dead_branches(module: nn.Module) -> tuple[int, int]:
    """How many residual branches contribute exactly zero, and how many there are.

    A branch does when all weights of its last layer are zero; an untrained LeViT's BatchNorm is.
    """
    branches = [branch for branch in module.modules() if isinstance(branch, Residual)]
    dead = sum(not any(p.any() for p in last_layer(b).parameters()) for b in branches)
    return dead, len(branches)


def idle_attentions(module: nn.Module, blocks: Mapping[str, str]) -> tuple[str, ...]:
    """The blocks, by the names in ``blocks``, whose attention is over one key.

    Its softmax is 1: nothing but the values matters.
    """
    parts = module.named_modules()
    paths = [path for path, part in parts if isinstance(part, AttentionBias) and part.has_one_key]
    return tuple(blocks[path.removesuffix(".m")] for path in paths)
