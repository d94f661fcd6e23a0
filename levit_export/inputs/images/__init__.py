"""Images from disk: folders, lists, ``.npz`` files and the bundled digits.

:func:`open_images` lists what is there and which class each image is of, and decodes nothing;
:func:`batches` reads lazily and puts pixels through a model's own recipe.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Literal

from levit_export.core.errors import DataError
from levit_export.inputs.images.arrays import open_archive
from levit_export.inputs.images.decoding import SUFFIXES
from levit_export.inputs.images.folders import open_folder, plain
from levit_export.inputs.images.image_set import (
    MOST_UNREADABLE,
    Batch,
    Entry,
    ImageSet,
    Unreadable,
    batches,
    calibration,
    refuse_too_many,
)

__all__ = [
    "MOST_UNREADABLE",
    "Batch",
    "Entry",
    "ImageSet",
    "Unreadable",
    "batches",
    "calibration",
    "open_images",
    "refuse_too_many",
]

Purpose = Literal["evaluation", "calibration"]

DIGITS = "digits"
_DIGITS = {
    "evaluation": ("heldout", "held-out UCI digits"),
    "calibration": ("calibration", "UCI digits for calibration"),
}
_DIGIT_CLASSES = 10


def open_images(
    path: str | Path, *, labels: Sequence[str], purpose: Purpose = "evaluation"
) -> ImageSet:
    """The images at ``path`` with the classes that a model with ``labels`` gives them.

    ``path`` is a folder with a folder for each class; a folder with a list ``val.txt`` or
    ``labels.csv`` of lines ``file index``; a folder of images, or one image, of no known class;
    an ``.npz``; or ``digits``, the bundled images, of which calibration gets others than
    evaluation. Nothing is decoded. Raises ``DataError`` for everything else.
    """
    place = Path(path)
    if str(path) == DIGITS and not place.exists():
        if len(labels) != _DIGIT_CLASSES:
            raise DataError(
                f"the bundled digits have {_DIGIT_CLASSES} classes, the model {len(labels)}",
                remedy="Give --data a folder with images of the model's own classes.",
            )
        prefix, source = _DIGITS[purpose]
        file = resources.files("levit_export.inputs.data") / "digits.npz"
        names = {"images": f"{prefix}_images", "labels": f"{prefix}_labels"}
        return replace(open_archive(Path(str(file)), _DIGIT_CLASSES, **names), source=source)
    if place.is_dir():
        return open_folder(place, labels)
    if place.suffix.lower() == ".npz" and place.is_file():
        return open_archive(place, len(labels))
    if place.suffix.lower() in SUFFIXES and place.is_file():
        return plain(place.parent, [place.name], source=str(place))
    raise DataError(
        f"{path} is not a folder, an .npz or an image"
        if place.exists()
        else f"{path} does not exist",
        remedy="Give a folder with one folder for each class, a folder of images, an .npz with "
        "images and labels, or digits for the bundled images.",
    )
