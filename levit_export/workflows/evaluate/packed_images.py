"""Images that travel: as the bytes of their files where there are files, else as pixels.

Decoding a file takes longer than sending it, and a photo as pixels is several times as large, so
files are decoded where they are classified.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from levit_export.core import files
from levit_export.inputs.images import Entry, ImageSet
from levit_export.inputs.images.decoding import decode
from levit_export.inputs.images.folders import Files
from levit_export.inputs.images.image_set import Read, Unreadable, UnreadableImageError

Content = bytes | np.ndarray


@dataclass(frozen=True)
class Carried:
    """A store (``images.image_set.Store``) that holds its images: by position, files or pixels."""

    contents: tuple[Content, ...]

    @contextmanager
    def open(self) -> Iterator[Read]:
        """Read single images, as from where they came."""
        with files.temporary_folder() as folder:
            file = folder / "image"

            def read(entry: Entry) -> np.ndarray:
                content = self.contents[entry.position]
                if isinstance(content, np.ndarray):
                    return content
                file.write_bytes(content)
                return decode(file)

            yield read


@dataclass(frozen=True)
class Load:
    """Some groups of images on their way. ``places`` are those that they have in the whole set.

    ``groups`` speak of places in ``images``, which has a ``Carried`` store. ``unreadable`` are
    places of images that could not even be read where they lie, and why. ``sha256`` is of the
    images' names and contents, of those that cannot be read by name and place, and of how they
    are grouped.
    """

    images: ImageSet
    groups: tuple[tuple[int, ...], ...]
    places: tuple[int, ...]
    unreadable: tuple[tuple[int, Unreadable], ...]
    sha256: str


def loads(images: ImageSet, groups: Sequence[tuple[int, ...]], groups_each: int) -> Iterator[Load]:
    """The groups of ``images``, ``groups_each`` to a load; images are read as loads are taken.

    Raises ``DataError`` for a damaged store.
    """
    with images.store.open() as read:
        for start in range(0, len(groups), groups_each):
            yield _load(images, groups[start : start + groups_each], read)


def _load(images: ImageSet, groups: Sequence[tuple[int, ...]], read: Read) -> Load:
    entries: list[Entry] = []
    contents: list[Content] = []
    places: list[int] = []
    unreadable: list[tuple[int, Unreadable]] = []
    carried: list[tuple[int, ...]] = []
    digest = hashlib.sha256()
    for group in groups:
        first = len(entries)
        for place in group:
            entry = images.entries[place]
            try:
                content = _content(images, entry, read)
            except UnreadableImageError as error:
                unreadable.append((place, Unreadable(entry.name, str(error))))
                digest.update(f"{entry.name}\0unreadable {place}\0{error}".encode())
                continue
            digest.update(f"{entry.name}\0".encode() + _described(content))
            entries.append(replace(entry, position=len(contents)))
            contents.append(content)
            places.append(place)
        carried.append(tuple(range(first, len(entries))))
        digest.update(b"group")
    whole = replace(images, entries=tuple(entries), store=Carried(tuple(contents)))
    return Load(whole, tuple(carried), tuple(places), tuple(unreadable), digest.hexdigest())


def _content(images: ImageSet, entry: Entry, read: Read) -> Content:
    """The bytes of a file that has some; else what reading gives, which is mostly a reason."""
    if isinstance(images.store, Files):
        path = images.store.root / entry.name
        try:
            content = files.read_bytes(path)
        except OSError:
            content = b""
        if content:
            return content
    return read(entry)


def _described(content: Content) -> bytes:
    if isinstance(content, np.ndarray):
        head = f"pixels {content.shape} {content.dtype}"
        return head.encode() + hashlib.sha256(np.ascontiguousarray(content).data).digest()
    return b"file" + hashlib.sha256(content).digest()
