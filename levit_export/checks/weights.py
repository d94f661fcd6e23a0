"""Find every trained tensor in an artifact, bit for bit.

A distance between logits cannot see a small fault behind the rounding of float16. But writers
only copy, transpose and reshape the prepared tensors, so each must be in the file exactly as the
checkpoint and the passes made it, rounded to the file's precision once. That is checked by digest.
Pure; arrays and digests in, a value out.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256

import numpy as np

from levit_export.core.constants import fingerprint, fingerprints, is_neutral
from levit_export.core.precisions import FLOATS

MATRIX = 2
"""Axes of a matrix."""


@dataclass(frozen=True)
class WeightAudit:
    """How many tensors were looked for, and the names of those that are not in the file.

    ``strange`` are the shapes of constants that are none of them, and the values of single numbers
    that no sound graph has: a file that holds the right tensors may compute with others.
    ``unread`` says why nothing was looked for, if so. With ``answers_only`` nothing had to be: the
    file is not ours, and nobody knows what it should hold.
    """

    tensors: int
    missing: tuple[str, ...] = ()
    strange: tuple[str, ...] = ()
    unread: str = ""
    answers_only: bool = False


def audit(
    expected: Mapping[str, str], stored: Iterable[np.ndarray], precision: str = "fp32"
) -> WeightAudit:
    """Which of the ``expected`` tensors the ``stored`` constants of a file do not hold.

    ``stored`` is what a target's ``constants`` gives: every number that an answer depends on.
    Writers store a matrix either way round, so it is looked for as it is, and then transposed. A
    file of float16 may hold some tensors in float32: they are looked for as they are, as those
    of blocks that stay in float32 must be, and rounded. Zeros are neither missed nor strange: see
    :func:`fingerprints`.
    """
    rounded = FLOATS.get(precision, "float32")
    known = set(expected.values())
    present: set[str] = set()
    strange: dict[str, np.ndarray] = {}
    with np.errstate(over="ignore"):
        for array in stored:
            if np.issubdtype(array.dtype, np.floating):
                numbers = array.astype(rounded, copy=False)
                if not numbers.any():
                    continue
                held = [numbers] if numbers is array else [numbers, array]
                digests = [fingerprint(each) for each in held]
                if known.isdisjoint(digests):
                    turned = (np.squeeze(each).T for each in held)
                    digests += [fingerprint(each) for each in turned if each.ndim == MATRIX]
            else:
                digests = [f"{array.dtype} {sha256(array.tobytes()).hexdigest()}"]
            present.update(digests)
            is_known = not known.isdisjoint(digests)
            if not is_known and (array.size > 1 or not is_neutral(array)):
                strange[digests[0]] = array
    missing = tuple(name for name, digest in expected.items() if digest not in present)
    words = (
        str(list(array.shape)) if array.size > 1 else f"{float(array.reshape(-1)[0]):.7g}"
        for array in strange.values()
    )
    return WeightAudit(len(expected), missing, tuple(sorted(words)))


def tensors_of(
    tensors: Mapping[str, np.ndarray], blocks: Mapping[str, str], keep: Collection[str]
) -> dict[str, np.ndarray]:
    """Those of the blocks ``keep``; ``blocks`` says by its path which block a module is."""
    places = tuple(f"{path}." for path, block in blocks.items() if block in keep)
    return {name: t for name, t in tensors.items() if places and name.startswith(places)}


def mixed(
    tensors: Mapping[str, np.ndarray], exact: Collection[str], precision: str
) -> dict[str, str]:
    """The digests of what a float file of ``precision`` holds that keeps ``exact`` in float32."""
    kept = {name: tensor for name, tensor in tensors.items() if name in exact}
    return {**fingerprints(tensors, precision), **fingerprints(kept, "fp32")}


def settled(
    tensors: Mapping[str, np.ndarray],
    stored: Iterable[np.ndarray],
    bits: int,
    exact: Collection[str] = (),
) -> dict[str, str]:
    """The digests of what a quantised file holds for each tensor.

    A tensor is in the file when a constant of its shape lies within one step of its coarsest grid,
    ``max|w| / (2**(bits - 1) - 1)``, everywhere. Where none does, the digest is that of the tensor
    itself, which an audit will miss. Those called ``exact`` were not quantised: they must be there
    bit for bit, as they are or rounded to float16.
    """
    by_shape: dict[tuple[int, ...], list[np.ndarray]] = {}
    for array in stored:
        if np.issubdtype(array.dtype, np.floating):
            plain = np.squeeze(array).astype(np.float32)
            by_shape.setdefault(plain.shape, []).append(plain)
    return {
        name: _nearest(np.squeeze(t), by_shape, None if name in exact else bits)
        for name, t in tensors.items()
        if t.any()
    }


def _nearest(
    tensor: np.ndarray, by_shape: Mapping[tuple[int, ...], list[np.ndarray]], bits: int | None
) -> str:
    """The digest of the nearest candidate, or of ``tensor`` where none is near enough."""
    candidates = list(by_shape.get(tensor.shape, []))
    if tensor.ndim == 2:
        candidates += [other.T for other in by_shape.get(tensor.shape[::-1], [])]
    if bits is None:
        with np.errstate(over="ignore"):
            half = tensor.astype(np.float16).astype(np.float32)
        is_rounded = any(np.array_equal(other, half) for other in candidates)
        return fingerprint(half if is_rounded else tensor)
    distances = [float(np.abs(other - tensor).max()) for other in candidates]
    step = float(np.abs(tensor).max()) / (2 ** (bits - 1) - 1)
    if not distances or min(distances) > step:
        return fingerprint(tensor)
    return fingerprint(candidates[distances.index(min(distances))])
