"""From pixels to the model's input: the one place where images are resized and normalised."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np

from levit_export.core import Preprocessing
from levit_export.errors import DataError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

RECIPES: dict[str, Preprocessing] = {
    "fair": Preprocessing("fair", resize=256, crop=224),
    "digits": Preprocessing(
        "digits",
        resize=96,
        crop=96,
        resize_mode="exact",
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    ),
}
"""``fair``: the authors' evaluation transform. ``digits``: the bundled model's own.

Recipes called ``timm`` and ``transformers`` come from a checkpoint's own settings.
"""


def from_fields(
    name: str,
    *,
    resize: int,
    crop: int,
    interpolation: str,
    mean: Any,
    std: Any,
    centre: Literal["rounded", "floored"] = "rounded",
) -> Preprocessing:
    """A recipe from what a configuration file says; ImageNet's mean and deviation if None.

    Raises ``ValueError`` for what cannot be a recipe.
    """
    if interpolation not in ("bicubic", "bilinear"):
        raise ValueError(f"interpolation {interpolation!r} (known: bicubic, bilinear)")
    if not 0 < crop <= resize:
        raise ValueError(f"resize to {resize}, then crop to {crop}")
    means = IMAGENET_MEAN if mean is None else tuple(map(float, mean))
    deviations = IMAGENET_STD if std is None else tuple(map(float, std))
    numbers = (*means, *deviations)
    if len(means) != 3 or len(deviations) != 3 or not all(map(math.isfinite, numbers)):
        raise ValueError(f"mean {mean}, std {std}: three finite numbers each are needed")
    if min(deviations) <= 0:
        raise ValueError(f"std {std}: positive numbers are needed")
    return Preprocessing(
        name,
        resize=resize,
        crop=crop,
        interpolation=interpolation,  # type: ignore[arg-type]
        mean=means,
        std=deviations,
        centre=centre,
    )


def for_image_size(recipe: Preprocessing, image_size: int) -> Preprocessing:
    """``recipe`` at another input size, its ratio of resize to crop kept (paper: 256:224)."""
    if image_size == recipe.crop:
        return recipe
    resize = round(recipe.resize * image_size / recipe.crop)
    fields = {**vars(recipe), "resize": resize, "crop": image_size}
    return Preprocessing(**fields)


def apply(recipe: Preprocessing, pixels: np.ndarray) -> np.ndarray:
    """Turn one image into one input.

    ``pixels`` is uint8, grey ``(H, W)`` or RGB ``(H, W, 3)``; the result is float32
    ``(3, crop, crop)``. Grey is repeated over the channels.
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


def resize_and_crop(recipe: Preprocessing, pixels: np.ndarray) -> np.ndarray:
    """The uint8 RGB image ``(crop, crop, 3)`` that the recipe sees of ``pixels``."""
    from PIL import Image

    is_image = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)
    if pixels.dtype != np.uint8 or not is_image or not pixels.size:
        raise DataError(
            f"an image of type {pixels.dtype} and shape {pixels.shape} cannot be preprocessed",
            remedy="Give uint8 pixels, (height, width) or (height, width, 3).",
        )
    image = Image.fromarray(pixels).convert("RGB")
    width, height = image.size
    if recipe.resize_mode == "exact":
        width = height = recipe.resize
    else:
        short, size = min(width, height), recipe.resize
        # Truncated, as torchvision's Resize does it.
        width, height = int(size * width / short), int(size * height / short)
    filters = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
    image = image.resize((width, height), filters[recipe.interpolation])
    settle = round if recipe.centre == "rounded" else math.floor
    left, top = settle((width - recipe.crop) / 2), settle((height - recipe.crop) / 2)
    return np.asarray(image.crop((left, top, left + recipe.crop, top + recipe.crop)))
