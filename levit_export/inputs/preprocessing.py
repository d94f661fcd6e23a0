"""From pixels to the model's input: the one place where images are resized and normalised."""

from __future__ import annotations

import json
import math
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np

from levit_export.core import files
from levit_export.core.errors import DataError, UsageError
from levit_export.core.values import Centre, Interpolation, Preprocessing, Resize, Size

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

RECIPES: dict[str, Preprocessing] = {
    "fair": Preprocessing("fair", resize=(256, 256), crop=(224, 224)),
    "digits": Preprocessing(
        "digits",
        resize=(96, 96),
        crop=(96, 96),
        resize_mode="exact",
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    ),
}
"""``fair``: the authors' evaluation transform. ``digits``: the bundled model's own.

Recipes called ``timm`` and ``transformers`` are those libraries', by a checkpoint's settings.
"""


GIVEN = "given"
"""What a recipe is called that a user states without a name."""
REQUIRED = ("resize", "crop", "resize_mode", "interpolation", "mean", "std")
LARGEST_FILE = 2**16


def read(file: Path) -> Preprocessing:
    """The recipe that a JSON file states, in the words of a manifest.

    All of it but ``name``, ``centre`` and ``fill`` has to be there. Raises ``DataError``.
    """
    try:
        with files.open_regular(file) as stream:
            content = json.loads(stream.read(LARGEST_FILE).decode("utf-8-sig"))
        return from_json(content)
    except (OSError, TypeError, ValueError, RecursionError) as error:
        detail = error.strerror if isinstance(error, OSError) else error
        raise DataError(
            f"{file} does not state a preprocessing: {detail}",
            remedy="Write it as docs/checkpoints.md shows, or copy model.preprocessing of a "
            "manifest.json.",
        ) from error


def from_json(content: Any) -> Preprocessing:
    """The recipe that parsed JSON spells out.

    Raises ``TypeError`` and ``ValueError``, which name the setting.
    """
    if not isinstance(content, dict):
        raise TypeError(f"it holds a JSON {type(content).__name__}, not an object")
    known = [field.name for field in fields(Preprocessing)]
    if strange := sorted(content.keys() - known):
        raise ValueError(f"{strange[0]!r} is not a setting (known: {', '.join(known)})")
    if missing := [key for key in REQUIRED if key not in content]:
        raise ValueError(f"{missing[0]!r} is missing")
    choices = {
        "resize_mode": get_args(Resize),
        "interpolation": get_args(Interpolation),
        "centre": get_args(Centre),
    }
    for key, names in choices.items():
        if content.get(key, names[0]) not in names:
            raise ValueError(f"{key} is {content[key]!r} (known: {', '.join(names)})")
    for key, (count, kind) in LISTS.items():
        value = content.get(key, [0] * count)
        numbers = value if isinstance(value, list) else []
        if len(numbers) != count or any(
            isinstance(number, bool) or not isinstance(number, kind) for number in numbers
        ):
            words = "whole numbers" if kind is int else "numbers"
            raise ValueError(f"{key} is {value!r}; {count} {words} in a list are needed")
    name = content.get("name", GIVEN)
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w .-]{0,63}", name):
        raise ValueError(
            f"name is {name!r}; up to 64 letters, digits, blanks, '.', '-' are needed"
        )
    lists = {key: tuple(content[key]) for key in LISTS if key in content}
    recipe = Preprocessing(**{**content, **lists, "name": name})
    if name in RECIPES and recipe != RECIPES[name]:
        raise ValueError(f"name is {name!r}, which is that of another recipe")
    return recipe


LISTS: dict[str, tuple[int, Any]] = {
    "resize": (2, int),
    "crop": (2, int),
    "mean": (3, int | float),
    "std": (3, int | float),
    "fill": (3, int),
}
"""How many numbers a setting has, and of which kind."""


def sides_of(key: str, value: Any) -> Size:
    """Height and width of a setting that is one whole number or a list of two.

    Raises ``ValueError``, which names the setting.
    """
    sides = [value, value] if type(value) is int else value
    if isinstance(sides, list) and len(sides) == 2:
        height, width = sides
        if type(height) is int and type(width) is int and min(sides) > 0:
            return height, width
    raise ValueError(f"{key} is {value!r}; one whole number or two are needed")


def three_of(key: str, numbers: Any) -> tuple[float, float, float]:
    """The numbers of a setting that has one for each channel.

    Raises ``ValueError``, which names the setting.
    """
    if (
        not isinstance(numbers, list | tuple)
        or len(numbers) != 3
        or not all(isinstance(one, int | float) and not isinstance(one, bool) for one in numbers)
    ):
        raise ValueError(f"{key} is {numbers!r}; three numbers are needed")
    red, green, blue = map(float, numbers)
    return red, green, blue


def for_image_size(recipe: Preprocessing, crop: Size) -> Preprocessing:
    """``recipe`` at another input size, its ratio of resize to crop kept (paper: 256:224)."""
    if crop == recipe.crop:
        return recipe
    height, width = (
        round(resize * side / before)
        for resize, side, before in zip(recipe.resize, crop, recipe.crop, strict=True)
    )
    # One number for the shorter side cannot cover a rectangle.
    is_covered = recipe.resize_mode == "shorter-side" and height != width
    mode = "cover" if is_covered else recipe.resize_mode
    try:
        return replace(recipe, resize=(height, width), crop=crop, resize_mode=mode)
    except ValueError as error:
        raise UsageError(
            f"the preprocessing {recipe.name} cannot be scaled to {crop[0]}x{crop[1]} px: {error}",
            remedy="Give a smaller --imgsz, or state the recipe with --preprocessing FILE.",
        ) from error


def apply(recipe: Preprocessing, pixels: np.ndarray) -> np.ndarray:
    """Turn one image into one input.

    ``pixels`` is uint8, grey ``(H, W)`` or RGB ``(H, W, 3)``; the result is float32
    ``(3, *crop)``. Grey is repeated over the channels.
    """
    return normalise(recipe, resize_and_crop(recipe, pixels))


def normalise(recipe: Preprocessing, pixels: np.ndarray) -> np.ndarray:
    """``(p / 255 - mean) / std`` of uint8 ``(H, W, 3)`` as float32 ``(3, H, W)``.

    Computed in float64 and rounded once, so that the result does not depend on the order of the
    operations.
    """
    scaled = (pixels.astype(np.float64) / 255 - np.array(recipe.mean)) / np.array(recipe.std)
    return np.ascontiguousarray(scaled.transpose(2, 0, 1), dtype=np.float32)


def pixels_of(recipe: Preprocessing, inputs: np.ndarray) -> np.ndarray:
    """The uint8 images ``(n, H, W, 3)`` that became ``inputs`` ``(n, 3, H, W)`` normalised.

    Exact: float32 keeps 255 levels apart by far.
    """
    values = inputs.transpose(0, 2, 3, 1).astype(np.float64)
    levels = np.rint((values * np.array(recipe.std) + np.array(recipe.mean)) * 255)
    return np.ascontiguousarray(levels.clip(0, 255).astype(np.uint8))


def resized_size(recipe: Preprocessing, height: int, width: int) -> Size:
    """What an image of ``height`` and ``width`` is resized to; a side may come out as 0."""
    if recipe.resize_mode == "none":
        return height, width
    if recipe.resize_mode == "exact":
        return recipe.resize
    if recipe.resize_mode == "shorter-side":
        short, size = min(height, width), recipe.resize[0]
        # Multiplied first and truncated, as torchvision's Resize and transformers do it.
        return int(size * height / short), int(size * width / short)
    ratios = (height / recipe.resize[0], width / recipe.resize[1])
    ratio = max(ratios) if recipe.resize_mode == "fit" else min(ratios)
    return round(height / ratio), round(width / ratio)  # as timm's ResizeKeepRatio does it


def crop_offset(recipe: Preprocessing, side: int, crop: int) -> int:
    """Where the crop starts along a side; negative where it reaches beyond the image."""
    half = (side - crop) / 2
    if recipe.centre == "floored":
        return math.floor(half)
    return round(half) if recipe.centre == "rounded" and half > 0 else int(half)


def resize_and_crop(recipe: Preprocessing, pixels: np.ndarray) -> np.ndarray:
    """The uint8 RGB image ``(*crop, 3)`` that the recipe sees of ``pixels``."""
    from PIL import Image

    is_image = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)
    if pixels.dtype != np.uint8 or not is_image or not pixels.size:
        raise DataError(
            f"an image of type {pixels.dtype} and shape {pixels.shape} cannot be preprocessed",
            remedy="Give uint8 pixels, (height, width) or (height, width, 3).",
        )
    height, width = resized_size(recipe, *pixels.shape[:2])
    if not height or not width:
        raise DataError(
            f"an image of {pixels.shape[0]} x {pixels.shape[1]} pixels vanishes when it is "
            f"resized to fit into {recipe.resize[0]} x {recipe.resize[1]}",
            remedy="Leave this image out.",
        )
    image = Image.fromarray(pixels).convert("RGB")
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling[recipe.interpolation.upper()])
    seen = Image.new("RGB", recipe.crop[::-1], recipe.fill)
    left = crop_offset(recipe, width, recipe.crop[1])
    top = crop_offset(recipe, height, recipe.crop[0])
    seen.paste(image, (-left, -top))
    return np.asarray(seen)
