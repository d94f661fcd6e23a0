"""Intervals and tests for counts of right answers.

Wilson's score interval (E. B. Wilson, JASA 22, 1927; recommended by Brown, Cai and DasGupta,
Statistical Science 16, 2001) and McNemar's exact test (Q. McNemar, Psychometrika 12, 1947).
"""

from __future__ import annotations

from math import sqrt

Z_95 = 1.959963984540054
"""The 97.5 % quantile of the standard normal distribution."""


def wilson(k: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a proportion of which ``k`` of ``n`` were seen.

    With z the normal quantile, the ends are the p for which ``|k/n - p| = z sqrt(p (1-p) / n)``::

        (k + z^2/2 ± z sqrt(k (n-k) / n + z^2/4)) / (n + z^2)

    Unlike ``k/n ± z sqrt(…)`` it stays within 0 and 1 and has a width where k is 0 or n. Raises
    ``ValueError`` unless 0 <= k <= n and n >= 1.
    """
    if not 0 <= k <= n or n < 1:
        raise ValueError(f"{k} of {n}")
    z = Z_95
    centre = k + z**2 / 2
    half = z * sqrt(k * (n - k) / n + z**2 / 4)
    # Rounding must not push the ends past the values that they have exactly at k = 0 and k = n.
    low = 0.0 if k == 0 else (centre - half) / (n + z**2)
    high = 1.0 if k == n else (centre + half) / (n + z**2)
    return low, high


def mcnemar(b: int, c: int) -> float:
    """Two-sided p of as uneven a split of the discordant pairs by chance, the exact test.

    ``b`` images are right by one model alone, ``c`` by the other alone. If both models are equally
    good, each such image falls to either side like a coin, so with n = b + c and m = min(b, c)::

        p = min(1, 2 sum_{i=0}^{m} C(n, i) / 2^n)

    Without discordant pairs p is 1. The sum is exact, in whole numbers. Raises ``ValueError`` for
    negative counts.
    """
    if b < 0 or c < 0:
        raise ValueError(f"{b} and {c} pairs")
    n, m = b + c, min(b, c)
    total = term = 1
    for i in range(1, m + 1):
        term = term * (n - i + 1) // i
        total += term
    return min(1.0, 2 * total / (1 << n))
