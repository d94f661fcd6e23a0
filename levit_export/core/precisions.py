"""What a precision is: how a file stores the weights of a network, and what it computes in.

This is the only table of them. Formats say which of them they write (``Target.precisions``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

UNIT_ROUNDOFF = {"fp64": 2.0**-53, "fp32": 2.0**-24, "fp16": 2.0**-11, "bf16": 2.0**-8}
"""Largest relative error of rounding to nearest, half the spacing of numbers at 1, for every type
that a runtime may compute in."""


@dataclass(frozen=True)
class Precision:
    """How a file stores weights.

    ``type`` is NumPy's name of the type where weights are stored as they are, rounded once.
    Elsewhere they lie on a grid of ``bits`` bits; where ``is_palette``, one palette of ``2**bits``
    numbers may serve a whole tensor instead. Where ``is_calibrated``, activations go to a grid as
    well, which has to fit real images. Where ``is_hint``, the file holds what one of ``fp32``
    does, and names the type that its runtime is to compute in. ``most_bits`` are what a file
    spends on a weight at most, scales and palettes included. ``scheme`` is how much coarser the
    grids of a sound file may be than those of ``formats.simulated_quantisation``, as a factor of
    its error.
    """

    name: str
    type: str = ""
    bits: int = 0
    is_palette: bool = False
    is_calibrated: bool = False
    is_hint: bool = False
    most_bits: float = math.inf
    scheme: float = 1.0


# With 8-bit activations, products of full-range weights would overflow 16 bits on processors
# without VNNI, so int8 uses half of the range. With a float32 scale for each channel, 8 bits
# become 12 where a channel has 8 weights, which is fewer than any layer of a LeViT. Every
# quantiser settles the ranges of activations in its own way: on the bundled model artifacts lay
# up to 6.2 sigma (OpenVINO, int8) and 3.7 sigma (Core ML, w6) from the reference, with lambda of
# ``checks.tolerance`` some 6.3.
PRECISIONS = {
    each.name: each
    for each in (
        Precision("fp32", "float32"),
        Precision("fp16", "float16", most_bits=24.0),
        Precision("bf16", "float32", is_hint=True),
        Precision("int8", bits=7, is_calibrated=True, most_bits=13.0, scheme=2.0),
        Precision("w8", bits=8, most_bits=13.0),
        Precision("w6", bits=6, is_palette=True, most_bits=7.5),
        Precision("w4", bits=4, is_palette=True, most_bits=5.5),
    )
}
"""Every precision that a file can have, by its name, the finest first."""

FLOATS = {name: each.type for name, each in PRECISIONS.items() if each.type}
"""Precisions whose files store the tensors themselves, and the type they are rounded to."""

GRIDS = {name: each for name, each in PRECISIONS.items() if not each.type}
"""Precisions that store whole numbers, or places in a palette."""

HINTED = tuple(name for name, each in PRECISIONS.items() if each.is_hint)
"""Precisions that a file only asks for: not every processor computes so."""

CALIBRATED = tuple(name for name, each in PRECISIONS.items() if each.is_calibrated)
"""Precisions that need images."""
