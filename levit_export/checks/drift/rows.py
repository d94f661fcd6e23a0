"""Make the rows of a stage: what it computes at its taps, held against the stage before."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from levit_export.checks.drift import taps
from levit_export.checks.drift.tolerances import TINY, Distance, Exact, Range, Yardstick
from levit_export.checks.drift.values import DriftRow, Status


@dataclass
class _Found:
    """What was gathered of one tap."""

    accumulated: Distance = field(default_factory=Distance)
    introduced: Distance = field(default_factory=Distance)
    seen: Range = field(default_factory=Range)
    is_inherited: bool = False
    is_misshapen: bool = False


class Comparison:
    """Takes the taps of a stage one sample at a time, and gives its rows.

    ``exact`` is the stage before. ``allowed`` is a yardstick, or one relative tolerance for all.
    ``fused`` are taps that the stage does not have.
    """

    def __init__(
        self, exact: Exact, allowed: Yardstick | float, fused: Iterable[str] = ()
    ) -> None:
        self._exact = exact
        self._allowed = allowed
        self._fused = set(fused)
        self._found = {name: _Found() for name in exact.names if name not in self._fused}

    def add(self, index: int, values: Mapping[str, np.ndarray]) -> None:
        """The stage's values for sample ``index``, each ``(1, ...)``, in either layout."""
        free = self._exact.from_image(index)
        values = {
            name: taps.in_tokens(value, free[name].shape) if name in free else value
            for name, value in values.items()
        }
        led = self._exact.from_taps(index, taps.tensors(values, torch.float64))
        is_broken = False
        for name, found in self._found.items():
            if name not in values:
                continue
            value, reference = values[name], led[name].numpy()
            found.seen.add(value)
            if value.size != reference.size:
                found.is_misshapen = True
                continue
            if not np.isfinite(value).all():
                # NaN spreads to all later taps, so only the first one is at fault.
                found.is_inherited |= is_broken
                is_broken = True
                found.accumulated.add_failure(1)
                found.introduced.add_failure(1)
                continue
            found.accumulated.add(value.reshape(reference.shape), free[name].numpy())
            found.introduced.add(value.reshape(reference.shape), reference)

    def rows(self, stage: str) -> tuple[DriftRow, ...]:
        """The rows, in the network's order."""
        made: list[DriftRow] = []
        before: float | None = None
        skipped: tuple[str, ...] = ()
        for name in self._exact.names:
            block = taps.block_of_tap(name, self._exact.blocks)
            found = self._found.get(name)
            if found is None:
                made.append(DriftRow(name, block, stage, "fused"))
                skipped += (name,)
                continue
            row = self._row(name, block, stage, before=before, skipped=skipped)
            made.append(row)
            before, skipped = row.accumulated, ()
        return tuple(made)

    def _row(
        self,
        name: str,
        block: str,
        stage: str,
        *,
        before: float | None,
        skipped: tuple[str, ...],
    ) -> DriftRow:
        found = self._found[name]
        use = self._use(name, found.introduced)
        accumulated, seen = found.accumulated.largest, found.seen
        return DriftRow(
            tap=name,
            block=block,
            stage=stage,
            status=_status(found, use),
            accumulated=accumulated,
            introduced=found.introduced.largest,
            tolerance=use.tolerance,
            introduced_rms=use.rms,
            rms_tolerance=use.rms_tolerance,
            of_tolerance=use.share,
            accumulated_of_tolerance=self._answered(name, found.accumulated),
            snr_db=found.accumulated.snr_db,
            introduced_snr_db=found.introduced.snr_db,
            growth=accumulated / before if accumulated is not None and before else None,
            peak=seen.peak,
            low=None if seen.peak is None else seen.low,
            high=None if seen.peak is None else seen.high,
            above_float16=seen.share_above,
            not_finite=seen.not_finite,
            sample="" if use.worst is None else self._exact.samples.names[use.worst],
            fused_before=skipped,
        )

    def _answered(self, name: str, accumulated: Distance) -> float | None:
        """How much of what may have accumulated an output has, where that is known."""
        if name not in self._exact.outputs or isinstance(self._allowed, float):
            return None
        errors = np.array(accumulated.errors)
        allowed = self._allowed.answers[name][: errors.size]
        return float((errors / np.maximum(allowed, TINY)).max()) if errors.size else None

    def _use(self, name: str, introduced: Distance) -> _Use:
        """How much of what is allowed was used, on the sample where most of it was."""
        errors, spreads = np.array(introduced.errors), np.array(introduced.spreads)
        if not errors.size:
            return _Use()
        if isinstance(self._allowed, float):
            rtol, rms = np.full(errors.shape, self._allowed), np.full(errors.shape, np.inf)
        else:
            rtol = self._allowed.rtol[name][: errors.size]
            rms = self._allowed.rms[name][: errors.size]
        with np.errstate(invalid="ignore"):  # an infinite error of an infinite allowance
            spread_shares = np.where(np.isinf(rms), 0.0, spreads / np.maximum(rms, TINY))
        # A sample uses up whichever of its two tolerances is used more.
        shares = np.maximum(errors / np.maximum(rtol, TINY), spread_shares)
        worst = int(shares.argmax())
        figures = (a[worst] for a in (shares, rtol, spreads, rms))
        share, tolerance, spread, rms_tolerance = map(float, figures)
        return _Use(worst, share, tolerance, spread, rms_tolerance)


@dataclass(frozen=True)
class _Use:
    """The ``worst`` sample's share of its tolerances, and what these are."""

    worst: int | None = None
    share: float | None = None
    tolerance: float | None = None
    rms: float | None = None
    rms_tolerance: float | None = None


def _status(found: _Found, use: _Use) -> Status:
    if found.is_misshapen:
        return "shape"
    if use.share is None:
        return "missing"
    if found.seen.not_finite:
        return "inherited" if found.is_inherited else "not-finite"
    return "exceeds" if use.share > 1 else "ok"
