"""From entries to a model's inputs, lazily."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from levit_export.core.errors import DataError
from levit_export.core.values import Preprocessing
from levit_export.inputs import preprocessing
from levit_export.inputs.images.decoding import LARGEST_PIXELS
from levit_export.inputs.images.image_set import (
    Entry,
    ImageSet,
    Read,
    Unreadable,
    UnreadableImageError,
    listed,
)

MOST_UNREADABLE = 0.1
"""Share of images that may be left out; above it the data set is not what it claims to be."""


@dataclass(frozen=True)
class Batch:
    """Inputs ``(n, 3, *crop)`` float32 of those entries that could be read.

    ``rows`` says which place in the image set each input has.
    """

    rows: tuple[int, ...]
    inputs: np.ndarray
    unreadable: tuple[tuple[int, Unreadable], ...]


def batches(
    images: ImageSet, recipe: Preprocessing, groups: Iterable[Sequence[int]]
) -> Iterator[Batch]:
    """Read each group of places in ``images``, in ascending order where speed matters.

    Raises ``DataError`` when the store is damaged; single unreadable images are reported.
    """
    with images.store.open() as read:
        for group in groups:
            inputs, rows, unreadable = [], [], []
            for row in group:
                entry = images.entries[row]
                try:
                    inputs.append(_input(read, entry, recipe))
                    rows.append(row)
                except UnreadableImageError as error:
                    unreadable.append((row, Unreadable(entry.name, str(error))))
            shape = (len(inputs), 3, *recipe.crop)
            stacked = np.stack(inputs) if inputs else np.empty(shape, np.float32)
            yield Batch(tuple(rows), stacked, tuple(unreadable))


def _input(read: Read, entry: Entry, recipe: Preprocessing) -> np.ndarray:
    pixels = read(entry)
    height, width = pixels.shape[:2]
    # Once the shorter side has its size, a strip can have billions of pixels, or none in ``fit``.
    if not 0 < prod(preprocessing.resized_size(recipe, height, width)) <= LARGEST_PIXELS:
        raise UnreadableImageError(f"{width} x {height} pixels is too long a strip to be resized")
    return preprocessing.apply(recipe, pixels)


def refuse_too_many(unreadable: Sequence[Unreadable], tried: int, source: str) -> None:
    """Raise ``DataError`` when more than ``MOST_UNREADABLE`` of ``tried`` could not be read."""
    if len(unreadable) > MOST_UNREADABLE * tried:
        raise DataError(
            f"{len(unreadable)} of {tried} images of {source} cannot be read "
            f"({listed([str(each) for each in unreadable])})",
            remedy="Copy the data again, or remove these files; up to "
            f"{MOST_UNREADABLE:.0%} would be left out and named.",
        )
