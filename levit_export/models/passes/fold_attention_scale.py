"""Fold the attention scale into the layer that makes q.

*Given* ``softmax(s * (W_q x + c_q) k^T + b)``, *result* ``softmax((s W_q x + s c_q) k^T + b)``:
the multiplication of every score map, one per block, becomes none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, cast, runtime_checkable

import torch
from torch import nn

from levit_export.core.errors import PassError
from levit_export.models.architectures.layers import ConvBN, LinearBN
from levit_export.models.passes.base import Matched, NotApplicable, Outcome, Pass, Probe, example

SCALABLE = (nn.Linear, nn.Conv2d, nn.BatchNorm1d, nn.BatchNorm2d)


@runtime_checkable
class ScaledAttention(Protocol):
    """An attention that multiplies its scores by ``scale`` and can tell where its q is made."""

    scale: float

    def query_rows(self) -> tuple[nn.Module, torch.Tensor]:
        """The layer that makes q, and a mask over its output rows that belong to q."""


def _scale_rows(layer: nn.Module, rows: torch.Tensor, s: float) -> None:
    """Multiply the outputs ``rows`` of an affine layer, or of its BatchNorm, by ``s``."""
    last = layer.bn if isinstance(layer, ConvBN | LinearBN) else layer
    if not isinstance(last, SCALABLE) or last.bias is None:
        raise PassError(
            f"q is made by a {type(layer).__name__}, which this pass does not know how to scale",
            remedy="Export with --skip-pass fold_attention_scale.",
        )
    last.weight[rows] *= s
    last.bias[rows] *= s


@torch.no_grad()
def apply(module: nn.Module) -> Outcome:
    """Scale the q of every attention of ``module`` in place and set its own scale to 1."""
    blocks = [m for m in module.modules() if isinstance(m, ScaledAttention)]
    if not blocks:
        return NotApplicable("no attention in the model")
    blocks = [block for block in blocks if block.scale != 1.0]
    if not blocks:
        return NotApplicable("every attention scale is 1 already")
    for block in blocks:
        _scale_rows(*block.query_rows(), block.scale)
        block.scale = 1.0
    return Matched(len(blocks))


def probes(module: nn.Module) -> Mapping[str, Probe]:
    """The outputs of every layer that makes q, with q times the scale that it still waits for."""
    layers = {
        name: block.query_rows()[0]
        for name, block in module.named_modules()
        if isinstance(block, ScaledAttention)
    }
    known = ConvBN | LinearBN | nn.Linear | nn.Conv2d  # :func:`apply` refuses the others
    return {n: _scaled(n, layer) for n, layer in layers.items() if isinstance(layer, known)}


def _scaled(place: str, layer: nn.Module) -> Probe:
    x = example(layer, place)

    def probe(network: nn.Module) -> torch.Tensor:
        block = cast("ScaledAttention", network.get_submodule(place))
        found, rows = block.query_rows()
        y = found(x)
        # Maps have their channels second; the mask of rows is along the last axis.
        channels = y.movedim(1, -1) if y.dim() == 4 else y
        return torch.where(rows, block.scale * channels, channels)

    return probe


FOLD_ATTENTION_SCALE = Pass("fold_attention_scale", apply, probes)
