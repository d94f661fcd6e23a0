"""What lies at a path that a user gave: an export directory, or an artifact on its own.

It asks the formats, which need their packages; the export directory by itself needs none.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from levit_export.core import files
from levit_export.core.errors import ArtifactError, UsageError
from levit_export.core.values import Artifact
from levit_export.formats import known_targets
from levit_export.storage import export_directory
from levit_export.storage.export_directory import MANIFEST, Manifest


@dataclass(frozen=True)
class Located:
    """Artifacts of one path, with the manifest when the path is an export directory."""

    folder: Path
    artifacts: tuple[Artifact, ...]
    manifest: Manifest | None


def locate(path: Path) -> Located:
    """The artifacts at ``path``. Raises ``UsageError`` or ``ArtifactError`` where none are."""
    if not path.exists():
        raise UsageError(f"{path} does not exist", remedy="Check the path.")
    # A package of Core ML has a Manifest.json, which is ours where a disk ignores case.
    if (path / MANIFEST).is_file() and path.suffix != ".mlpackage":
        manifest = export_directory.read_manifest(path)
        return Located(path, tuple(export_directory.artifacts(path, manifest)), manifest)
    for kind in known_targets():
        if path.suffix == kind.suffix:
            _refuse_irregular(path)
            return Located(path.parent, (kind.inspect(path),), None)
    suffixes = ", ".join(kind.suffix for kind in known_targets())
    raise ArtifactError(
        f"{path} is neither an export directory nor an artifact",
        remedy=f"Give a folder with a {MANIFEST}, or a file ending in {suffixes}.",
    )


def _refuse_irregular(path: Path) -> None:
    """Raise for an artifact that is, or holds, a pipe or a device: a runtime would hang on it."""
    parts = path.rglob("*") if path.is_dir() else (path,)
    try:
        for part in parts:
            if not part.is_dir():
                files.require_regular(part)
    except OSError as error:
        raise ArtifactError(
            f"{error.filename or path} cannot be read: {error.strerror or error}",
            remedy="Give a whole artifact, copied to this disk.",
        ) from error
