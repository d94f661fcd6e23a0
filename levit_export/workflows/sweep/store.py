"""Finished cells on disk, each in a folder that is called by its key and written whole."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from levit_export.core import files, hashing, serialisation
from levit_export.core.errors import LevitExportError, OutputError
from levit_export.core.values import files_of
from levit_export.storage import export_directory
from levit_export.storage.export_directory import MANIFEST
from levit_export.workflows.sweep.cell import Cell, Result

SCHEMA = 1
RESULT = "result.json"
log = logging.getLogger("levit_export")


@dataclass(frozen=True)
class Store:
    """The folder ``root``: a folder for each finished cell. Several sweeps may share one."""

    root: Path

    def find(self, cell: Cell) -> tuple[Path, Result] | None:
        """The folder and the result of ``cell``, where it was done before.

        A stored verdict holds for the stored bytes alone: they are hashed before it is believed.
        """
        for each in cell.as_good():
            place = self.root / each.key
            if place.is_dir() and (result := _sound(place)) is not None:
                return place, result
        return None

    @contextmanager
    def staged(self) -> Iterator[Path]:
        """A new folder to fill; it disappears again. ``OSError`` becomes ``OutputError``."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with files.temporary_folder(self.root, f"{files.PARTIAL}{os.getpid()}-") as work:
                yield work
        except OSError as error:
            raise OutputError(
                f"{self.root} cannot be written: {error.strerror or error}",
                remedy="Check permissions and free space, or give --output another folder.",
            ) from error

    def commit(self, work: Path, cell: Cell, result: Result) -> Path:
        """Put a staged folder in its place in one step; what somebody else put there stays."""
        content = {"schema": SCHEMA, "cell": _described(cell), **serialisation.plain(result)}
        files.write(work / RESULT, serialisation.to_text(content))
        place = self.root / cell.key
        if place.is_dir() and _sound(place) is None:
            shutil.rmtree(place)
        work.chmod(0o755)
        try:
            os.rename(work, place)  # noqa: PTH104 - replaces no folder that holds something
        except OSError:
            if not place.is_dir():
                raise
        return place

    def tidy(self) -> None:
        """Remove what runs that were killed left behind."""
        for left in files.abandoned(self.root, files.PARTIAL):
            shutil.rmtree(left, ignore_errors=True)


def _described(cell: Cell) -> dict[str, Any]:
    """What a reader of the store wants to know of a key."""
    return {"model": cell.label, "artifact": cell.id, "settings": asdict(cell.settings)}


def _sound(place: Path) -> Result | None:
    """The result of a finished cell, unless its files are no longer those that it is about."""
    result = _read(place / RESULT)
    if result is None or result.artifact is None:
        return result
    folder = place / result.folder
    try:
        found = hashing.digest(files_of(folder / result.artifact["path"])).sha256
        changed = [] if found == result.artifact["sha256"] else [str(result.artifact["path"])]
        if (folder / MANIFEST).exists():
            changed += export_directory.damage(folder, export_directory.read_manifest(folder))
    except (OSError, KeyError, TypeError, LevitExportError) as error:
        changed = [str(error)]
    if not changed:
        return result
    log.warning(
        "%s was altered after it was checked, and is done again: %s",
        folder,
        "; ".join(changed[:3]),
    )
    return None


def _read(path: Path) -> Result | None:
    """A stored result; one that cannot be read counts as not there, and is done again."""
    try:
        content = serialisation.parse(files.read_text(path), SCHEMA)
        return serialisation.structure(content, Result, strict=False)
    except serialisation.OtherSchemaError:
        return None
    except (OSError, ValueError) as error:
        log.warning("%s cannot be read and is done again: %s", path, error)
        return None
