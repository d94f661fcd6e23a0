"""Images that can be read one by one: what they are, and how they become a model's inputs.

Nothing is decoded before :func:`batches` asks for it. An image that cannot be read is named and
counted; more than ``MOST_UNREADABLE`` of them are an error.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from math import prod
from typing import Protocol

import numpy as np

from levit_export.core.errors import DataError
from levit_export.core.values import Calibration, Preprocessing
from levit_export.inputs import preprocessing

UNKNOWN = -1
"""The label of an image whose class is not known."""

LARGEST_PIXELS = 2**26
"""Pixels of the largest image that is decoded or resized to: 8192 x 8192, some 200 MB as RGB."""

MOST_UNREADABLE = 0.1
"""Share of images that may be left out; above it the data set is not what it claims to be."""

SHOWN = 5
"""Names that a message lists before it counts the rest."""


@dataclass(frozen=True)
class Entry:
    """One image: its name within the source, its class, and its place there."""

    name: str
    label: int = UNKNOWN
    position: int = 0


@dataclass(frozen=True)
class Unreadable:
    """An image that was left out, and why."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


class UnreadableImageError(Exception):
    """One image cannot be used; its text is the reason. Never leaves this package."""


Read = Callable[[Entry], np.ndarray]
"""uint8 pixels ``(H, W)`` or ``(H, W, 3)`` of an entry; raises ``UnreadableImageError``."""


class Store(Protocol):
    """Where pixels are. Pickles small, so that another process can read them as well."""

    def open(self) -> AbstractContextManager[Read]:
        """A function that reads one image; entries in the order of their positions are cheapest.

        Raises ``DataError`` when the store itself is damaged.
        """


@dataclass(frozen=True)
class ImageSet:
    """Images that can be read one by one; all of them have a known class, or none has.

    ``classes`` maps the names of class folders to the model's classes. ``fingerprint`` is the
    SHA-256 of the names, labels and sizes in bytes (of an ``.npz``: of its checksums and labels);
    it tells two lists apart, not two pictures of one name and size. ``remarks`` say what was
    found and left out, a sentence each.
    """

    source: str
    entries: tuple[Entry, ...]
    store: Store
    fingerprint: str
    classes: Mapping[str, int] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def labelled(self) -> bool:
        """Whether the class of every image is known."""
        return bool(self.entries) and all(entry.label != UNKNOWN for entry in self.entries)

    def limited(self, count: int | None) -> ImageSet:
        """``count`` images spread evenly over the list: those at ``floor(i * n / count)``."""
        total = len(self.entries)
        if count is None or count >= total:
            return self
        taken = tuple(self.entries[i * total // count] for i in range(count))
        return replace(
            self, entries=taken, remarks=(*self.remarks, f"{count} of {total} images are used")
        )


def listed(names: list[str]) -> str:
    """The first few of ``names``, and how many there are besides."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


# --- inputs ---------------------------------------------------------------------------------


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


# --- calibration ----------------------------------------------------------------------------


def calibration(images: ImageSet, recipe: Preprocessing, count: int, seed: int = 0) -> Calibration:
    """Up to ``count`` images, as evenly over the classes as they go, the same for each ``seed``.

    Unreadable images are replaced by the next ones, and named in ``source``. Raises ``DataError``
    when too many are.
    """
    queue = deque(balanced_order(images, seed))
    inputs: dict[int, np.ndarray] = {}
    unreadable: list[Unreadable] = []
    chosen: list[int] = []
    while queue and len(inputs) < count:
        taken = [queue.popleft() for _ in range(min(count - len(inputs), len(queue)))]
        chosen += taken
        for batch in batches(images, recipe, ([row] for row in sorted(taken))):
            inputs.update(zip(batch.rows, batch.inputs, strict=True))
            unreadable += [each for _, each in batch.unreadable]
    refuse_too_many(unreadable, len(chosen), images.source)
    source = (
        f"{len(inputs)} images of {images.source} (seed {seed}, list {images.fingerprint[:12]})"
    )
    source = "; ".join((source, *images.remarks))
    if unreadable:
        names = listed([str(each) for each in unreadable])
        source += f"; {len(unreadable)} could not be read: {names}"
    kept = [row for row in chosen if row in inputs]
    labels = np.array([images.entries[row].label for row in kept])
    return Calibration(np.stack([inputs[row] for row in kept]), source, labels)


def balanced_order(images: ImageSet, seed: int) -> list[int]:
    """Every place in ``images`` once: an image of each class, then a second of each, and so on.

    Within a class the order is shuffled, and so are the classes, for a small count takes but some.
    """
    generator = np.random.default_rng(seed)
    classes: dict[int, list[int]] = {}
    for row, entry in enumerate(images.entries):
        classes.setdefault(entry.label, []).append(row)
    shuffled = [generator.permutation(classes[label]).tolist() for label in sorted(classes)]
    order = [shuffled[place] for place in generator.permutation(len(shuffled))]
    longest = max(map(len, order), default=0)
    return [rows[turn] for turn in range(longest) for rows in order if turn < len(rows)]
