"""Golden images: what the recipe makes of them, so that each of its steps can be told apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from levit_export.core.errors import BundleError
from levit_export.core.values import Preprocessing, TensorSpec
from levit_export.inputs import preprocessing
from levit_export.inputs.samples import Samples
from levit_export.storage.device_bundle import arrays, png
from levit_export.storage.device_bundle.description import ImageEntry
from levit_export.storage.export_directory import Manifest

LANDSCAPE, PORTRAIT = "resize-landscape", "resize-portrait"


@dataclass(frozen=True)
class GoldenImage:
    """Pixels as a camera gives them, and the uint8 RGB image that the recipe sees of them."""

    pixels: np.ndarray
    cropped: np.ndarray
    entry: ImageEntry


def collect(manifest: Manifest, samples: Samples) -> dict[str, GoldenImage]:
    """The images behind the golden samples, and two that show the resize.

    Raises ``BundleError`` when the recipe does not lead from a sample's pixels to its input.
    """
    recipe = manifest.model.preprocessing
    found = {
        name: _of_sample(manifest, samples, row)
        for row, name in enumerate(samples.names)
        if name in samples.pixels
    }
    for name, pixels in resize_images(recipe).items():
        cropped = preprocessing.resize_and_crop(recipe, pixels)
        found.setdefault(name, GoldenImage(pixels, cropped, ImageEntry(None, resized=True)))
    return found


def files(images: Mapping[str, GoldenImage]) -> dict[str, bytes]:
    """Pixels and cropped pixels as arrays, pixels also as PNG."""
    written = {}
    for name, image in images.items():
        written[f"golden/pixels/{name}.npy"] = arrays.encode(image.pixels)
        written[f"golden/cropped/{name}.npy"] = arrays.encode(image.cropped)
        written[f"golden/images/{name}.png"] = png.encode(image.pixels)
    return written


def fed(recipe: Preprocessing, spec: TensorSpec, cropped: np.ndarray) -> np.ndarray:
    """The tensor, without batch, that a model with input ``spec`` takes for uint8 ``cropped``.

    A uint8 input takes the pixels as they are, in its own layout: the graph normalises.
    """
    if spec.dtype != "uint8":
        return preprocessing.normalise(recipe, cropped).astype(spec.dtype)
    return cropped if spec.shape[-1] == 3 else np.ascontiguousarray(cropped.transpose(2, 0, 1))


def resize_images(recipe: Preprocessing) -> dict[str, np.ndarray]:
    """A picture wider and larger than what the recipe resizes to, and one taller and smaller."""
    height, width = recipe.resize
    return {
        LANDSCAPE: picture(height * 5 // 4 + 1, width * 7 // 4),
        PORTRAIT: picture(height * 3 // 4, width // 2 + 1),
    }


def picture(height: int, width: int) -> np.ndarray:
    """uint8 RGB with ramps, fine stripes and a disc, by integer arithmetic alone.

    The stripes alias without antialiasing, the ramps show a shift, the disc a wrong aspect ratio.
    """
    y, x = np.indices((height, width))
    ramp_x, ramp_y = 255 * x // max(width - 1, 1), 255 * y // max(height - 1, 1)
    stripes = np.where((x * 3 + y * 2) // 4 % 2, 230, 20)
    radius = min(height, width) // 3
    disc = (x - width // 2) ** 2 + (y - height // 2) ** 2 <= radius**2
    channels = [np.where(disc, stripes, ramp_x), ramp_y, np.where(disc, 255 - ramp_x, 128)]
    return np.stack(channels, axis=2).astype(np.uint8)


def _of_sample(manifest: Manifest, samples: Samples, row: int) -> GoldenImage:
    """Find out whether the sample was resized or is of the model's size as it is."""
    recipe, spec = manifest.model.preprocessing, manifest.signature.inputs[0]
    name, wanted = samples.names[row], samples.inputs[row]
    pixels = samples.pixels[name]
    if pixels.shape == (*recipe.crop, 3) and np.array_equal(fed(recipe, spec, pixels), wanted):
        return GoldenImage(pixels, pixels, ImageEntry(row, resized=False))
    cropped = preprocessing.resize_and_crop(recipe, pixels)
    if not np.array_equal(fed(recipe, spec, cropped), wanted):
        raise BundleError(
            f"the golden input of {name} is not what the recipe makes of its pixels here",
            remedy="Export anew; the directory was edited, or made with a Pillow that resizes "
            "in another way.",
        )
    return GoldenImage(pixels, cropped, ImageEntry(row, resized=True))
