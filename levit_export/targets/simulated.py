"""What a quantiser does to a network, in PyTorch: the yardstick for quantised artifacts.

Weights of linear layers and convolutions go to a symmetric grid per output channel, with
``s = max|w_channel| / (2**(bits - 1) - 1)`` and ``w -> s * round(w / s)``. For ``int8`` the inputs
of these layers go to an 8-bit grid as well, over the range ``[lo, hi]`` that real images gave them:
``s = (hi - lo) / 255`` and ``x -> s * round(clamp(x, lo, hi) / s)``. What lies outside is clipped,
as it is in the artifact.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from levit_export.core import Calibration

BITS = {"int8": 8, "w8": 8, "w6": 6, "w4": 4}
"""Bits of a weight in each precision that stores whole numbers."""
CALIBRATION_BATCH = 16

Layer = nn.Linear | nn.Conv2d


@torch.no_grad()
def quantise_(module: nn.Module, precision: str, calibration: Calibration | None) -> nn.Module:
    """Do to ``module``, in place, what an artifact of ``precision`` does; returns it."""
    layers = [part for part in module.modules() if isinstance(part, Layer)]
    if calibration is not None:
        for layer, (low, high) in _ranges(module, layers, calibration).items():
            layer.register_forward_pre_hook(_Clipped(low, high))
    for layer in layers:
        layer.weight.data = on_grid(layer.weight, BITS[precision])
    return module


def on_grid(weight: torch.Tensor, bits: int) -> torch.Tensor:
    """``s * round(w / s)`` with a step ``s`` for each row of ``weight`` ``(C_out, ...)``."""
    rows = weight.flatten(1)
    largest = rows.abs().amax(dim=1, keepdim=True)
    s = torch.where(largest > 0, largest, 1.0) / (2 ** (bits - 1) - 1)
    result: torch.Tensor = (torch.round(rows / s) * s).reshape(weight.shape)
    return result


class _Clipped:
    """A forward pre-hook that puts a layer's input on an 8-bit grid over ``[low, high]``."""

    def __init__(self, low: float, high: float) -> None:
        self.low, self.high = low, high
        self.step = max(high - low, torch.finfo(torch.float32).tiny) / 255

    def __call__(self, _: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        x = inputs[0].clamp(self.low, self.high)
        return (torch.round(x / self.step) * self.step, *inputs[1:])


def _ranges(
    module: nn.Module, layers: list[Layer], calibration: Calibration
) -> dict[Layer, tuple[float, float]]:
    """Least and largest input of each layer over the images, 0 included."""
    found = dict.fromkeys(layers, (0.0, 0.0))

    def observe(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        low, high = found[layer]  # type: ignore[index]
        x = inputs[0]
        found[layer] = (min(low, float(x.min())), max(high, float(x.max())))  # type: ignore[index]

    hooks = [layer.register_forward_pre_hook(observe) for layer in layers]
    try:
        for start in range(0, len(calibration.inputs), CALIBRATION_BATCH):
            module(torch.from_numpy(calibration.inputs[start : start + CALIBRATION_BATCH]))
    finally:
        for hook in hooks:
            hook.remove()
    return found
