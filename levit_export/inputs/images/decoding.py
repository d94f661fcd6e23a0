"""One image file to uint8 RGB pixels, by Pillow, within bounds.

What becomes of a file is what training pipelines make of it (torchvision's ``pil_loader``), so
that accuracies can be compared:

- grey, palette, 1-bit, CMYK and YCbCr are converted as Pillow does; transparency is dropped, and
  the colour beneath it shows;
- 16-bit grey is divided by 257, so that white stays white (Pillow would clip it at 255);
- 32-bit integers are taken as 16-bit where they fit, and refused where not; floats are refused,
  for nothing says which of them is white;
- the EXIF orientation is applied, which torchvision leaves out: it is how the image is shown;
- of several frames or pages the first is taken.
"""

from __future__ import annotations

import warnings
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from levit_export.core import files
from levit_export.inputs.images.image_set import LARGEST_PIXELS, UnreadableImageError

if TYPE_CHECKING:
    from PIL.Image import Image

_USUAL = (".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
SUFFIXES = frozenset((*_USUAL, ".pgm", ".pnm", ".ppm"))
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What Pillow may take a file for, whatever its suffix; EPS, for one, would start Ghostscript."""

SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N")
ORIENTATION = 0x0112
TO_EIGHT_BIT = 257
"""65535 / 255."""


def decode(path: Path) -> np.ndarray:
    """The pixels ``(H, W, 3)`` of an image file; raises ``UnreadableImageError``."""
    from PIL import Image, UnidentifiedImageError

    try:
        # Before Pillow opens it: opening a named pipe would wait for ever.
        is_empty = not files.require_regular(path).stat().st_size
    except OSError as error:
        raise UnreadableImageError(error.strerror or str(error)) from error
    if is_empty:
        raise UnreadableImageError("is empty")
    try:
        with warnings.catch_warnings():
            # Of odd metadata, and of large images, which are refused below.
            warnings.simplefilter("ignore")
            with Image.open(path, formats=FORMATS) as image:
                refuse_large(image.height, image.width)
                # Pixels first: Pillow turns a TIFF while it loads it, and takes the tag away.
                pixels, orientation = _rgb(image), 1
                with suppress(Exception):  # a tag that cannot be read does not say anything
                    orientation = int(image.getexif().get(ORIENTATION, 1))
                return np.asarray(_upright(pixels, orientation))
    except (UnreadableImageError, KeyboardInterrupt):
        raise
    except UnidentifiedImageError as error:
        raise UnreadableImageError("not an image of a known format") from error
    except Exception as error:  # decoders of damaged files raise anything
        text = (str(error).strip().splitlines() or [""])[0][:200]
        raise UnreadableImageError(text or type(error).__name__) from error


def refuse_large(height: int, width: int) -> None:
    """Raise for a size that would take gigabytes, which a header of a few bytes can claim."""
    if height * width > LARGEST_PIXELS:
        raise UnreadableImageError(
            f"{width} x {height} pixels; at most {LARGEST_PIXELS // 2**20} Mi pixels are decoded"
        )
    if height < 1 or width < 1:
        raise UnreadableImageError(f"{width} x {height} pixels")


def _rgb(image: Image) -> Image:
    from PIL.Image import fromarray

    if image.mode == "F":
        raise UnreadableImageError("floating-point pixels, whose white is not known")
    if image.mode not in (*SIXTEEN_BIT, "I"):
        return image.convert("RGB")
    levels = np.asarray(image).astype(np.int64)
    if levels.min() < 0 or levels.max() > np.iinfo(np.uint16).max:
        raise UnreadableImageError(
            f"integers from {levels.min()} to {levels.max()}, whose white is not known"
        )
    return fromarray(np.round(levels / TO_EIGHT_BIT).astype(np.uint8)).convert("RGB")


def _upright(image: Image, orientation: int) -> Image:
    """``image`` turned and mirrored as its EXIF orientation (2 to 8) says."""
    from PIL.Image import Transpose

    methods = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    return image.transpose(methods[orientation]) if orientation in methods else image
