"""The export directory: what is in it, and how it is read back without torch.

``manifest.json`` describes every file with its SHA-256 and size. ``golden/`` holds the inputs and
the reference's outputs, so that any machine can repeat the check. Nothing in the manifest depends
on time or place; measurements live in ``report.json``, which the manifest leaves out.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from levit_export.core import files
from levit_export.core.errors import DataError, ManifestError
from levit_export.core.values import (
    LAID_OUT_AS_MAPS,
    Artifact,
    Embedded,
    Fingerprints,
    Layout,
    ModelInfo,
    PassRecord,
    Signature,
    Tolerances,
    Verdict,
    applied,
)
from levit_export.inputs.class_names import control_character
from levit_export.inputs.samples import Samples
from levit_export.storage.staged import MANIFEST, REPORTS

SCHEMA = 1
REPORT = REPORTS[0]
LABELS = "labels.txt"
GOLDEN = "golden"
IGNORED = ".DS_Store"
"""What macOS leaves in folders that were looked at."""


@dataclass(frozen=True)
class FileEntry:
    """Hash and size in bytes of one file of the directory."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class ArtifactEntry:
    """One artifact, its path relative to the directory.

    ``keep`` are blocks left in float, ``layout`` the form that a LeViT was written in, ``runs_on``
    the oldest runtime that can read it.
    """

    format: str
    precision: str
    path: str
    verdict: Verdict
    notes: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    layout: Layout = "tokens"
    runs_on: str = ""


@dataclass(frozen=True)
class GoldenEntry:
    """Which sample is which row of the golden arrays, and how far each precision may lie off."""

    samples: tuple[str, ...]
    labels: tuple[int, ...]
    pixels: tuple[str, ...]
    tolerances: Mapping[str, Tolerances]
    weights: Fingerprints
    doubt: str = ""


@dataclass(frozen=True)
class Manifest:
    """Everything a device or a build has to know about an export, except its measurements."""

    schema: int
    verdict: Verdict
    model: ModelInfo
    signature: Signature
    passes: tuple[PassRecord, ...]
    artifacts: tuple[ArtifactEntry, ...]
    golden: GoldenEntry
    toolchain: Mapping[str, str]
    files: Mapping[str, FileEntry]
    embedded: Embedded = field(default_factory=Embedded)


def file_entry(path: Path) -> FileEntry:
    """Hash and size of a file."""
    content = files.read_bytes(path)
    return FileEntry(sha256(content).hexdigest(), len(content))


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
    return FileEntry(
        sha256(listing.encode()).hexdigest(), sum(entry.bytes for entry in entries.values())
    )


def write_golden(folder: Path, samples: Samples, outputs: Mapping[str, np.ndarray]) -> None:
    """Inputs, reference outputs ``<name>.npy``, and ``pixels/<sample>.npy`` under ``golden/``."""
    golden = folder / GOLDEN
    (golden / "pixels").mkdir(parents=True)
    _save(golden / "input.npy", samples.inputs)
    for name, values in outputs.items():
        _save(golden / f"{name}.npy", values)
    for name, pixels in samples.pixels.items():
        _save(golden / "pixels" / f"{name}.npy", pixels)


def _save(path: Path, values: np.ndarray) -> None:
    with files.replacing(path) as file:
        np.save(file, values)


def read_golden(folder: Path, manifest: Manifest) -> tuple[Samples, dict[str, np.ndarray]]:
    """The samples and the reference's outputs, as they were written."""
    golden = folder / GOLDEN
    entry = manifest.golden
    try:
        samples = Samples(
            entry.samples,
            _array(golden / "input.npy"),
            np.array(entry.labels),
            {name: _array(golden / "pixels" / f"{name}.npy") for name in entry.pixels},
        )
        outputs = {
            spec.name: _array(golden / f"{spec.name}.npy") for spec in manifest.signature.outputs
        }
    except (OSError, ValueError, EOFError) as error:
        raise DataError(
            f"the golden vectors of {folder} cannot be read: {error}",
            remedy="Copy the export directory again, or export anew.",
        ) from error
    return samples, outputs


def _array(path: Path) -> np.ndarray:
    """The array of a ``.npy`` file; ``np.load`` would guess at archives and pickles."""
    with files.open_regular(path) as file:
        array: np.ndarray = np.lib.format.read_array(  # type: ignore[no-untyped-call]
            file, allow_pickle=False
        )
    return array


def list_files(folder: Path) -> dict[str, FileEntry]:
    """Every file below ``folder`` that the manifest vouches for, by POSIX path."""
    return {
        path.relative_to(folder).as_posix(): file_entry(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.relative_to(folder).as_posix() not in (MANIFEST, *REPORTS)
    }


def damage(folder: Path, manifest: Manifest) -> list[str]:
    """What differs from the manifest: missing or altered files, strangers beside artifacts."""
    places = {Path(artifact.path).parts[0] for artifact in manifest.artifacts}
    found = [
        f"{name} is not in the manifest"
        for name in sorted(set(list_files(folder)) - set(manifest.files))
        if Path(name).parts[0] in places and Path(name).name != IGNORED
    ]
    lines = [f"{label}\n" for label in manifest.model.labels]
    names = folder / LABELS
    if names.is_file() and names.read_bytes() != "".join(lines).encode():
        found.append(f"{LABELS} does not hold the {len(lines)} names of the manifest, a line each")
    for name, entry in manifest.files.items():
        path = folder / name
        if not path.is_file():
            found.append(f"{name} is missing")
        elif (actual := file_entry(path)) != entry:
            found.append(
                f"{name} has {actual.bytes} bytes and SHA-256 {actual.sha256[:12]}…, "
                f"the manifest says {entry.bytes} and {entry.sha256[:12]}…"
            )
    return found


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """``manifest.json`` of :func:`encode`."""
    files.write(folder / MANIFEST, encode(manifest))


def encode(manifest: Manifest) -> str:
    """A manifest as JSON, sorted and indented."""
    text = json.dumps(asdict(manifest), indent=1, sort_keys=True, ensure_ascii=False)
    return text + "\n"


def read_manifest(folder: Path) -> Manifest:
    """The manifest of an export directory. Raises ``ManifestError`` when it is none of ours."""
    path = folder / MANIFEST
    try:
        content = json.loads(files.read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise ManifestError(
            f"{path} cannot be read: {error}", remedy="Give an export directory."
        ) from error
    return structure_manifest(content, path)


def structure_manifest(content: Any, path: Path) -> Manifest:
    """The manifest that parsed JSON spells out; unknown schemas and fields are refused."""
    import cattrs

    schema = content.get("schema") if isinstance(content, dict) else None
    if schema != SCHEMA:
        raise ManifestError(
            f"{path} has schema {schema!r}, this version reads {SCHEMA}",
            remedy="Use the version of levit-export that wrote it.",
        )
    converter = cattrs.Converter(forbid_extra_keys=True)
    converter.register_structure_hook(float | str, _number_or_text)
    try:
        manifest = converter.structure(content, Manifest)
    except Exception as error:
        detail = "; ".join(cattrs.transform_error(error)[:3])
        raise ManifestError(
            f"{path} does not follow schema {SCHEMA}: {detail}",
            remedy="Export anew; the file was edited or damaged.",
        ) from error
    for name in (*manifest.files, *(artifact.path for artifact in manifest.artifacts)):
        if Path(name).is_absolute() or ".." in Path(name).parts or "\\" in name:
            raise ManifestError(
                f"{path} names {name!r}, which lies outside the directory",
                remedy="Do not use this directory; export anew.",
            )
    for problem in _inconsistencies(manifest):
        raise ManifestError(
            f"{path} {problem}", remedy="Export anew; the file was edited or damaged."
        )
    return manifest


def _inconsistencies(manifest: Manifest) -> Iterator[str]:
    """What a manifest that this toolchain wrote cannot say."""
    golden = manifest.golden
    if not manifest.artifacts:
        yield "lists no artifacts"
    for artifact in manifest.artifacts:
        if artifact.precision not in golden.tolerances:
            yield f"has no tolerance for {artifact.path}, which is {artifact.precision}"
    for number, label in enumerate(manifest.model.labels):
        if control_character(label):
            yield f"calls class {number} {ascii(label)[:80]}, which is not a name of one line"
    yield from _wrong_tolerances(manifest)
    needed = [LABELS, f"{GOLDEN}/input.npy", *(a.path for a in manifest.artifacts)]
    for name in needed:
        if not any(file == name or file.startswith(f"{name}/") for file in manifest.files):
            yield f"vouches for no file of {name}"


def _wrong_tolerances(manifest: Manifest) -> Iterator[str]:
    golden = manifest.golden
    names = {spec.name for spec in manifest.signature.outputs}
    for precision, tolerances in golden.tolerances.items():
        if tolerances.keys() != names:
            yield f"has {precision} tolerances of {sorted(tolerances)}, outputs {sorted(names)}"
        for name, tolerance in tolerances.items():
            if len(tolerance.rtol) not in (1, len(golden.samples)):
                yield (
                    f"has {len(tolerance.rtol)} tolerances of {precision} for "
                    f"{len(golden.samples)} samples of {name}"
                )


def _number_or_text(value: Any, _: Any) -> float | str:
    return value if isinstance(value, str) else float(value)


def artifacts(folder: Path, manifest: Manifest) -> list[Artifact]:
    """The directory's artifacts with absolute paths."""
    passes = applied(manifest.passes)
    return [
        Artifact(
            entry.format,
            entry.precision,
            folder / entry.path,
            manifest.signature,
            notes=entry.notes,
            passes=tuple(
                name for name in passes if name != LAID_OUT_AS_MAPS or entry.layout == "maps"
            ),
            keep=entry.keep,
        )
        for entry in manifest.artifacts
    ]
