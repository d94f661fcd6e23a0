"""Golden images and arrays in the forms that simple readers know.

What the recipe makes of an image is kept step by step, so that a wrong step can be told apart.
Arrays are the plainest ``.npy``, pictures the plainest PNG.
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from levit_export.core.errors import BundleError
from levit_export.core.values import Preprocessing, TensorSpec
from levit_export.inputs import preprocessing
from levit_export.inputs.samples import Samples
from levit_export.storage.device_bundle.description import ImageEntry
from levit_export.storage.export_directory import Manifest

LANDSCAPE, PORTRAIT = "resize-landscape", "resize-portrait"

NPY_MAGIC = b"\x93NUMPY\x01\x00"
NPY_HEADER = re.compile(
    rb"\{'descr': '(<f8|<f4|<f2|\|u1)', 'fortran_order': False, "
    rb"'shape': \(((?:\d{1,10}, ?)*\d{0,10})\), \} *\n"
)
NPY_WIDTH = {b"<f8": 8, b"<f4": 4, b"<f2": 2, b"|u1": 1}
NPY_PREFIX = 4096
"""More than any header of this form takes."""


PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
GREY, RGB = 0, 2
DEFLATE_BLOCK = 65535
"""Most bytes of a deflate block that is stored as it is."""


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
        written[f"golden/pixels/{name}.npy"] = encode_array(image.pixels)
        written[f"golden/cropped/{name}.npy"] = encode_array(image.cropped)
        written[f"golden/images/{name}.png"] = encode_png(image.pixels)
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
    # Floating-point arithmetic might differ between machines, and the bundle's bytes with it.
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


def encode_array(array: np.ndarray) -> bytes:
    """``array`` as ``.npy`` version 1.0, little-endian, in C order."""
    buffer = io.BytesIO()
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    np.save(buffer, np.ascontiguousarray(little))
    return buffer.getvalue()


def check_array(name: str, start: bytes, size: int) -> None:
    """Raise ``BundleError`` unless a file of ``size`` bytes that begins with ``start`` is such an
    array: a header that promises more than the file holds makes NumPy ask for the memory.
    """
    header, ends = b"", 0
    if start.startswith(NPY_MAGIC) and len(start) >= len(NPY_MAGIC) + 2:
        (length,) = struct.unpack_from("<H", start, len(NPY_MAGIC))
        ends = len(NPY_MAGIC) + 2 + length
        header = start[len(NPY_MAGIC) + 2 : ends]
    match = NPY_HEADER.fullmatch(header)
    if match:
        count = 1
        for number in match[2].replace(b" ", b"").split(b","):
            count *= int(number) if number else 1
        if count * NPY_WIDTH[match[1]] == size - ends:
            return
    raise BundleError(
        f"{name} is not an array of the form that bundles hold",
        remedy="It has to be .npy 1.0, little-endian, in C order, of float or uint8 numbers.",
    )


def encode_png(pixels: np.ndarray) -> bytes:
    """``pixels`` uint8 ``(H, W)`` or ``(H, W, 3)`` as PNG: no filter, nothing compressed.

    A library would leave the encoding to zlib, whose versions and forks differ even where nothing
    is compressed; equal pixels have to give equal bytes.
    """
    height, width = pixels.shape[:2]
    rows = np.zeros((height, 1 + pixels[0].size), np.uint8)
    rows[:, 1:] = pixels.reshape(height, -1)
    raw = rows.tobytes()
    # A zlib stream (RFC 1950) of stored deflate blocks (RFC 1951, 3.2.4).
    body = [b"\x78\x01"]
    for start in range(0, len(raw), DEFLATE_BLOCK):
        block = raw[start : start + DEFLATE_BLOCK]
        is_last = start + DEFLATE_BLOCK >= len(raw)
        body.append(struct.pack("<B2H", is_last, len(block), len(block) ^ 0xFFFF) + block)
    body.append(struct.pack(">I", zlib.adler32(raw)))
    kind = GREY if pixels.ndim == 2 else RGB
    header = struct.pack(">2I5B", width, height, 8, kind, 0, 0, 0)
    written = [PNG_SIGNATURE]
    for name, content in ((b"IHDR", header), (b"IDAT", b"".join(body)), (b"IEND", b"")):
        checksum = struct.pack(">I", zlib.crc32(name + content))
        written.append(struct.pack(">I", len(content)) + name + content + checksum)
    return b"".join(written)
