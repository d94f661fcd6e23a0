"""Distances at one tap, gathered sample by sample, so that no more than one sample is in memory.

For a sample with reference r and candidate c, both flattened: the relative error
``max|c - r| / max|r|``, the relative spread ``rms(c - r) / max|r|``, and over all samples the
signal-to-noise ratio ``10 log10(sum r^2 / sum (c - r)^2)`` in dB.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

FLOAT16_MAX = 65504.0
TINY = float(np.finfo(np.float64).tiny)


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
        """Signal over noise; None where there is no noise or no finite value."""
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
