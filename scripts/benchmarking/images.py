"""Images with structure, made from a seed: for timing where there are no photographs."""

from __future__ import annotations

import numpy as np
from PIL import Image

COARSE = 8
RECTANGLES = 6


def structured(count: int, side: int, seed: int = 0) -> np.ndarray:
    """Smooth colour fields with sharp rectangles: uint8 ``(count, side, side, 3)``."""
    generator = np.random.default_rng(seed)
    return np.stack([_image(generator, side) for _ in range(count)])


def _image(generator: np.random.Generator, side: int) -> np.ndarray:
    coarse = generator.integers(0, 256, (COARSE, COARSE, 3), dtype=np.uint8)
    field = Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)
    image = np.array(field)
    for _ in range(RECTANGLES):
        (top, bottom), (left, right) = np.sort(generator.integers(0, side, (2, 2)), axis=1)
        image[top:bottom, left:right] = generator.integers(0, 256, 3, dtype=np.uint8)
    return image
