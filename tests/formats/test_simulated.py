"""The yardstick for quantised artifacts: grids of weights and of layer inputs, in PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from levit_export.core.values import Calibration
from levit_export.formats import simulated_quantisation as simulated


def small() -> nn.Sequential:
    """Two layers with seeded weights."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(4, 5))


@pytest.mark.parametrize("bits", [4, 6, 8])
def test_a_grid_of_weights(bits: int) -> None:
    """Each row takes at most 2**bits - 1 values, keeps its largest, and moves by half a step."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 500, generator=generator)
    rounded = simulated.on_grid(weight, bits)
    steps = weight.abs().amax(dim=1) / (2 ** (bits - 1) - 1)
    for row, was, step in zip(rounded, weight, steps, strict=True):
        assert len(row.unique()) <= 2**bits - 1
        assert float(row.abs().max()) == pytest.approx(float(was.abs().max()), rel=2**-22)
        assert float((row - was).abs().max()) <= float(step) * (0.5 + 2**-20)


def test_a_row_of_zeros_stays() -> None:
    """A channel without weights has no step to divide by, and stays zero."""
    assert torch.equal(simulated.on_grid(torch.zeros(2, 3), 8), torch.zeros(2, 3))


def test_ranges_are_those_of_the_images() -> None:
    """A layer's range is what the images gave it, and always includes zero."""
    images = np.full((20, 3, 2, 2), 2.0, np.float32)
    images[19] = 3.0
    ranges = simulated.ranges_of(small(), Calibration(images, "x"))
    assert ranges["0"] == (0.0, 3.0)
    assert ranges["3"][0] == 0.0


def test_what_lies_outside_the_range_is_clipped() -> None:
    """An input beyond the calibrated range has the effect of the range's end."""
    calibration = Calibration(np.ones((4, 3, 2, 2), np.float32), "x")
    module = small()
    ranges = simulated.ranges_of(module, calibration)
    simulated.quantise_(module, "int8", ranges)
    one, many = module(torch.ones(1, 3, 2, 2)), module(torch.full((1, 3, 2, 2), 50.0))
    assert torch.equal(one, many)


def test_only_some_layers() -> None:
    """A layer that is left out keeps its weights, and its input is not touched."""
    whole, partly = small(), small()
    simulated.quantise_(partly, "w4", None, only=lambda path: path == "0")
    assert torch.equal(partly[3].weight, whole[3].weight)
    assert not torch.equal(partly[0].weight, whole[0].weight)


def test_fewer_bits_are_worse() -> None:
    """The error of the answers grows as the grids become coarser."""
    images = torch.randn(8, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    exact = small()(images)
    errors = [
        float(
            (simulated.quantise_(small(), precision, None)(images) - exact).abs().mean().detach()
        )
        for precision in ("w8", "w6", "w4")
    ]
    assert errors == sorted(errors)
    assert errors[0] > 0
