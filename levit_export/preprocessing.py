"""From pixels to the model's input: the one place where images are resized and normalised."""

from __future__ import annotations

import numpy as np

from levit_export.core import Preprocessing
from levit_export.errors import DataError

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
"""``fair``: the authors' evaluation transform. ``digits``: the bundled model's own."""


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
        scale = recipe.resize / min(width, height)
        # Truncated, as torchvision's Resize does it.
        width, height = int(width * scale), int(height * scale)
    filters = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
    image = image.resize((width, height), filters[recipe.interpolation])
    left, top = round((width - recipe.crop) / 2), round((height - recipe.crop) / 2)
    return np.asarray(image.crop((left, top, left + recipe.crop, top + recipe.crop)))
