"""Write a bundle whole or not at all, and read one that nobody has to trust.

Reading checks everything in place before anything is unpacked: the zip's structure, names, hashes,
both descriptions and the headers of the golden arrays.
"""

from __future__ import annotations

import io
import os
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

from levit_export.core import files
from levit_export.core.errors import BundleError, ManifestError, OutputError, UsageError
from levit_export.core.hashing import FileEntry
from levit_export.storage import export_directory
from levit_export.storage.device_bundle import arrays, contents, description, names, storage
from levit_export.storage.device_bundle.contents import REQUIRED, Source
from levit_export.storage.device_bundle.description import DESCRIPTION, SUMS, UNLISTED, Description
from levit_export.storage.device_bundle.storage import CHUNK, Entry
from levit_export.storage.export_directory import GOLDEN, MANIFEST, Manifest

EPOCH = "SOURCE_DATE_EPOCH"
FIRST_DATE, LAST_DATE = 315532800, 4354819198
"""What a zip can say: 1980-01-01 to 2107-12-31, in seconds since 1970."""

TEXT_LIMIT = 8 << 20
"""Most bytes of a description or a list of hashes that are read into memory."""


def write(
    folder: Path,
    output: Path,
    formats: Sequence[str] | None = None,
    *,
    allow_failed: bool = False,
    library: Mapping[str, bytes] | None = None,
) -> Path:
    """Bundle the export directory ``folder`` as ``output``; the same export gives the same bytes.

    ``formats`` None takes all. ``library``, what ``web.library.find`` found, adds the page for
    browsers. Raises ``BundleError`` for an export that failed or is damaged, ``UsageError`` for a
    page without an ONNX file, ``OutputError`` when ``output`` cannot be written; what was there
    before stays then.
    """
    stamp = _stamp(os.environ.get(EPOCH))
    manifest = export_directory.read_manifest(folder)
    if damaged := export_directory.damage(folder, manifest):
        raise BundleError(
            f"{folder} is not as it was exported: {'; '.join(damaged[:3])}",
            remedy="Export anew, or copy the directory again.",
        )
    chosen = contents.choose(manifest, formats, allow_failed=allow_failed)
    _refuse_place(folder, output)
    sources, described = contents.collect(folder, chosen, library)
    ordered = _describe(sources, described)
    for name in ordered:
        if reason := names.problem(name):
            raise BundleError(f"the name {name!r} {reason}", remedy="Rename the model or sample.")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(output) as file:
            entries = [(name, _opener(source)) for name, source in ordered.items()]
            storage.write(file, entries, stamp)
            _examine(file)
    except OSError as error:
        raise OutputError(
            f"{output} cannot be written: {error.strerror or error}",
            remedy="Check permissions and free space, or give -o another file.",
        ) from error
    return output


def _stamp(given: str | None) -> int:
    """DOS date and time of ``SOURCE_DATE_EPOCH``, in UTC; the first that exists without it."""
    try:
        seconds = int(given) if given else FIRST_DATE
        if not given or (given.isascii() and given.isdigit() and seconds <= LAST_DATE):
            moment = time.gmtime(max(seconds, FIRST_DATE))
            date = moment.tm_year - 1980 << 9 | moment.tm_mon << 5 | moment.tm_mday
            return date << 16 | moment.tm_hour << 11 | moment.tm_min << 5 | moment.tm_sec // 2
    except ValueError:
        pass
    raise UsageError(
        f"{EPOCH} is {given!r}",
        remedy=f"Give seconds since 1970, at most {LAST_DATE}, or unset it.",
    )


def _refuse_place(folder: Path, output: Path) -> None:
    """Raise for an output inside the export, and for one that replaces something else."""
    if output.resolve().is_relative_to(folder.resolve()):
        raise OutputError(
            f"{output} lies inside the export directory", remedy="Give -o a file outside it."
        )
    if output.is_symlink() or (output.exists() and not output.is_file()):
        raise OutputError(f"{output} exists and is no file", remedy="Give -o another file.")
    if output.exists():
        with files.open_regular(output) as file:
            start = file.read(storage.LOCAL.size + len(DESCRIPTION))
        if start and not (start.startswith(b"PK\3\4") and start.endswith(DESCRIPTION.encode())):
            raise OutputError(
                f"{output} exists and is no bundle", remedy="Move it, or give -o another file."
            )


def _describe(sources: Mapping[str, Source], described: Description) -> dict[str, Source]:
    """Every file in its order: the two that describe the others, then the others by name."""
    hashes = {name: _hashed(source) for name, source in sources.items()}
    text = description.encode(replace(described, files=hashes))
    entry = FileEntry(sha256(text).hexdigest(), len(text))
    first = {DESCRIPTION: text, SUMS: description.sums({**hashes, DESCRIPTION: entry})}
    return {**first, **{name: sources[name] for name in sorted(sources)}}


def _hashed(source: Source) -> FileEntry:
    if isinstance(source, bytes):
        return FileEntry(sha256(source).hexdigest(), len(source))
    digest, size = sha256(), 0
    with files.open_regular(source) as file:
        for chunk in iter(lambda: file.read(CHUNK), b""):
            digest.update(chunk)
            size += len(chunk)
    return FileEntry(digest.hexdigest(), size)


def _opener(source: Source) -> Callable[[], BinaryIO]:
    if isinstance(source, bytes):
        return lambda: io.BytesIO(source)
    return lambda: files.open_regular(source)


@contextmanager
def open_bundle(path: Path) -> Iterator[Path]:
    """Verify the bundle at ``path``, unpack it into a temporary folder and give that.

    The folder is an export directory that ``bundle.read_manifest`` reads, and disappears with the
    block. Raises ``BundleError`` before anything is unpacked when the file is not a whole bundle.
    """
    with files.temporary_folder(prefix="levit-bundle-") as folder:
        unpack(path, folder)
        yield folder


def unpack(path: Path, folder: Path) -> Manifest:
    """Verify the bundle at ``path`` and write its files below the empty ``folder``."""
    try:
        with files.open_regular(path) as file:
            entries, manifest = _examine(file)
            for entry, wanted in entries:
                _extract(file, entry, wanted, folder / entry.name)
    except ManifestError as error:
        raise BundleError(f"{path}: {error.what}", remedy=error.remedy) from error
    except OSError as error:
        raise BundleError(
            f"{path} cannot be unpacked: {error.strerror or error}",
            remedy="Check the path, permissions and free space.",
        ) from error
    return manifest


def _examine(file: BinaryIO) -> tuple[list[tuple[Entry, FileEntry]], Manifest]:
    """Check all that can be checked of a bundle; nothing is written anywhere."""
    entries = {entry.name: entry for entry in _listed(file)}
    found = {name: _measure(file, entry) for name, entry in entries.items()}
    described = description.decode(_text(file, entries, DESCRIPTION))
    _compare(found, described)
    listed = {**described.files, DESCRIPTION: found[DESCRIPTION]}
    if _text(file, entries, SUMS) != description.sums(listed):
        raise _damaged(f"{SUMS} does not list the files of {DESCRIPTION}")
    manifest = _manifest(_text(file, entries, MANIFEST))
    _refuse_inconsistent(manifest, described)
    for name, entry in entries.items():
        if name.endswith(".npy"):
            file.seek(entry.data)
            arrays.check(name, file.read(min(entry.size, arrays.PREFIX)), entry.size)
    return [(entry, found[name]) for name, entry in entries.items()], manifest


def _listed(file: BinaryIO) -> tuple[Entry, ...]:
    """The entries, their names portable, distinct and in order."""
    entries = storage.read(file)
    present = [entry.name for entry in entries]
    for name in present:
        if reason := names.problem(name):
            raise _damaged(f"the entry {name[:80]!r} {reason}")
    for clash in names.clashes(present):
        raise _damaged(clash)
    if missing := [name for name in (*UNLISTED, *REQUIRED) if name not in present]:
        raise _damaged(f"{missing[0]} is missing")
    if present != [*UNLISTED, *sorted(present[len(UNLISTED) :])]:
        raise _damaged("its entries are not in order")
    return entries


def _pieces(file: BinaryIO, entry: Entry) -> Iterator[bytes]:
    file.seek(entry.data)
    left = entry.size
    while left:
        chunk = file.read(min(CHUNK, left))
        if not chunk:
            raise _damaged(f"{entry.name} ends early")
        left -= len(chunk)
        yield chunk


def _measure(file: BinaryIO, entry: Entry) -> FileEntry:
    digest, crc = sha256(), 0
    for chunk in _pieces(file, entry):
        digest.update(chunk)
        crc = zlib.crc32(chunk, crc)
    if crc != entry.crc:
        raise _damaged(f"{entry.name} does not have the checksum that the zip says")
    return FileEntry(digest.hexdigest(), entry.size)


def _text(file: BinaryIO, entries: Mapping[str, Entry], name: str) -> bytes:
    if entries[name].size > TEXT_LIMIT:
        raise _damaged(f"{name} has {entries[name].size} bytes, more than {TEXT_LIMIT}")
    return b"".join(_pieces(file, entries[name]))


def _compare(found: Mapping[str, FileEntry], described: Description) -> None:
    present = set(found) - set(UNLISTED)
    for name in sorted(described.files.keys() - present):
        raise _damaged(f"{name} is missing")
    for name in sorted(present - described.files.keys()):
        raise _damaged(f"{name} is not in {DESCRIPTION}")
    for name in sorted(present):
        if found[name] != described.files[name]:
            raise _damaged(f"{name} is not the file that {DESCRIPTION} describes")


def _manifest(raw: bytes) -> Manifest:
    return export_directory.decode(raw, Path(MANIFEST))


def _refuse_inconsistent(manifest: Manifest, described: Description) -> None:
    """Raise where the export's manifest and the bundle's description are of different bundles."""
    for name, entry in manifest.files.items():
        if described.files.get(name) != entry:
            raise _damaged(f"{MANIFEST} and {DESCRIPTION} disagree on {name}")
    if manifest.model.preprocessing != described.preprocessing:
        raise _damaged(f"{MANIFEST} and {DESCRIPTION} disagree on the preprocessing")
    needed = [f"{GOLDEN}/{spec.name}.npy" for spec in manifest.signature.outputs]
    needed += [f"{GOLDEN}/pixels/{name}.npy" for name in manifest.golden.pixels]
    needed += [f"{GOLDEN}/cropped/{name}.npy" for name in described.images]
    for name in needed:
        if name not in described.files:
            raise _damaged(f"{name} is missing")


def _extract(file: BinaryIO, entry: Entry, wanted: FileEntry, path: Path) -> None:
    """Write one file, hashed again: the zip may have changed since it was examined."""
    path.parent.mkdir(parents=True, exist_ok=True)
    digest = sha256()
    with path.open("xb") as out:
        for chunk in _pieces(file, entry):
            digest.update(chunk)
            out.write(chunk)
    if digest.hexdigest() != wanted.sha256:
        raise _damaged(f"{entry.name} changed while it was read")


def _damaged(what: str) -> BundleError:
    return BundleError(
        what, remedy="Do not use this bundle: copy it again, or make it anew from the export."
    )
