"""From pixels to the model's input, against Pillow and PyTorch used directly."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from levit_export.core.errors import DataError, UsageError
from levit_export.core.values import Preprocessing
from levit_export.inputs import preprocessing
from levit_export.inputs.preprocessing import RECIPES

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


STATED = {
    "resize": [70, 80],
    "crop": [64, 72],
    "resize_mode": "fit",
    "interpolation": "lanczos",
    "mean": [0, 0.5, 1],
    "std": [1, 0.5, 0.25],
}


def stated(folder: Path, content: object) -> Path:
    """A file that states a recipe."""
    file = folder / "recipe.json"
    file.write_text(json.dumps(content), encoding="utf-8")
    return file


def test_a_recipe_is_stated_in_a_file(tmp_path: Path) -> None:
    """What a manifest holds can be written by hand; name, centre and fill may be left out."""
    recipe = preprocessing.read(stated(tmp_path, STATED))
    assert recipe == Preprocessing(
        "given", (70, 80), (64, 72), "fit", "lanczos", (0, 0.5, 1), (1, 0.5, 0.25)
    )
    for known in (recipe, *RECIPES.values()):
        assert preprocessing.read(stated(tmp_path, asdict(known))) == known
    full = {**STATED, "name": "mine", "centre": "floored", "fill": [1, 2, 255]}
    assert preprocessing.read(stated(tmp_path, full)).fill == (1, 2, 255)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"crop": 224}, "crop is 224; 2 whole numbers in a list are needed"),
        ({"crop": [64, 64.0]}, "crop is .* 2 whole numbers"),
        ({"crop": [64, True]}, "crop is .* 2 whole numbers"),
        ({"crop": [0, 64]}, r"crop \(0, 64\): sides of 1 to"),
        ({"resize": [2**20, 64]}, "resize .* sides of 1 to 16384"),
        ({"resize_mode": "shorter-side"}, "the shorter side has one length"),
        ({"resize_mode": "stretch"}, "resize_mode is 'stretch' .known: shorter-side, exact"),
        ({"interpolation": "cubic"}, "interpolation is 'cubic'"),
        ({"centre": "left"}, "centre is 'left'"),
        ({"mean": [0, 0]}, "mean is .* 3 numbers"),
        ({"mean": [0, 0, float("nan")]}, "finite"),
        ({"std": [0, 1, 1]}, "std .* positive"),
        ({"fill": [0, 0, 256]}, "fill .* 0 to 255"),
        ({"name": "digits"}, "name is 'digits', which is that of another recipe"),
        ({"name": "a\nb"}, "name is 'a.nb'"),
        ({"size": 3}, "'size' is not a setting"),
    ],
)
def test_statements_that_are_none(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    """Every setting that cannot be is refused by its name, and so is one that is missing."""
    with pytest.raises(DataError, match=message) as refused:
        preprocessing.read(stated(tmp_path, {**STATED, **change}))
    assert "docs/checkpoints.md" in refused.value.remedy


@pytest.mark.parametrize("key", STATED)
def test_nothing_of_a_statement_is_guessed(tmp_path: Path, key: str) -> None:
    """A setting that is left out is asked for, not filled in."""
    content = {name: value for name, value in STATED.items() if name != key}
    with pytest.raises(DataError, match=f"'{key}' is missing"):
        preprocessing.read(stated(tmp_path, content))


def test_files_that_state_nothing(tmp_path: Path) -> None:
    """A missing file, another type of JSON and no JSON are each said."""
    with pytest.raises(DataError, match="No such file"):
        preprocessing.read(tmp_path / "none.json")
    with pytest.raises(DataError, match="a JSON list"):
        preprocessing.read(stated(tmp_path, [1]))
    (tmp_path / "recipe.json").write_text("resize: 3")
    with pytest.raises(DataError, match="Expecting value"):
        preprocessing.read(tmp_path / "recipe.json")


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        (
            Preprocessing("x", (248, 248), (224, 224)),
            "resize the shorter side to 248 px (bicubic, antialiased); centre crop 224 px "
            "(offset rounded)",
        ),
        (
            Preprocessing("x", (142, 568), (128, 512), "cover", "nearest", centre="floored"),
            "resize, keeping the aspect ratio, until it just covers 142x568 px (height x width) "
            "(nearest); centre crop 128x512 px (height x width) (offset floored)",
        ),
        (
            Preprocessing("x", (96, 96), (96, 96), "fit", fill=(1, 2, 3)),
            "until it just fits into 96 px (bicubic, antialiased); centre crop 96 px "
            "(offset rounded, pixels outside the image are [1, 2, 3])",
        ),
        (
            Preprocessing("x", (96, 96), (96, 96), "none", centre="truncated"),
            "no resize; centre crop 96 px (offset truncated, pixels outside the image are "
            "[0, 0, 0])",
        ),
    ],
    ids=lambda value: getattr(value, "resize_mode", ""),
)
def test_a_recipe_in_words(recipe: Preprocessing, words: str) -> None:
    """The sentence for the device's programmer names every step that the recipe has."""
    assert words in recipe.in_words()


def test_a_recipe_that_grows_too_large() -> None:
    """A size that no picture can be brought to is refused, not a fault of the toolchain."""
    recipe = Preprocessing("x", (16000, 16000), (224, 224))
    with pytest.raises(UsageError, match="cannot be scaled to 256x256 px: resize"):
        preprocessing.for_image_size(recipe, (256, 256))
