"""Find every trained tensor in an artifact, bit for bit.

A distance between logits cannot see a small fault behind the rounding of float16. But exporters
only copy, transpose and reshape the prepared tensors, so each must be in the file exactly as the
checkpoint and the passes made it, rounded to the file's precision once. That is checked by digest.
Pure; arrays and digests in, a value out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from math import prod

import numpy as np

ROUNDED = {"fp32": np.float32, "fp16": np.float16}
"""Precisions whose files store the tensors themselves, and the type they are rounded to."""


@dataclass(frozen=True)
class WeightAudit:
    """How many tensors were looked for, and the names of those that are not in the file.

    ``strange`` are the shapes of constants of more than one number that are none of them: a file
    that holds the right tensors may compute with others. ``unread`` says why nothing was looked
    for, if so.
    """

    tensors: int
    missing: tuple[str, ...] = ()
    strange: tuple[str, ...] = ()
    unread: str = ""


def fingerprint(array: np.ndarray) -> str:
    """Digest of the float32 numbers of ``array``; equal for a matrix and its transpose.

    Axes of length one do not count: a bias ``(C,)`` may be stored as ``(1, 1, C)``.
    """
    plain = np.squeeze(array).astype("<f4")
    digests = [sha256(np.ascontiguousarray(plain).tobytes()).hexdigest()]
    if plain.ndim == 2:
        digests.append(sha256(np.ascontiguousarray(plain.T).tobytes()).hexdigest())
    return min(digests)


def fingerprints(tensors: Mapping[str, np.ndarray], precision: str) -> dict[str, str]:
    """The digest each tensor must have in a file of ``precision``; empty where none has to.

    A tensor that is zero throughout, such as a bias before training, need not be there: adding it
    changes nothing, and simplifiers leave it out.
    """
    if precision not in ROUNDED:
        return {}
    with np.errstate(over="ignore"):
        rounded = {name: tensor.astype(ROUNDED[precision]) for name, tensor in tensors.items()}
    return {name: fingerprint(tensor) for name, tensor in rounded.items() if tensor.any()}


def audit(
    expected: Mapping[str, str], stored: Iterable[np.ndarray], precision: str = "fp32"
) -> WeightAudit:
    """Which of the ``expected`` tensors the ``stored`` constants of a file do not hold.

    A converter may leave some tensors of a float16 file in float32; they are rounded here. Zeros
    are no tensor of a checkpoint and no strangers: see :func:`fingerprints`.
    """
    rounded = ROUNDED.get(precision, np.float32)
    with np.errstate(over="ignore"):
        present = {
            fingerprint(array.astype(rounded)): array.shape
            for array in stored
            if np.issubdtype(array.dtype, np.floating) and array.astype(rounded).any()
        }
    missing = tuple(name for name, digest in expected.items() if digest not in present)
    known = set(expected.values())
    strange = (
        str(list(shape))
        for digest, shape in present.items()
        if digest not in known and prod(shape) > 1
    )
    return WeightAudit(len(expected), missing, tuple(sorted(strange)))


def settled(
    tensors: Mapping[str, np.ndarray], stored: Iterable[np.ndarray], bits: int
) -> dict[str, str]:
    """The digests of what a quantised file holds for each tensor.

    A tensor is in the file when a constant of its shape lies within one step of its coarsest grid,
    ``max|w| / (2**(bits - 1) - 1)``, everywhere. Where none does, the digest is that of the tensor
    itself, which an audit will miss.
    """
    by_shape: dict[tuple[int, ...], list[np.ndarray]] = {}
    for array in stored:
        if np.issubdtype(array.dtype, np.floating):
            plain = np.squeeze(array).astype(np.float32)
            by_shape.setdefault(plain.shape, []).append(plain)
    return {
        name: _nearest(np.squeeze(t), by_shape, bits) for name, t in tensors.items() if t.any()
    }


def _nearest(
    tensor: np.ndarray, by_shape: Mapping[tuple[int, ...], list[np.ndarray]], bits: int
) -> str:
    candidates = list(by_shape.get(tensor.shape, []))
    if tensor.ndim == 2:
        candidates += [other.T for other in by_shape.get(tensor.shape[::-1], [])]
    distances = [float(np.abs(other - tensor).max()) for other in candidates]
    step = float(np.abs(tensor).max()) / (2 ** (bits - 1) - 1)
    if not distances or min(distances) > step:
        return fingerprint(tensor)
    return fingerprint(candidates[distances.index(min(distances))])
