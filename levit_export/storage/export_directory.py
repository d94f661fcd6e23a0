"""The export directory: what is in it, how it is read back without torch, and its replacement.

``manifest.json`` describes every file with its SHA-256 and size. ``golden/`` holds the inputs and
the reference's outputs, so that any machine can repeat the check. Nothing in the manifest depends
on time or place; measurements live in ``report.json``, which the manifest leaves out.

A directory is written into a sibling, which takes its place in one step (:func:`staged`).
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from levit_export.core import files, hashing, serialisation
from levit_export.core.errors import DataError, ManifestError, OutputError
from levit_export.core.hashing import FileEntry
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

SCHEMA = 1
MANIFEST = "manifest.json"
REPORT, PAGE = "report.json", "report.html"
REPORTS = (REPORT, PAGE)
"""Files of measurements, which no manifest describes."""

LABELS = "labels.txt"
GOLDEN = "golden"
IGNORED = ".DS_Store"
"""What macOS leaves in folders that were looked at."""

SHOWN = 5
"""Foreign files that a refusal lists."""

_OLD = "-old"


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
        path.relative_to(folder).as_posix(): hashing.file_entry(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.relative_to(folder).as_posix() not in (MANIFEST, *REPORTS)
    }


def damage(folder: Path, manifest: Manifest) -> list[str]:
    """What differs from the manifest: missing or altered files, strangers beside artifacts."""
    # Runtimes read what lies beside an artifact, such as external weights; the rest is inert.
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
        elif (actual := hashing.file_entry(path)) != entry:
            found.append(
                f"{name} has {actual.bytes} bytes and SHA-256 {actual.sha256}, "
                f"the manifest says {entry.bytes} and {entry.sha256}"
            )
    return found


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """``manifest.json`` of :func:`encode`."""
    files.write(folder / MANIFEST, encode(manifest))


def encode(manifest: Manifest) -> str:
    """A manifest as JSON: equal manifests have equal bytes."""
    return serialisation.to_text(manifest, canonical=True)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of an export directory. Raises ``ManifestError`` when it is none of ours."""
    path = folder / MANIFEST
    try:
        text = files.read_bytes(path)
    except OSError as error:
        raise ManifestError(
            f"{path} cannot be read: {error}", remedy="Give an export directory."
        ) from error
    return decode(text, path)


def decode(text: str | bytes, path: Path) -> Manifest:
    """The manifest that ``text`` spells out; unknown schemas and fields are refused.

    Raises ``ManifestError`` that calls the file ``path``.
    """
    edited = "Export anew; the file was edited or damaged."
    try:
        manifest = serialisation.structure(
            serialisation.parse(text, SCHEMA), Manifest, strict=True
        )
    except serialisation.OtherSchemaError as error:
        raise ManifestError(
            f"{path} {error}", remedy="Use the version of levit-export that wrote it."
        ) from error
    except serialisation.MalformedError as error:
        raise ManifestError(f"{path} cannot be read: {error}", remedy=edited) from error
    for name in (*manifest.files, *(artifact.path for artifact in manifest.artifacts)):
        if Path(name).is_absolute() or ".." in Path(name).parts or "\\" in name:
            raise ManifestError(
                f"{path} names {name!r}, which lies outside the directory",
                remedy="Do not use this directory; export anew.",
            )
    for problem in _inconsistencies(manifest):
        raise ManifestError(f"{path} {problem}", remedy=edited)
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


@dataclass(frozen=True)
class Staged:
    """A directory that is being filled; ``commit`` puts it in its place."""

    path: Path

    def commit(self, final: Path) -> None:
        """Take the place of ``final``, which must lie beside the stage, in one step."""
        refuse_foreign(final)
        # A temporary folder is its owner's alone, an export is everybody's who may read here.
        self.path.chmod(0o777 & ~files.umask())
        _take_place(self.path, final.absolute())


@contextmanager
def staged(final: Path) -> Iterator[Staged]:
    """A new directory beside ``final`` to fill and then commit; uncommitted, it disappears.

    An exception, Ctrl-C or a kill leaves what was at ``final`` as it was. Only a directory that
    this toolchain wrote (it holds a manifest) or an empty one is ever replaced. Every ``OSError``
    of the block becomes ``OutputError``.
    """
    final = final.absolute()
    refuse_foreign(final)
    made = [folder for folder in final.parents if not folder.exists()]
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        prefix = f".{final.name}{files.PARTIAL}"
        for left in files.abandoned(final.parent, prefix):
            if left.name.endswith(_OLD) and not final.exists():
                left.rename(final)  # killed between the two renames of _take_place
            else:
                shutil.rmtree(left, ignore_errors=True)
        with files.temporary_folder(final.parent, f"{prefix}{os.getpid()}-") as work:
            yield Staged(work)
    except OSError as error:
        raise unwritable(final, error) from error
    finally:
        for folder in made:
            with suppress(OSError):  # it holds the result
                folder.rmdir()


def refuse_foreign(final: Path) -> None:
    """Raise when ``final`` is something that must not be replaced."""
    try:
        if final.is_symlink() or (final.exists() and not final.is_dir()):
            raise OutputError(
                f"{final} exists and is not a folder", remedy="Give --output another folder."
            )
        if final.is_dir() and (foreign := _foreign_files(final)):
            raise OutputError(
                f"{final} holds files that no export of levit-export put there: "
                f"{', '.join(foreign[:SHOWN])}{' …' if len(foreign) > SHOWN else ''}",
                remedy="Move them, or give --output a new folder; nothing there was touched.",
            )
    except OSError as error:
        raise unwritable(final, error) from error


def _foreign_files(folder: Path) -> list[str]:
    """Files below ``folder`` that its manifest does not vouch for; all, without one of ours."""
    present = {path for path in folder.rglob("*") if not path.is_dir()}
    replaceable = vouched_for(folder)
    if replaceable:
        replaceable |= {folder / name for name in (*REPORTS, IGNORED)}
    return sorted(path.relative_to(folder).as_posix() for path in present - replaceable)


def vouched_for(folder: Path) -> set[Path]:
    """An export's manifest and the files that it names; nothing where ``folder`` is none."""
    try:
        content = json.loads(files.read_text(folder / MANIFEST))
        if "levit-export" not in content["toolchain"]:
            return set()
        return {folder / name for name in (MANIFEST, *content["files"])}
    except (OSError, ValueError, RecursionError, TypeError, KeyError):
        return set()


def unwritable(final: Path, error: OSError) -> OutputError:
    """What is raised where the folder ``--output`` cannot be written."""
    return OutputError(
        f"{final} cannot be written: {error.strerror or error}",
        remedy="Check permissions and free space, or give --output another folder.",
    )


def _take_place(work: Path, final: Path) -> None:
    """Move ``work`` to ``final``; what was there ends up at ``work``."""
    if not final.exists():
        work.rename(final)
        return
    if _exchange(work, final):
        return
    # Without an atomic exchange the old directory is set aside first and is never deleted before
    # the new one is in place.
    aside = work.with_name(work.name + _OLD)
    final.rename(aside)
    work.rename(final)
    shutil.rmtree(aside, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two directories in one step where the system can (Linux, macOS)."""
    at_cwd, linux_exchange, mac_swap = -100, 2, 2
    first, second = os.fsencode(one), os.fsencode(other)
    try:
        library = ctypes.CDLL(None, use_errno=True)
        if sys.platform == "darwin":
            done = library.renamex_np(first, second, ctypes.c_uint(mac_swap))
        else:
            flags = ctypes.c_uint(linux_exchange)
            done = library.renameat2(at_cwd, first, at_cwd, second, flags)
    except (OSError, AttributeError, TypeError):
        return False
    return bool(done == 0)
