"""What a network's files of 8, 6 or 4 bits hold in place of its weights, for every Apple format.

Compressed are the weights of convolutions and linear layers of more than 2048 numbers. The first
convolution of every LeViT is smaller. Attention-bias tables are added and not multiplied with;
they stay in float16, which is 2 % of a float32 file.

The colours of a palette are found by k-means in one dimension (Lloyd, IEEE Transactions on
Information Theory 28, 1982) on sorted numbers, with a bound: k-means alone would let a rare large
weight lie far from every colour. coremltools' own k-means is scikit-learn's, which this package
does not need, and its evenly spaced palettes waste most colours on the rare large weights.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np

from levit_export.core.network import Network, is_within

LAYERS = ("convolution", "linear")
WEIGHT_THRESHOLD = 2048
"""Weights of at most so many numbers stay in float16: coremltools' own default."""
GROUP = 16
"""Channels that share a palette, where a tensor may have more than one."""

MOST_ROUNDS = 300
BLENDS = (0.0, 0.25, 0.5, 0.75)
"""Shares of the even palette that are tried before it is taken whole."""

Palette = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class CompressedLayer:
    """A layer whose weight is compressed: its value, the value it reads, its block, its size.

    ``weight`` is the weight's name.
    """

    name: str
    source: str
    weight: str
    block: str
    channels: int


def layers(network: Network, keep: Collection[str]) -> list[CompressedLayer]:
    """The layers to compress, in the network's order; the blocks ``keep`` are left out."""
    found = []
    for op in network.ops:
        if op.kind in LAYERS and not is_within(op.block, keep):
            weight = network.constants.get(op.inputs[1], np.zeros(0))
            if weight.size > WEIGHT_THRESHOLD:
                source, name = op.inputs[:2]
                layer = CompressedLayer(op.output.name, source, name, op.block, len(weight))
                found.append(layer)
    return found


def palette(bits: int) -> Palette:
    """What makes of a weight its ``2**bits`` colours and each number's colour.

    The weight comes as float16 of any shape; the colours are float16, ascending, and the indices
    uint8, flat, as coremltools expects them. With c the colours of k-means and u the even ones
    over the weight's range, the colours are ``(1 - t) c + t u`` for the least t of 0, 1/4, 1/2,
    3/4 and 1 that keeps every number within ``max|w| / (2**(bits - 1) - 1)`` of its colour, the
    step of a grid of as many bits (the even palette always does). The same weight gives the same
    palette everywhere.
    """
    return lambda weight: _painted(weight, 2**bits, 1 / (2 ** (bits - 1) - 1))


def _painted(weight: np.ndarray, colours: int, within: float) -> tuple[np.ndarray, np.ndarray]:
    values, inverse, counts = np.unique(
        weight.reshape(-1), return_inverse=True, return_counts=True
    )
    x = values.astype(np.float64)
    if len(x) <= colours:
        table = np.full(colours, values[-1], dtype=weight.dtype)
        table[: len(x)] = values
        return table, inverse.reshape(-1).astype(np.uint8)
    even = np.linspace(x[0], x[-1], colours)
    fitted = _k_means(x, counts, even)
    bound = within * float(np.abs(x).max())
    for t in (*BLENDS, 1.0):
        table = ((1 - t) * fitted + t * even).astype(weight.dtype)
        nearest = _nearest(table.astype(np.float64), x)
        if np.abs(table.astype(np.float64)[nearest] - x).max() <= bound:
            break
    return table, nearest[inverse.reshape(-1)].astype(np.uint8)


def _k_means(x: np.ndarray, counts: np.ndarray, even: np.ndarray) -> np.ndarray:
    """Colours for the ascending numbers ``x``, each seen ``counts`` times: ``(colours,)``.

    K-means ends where it depends on its start: of the ends from the even colours, the quantiles
    and halfway between, the one with the least squared error.
    """
    shares = (np.arange(len(even)) + 0.5) / len(even) * counts.sum()
    quantiles = np.interp(shares, np.cumsum(counts), x)
    ends = [_settled(x, counts, s * even + (1 - s) * quantiles) for s in (0.0, 0.5, 1.0)]
    return min(ends, key=lambda c: float((counts * (c[_nearest(c, x)] - x) ** 2).sum()))


def _settled(x: np.ndarray, counts: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Every colour in the middle of the numbers nearest to it, or where it was if none is."""
    weights = np.concatenate([[0.0], np.cumsum(counts)])
    sums = np.concatenate([[0.0], np.cumsum(counts * x)])
    c = start
    for _ in range(MOST_ROUNDS):
        edges = np.concatenate([[0], _nearest_edges(c, x), [len(x)]])
        size = weights[edges[1:]] - weights[edges[:-1]]
        total = sums[edges[1:]] - sums[edges[:-1]]
        moved = np.where(size > 0, total / np.maximum(size, 1), c)
        if np.array_equal(moved, c):
            break
        c = moved
    return c


def _nearest_edges(table: np.ndarray, x: np.ndarray) -> np.ndarray:
    """How many of the ascending ``x`` lie below the middle of each two neighbouring colours."""
    edges: np.ndarray = np.searchsorted(x, (table[1:] + table[:-1]) / 2)
    return edges


def _nearest(table: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The index of the colour in the ascending ``table`` that lies nearest to each of ``x``."""
    nearest: np.ndarray = np.searchsorted((table[1:] + table[:-1]) / 2, x)
    return nearest
