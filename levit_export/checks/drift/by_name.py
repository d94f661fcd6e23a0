"""Where two files of one network diverge, by the inner values that both know by one name.

This needs neither the checkpoint nor the layers of a network, and works for any. What it cannot
know is whether a name means the same in both files: a converter that folds a BatchNorm into its
convolution may keep either name. A value that differs while something made of it agrees is
therefore not accused.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np

from levit_export.checks.results import Explanation
from levit_export.core.values import Tolerance


def by_key(values: Iterable[str]) -> dict[str, str]:
    """The values by the names that other files may have for them.

    OpenVINO's PyTorch frontend calls an operator ``relu_1/aten.relu.default/Relu``; the last
    value that begins with ``relu_1/`` is what the captured program calls ``relu_1``.
    """
    names = list(values)
    groups = {name.partition("/")[0]: name for name in names if name.partition("/")[0]}
    return {**groups, **{name: name for name in names}}


def is_comparable(ours: np.ndarray, theirs: np.ndarray) -> bool:
    """Whether both are floating-point values of one shape, axes of length one aside."""
    shapes = [tuple(side for side in each.shape if side != 1) for each in (ours, theirs)]
    return shapes[0] == shapes[1] and ours.dtype.kind == theirs.dtype.kind == "f" and ours.size > 0


def share(ours: np.ndarray, theirs: np.ndarray, allowed: Tolerance) -> tuple[float, float]:
    """Error and allowance of one sample ``(1, ...)``, relative to the largest number of ``ours``.

    An error that is not a number is infinite.
    """
    right, seen = ours.astype(np.float64), theirs.astype(np.float64)
    scale = max(float(np.abs(right).max()), float(np.finfo(np.float64).tiny))
    error = float(np.abs(seen - right).max()) / scale
    limit = float(allowed.allowed(right)[0]) / scale
    return (math.inf if math.isnan(error) else error), limit


def first_difference(
    users: Mapping[str, Iterable[str]],
    shares: Mapping[str, tuple[float, float]],
    sample: str,
    stage: str,
) -> Explanation:
    """What the shared values say: which is the first that differs.

    ``users`` are the reference's values with those that are made of each, ``shares`` the error and
    allowance of those that both files have, in the reference's order.
    """
    differs = {name for name, (error, limit) in shares.items() if error > limit}
    agrees = set(shares) - differs

    def is_healed(name: str) -> bool:
        seen, waiting = {name}, [name]
        while waiting:
            for user in users.get(waiting.pop(), ()):
                if user in agrees:
                    return True
                if user not in seen:
                    seen.add(user)
                    waiting.append(user)
        return False

    count = f"of {len(shares)} inner values that both name"
    first = next((name for name in shares if name in differs and not is_healed(name)), None)
    if first is None:
        last = next((name for name in reversed(list(shares)) if name in agrees), "")
        behind = f", behind {last}" if last else ""
        sentence = f"{count}, none is at fault: look at the outputs{behind}"
        return Explanation(sentence, stage=stage)
    error, limit = shares[first]
    before = [name for name in list(shares)[: list(shares).index(first)] if name in agrees]
    behind = f"; before it, {before[-1]} agrees" if before else ""
    sentence = (
        f"{count}, {first} is the first that differs: by {error:.1e} of its largest number on "
        f"{sample}, where {limit:.1e} is rounding{behind}"
    )
    return Explanation(sentence, cause="conversion", stage=stage, tap=first)
