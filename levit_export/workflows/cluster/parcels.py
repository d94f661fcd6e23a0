"""Files that travel to workers by their content, and lie there once."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from levit_export.core import files
from levit_export.core.errors import RuntimeFailedError


@dataclass(frozen=True)
class Parcel:
    """Files by name, and the digest of the names and contents, which is their address."""

    sha256: str
    files: Mapping[str, bytes]


def parcel(places: Mapping[str, Path]) -> Parcel:
    """The files at these paths, under these names (POSIX, relative). Raises ``OSError``."""
    contents = {name: files.read_bytes(path) for name, path in sorted(places.items())}
    digest = hashlib.sha256()
    for name, content in contents.items():
        digest.update(f"{hashlib.sha256(content).hexdigest()}  {name}\n".encode())
    return Parcel(digest.hexdigest(), contents)


def checkpoint_files(path: Path) -> dict[str, Path]:
    """What :func:`parcel` takes for a checkpoint: its file, or the files right in its folder.

    Below a parcel's folder the checkpoint has the name that it has here.
    """
    place = path.absolute()
    if not place.is_dir():
        return {place.name: place}
    return {f"{place.name}/{each.name}": each for each in place.iterdir() if each.is_file()}


_UNPACKING = threading.Lock()


def unpacked(each: Parcel, root: Path) -> Path:
    """The folder below ``root`` that holds the files of a parcel; written once, whole.

    Raises ``RuntimeFailedError`` where it cannot be written.
    """
    place = root / "levit-export" / each.sha256
    with _UNPACKING:
        if place.is_dir():
            return place
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with files.temporary_folder(place.parent) as work:
                filled = work / "files"
                for name, content in each.files.items():
                    file = filled / name
                    file.parent.mkdir(parents=True, exist_ok=True)
                    files.write(file, content)
                os.rename(filled, place)  # noqa: PTH104 - fails where another process was first
        except OSError as error:
            if place.is_dir():
                return place
            raise RuntimeFailedError(
                f"a worker cannot write to {root}: {error}",
                remedy="Give it another --local-directory, with room for the artifacts.",
            ) from error
    return place
