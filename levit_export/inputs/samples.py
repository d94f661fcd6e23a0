"""The inputs of a check: seeded noise, adversarial images, and real images where there are any."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from levit_export.core.errors import DataError
from levit_export.core.values import Preprocessing, Size, TensorSpec
from levit_export.inputs import preprocessing

NORMAL_SAMPLES = 4


@dataclass(frozen=True)
class Samples:
    """Named inputs ``(n, 3, H, W)`` float32; ``labels`` is -1 where the class is not known.

    ``pixels`` holds the uint8 image behind a sample, where one exists.
    """

    names: tuple[str, ...]
    inputs: np.ndarray
    labels: np.ndarray
    pixels: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.names)

    def __post_init__(self) -> None:
        if not len(self.names) == len(self.inputs) == len(self.labels):
            raise DataError(
                f"{len(self.names)} names, {len(self.inputs)} inputs, {len(self.labels)} labels",
                remedy="Give one of each for every sample.",
            )

    def first(self, count: int) -> Samples:
        """The first ``count`` samples."""
        names = self.names[:count]
        pixels = {name: self.pixels[name] for name in names if name in self.pixels}
        return Samples(names, self.inputs[:count], self.labels[:count], pixels)

    def raw(self, recipe: Preprocessing) -> tuple[Samples, np.ndarray]:
        """The samples that have pixels, as the bytes that the recipe normalises; their rows.

        Inputs become uint8 ``(rows, H, W, 3)``.
        """
        rows = np.array([i for i, name in enumerate(self.names) if name in self.pixels], int)
        names = tuple(self.names[row] for row in rows)
        inputs = preprocessing.pixels_of(recipe, self.inputs[rows])
        return Samples(names, inputs, self.labels[rows], self.pixels), rows

    def joined(self, other: Samples) -> Samples:
        """These samples, then ``other``'s."""
        return Samples(
            self.names + other.names,
            np.concatenate([self.inputs, other.inputs]),
            np.concatenate([self.labels, other.labels]),
            {**self.pixels, **other.pixels},
        )

    def batches(self, batch: int | None) -> Iterator[tuple[np.ndarray, int]]:
        """Inputs in pieces, each with the number of its rows that count.

        A fixed ``batch`` is filled up by repeating the last row. Where any batch will do, sizes
        1, 2, 3, 1, … are used, so that an export that only pretends to be dynamic fails.
        """
        start, turn = 0, 0
        while start < len(self):
            size = batch or 1 + turn % 3
            piece = self.inputs[start : start + size]
            yield np.ascontiguousarray(filled(piece, batch or len(piece))), len(piece)
            start, turn = start + size, turn + 1


def filled(inputs: np.ndarray, size: int) -> np.ndarray:
    """``inputs`` ``(n, ...)`` with n from 1 to ``size`` as a batch: the last row is repeated."""
    return np.concatenate([inputs, np.repeat(inputs[-1:], size - len(inputs), axis=0)])


def in_batches(inputs: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """``inputs`` ``(n, ...)`` in batches of ``size``, the last one filled up."""
    for start in range(0, len(inputs), size):
        yield filled(inputs[start : start + size], size)


def seeded(spec: TensorSpec) -> np.ndarray:
    """Seeded numbers that fit ``spec``: any byte, or normally distributed; 1 for what is open."""
    generator = np.random.default_rng(0)
    shape = [dimension or 1 for dimension in spec.shape]
    if spec.dtype == "uint8":
        return generator.integers(0, 256, shape, dtype=np.uint8)
    return generator.standard_normal(shape).astype(spec.dtype)


def adversarial_images(size: Size, seed: int) -> dict[str, np.ndarray]:
    """Images at the edges of what a camera gives, uint8 ``(*size, 3)``."""
    generator = np.random.default_rng(seed)
    height, width = size
    rows, columns = np.indices(size)
    checkerboard = ((rows // 8 + columns // 8) % 2 * 255).astype(np.uint8)
    across, down = (np.linspace(0, 255, side).astype(np.uint8) for side in (width, height))
    return {
        "black": np.zeros((*size, 3), np.uint8),
        "white": np.full((*size, 3), 255, np.uint8),
        "checkerboard": np.repeat(checkerboard[..., None], 3, axis=2),
        "saturated": (generator.integers(0, 2, (*size, 3)) * 255).astype(np.uint8),
        "noise": generator.integers(0, 256, (*size, 3), dtype=np.uint8),
        # One colour per channel and a direction per axis: swapped channels and flips show here.
        "gradient": np.stack(
            [np.tile(across, (height, 1)), np.tile(down[:, None], (1, width)), checkerboard],
            axis=2,
        ),
    }


def make(recipe: Preprocessing, *, seed: int = 0) -> Samples:
    """Standard-normal tensors and adversarial images for a model with this recipe."""
    generator = np.random.default_rng(seed)
    normal = generator.standard_normal((NORMAL_SAMPLES, 3, *recipe.crop)).astype(np.float32)
    images = adversarial_images(recipe.crop, seed)
    names = (*(f"normal-{i}" for i in range(NORMAL_SAMPLES)), *images)
    inputs = [*normal, *(preprocessing.normalise(recipe, image) for image in images.values())]
    return Samples(names, np.stack(inputs), np.full(len(names), -1), images)


def from_images(recipe: Preprocessing, pixels: np.ndarray, labels: np.ndarray) -> Samples:
    """Real images, uint8 ``(n, H, W)`` or ``(n, H, W, 3)``, through the model's own recipe."""
    names = tuple(f"real-{index}" for index in range(len(pixels)))
    inputs = np.stack([preprocessing.apply(recipe, image) for image in pixels])
    return Samples(names, inputs, labels, dict(zip(names, pixels, strict=True)))


def held_out_digits() -> tuple[np.ndarray, np.ndarray]:
    """The bundled model's held-out images, uint8 ``(360, 8, 8)``, and their labels."""
    return _digits("heldout")


def calibration_digits() -> tuple[np.ndarray, np.ndarray]:
    """Images that the bundled model was trained on, uint8 ``(200, 8, 8)``, and their labels."""
    return _digits("calibration")


def _digits(part: str) -> tuple[np.ndarray, np.ndarray]:
    from importlib import resources

    with (resources.files("levit_export.inputs.data") / "digits.npz").open("rb") as file:
        digits = np.load(file)
        return digits[f"{part}_images"], digits[f"{part}_labels"]
