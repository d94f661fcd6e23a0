"""How far an artifact may lie from the reference, derived from measured rounding.

Two correct implementations of one network differ because they round differently. How much
rounding costs *this* model on *this* input is measured: it is run in float64 (``exact``) and once
more in the artifact's own arithmetic (``rounded``), and row i has the relative spread

    s_i     = rms_j(rounded_ij - exact_ij) / max_j|exact_ij|
    sigma_i = max(s_i, median_k s_k, u)

the floor because a single row can be lucky, and no row is exact beyond the unit roundoff u.
An artifact is another draw of the same kind of error with its own order of sums, and the reference
it is compared with carries an error too, so their difference has the spread

    sigma_d = kernel * sqrt(2) * sigma_i

``kernel`` allows for the elementary functions of a runtime, accurate to a few units in the last
place where PyTorch's are to one. A sum of many roundings is sub-Gaussian (Higham and Mary 2019, "A
new approach to probabilistic rounding error analysis"), so among n compared numbers one exceeds
``lambda * sigma_d`` with probability at most ``p = 2 n exp(-lambda^2 / 2)``:

    lambda = sqrt(2 ln(2 n / p))
    rtol_i = lambda * kernel * sqrt(2) * sigma_i

A quantised artifact is not another draw of one error: ``rounded`` is the network on a quantiser's
grid, whose error is far above any arithmetic's, and the reference has none of it. There

    rtol_i = lambda * scheme * sigma_i

with ``scheme`` for how much coarser the artifact's grids may be than those of the simulation.
"""

from __future__ import annotations

import math

import numpy as np

from levit_export.core.precisions import PRECISIONS, UNIT_ROUNDOFF
from levit_export.core.values import Tolerance

FALSE_ALARM = 1e-6
"""p of the formula: how often a correct artifact may be refused, per check."""

KERNEL = 4.0
"""Largest ratio of a runtime's error to PyTorch's seen over the variants, 2.1 (OpenVINO), rounded
up to a power of two."""


def relative_spread(rounded: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """``s`` of the module's formula for arrays ``(rows, ...)``: ``(rows,)``."""
    difference = (rounded.astype(np.float64) - exact).reshape(len(exact), -1)
    scale = np.abs(exact).reshape(len(exact), -1).max(axis=1)
    rms = np.sqrt((difference**2).mean(axis=1))
    spread: np.ndarray = rms / np.maximum(scale, np.finfo(np.float64).tiny)
    return spread


def lambda_of(n: int) -> float:
    """``lambda`` of the module's formula for n compared numbers."""
    return math.sqrt(2 * math.log(2 * n / FALSE_ALARM))


def factor_of(precision: str) -> float:
    """``kernel * sqrt(2)``, or ``scheme`` for a quantised precision."""
    if precision in UNIT_ROUNDOFF:
        return KERNEL * math.sqrt(2)
    return PRECISIONS[precision].scheme


def roundoff_of(precision: str) -> float:
    """``u``; a quantised network computes in float16 at the coarsest."""
    return UNIT_ROUNDOFF.get(precision, UNIT_ROUNDOFF["fp16"])


def sigma_of(s: np.ndarray, precision: str) -> np.ndarray:
    """``sigma`` of the module's formula for the spreads ``s`` ``(rows,)``."""
    sigma: np.ndarray = np.maximum(s, max(float(np.median(s)), roundoff_of(precision)))
    return sigma


def derive(rounded: np.ndarray, exact: np.ndarray, *, precision: str) -> Tolerance:
    """The tolerance for artifacts of ``precision``, row by row of what was measured."""
    u, factor = roundoff_of(precision), factor_of(precision)
    sigma = sigma_of(relative_spread(rounded, exact), precision)
    n = exact.size
    lam = lambda_of(n)
    return Tolerance(
        atol=0.0,
        rtol=tuple(float(r) for r in lam * factor * sigma),
        origin="derived",
        derivation={
            "precision": precision,
            "unit_roundoff": u,
            "growth": float(sigma.max() / u),
            "factor": factor,
            "lambda": lam,
            "compared": float(n),
            "false_alarm": FALSE_ALARM,
        },
    )
