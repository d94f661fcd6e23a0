"""How much error a block may introduce, derived from what rounding costs that block alone.

For every precision p the prepared network is run in float64 and once more as roughly as an
artifact of p computes: in float32, rounded to float16 at every operator, or on a quantiser's
grids. Both are given, at every tap, the same values of the tap before, so what they differ by at a
tap arose between the two. That difference, per tap and sample, goes into the formula of
``tolerance``:

    s_i     = rms(rounded_i - exact_i) / max|exact_i|
    sigma_i = max(s_i, median_k s_k, u)
    rtol_i  = sqrt(2 ln(2 n / p)) * factor * sigma_i

with n the numbers of that tap over all samples.

A fault that changes every value a little shows in their root mean square long before it shows in
the largest error. For the float precisions that is held against a tolerance as well. A mean over m
squared errors of a correct artifact exceeds its expectation by more than
``1 + 2 sqrt(t / m) + 2 t / m`` with probability at most ``exp(-t)`` (Laurent and Massart 2000,
lemma 1), so with t = ln(1 / p)

    rms_i = KERNEL * max(s_i, median_k s_k, f_i) * sqrt(1 + 2 sqrt(t / m) + 2 t / m)

where ``f_i = u rms(exact_i) / max|exact_i| / sqrt(12)`` is what storing the values costs alone: a
rounding is uniform within half a unit in the last place, u of the value at the most.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from levit_export import tolerance
from levit_export.core import CALIBRATED, UNIT_ROUNDOFF, Calibration
from levit_export.drift import taps
from levit_export.drift.distances import Distance, Range
from levit_export.samples import Samples
from levit_export.targets import simulated
from levit_export.targets.eager import _RoundToHalf

if TYPE_CHECKING:
    from torch import nn

KEPT_BYTES = 2**28
"""Exact values of all samples are kept where they take no more than this, else computed again."""


def relative_tolerance(spreads: Sequence[float], count: int, precision: str) -> np.ndarray:
    """``rtol_i`` of the module's formula from the ``s_i`` and n, as ``tolerance.derive`` has it.

    A sample on which the rounded network itself overflows grants no more than the floor.
    """
    u = UNIT_ROUNDOFF.get(precision, UNIT_ROUNDOFF["fp16"])
    known = precision in UNIT_ROUNDOFF
    factor = tolerance.KERNEL * math.sqrt(2)
    if not known:
        factor = tolerance.SCHEME[precision in CALIBRATED]
    s = np.array([u if math.isinf(value) else value for value in spreads])
    sigma = np.maximum(s, max(float(np.median(s)), u))
    result: np.ndarray = (
        math.sqrt(2 * math.log(2 * max(count, 1) / tolerance.FALSE_ALARM)) * factor * sigma
    )
    return result


def rms_tolerance(found: Distance, precision: str) -> np.ndarray:
    """``rms_i`` of the module's formula; infinite for quantised precisions, which have none."""
    if precision not in UNIT_ROUNDOFF:
        return np.full(len(found.spreads), np.inf)
    f = UNIT_ROUNDOFF[precision] / math.sqrt(12) * np.array(found.levels)
    s = np.where(np.isinf(found.spreads), f, found.spreads)
    t = math.log(1 / tolerance.FALSE_ALARM)
    m = max(found.count, 1) / max(len(s), 1)
    chance = math.sqrt(1 + 2 * math.sqrt(t / m) + 2 * t / m)
    result: np.ndarray = (
        tolerance.KERNEL * chance * np.maximum.reduce([s, f, s * 0 + np.median(s)])
    )
    return result


class Rounded:
    """A network that computes as an artifact of ``precision`` does; ``module`` becomes its own."""

    def __init__(
        self, module: nn.Module, precision: str, calibration: Calibration | None = None
    ) -> None:
        self.module = module.float()
        self.half = precision == "fp16"
        if self.half:
            for tensor in (*module.parameters(), *module.buffers()):
                if tensor.is_floating_point():
                    tensor.data = tensor.data.half().float()
        if precision in simulated.BITS:
            ranges = None
            if precision == "int8" and calibration is not None:
                ranges = simulated.ranges_of(module, calibration)
            simulated.quantise_(module, precision, ranges)

    def run(
        self,
        blocks: Mapping[str, str],
        image: torch.Tensor,
        outputs: tuple[str, ...],
        given: Mapping[str, torch.Tensor] | None = None,
    ) -> taps.Values:
        """Every tap and output, as ``taps.run``."""
        x = image.half().float() if self.half else image.float()
        rounding: AbstractContextManager[Any] = (
            _RoundToHalf() if self.half else nullcontext()  # type: ignore[no-untyped-call]
        )
        with rounding:
            return taps.run(self.module, blocks, x, outputs, given)


class Exact:
    """A network in float64 on given samples; ``module`` becomes its own and is converted."""

    def __init__(
        self,
        module: nn.Module,
        blocks: Mapping[str, str],
        outputs: tuple[str, ...],
        samples: Samples,
    ) -> None:
        self.module = module.double()
        self.blocks = blocks
        self.outputs = outputs
        self.samples = samples
        self._kept: dict[int, taps.Values] = {}
        self._bytes = 0

    def image(self, index: int) -> torch.Tensor:
        """Sample ``index`` as a batch of one, in float64."""
        return torch.from_numpy(self.samples.inputs[index : index + 1].astype(np.float64))

    def free(self, index: int) -> taps.Values:
        """What it computes from sample ``index``."""
        if index in self._kept:
            return self._kept[index]
        values = taps.run(self.module, self.blocks, self.image(index), self.outputs)
        size = sum(value.numel() * value.element_size() for value in values.values())
        if self._bytes + size <= KEPT_BYTES:
            self._kept[index] = values
            self._bytes += size
        return values

    def led(self, index: int, given: Mapping[str, torch.Tensor]) -> taps.Values:
        """What it computes when every segment between taps starts from ``given`` values."""
        return taps.run(self.module, self.blocks, self.image(index), self.outputs, given)

    @property
    def names(self) -> tuple[str, ...]:
        """The taps, in the network's order, and the outputs."""
        return tuple(self.free(0))


class Yardstick:
    """Tolerances of a precision: per tap an array with one number a sample; and what it rests on.

    ``rtol`` is for the largest error of a sample, ``rms`` for the root mean square of its errors.

    ``accumulated`` and ``introduced`` are the distances of the rounded network itself, ``ranges``
    the values of the exact one.
    """

    def __init__(self, exact: Exact, rounded: Rounded, precision: str) -> None:
        self.precision = precision
        self.accumulated: dict[str, Distance] = {}
        self.introduced: dict[str, Distance] = {}
        self.ranges: dict[str, Range] = {}
        for index in range(len(exact.samples)):
            self._add(exact, rounded, index)
        self.rtol = {
            name: relative_tolerance(found.spreads, found.count, precision)
            for name, found in self.introduced.items()
        }
        self.rms = {
            name: rms_tolerance(found, precision) for name, found in self.introduced.items()
        }

    def _add(self, exact: Exact, rounded: Rounded, index: int) -> None:
        image = exact.image(index)
        truth = exact.free(index)
        for name, value in truth.items():
            self.ranges.setdefault(name, Range()).add(value.numpy())
        freely = rounded.run(exact.blocks, image, exact.outputs)
        _measure(self.accumulated, freely, truth)
        storable = {name: _stored(value, half=rounded.half) for name, value in truth.items()}
        led = rounded.run(exact.blocks, image, exact.outputs, storable)
        again = exact.led(index, {name: value.double() for name, value in storable.items()})
        _measure(self.introduced, led, again)


def _stored(value: torch.Tensor, *, half: bool) -> torch.Tensor:
    """``value`` as a float16 or float32 program holds it, within the range of float16."""
    if half:
        return value.clamp(-65504, 65504).half().float()
    return value.float()


def _measure(found: dict[str, Distance], candidate: taps.Values, reference: taps.Values) -> None:
    for name, r in reference.items():
        distance = found.setdefault(name, Distance())
        c = candidate[name].double()
        if torch.isfinite(c).all() and torch.isfinite(r).all():
            distance.add(c.numpy(), r.numpy())
        else:
            distance.add_failure(len(r))


def samples_of(found: Samples, indices: Sequence[int]) -> Samples:
    """Some of the samples."""
    names = tuple(found.names[i] for i in indices)
    chosen = list(indices)
    return Samples(names, found.inputs[chosen], found.labels[chosen], {})


def spread(count: int, wanted: int) -> Iterator[int]:
    """``wanted`` indices below ``count``, evenly apart."""
    for place in np.unique(np.linspace(0, count - 1, min(wanted, count)).round().astype(int)):
        yield int(place)
