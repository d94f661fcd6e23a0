"""Core ML packages with weights of 8, 6 or 4 bits, and with 8-bit inputs of the layers.

What is compressed is read from the network, and decided here:

- The weights of convolutions and linear layers of more than 2048 numbers. The first convolution of
  every LeViT is smaller. Attention-bias tables are added and not multiplied with; they stay in
  float16, which is 2 % of a float32 file.
- ``w8`` and ``int8``: a symmetric grid per output channel. ``w6`` and ``w4``: a palette per
  tensor, which every system since iOS 16 reads, or per 16 channels from iOS 18 on.
- ``int8``: the inputs of those layers on an affine 8-bit grid over the range that the calibration
  images gave them, except for the first layer and the heads. Attention's own products, softmax
  and the residual sums stay in float16.

coremltools compresses the weights. It calibrates by running the model, which needs a Mac; here
the reference evaluator gives the ranges of the saved float16 package, and the writer puts the
grids in.

The colours of a palette are found by k-means in one dimension (Lloyd, IEEE Transactions on
Information Theory 28, 1982) on sorted numbers, with a bound: k-means alone would let a rare large
weight lie far from every colour. coremltools' own k-means is scikit-learn's, which this package
does not need, and its evenly spaced palettes waste most colours on the rare large weights.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from levit_export.core import packages
from levit_export.core.errors import ExportFailedError
from levit_export.core.network import Network, is_within
from levit_export.core.precisions import PRECISIONS
from levit_export.formats import mil
from levit_export.formats.coreml.package import write_package
from levit_export.formats.coreml.write import Range, name_in
from levit_export.inputs.samples import in_batches

LAYERS = ("convolution", "linear")
WEIGHT_THRESHOLD = 2048
"""Weights of at most so many numbers stay in float16: coremltools' own default."""
GROUP = 16
"""Channels that share a palette, where the system allows more than one a tensor."""
GROUPED_FROM = 9
"""The specification version of iOS 18."""
FLOAT_INPUTS = ("stem.0", "embedding", "head", "head_dist", "distill_head")
"""Blocks that take float16: they cost little, and rounding there shows most."""

LARGEST = 65504 / 2
"""Half of float16's range: a value that comes nearer to its end may leave it on another image."""

MOST_ROUNDS = 300
BLENDS = (0.0, 0.25, 0.5, 0.75)
"""Shares of the even palette that are tried before it is taken whole."""

Palette = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class CompressedLayer:
    """A layer whose weight is compressed: its value, the value it reads, its block, its size."""

    name: str
    source: str
    block: str
    channels: int


def layers(network: Network, keep: Collection[str]) -> list[CompressedLayer]:
    """The layers to compress, in the network's order; the blocks ``keep`` are left out."""
    found = []
    for op in network.ops:
        if op.kind in LAYERS and not is_within(op.block, keep):
            weight = network.constants.get(op.inputs[1], np.zeros(0))
            if weight.size > WEIGHT_THRESHOLD:
                found.append(CompressedLayer(op.output.name, op.inputs[0], op.block, len(weight)))
    return found


def with_grids(found: Sequence[CompressedLayer]) -> list[CompressedLayer]:
    """Those of the layers whose input ``int8`` puts on a grid."""
    return [layer for layer in found if layer.block not in FLOAT_INPUTS]


def observe(converted: Any, values: Collection[str], images: np.ndarray) -> dict[str, Range]:
    """Least and largest number of each of ``values`` over ``images``, by the evaluator.

    ``converted`` is a float16 ``MLModel``. Raises ``ExportFailedError`` where a value comes near
    the end of float16's range.
    """
    with tempfile.TemporaryDirectory(prefix="levit-export-") as folder:
        package = Path(folder, "calibrated.mlpackage")
        write_package(package, converted.get_spec(), Path(converted.weights_dir), {})
        program = mil.load(package)
    (taken,) = (f for f in program.inputs if isinstance(f, mil.ArrayFeature))
    # In the program's order: what comes after an infinity is infinite too.
    names = [name for name in program.value_names if name in values]
    low, high = dict.fromkeys(names, np.inf), dict.fromkeys(names, -np.inf)
    for piece in in_batches(images, taken.shape[0]):
        seen = program.run({taken.name: piece}, taps=names)
        for name in names:
            low[name] = min(low[name], float(seen[name].min()))
            high[name] = max(high[name], float(seen[name].max()))
            if not np.abs(seen[name]).max() < LARGEST:  # so that NaN is refused too
                raise ExportFailedError(
                    f"{name!r} comes near the end of float16 ({LARGEST:.0f}) on a calibration "
                    "image, so it cannot be put on an 8-bit grid",
                    remedy="Export --format coreml as fp32, or as fp16 with --keep and the "
                    "block's name.",
                )
    return {name: (low[name], high[name]) for name in names}


def compress_weights(
    converted: Any, found: Sequence[CompressedLayer], network: Network, to: str
) -> Any:
    """``converted``, an ``MLModel`` of ``network``, with the weights of ``found`` as ``to`` says.

    The weights of other layers stay as they are.
    """
    tools = packages.coremltools("optimize.coreml")
    grouped = converted.get_spec().specificationVersion >= GROUPED_FROM
    if PRECISIONS[to].is_palette:
        shrink = tools.palettize_weights
        paint = {"mode": "custom", "lut_function": palette(PRECISIONS[to].bits)}
        whole = tools.OpPalettizerConfig(**paint)
        shared = tools.OpPalettizerConfig(
            **paint, granularity="per_grouped_channel", group_size=GROUP
        )
    else:
        shrink = tools.linear_quantize_weights
        whole = shared = tools.OpLinearQuantizerConfig(mode="linear_symmetric")
    configs = {
        # coremltools would leave out a weight whose channels do not divide.
        name_in(network, layer.name, half=True): shared
        if grouped and layer.channels % GROUP == 0
        else whole
        for layer in found
    }
    # New names are numbered by a counter of the whole process: emptied, they are always the same.
    packages.coremltools("converters.mil").Builder.name_count.clear()
    return shrink(converted, tools.OptimizationConfig(global_config=None, op_name_configs=configs))


def palette(bits: int) -> Palette:
    """What coremltools calls with a weight: its ``2**bits`` colours and each number's colour.

    The weight comes as float16 of any shape; the colours are float16, ascending, and the indices
    uint8, flat. With c the colours of k-means and u the even ones over the weight's range, the
    colours are ``(1 - t) c + t u`` for the least t of 0, 1/4, 1/2, 3/4 and 1 that keeps every
    number within ``max|w| / (2**(bits - 1) - 1)`` of its colour, the step of a grid of as many
    bits (the even palette always does). The same weight gives the same palette everywhere.
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
