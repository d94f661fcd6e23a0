"""How much error a block may introduce, derived from what rounding costs that block alone.

For every precision p the prepared network is run in float64 and once more as roughly as an
artifact of p computes: in float32, rounded to 16 bits at every operator, or on a quantiser's
grids. Both are given, at every tap, the same values of the tap before, so what they differ by at a
tap arose between the two. That difference, per tap and sample, goes into the formula of
``tolerance``:

    s_i     = rms(rounded_i - exact_i) / max|exact_i|
    sigma_i = max(s_i, median_k s_k, u)
    rtol_i  = sqrt(2 ln(2 n / p)) * factor * sigma_i

with n the numbers of that tap over all samples. A runtime may go on with more digits than it gives
out (ONNX Runtime computes float16 in float32 on a CPU and rounds what is asked for), so what
rounding the tap before costs is added to s in quadrature.

A fault that changes every value a little shows in their root mean square long before it shows in
the largest error. In float16, where rounding costs what storing each value does, whatever the
kernel, that is held against a tolerance as well. (In float32 it is the order of sums that counts,
and kernels differ: OpenVINO's was seen at 3.5 times PyTorch's rms, in a convolution of levit_384.)
A mean over m
squared errors of a correct artifact exceeds its expectation by more than
``1 + 2 sqrt(t / m) + 2 t / m`` with probability at most ``exp(-t)`` (Laurent and Massart 2000,
lemma 1), so with t = ln(1 / p)

    rms_i = KERNEL * max(s_i, median_k s_k, f_i) * sqrt(1 + 2 sqrt(t / m) + 2 t / m)

where ``f_i = u rms(exact_i) / max|exact_i| / sqrt(12)`` is what storing the values costs alone: a
rounding is uniform within half a unit in the last place, u of the value at the most.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from levit_export.checks import tolerance
from levit_export.checks.drift import taps
from levit_export.core.precisions import GRIDS, UNIT_ROUNDOFF
from levit_export.core.values import FLOAT16_MAX, Calibration
from levit_export.formats import simulated_quantisation as simulated
from levit_export.formats.pytorch import round_, to_bfloat16, to_half
from levit_export.inputs.samples import Samples

if TYPE_CHECKING:
    from torch import nn

TINY = float(np.finfo(np.float64).tiny)

INNER = (".scores", ".softmax")
"""Ends of the taps that no other block takes."""

KEPT_BYTES = 2**26
"""Exact values of all samples are kept where they take no more than this, else computed again."""


@dataclass
class Distance:
    """Figures of a pair of values, one number a sample."""

    errors: list[float] = field(default_factory=list)
    spreads: list[float] = field(default_factory=list)
    levels: list[float] = field(default_factory=list)
    """``rms(r) / max|r|`` of each sample."""
    signal: float = 0.0
    noise: float = 0.0
    count: int = 0
    """Numbers that were compared."""

    def add(self, candidate: np.ndarray, reference: np.ndarray) -> None:
        """Compare the rows of two arrays ``(rows, ...)`` of equal sizes; all must be finite."""
        r = reference.reshape(len(reference), -1).astype(np.float64, copy=False)
        difference = candidate.reshape(r.shape).astype(np.float64) - r
        scale = np.maximum(np.abs(r).max(axis=1), TINY)
        np.abs(difference, out=difference)
        self.errors += (difference.max(axis=1) / scale).tolist()
        np.square(difference, out=difference)
        self.spreads += (np.sqrt(difference.mean(axis=1)) / scale).tolist()
        self.noise += float(difference.sum())
        power = np.square(r).mean(axis=1)
        self.levels += (np.sqrt(power) / scale).tolist()
        self.signal += float(power.sum()) * r.shape[1]
        self.count += r.size

    def add_failure(self, rows: int) -> None:
        """Count samples whose values cannot be compared as infinitely far away."""
        self.errors += [math.inf] * rows
        self.spreads += [math.inf] * rows
        self.levels += [0.0] * rows

    @property
    def largest(self) -> float | None:
        """The largest relative error of a sample, None without samples."""
        return max(self.errors) if self.errors else None

    @property
    def snr_db(self) -> float | None:
        """The ratio of signal to noise; it is None without noise or without finite values."""
        if not self.noise or not self.signal or math.inf in self.errors:
            return None
        return 10 * math.log10(self.signal / self.noise)


def joined(one: Distance, other: Distance) -> Distance:
    """Two independent errors of the same values, added in quadrature."""
    pairs = zip(one.spreads, other.spreads, strict=True)
    return Distance(
        spreads=[math.hypot(*pair) for pair in pairs], levels=one.levels, count=one.count
    )


@dataclass
class Range:
    """The values that were seen at a tap."""

    low: float = math.inf
    high: float = -math.inf
    above: int = 0
    not_finite: int = 0
    count: int = 0

    def add(self, values: np.ndarray) -> None:
        """Take in an array of any shape. Extremes are those of its finite values."""
        self.count += values.size
        finite = np.isfinite(values)
        self.not_finite += int(values.size - finite.sum())
        self.above += int((np.abs(values) > FLOAT16_MAX).sum())
        kept = values if finite.all() else values[finite]
        if kept.size:
            self.low = min(self.low, float(kept.min()))
            self.high = max(self.high, float(kept.max()))

    @property
    def peak(self) -> float | None:
        """The largest finite magnitude, None where there is none."""
        return max(abs(self.low), abs(self.high)) if self.low <= self.high else None

    @property
    def share_above(self) -> float:
        """Share of values beyond float16, infinite ones included."""
        return self.above / self.count if self.count else 0.0


def relative_tolerance(spreads: Sequence[float], count: int, precision: str) -> np.ndarray:
    """``rtol_i`` of the module's formula from the ``s_i`` and n, as ``tolerance.derive`` has it.

    A sample on which the rounded network itself overflows grants no more than the floor.
    """
    u = tolerance.roundoff_of(precision)
    s = np.array([u if math.isinf(value) else value for value in spreads])
    factors = tolerance.lambda_of(max(count, 1)) * tolerance.factor_of(precision)
    result: np.ndarray = factors * tolerance.sigma_of(s, precision)
    return result


def rms_tolerance(found: Distance, precision: str) -> np.ndarray:
    """``rms_i`` of the module's formula in float16; infinite in others, which have none."""
    if precision != "fp16":
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


def to_float16(x: torch.Tensor) -> torch.Tensor:
    """``x`` as float16 holds it: what is too large becomes infinite.

    (``formats.pytorch.to_half`` has no end to its range: there rounding is measured, here overflow
    has to show.)
    """
    return x.half().float()


ROUNDED: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "fp16": to_float16,
    "bf16": to_bfloat16,
}
"""How a network in a precision of 16 bits rounds at every operator."""


class Rounded:
    """A network that computes as an artifact of ``precision`` does; ``module`` becomes its own.

    ``keep`` are the paths of modules that are left in float32.
    """

    def __init__(
        self,
        module: nn.Module,
        precision: str,
        calibration: Calibration | None = None,
        keep: Collection[str] = (),
    ) -> None:
        self.module = module.float()
        self.half = precision == "fp16"
        self.keep = frozenset(keep)
        self._rounded = ROUNDED.get(precision, torch.Tensor.float)
        self._rounding: AbstractContextManager[Any] = nullcontext()
        if precision in ROUNDED:
            self._rounding = round_(self.module, self._rounded, self.keep)
        if precision in GRIDS:
            simulated.quantise_all_but_(self.module, precision, calibration, self.keep)

    def run(
        self,
        blocks: Mapping[str, str],
        image: torch.Tensor,
        outputs: tuple[str, ...],
        given: Mapping[str, torch.Tensor] | None = None,
    ) -> taps.Values:
        """Every tap and output, as ``taps.run``."""
        with self._rounding:
            return taps.run(self.module, blocks, self._rounded(image), outputs, given)

    def stored(self, values: Mapping[str, torch.Tensor], blocks: Mapping[str, str]) -> taps.Values:
        """``values`` as the artifact holds them; float16 ends at 65504.

        What a block in float32 gives is rounded by whoever takes it; what is inside, by nobody.
        """
        if not self.half:
            return {name: self._rounded(value) for name, value in values.items()}
        kept = {block for path, block in blocks.items() if path in self.keep}
        held = {}
        for name, value in values.items():
            if taps.block_of_tap(name, blocks) not in kept:
                held[name] = value.clamp(-FLOAT16_MAX, FLOAT16_MAX).half().float()
            else:
                is_inner = name.endswith(INNER)
                held[name] = value.float() if is_inner else to_half(value.float())
        return held


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

    def from_image(self, index: int) -> taps.Values:
        """What it computes from sample ``index``."""
        if index in self._kept:
            return self._kept[index]
        values = taps.run(self.module, self.blocks, self.image(index), self.outputs)
        size = sum(value.numel() * value.element_size() for value in values.values())
        if self._bytes + size <= KEPT_BYTES:
            self._kept[index] = values
            self._bytes += size
        return values

    def from_taps(self, index: int, given: Mapping[str, torch.Tensor]) -> taps.Values:
        """What it computes when every segment between taps starts from ``given`` values."""
        return taps.run(self.module, self.blocks, self.image(index), self.outputs, given)

    @property
    def names(self) -> tuple[str, ...]:
        """The taps, in the network's order, and the outputs."""
        return tuple(self.from_image(0))


class Yardstick:
    """Tolerances of a precision: per tap an array with one number a sample; and what it rests on.

    ``rtol`` is for the largest error that is introduced into a sample, ``rms`` for the root mean
    square of these errors, ``answers`` for the largest that has accumulated, which parity's own
    tolerances of outputs replace where they are given.

    ``accumulated`` and ``introduced`` are the distances of the rounded network itself, ``ranges``
    the values of the exact one.
    """

    def __init__(
        self,
        exact: Exact,
        rounded: Rounded,
        precision: str,
        answers: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        self.precision = precision
        self.accumulated: dict[str, Distance] = {}
        self.introduced: dict[str, Distance] = {}
        self.ranges: dict[str, Range] = {}
        self._stored: dict[str, Distance] = {}
        for index in range(len(exact.samples)):
            self._add(exact, rounded, index)
        self._grant(answers or {})

    def _grant(self, given: Mapping[str, np.ndarray]) -> None:
        """The tolerances of what was measured."""
        costs = {n: joined(found, self._stored[n]) for n, found in self.introduced.items()}
        self.rtol = {
            name: relative_tolerance(found.spreads, found.count, self.precision)
            for name, found in costs.items()
        }
        self.rms = {name: rms_tolerance(found, self.precision) for name, found in costs.items()}
        derived = {
            name: relative_tolerance(found.spreads, found.count, self.precision)
            for name, found in self.accumulated.items()
        }
        self.answers = {**derived, **given}

    def _add(self, exact: Exact, rounded: Rounded, index: int) -> None:
        image = exact.image(index)
        truth = exact.from_image(index)
        for name, value in truth.items():
            self.ranges.setdefault(name, Range()).add(value.numpy())
        freely = rounded.run(exact.blocks, image, exact.outputs)
        _measure(self.accumulated, freely, truth)
        # Both are led by the values that the artifact could hold, so that what they differ by at a
        # tap arose since the tap before.
        storable = rounded.stored(truth, exact.blocks)
        led = rounded.run(exact.blocks, image, exact.outputs, storable)
        again = exact.from_taps(index, {name: value.double() for name, value in storable.items()})
        _measure(self.introduced, led, again)
        _measure(self._stored, again, truth)


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
