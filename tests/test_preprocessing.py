"""From pixels to the model's input, against Pillow and PyTorch used directly."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from levit_export import preprocessing
from levit_export.core import Preprocessing
from levit_export.errors import DataError
from levit_export.preprocessing import RECIPES

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def photo(height: int, width: int, channels: int | None = 3) -> np.ndarray:
    """A seeded image with structure at every scale."""
    generator = np.random.default_rng(height * width)
    shape = (height, width) if channels is None else (height, width, channels)
    coarse = np.linspace(0, 200, height * width).reshape(shape[:2])
    noise = generator.integers(0, 56, shape)
    return ((coarse if channels is None else coarse[..., None]) + noise).astype(np.uint8)


def as_tensor(pixels: np.ndarray, mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
    """What ``ToTensor`` and ``Normalize`` make of an image, in PyTorch's float32."""
    scaled = torch.from_numpy(pixels.copy()).permute(2, 0, 1).to(torch.float32).div(255)
    shifted = scaled - torch.tensor(mean)[:, None, None]
    return (shifted / torch.tensor(std)[:, None, None]).numpy()


@pytest.mark.parametrize(("height", "width"), [(256, 256), (300, 300), (64, 64), (512, 256)])
def test_evaluation_transform_of_the_authors(height: int, width: int) -> None:
    """Resize the shorter side to 256 bicubically, crop the central 224, normalise by ImageNet."""
    pixels = photo(height, width)
    scale = 256 / min(height, width)
    size = (int(width * scale), int(height * scale))
    resized = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))
    top, left = (resized.shape[0] - 224) // 2, (resized.shape[1] - 224) // 2
    expected = as_tensor(resized[top : top + 224, left : left + 224], MEAN, STD)
    found = preprocessing.apply(RECIPES["fair"], pixels)
    assert (found.shape, found.dtype) == ((3, 224, 224), np.float32)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_digits_recipe() -> None:
    """Digits are stretched to 96x96, repeated over the channels and scaled to -1 … 1."""
    pixels = photo(8, 8, None)
    large = np.asarray(Image.fromarray(pixels).resize((96, 96), Image.Resampling.BICUBIC))
    expected = np.repeat((large[None] / 255 - 0.5) / 0.5, 3, axis=0)
    found = preprocessing.apply(RECIPES["digits"], pixels)
    assert (found.shape, found.dtype) == ((3, 96, 96), np.float32)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)


def test_exact_resize_ignores_the_ratio() -> None:
    """``exact`` brings both sides to the size; nothing is cropped away."""
    pixels = photo(40, 80)
    recipe = Preprocessing("x", (96, 96), (96, 96), resize_mode="exact", interpolation="bilinear")
    large = Image.fromarray(pixels).resize((96, 96), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(preprocessing.resize_and_crop(recipe, pixels), large)


def test_normalisation_is_exact() -> None:
    """All 256 levels are normalised to the float32 that is nearest to the exact value."""
    from fractions import Fraction

    levels = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    found = preprocessing.normalise(RECIPES["fair"], levels)
    for channel in range(3):
        mean, std = Fraction(MEAN[channel]), Fraction(STD[channel])
        exact = [float((Fraction(level, 255) - mean) / std) for level in range(256)]
        np.testing.assert_allclose(found[channel, 0], np.float32(exact), rtol=1.2e-7, atol=1e-9)


def test_channels_are_rgb() -> None:
    """The first channel of the input is the image's red."""
    pixels = np.zeros((96, 96, 3), np.uint8)
    pixels[..., 0] = 255
    found = preprocessing.apply(RECIPES["digits"], pixels)
    assert [found[channel].mean() for channel in range(3)] == [1, -1, -1]


def test_grey_is_repeated() -> None:
    """A grey image gives the same input as the RGB image with three equal channels."""
    grey = photo(50, 70, None)
    colour = np.repeat(grey[..., None], 3, axis=2)
    for recipe in RECIPES.values():
        one, other = preprocessing.apply(recipe, grey), preprocessing.apply(recipe, colour)
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(("side", "resize"), [(224, 256), (256, 293), (160, 183), (112, 128)])
def test_other_sizes(side: int, resize: int) -> None:
    """At another input size the ratio of resize to crop stays the paper's 256:224."""
    recipe = preprocessing.for_image_size(RECIPES["fair"], (side, side))
    assert (recipe.resize, recipe.crop) == ((resize, resize), (side, side))
    assert recipe.mean == MEAN
    assert preprocessing.apply(recipe, photo(300, 400)).shape == (3, side, side)


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4,), np.uint8),
        np.zeros((1, 4, 4, 3), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
    ],
    ids=lambda pixels: f"{pixels.dtype} {pixels.shape}",
)
def test_refused_images(pixels: np.ndarray) -> None:
    """What is no uint8 image is refused with its type and shape, and what would be one."""
    with pytest.raises(DataError) as raised:
        preprocessing.apply(RECIPES["fair"], pixels)
    assert str(pixels.dtype) in raised.value.what
    assert str(pixels.shape) in raised.value.what
    assert "uint8" in raised.value.remedy
