"""Numbers that a file holds: their digests, and what precision they amount to."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256

import numpy as np

from levit_export.core.precisions import FLOATS, PRECISIONS

NEUTRAL = (
    *(0.0, 0.5, 1.0, 2.0, 3.0, 6.0, 1 / 6),
    *(float(d) ** power for d in (16, 32, 64) for power in (-0.5, 0.5, -0.25)),
    *(2.0**0.5, 0.5**0.5, 0.044715, (2 / np.pi) ** 0.5),
    *(1e-5, 1e-6),
)
"""Single numbers, but for their sign, that a sound graph may hold without their being trained.

Those of hardswish, GELU and means of two, the scale of attention by the width of its keys, and
what normalisations add to a variance.
"""


HALF_OF_WEIGHTS = 0.5
"""Share of the numbers of all weights that decides what a file's precision is."""


@dataclass(frozen=True, eq=False)
class Constant:
    """A constant of a file, as seen by the first operator that combines it with data that depend
    on the input.

    ``bits`` are how many the file spends on each number; ``is_weight`` says whether a layer
    multiplies by them, ``on_grid`` whether what it multiplies was rounded to 8 bits.
    """

    numbers: np.ndarray
    bits: float
    is_weight: bool = False
    on_grid: bool = False


def shares_of(constants: Iterable[Constant]) -> dict[str, float]:
    """For each precision, the coarser first, the share of weights that are as coarse as it.

    Each number of a weight counts once, by the bits that the file spends on it; for ``int8`` those
    of 8 bits that meet activations of 8 bits.
    """
    found = list(constants)
    layers = [each for each in found if each.is_weight] or found
    total = max(sum(each.numbers.size for each in layers), 1)

    def share(most: float, *, on_grid: bool = False) -> float:
        coarse = (each for each in layers if each.bits <= most and each.on_grid >= on_grid)
        return sum(each.numbers.size for each in coarse) / total

    coarsest_first = sorted(
        (each for each in PRECISIONS.values() if math.isfinite(each.most_bits)),
        key=lambda each: (not each.is_calibrated, each.most_bits),
    )
    return {
        each.name: share(each.most_bits, on_grid=each.is_calibrated) for each in coarsest_first
    }


def precision_of(shares: Mapping[str, float]) -> str:
    """The precision of a graph with these shares, whatever its file says.

    It is the coarsest of which at least half of the numbers are: a few that are coarser buy no
    tolerance for the rest.
    """
    return next((name for name, share in shares.items() if share >= HALF_OF_WEIGHTS), "fp32")


def fingerprint(array: np.ndarray) -> str:
    """Digest of the float32 numbers of ``array``.

    Axes of length one do not count: a bias ``(C,)`` may be stored as ``(1, 1, C)``.
    """
    return sha256(np.ascontiguousarray(np.squeeze(array), "<f4").data).hexdigest()


def fingerprints(tensors: Mapping[str, np.ndarray], precision: str) -> dict[str, str]:
    """The digest of each tensor in a file of ``precision``; empty where no tensor needs one.

    A tensor that is zero throughout, such as a bias before training, need not be there: adding it
    changes nothing, and simplifiers leave it out.
    """
    if precision not in FLOATS:
        return {}
    with np.errstate(over="ignore"):
        rounded = {name: tensor.astype(FLOATS[precision]) for name, tensor in tensors.items()}
    return {name: fingerprint(tensor) for name, tensor in rounded.items() if tensor.any()}


def is_neutral(number: np.ndarray) -> bool:
    """Whether a constant of one number is one of :data:`NEUTRAL`, rounded once to its type."""
    kind = number.dtype if number.dtype.kind == "f" else np.dtype(np.float64)
    value = np.abs(number.astype(np.float64)).reshape(-1)
    return bool(
        (value == np.array(NEUTRAL, kind).astype(np.float64)).any()
        or (value == np.array(NEUTRAL, np.float16).astype(np.float64)).any()
    )
