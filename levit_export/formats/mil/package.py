"""The directory on disk: manifest, model specification, weight files.

An ``.mlpackage`` is a directory with a ``Manifest.json`` that lists items by identifier, their
paths relative to ``Data/``; ``rootModelIdentifier`` names the specification. A program refers to a
weight file as ``@model_path/...``, relative to the specification's own directory.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from levit_export.core import files
from levit_export.core.errors import PackageError
from levit_export.formats.mil.blob import Blob
from levit_export.formats.mil.elements import Array, TensorType

_REMEDY = "Export the model again, or restore the package from a copy."
_WEIGHTS_PREFIX = "@model_path/"


def damaged(path: Path, what: str) -> PackageError:
    """The error for a package at ``path`` of which ``what`` is wrong."""
    return PackageError(f"{path} is damaged: {what}", remedy=_REMEDY)


@dataclass(frozen=True)
class Package:
    """Where the parts of a package are; weight files are read when first asked for."""

    root: Path
    specification: Path
    blobs: dict[str, Blob] = field(default_factory=dict, repr=False)

    def specification_bytes(self) -> bytes:
        """The model specification; raises :class:`PackageError`."""
        try:
            return files.read_bytes(self.specification)
        except OSError as error:
            raise damaged(self.root, f"the specification cannot be read: {error}") from error

    def weight(self, reference: str, offset: int, declared: TensorType) -> Array:
        """A tensor of the weight file ``@model_path/...``; raises :class:`PackageError`."""
        if reference not in self.blobs:
            if not reference.startswith(_WEIGHTS_PREFIX):
                raise damaged(
                    self.root, f"weight reference {reference!r} is not below @model_path"
                )
            relative = reference[len(_WEIGHTS_PREFIX) :]
            path = _inside(self.root, self.specification.parent, relative)
            self.blobs[reference] = Blob.read(path)
        return self.blobs[reference].tensor(offset, declared)


def open_package(path: Path) -> Package:
    """Find the specification of the package at ``path``; raises :class:`PackageError`."""
    if not path.is_dir():
        raise PackageError(
            f"{path} is not an .mlpackage: it is {'a file' if path.exists() else 'missing'}",
            remedy="Give the .mlpackage directory that coremltools saved.",
        )
    manifest = _read_manifest(path)
    items, root = manifest.get("itemInfoEntries"), manifest.get("rootModelIdentifier")
    if not isinstance(items, dict) or not isinstance(root, str):
        raise damaged(path, "Manifest.json lacks itemInfoEntries or rootModelIdentifier")
    entry = items.get(root)
    relative = entry.get("path") if isinstance(entry, dict) else None
    if not isinstance(relative, str):
        raise damaged(path, f"Manifest.json has no path for its root model {root!r}")
    specification = _inside(path, path / "Data", relative)
    if not specification.is_file():
        raise damaged(path, f"the specification {relative!r} is missing")
    return Package(path, specification)


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(files.read_bytes(path / "Manifest.json"))
    # A manifest of ten thousand brackets exhausts the parser's stack.
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(path, f"Manifest.json cannot be read: {error}") from error
    if not isinstance(manifest, dict):
        raise damaged(path, f"Manifest.json holds a {type(manifest).__name__}, not an object")
    return manifest


def _inside(root: Path, base: Path, relative: str) -> Path:
    """``base / relative``, which must not leave ``root``, not even through a link."""
    parts = PurePosixPath(relative)
    if parts.is_absolute() or ".." in parts.parts or "\\" in relative or "\0" in relative:
        raise damaged(root, f"path {relative!r} leaves the package")
    path = base / parts
    try:
        escapes = not path.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError, ValueError) as error:
        raise damaged(root, f"path {relative!r} cannot be followed: {error}") from error
    if escapes:
        raise damaged(root, f"path {relative!r} leaves the package through a link")
    return path
