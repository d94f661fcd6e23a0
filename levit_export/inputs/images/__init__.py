"""Images from disk: folders, lists, ``.npz`` files and the bundled digits.

:func:`open_images` lists what is there and which class each image is of, and decodes nothing;
:func:`batches` reads lazily and puts pixels through a model's own recipe. An image that cannot be
read is named and counted; more than ``MOST_UNREADABLE`` of them are an error.
"""

from __future__ import annotations

from levit_export.inputs.images.calibrating import calibration
from levit_export.inputs.images.image_set import Entry, ImageSet, Unreadable
from levit_export.inputs.images.opening import open_images
from levit_export.inputs.images.reading import MOST_UNREADABLE, Batch, batches, refuse_too_many

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
