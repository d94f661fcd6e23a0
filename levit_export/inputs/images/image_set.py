"""The values: what images there are, and which class each is of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

UNKNOWN = -1
"""The label of an image whose class is not known."""

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
