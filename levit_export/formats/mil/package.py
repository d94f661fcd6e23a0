"""The directory on disk: manifest, model specification, weight files.

An ``.mlpackage`` is a directory with a ``Manifest.json`` that lists items by identifier, their
paths relative to ``Data/``; ``rootModelIdentifier`` names the specification. A program refers to a
weight file as ``@model_path/...``, relative to the specification's own directory.
"""

from __future__ import annotations

import importlib
import json
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from levit_export.core import files
from levit_export.core.errors import MissingDependencyError, PackageError, UnsupportedOpError
from levit_export.core.packages import coremltools
from levit_export.core.quiet import quiet
from levit_export.formats.mil.blob import Blob
from levit_export.formats.mil.elements import Array, TensorType

_REMEDY = "Export the model again, or restore the package from a copy."
_WEIGHTS_PREFIX = "@model_path/"
_SPECIFICATIONS = range(6, 11)
"""Specification versions of ML Programs for iOS 15 to 18, and for iOS 26, which is 10."""


def damaged(path: Path, what: str) -> PackageError:
    """The error for a package at ``path`` of which ``what`` is wrong."""
    return PackageError(f"{path} is damaged: {what}", remedy=_REMEDY)


def unsupported(package: Package, what: str) -> UnsupportedOpError:
    """The error for a package that may well be sound, but is of another kind."""
    return UnsupportedOpError(
        f"{package.root} is not evaluated: {what}",
        remedy="Convert the model to one ML Program, with one function and without state.",
    )


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


def read_model(package: Package) -> Any:
    """The ``Model`` message of an ML Program.

    Raises :class:`PackageError`, :class:`UnsupportedOpError` for a model of another kind, and
    :class:`MissingDependencyError` without coremltools.
    """
    try:
        # By name, because neither package has type information. coremltools complains of what
        # it lacks off macOS when it is imported, which says nothing about a package.
        with quiet("coremltools"):
            messages = coremltools("proto.Model_pb2")
        decode_error = importlib.import_module("google.protobuf.message").DecodeError
    except ImportError as error:
        raise MissingDependencyError(
            "reading an .mlpackage needs coremltools", remedy="pip install coremltools"
        ) from error
    model = messages.Model()
    data = package.specification_bytes()
    try:
        model.ParseFromString(data)
    except (decode_error, ValueError, RuntimeError) as error:
        raise damaged(package.root, f"the specification cannot be parsed: {error}") from error
    kind = model.WhichOneof("Type")
    if kind != "mlProgram":
        if kind is None:
            raise damaged(package.root, "it holds no model")
        raise unsupported(package, f"it holds a model of type {kind}, not an ML Program")
    if model.specificationVersion not in _SPECIFICATIONS:
        raise UnsupportedOpError(
            f"{package.root} has specification version {model.specificationVersion}",
            remedy="Export for iOS 15 to iOS 26 (versions 6 to 10).",
        )
    return model


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
