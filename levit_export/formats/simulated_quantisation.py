"""What a quantiser does to a network, in PyTorch: the yardstick for quantised artifacts.

Weights of linear layers and convolutions go to a symmetric grid per output channel (per tensor
for ``w6`` and ``w4``), with ``s = max|w| / (2**(bits - 1) - 1)`` and ``w -> s * round(w / s)``.
For ``int8`` the inputs of these layers go to an 8-bit grid as well, over the range ``[lo, hi]``
that real images gave them: ``s = (hi - lo) / 255`` and ``x -> s * round(clamp(x, lo, hi) / s)``.
What lies outside is clipped, as it is in the artifact.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import nn

from levit_export.core.precisions import CALIBRATED, PRECISIONS
from levit_export.core.values import Calibration

CALIBRATION_BATCH = 16

Layer = nn.Linear | nn.Conv2d


Ranges = Mapping[str, tuple[float, float]]
"""Least and largest input of each layer, by the layer's path."""


@torch.no_grad()
def quantise_(
    module: nn.Module,
    precision: str,
    ranges: Ranges | None,
    *,
    only: Callable[[str], bool] = lambda _: True,
) -> nn.Module:
    """Do to ``module``, in place, what an artifact of ``precision`` does; returns it.

    ``ranges`` are those of the inputs of its layers, where inputs are quantised; ``only`` says by
    its path whether a layer is.
    """
    stored = PRECISIONS[precision]
    # A palette's colours lie where the weights are, which is worth one bit: for normally
    # distributed weights, 16 colours (Max 1960: 0.0095 of the variance) come between even grids of
    # 16 and of 32 steps over four standard deviations (0.024, 0.006).
    bits = stored.bits + stored.is_palette
    for path, layer in _layers(module):
        if not only(path):
            continue
        if ranges is not None:
            layer.register_forward_pre_hook(_Clipped(*ranges[path]))
        layer.weight.data = on_grid(layer.weight, bits, per_tensor=stored.is_palette)
    return module


@torch.no_grad()
def ranges_of(module: nn.Module, calibration: Calibration) -> Ranges:
    """What the layers of ``module`` are given for the images, 0 included."""
    found: dict[str, tuple[float, float]] = {}

    def observe(path: str, x: torch.Tensor) -> None:
        low, high = found.get(path, (0.0, 0.0))
        found[path] = (min(low, float(x.min())), max(high, float(x.max())))

    hooks = [
        layer.register_forward_pre_hook(lambda _, inputs, path=path: observe(path, inputs[0]))
        for path, layer in _layers(module)
    ]
    try:
        for start in range(0, len(calibration.inputs), CALIBRATION_BATCH):
            module(torch.from_numpy(calibration.inputs[start : start + CALIBRATION_BATCH]))
    finally:
        for hook in hooks:
            hook.remove()
    return found


def quantise_all_but_(
    module: nn.Module,
    precision: str,
    calibration: Calibration | None,
    keep: Collection[str] = (),
) -> nn.Module:
    """:func:`quantise_` with the parts at the paths ``keep`` left in float.

    Where the precision quantises activations, the images of ``calibration`` give their ranges.
    """
    ranges = None
    if precision in CALIBRATED and calibration is not None:
        ranges = ranges_of(module, calibration)
    kept = tuple(f"{path}." for path in keep)
    return quantise_(module, precision, ranges, only=lambda path: not f"{path}.".startswith(kept))


def _layers(module: nn.Module) -> list[tuple[str, Layer]]:
    return [(path, part) for path, part in module.named_modules() if isinstance(part, Layer)]


def on_grid(weight: torch.Tensor, bits: int, *, per_tensor: bool = False) -> torch.Tensor:
    """``s * round(w / s)``, with a step for each row of ``weight`` ``(C_out, ...)``, or one."""
    rows = weight.reshape(1, -1) if per_tensor else weight.flatten(1)
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
