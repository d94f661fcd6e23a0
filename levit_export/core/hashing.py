"""SHA-256 of files that may be larger than memory."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

from levit_export.core import files

BLOCK = 1 << 20


@dataclass(frozen=True)
class FileEntry:
    """Hash and size in bytes of one file, as manifests list it."""

    sha256: str
    bytes: int


def blocks(file: BinaryIO) -> Iterator[bytes]:
    """What is left of ``file``, piece by piece."""
    while block := file.read(BLOCK):
        yield block


def entry_of_blocks(parts: Iterable[bytes]) -> FileEntry:
    """Hash and size of the pieces put together."""
    digest, size = sha256(), 0
    for part in parts:
        digest.update(part)
        size += len(part)
    return FileEntry(digest.hexdigest(), size)


def file_entry(source: Path | bytes) -> FileEntry:
    """Hash and size of a regular file, or of what is to be one. Raises ``OSError``."""
    if isinstance(source, bytes):
        return entry_of_blocks([source])
    with files.open_regular(source) as file:
        return entry_of_blocks(blocks(file))


def digest(parts: Iterable[Path]) -> FileEntry:
    """Hash and size of an artifact: of its one file, or of the list of its files' hashes.

    The list names them below the folder that holds all: files of one name in a package differ.
    """
    paths = sorted(parts)
    if len(paths) == 1:
        return file_entry(paths[0])
    root = Path(os.path.commonpath([path.parent for path in paths]))
    entries = {path.relative_to(root).as_posix(): file_entry(path) for path in paths}
    listing = "".join(f"{entry.sha256}  {name}\n" for name, entry in sorted(entries.items()))
    size = sum(entry.bytes for entry in entries.values())
    return FileEntry(file_entry(listing.encode()).sha256, size)


def sha256_of(*paths: Path) -> str:
    """Hex digest of a file's content, or of several files' put together. Raises ``OSError``."""
    result = sha256()
    for path in paths:
        with files.open_regular(path) as file:
            for block in blocks(file):
                result.update(block)
    return result.hexdigest()
