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

HALF = 0.5
"""Share of the numbers of all weights that decides what a file's precision is."""

BITS_OF = {"w4": 5.5, "w6": 7.5, "w8": 13.0, "fp16": 24.0}
"""Most bits that a file of a precision spends on a weight, scales and palettes included.

With a float32 scale for each channel, 8 bits become 12 where a channel has 8 weights, which is
fewer than any layer of a LeViT.
"""

ROUNDED = {"fp32": np.float32, "fp16": np.float16}
"""Precisions whose files store the tensors themselves, and the type they are rounded to."""


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


@dataclass(frozen=True, eq=False)
class Constant:
    """Numbers of a file, as the operator sees them that joins them with what depends on the input.

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

    shares = {name: share(most) for name, most in BITS_OF.items()}
    return {"int8": share(BITS_OF["w8"], on_grid=True), **shares}


def precision_of(shares: Mapping[str, float]) -> str:
    """The precision of a graph with these shares, whatever its file says.

    It is the coarsest of which at least half of the numbers are: a few that are coarser buy no
    tolerance for the rest.
    """
    return next((name for name, share in shares.items() if share >= HALF), "fp32")


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
    """The digest of each tensor in a file of ``precision``; empty where no tensor needs one.

    A tensor that is zero throughout, such as a bias before training, need not be there: adding it
    changes nothing, and simplifiers leave it out.
    """
    if precision not in ROUNDED:
        return {}
    with np.errstate(over="ignore"):
        rounded = {name: tensor.astype(ROUNDED[precision]) for name, tensor in tensors.items()}
    return {name: fingerprint(tensor) for name, tensor in rounded.items() if tensor.any()}


def is_neutral(number: np.ndarray) -> bool:
    """Whether a constant of one number is one of :data:`NEUTRAL`, rounded once to its type."""
    kind = number.dtype if number.dtype.kind == "f" else np.dtype(np.float64)
    value = np.abs(number.astype(np.float64)).reshape(-1)
    return bool(
        (value == np.array(NEUTRAL, kind).astype(np.float64)).any()
        or (value == np.array(NEUTRAL, np.float16).astype(np.float64)).any()
    )


def audit(
    expected: Mapping[str, str], stored: Iterable[np.ndarray], precision: str = "fp32"
) -> WeightAudit:
    """Which of the ``expected`` tensors the ``stored`` constants of a file do not hold.

    ``stored`` is what a target's ``constants`` gives: every number that an answer depends on.
    A file of float16 may hold some tensors in float32; they are rounded here. Zeros are neither
    missed nor strange: see :func:`fingerprints`.
    """
    rounded = ROUNDED.get(precision, np.float32)
    present: dict[str, np.ndarray] = {}
    with np.errstate(over="ignore"):
        for array in stored:
            is_float = np.issubdtype(array.dtype, np.floating)
            if is_float and not array.astype(rounded).any():
                continue
            digest = fingerprint(array.astype(rounded)) if is_float else ""
            present[digest or f"{array.dtype} {array.tobytes()!r}"] = array
    missing = tuple(name for name, digest in expected.items() if digest not in present)
    known = set(expected.values())
    strange = (
        str(list(array.shape)) if array.size > 1 else f"{float(array.reshape(-1)[0]):.7g}"
        for digest, array in present.items()
        if digest not in known and (array.size > 1 or not is_neutral(array))
    )
    return WeightAudit(len(expected), missing, tuple(sorted(strange)))


def tensors_of(
    tensors: Mapping[str, np.ndarray], blocks: Mapping[str, str], keep: Collection[str]
) -> dict[str, np.ndarray]:
    """Those of the blocks ``keep``; ``blocks`` says by its path which block a module is."""
    places = tuple(f"{path}." for path, block in blocks.items() if block in keep)
    return {name: t for name, t in tensors.items() if places and name.startswith(places)}


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
