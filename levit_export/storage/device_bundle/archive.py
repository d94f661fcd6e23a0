"""Write a bundle whole or not at all, and read one that nobody has to trust.

A bundle is a zip in the one form that :func:`_pack` writes: stored entries one after the other
from the first byte on, no comments, no extra fields, no gaps, one date, no Zip64. Compressed bytes
would depend on the version of zlib, and compression is what bombs are made of. The standard
library's ``zipfile`` writes and parses it. It is lenient where two readers may see two contents,
so :func:`_opened` refuses all that ``_pack`` would not have written.

Reading checks everything in place before anything is unpacked: the zip's structure, names, hashes,
both descriptions and the headers of the golden arrays.
"""

from __future__ import annotations

import io
import os
import stat
import struct
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from levit_export.core import files
from levit_export.core.errors import BundleError, ManifestError, OutputError, UsageError
from levit_export.core.hashing import FileEntry, blocks, entry_of_blocks, file_entry
from levit_export.storage import export_directory
from levit_export.storage.device_bundle import contents, description, golden
from levit_export.storage.device_bundle.contents import REQUIRED, Source
from levit_export.storage.device_bundle.description import (
    DESCRIPTION,
    NAME_BYTES,
    SUMS,
    UNLISTED,
    Description,
)
from levit_export.storage.export_directory import GOLDEN, MANIFEST, Manifest

EPOCH = "SOURCE_DATE_EPOCH"
FIRST_DATE, LAST_DATE = 315532800, 4354819198
"""What a zip can say: 1980-01-01 to 2107-12-31, in seconds since 1970."""

TEXT_LIMIT = 8 << 20
"""Most bytes of a description or a list of hashes that are read into memory."""

ENTRIES_LIMIT = 10_000
SIZE_LIMIT = 2_000_000_000
"""Below what ``zipfile`` writes without Zip64, 2**31 - 1 bytes."""

LOCAL, CENTRAL = 30, 46
"""Bytes of a header in front of an entry and of a record in the directory, without the name."""

END = struct.Struct("<4s4H2IH")
"""The record at the very end of a zip."""

LENGTHS, LENGTHS_AT = struct.Struct("<3H"), 28
"""Lengths of name, extra fields and comment in a record of the directory."""

Moment = tuple[int, int, int, int, int, int]
FIELDS = {
    "flag_bits": "is encrypted or has other flags",
    "compress_type": "is compressed",
    "compress_size": "is compressed",
    "extra": "has extra fields",
    "comment": "has a comment",
    "external_attr": "is a link, a folder or a device, or has another mode than 0644",
    "date_time": "has another date than the first",
    "header_offset": "overlaps another or leaves a gap",
    "create_system": "was not made as by Unix",
    "create_version": "has another version",
    "extract_version": "has another version",
    "reserved": "has another version",
    "volume": "lies on another disk",
    "internal_attr": "has internal attributes",
}
"""Everything that a directory says of an entry beside name, size and checksum, and what is wrong
with one of which it says something else than ``_pack`` would."""


def write(
    folder: Path,
    output: Path,
    formats: Sequence[str] | None = None,
    *,
    beside: Sequence[Path] = (),
    allow_failed: bool = False,
    library: Mapping[str, bytes] | None = None,
) -> Path:
    """Bundle the export directory ``folder`` as ``output``; the same export gives the same bytes.

    ``formats`` None takes all. ``beside`` are further exports of the same model, such as those in
    other precisions. ``library``, what ``web.library.find`` found, adds the page for
    browsers. Raises ``BundleError`` for an export that failed or is damaged, ``UsageError`` for a
    page without an ONNX file, ``OutputError`` when ``output`` cannot be written; what was there
    before stays then.
    """
    moment = _moment(os.environ.get(EPOCH))
    exports = {}
    for each in (folder, *beside):
        exports[each] = export_directory.read_manifest(each)
        if damaged := export_directory.damage(each, exports[each]):
            raise BundleError(
                f"{each} is not as it was exported: {'; '.join(damaged[:3])}",
                remedy="Export anew, or copy the directory again.",
            )
        _refuse_place(each, output)
    manifest, places = contents.joined(exports)
    chosen = contents.choose(manifest, formats, allow_failed=allow_failed)
    sources, described = contents.collect(folder, chosen, places, library)
    hashes = {name: file_entry(source) for name, source in sources.items()}
    text = description.encode(replace(described, files=hashes))
    sums = description.sums({**hashes, DESCRIPTION: file_entry(text)})
    # The two that describe the others come first, then the others by name.
    ordered = {DESCRIPTION: text, SUMS: sums, **{name: sources[name] for name in sorted(sources)}}
    for name in ordered:
        if reason := description.name_problem(name):
            raise BundleError(f"the name {name!r} {reason}", remedy="Rename the model or sample.")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(output) as file:
            _pack(file, ordered, moment)
            with _opened(file) as zipped:
                _examine(zipped)
    except OSError as error:
        raise OutputError(
            f"{output} cannot be written: {error.strerror or error}",
            remedy="Check permissions and free space, or give -o another file.",
        ) from error
    return output


def _moment(given: str | None) -> Moment:
    """``SOURCE_DATE_EPOCH`` as date and time in UTC; the first that a zip can say without it."""
    try:
        seconds = int(given) if given else FIRST_DATE
        if not given or (given.isascii() and given.isdigit() and seconds <= LAST_DATE):
            at = time.gmtime(max(seconds, FIRST_DATE))
            return at.tm_year, at.tm_mon, at.tm_mday, at.tm_hour, at.tm_min, at.tm_sec
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
        raise OutputError(f"{output} exists and is not a file", remedy="Give -o another file.")
    if output.exists():
        with files.open_regular(output) as file:
            start = file.read(LOCAL + len(DESCRIPTION))
        if start and not (start.startswith(b"PK\3\4") and start.endswith(DESCRIPTION.encode())):
            raise OutputError(
                f"{output} exists and is not a bundle", remedy="Move it, or give -o another file."
            )


def _entry(name: str, moment: Moment) -> zipfile.ZipInfo:
    """A stored regular file of mode 0644, whatever system writes it."""
    info = zipfile.ZipInfo(name, moment)
    info.create_system = 3  # Unix; on Windows zipfile would say Windows
    info.external_attr = (stat.S_IFREG | 0o644) << 16
    return info


def _pack(file: BinaryIO, sources: Mapping[str, Source], moment: Moment) -> None:
    """Write every source, in this order, to an empty seekable ``file``."""
    with zipfile.ZipFile(file, "w") as zipped:
        for name, source in sources.items():
            opened = (
                io.BytesIO(source) if isinstance(source, bytes) else files.open_regular(source)
            )
            with opened as content, zipped.open(_entry(name, moment), "w") as out:
                for block in blocks(content):
                    out.write(block)
                    if file.tell() > SIZE_LIMIT:
                        raise BundleError(
                            f"the bundle would exceed {SIZE_LIMIT} bytes",
                            remedy="Bundle fewer formats: --format NAME.",
                        )


@contextmanager
def open_bundle(path: Path) -> Iterator[Path]:
    """Verify the bundle at ``path``, unpack it into a temporary folder and give that.

    The folder is an export directory that ``export_directory.read_manifest`` reads, and disappears
    with the block. Raises ``BundleError`` before anything is unpacked when the file is not a whole
    bundle.
    """
    with files.temporary_folder(prefix="levit-bundle-") as folder:
        unpack(path, folder)
        yield folder


def unpack(path: Path, folder: Path) -> Manifest:
    """Verify the bundle at ``path`` and write its files below the empty ``folder``."""
    try:
        with files.open_regular(path) as file, _opened(file) as zipped:
            found, manifest = _examine(zipped)
            for name, wanted in found.items():
                _extract(zipped, name, wanted, folder / name)
    except ManifestError as error:
        raise BundleError(f"{path}: {error.what}", remedy=error.remedy) from error
    except OSError as error:
        raise BundleError(
            f"{path} cannot be unpacked: {error.strerror or error}",
            remedy="Check the path, permissions and free space.",
        ) from error
    return manifest


def _opened(file: BinaryIO) -> zipfile.ZipFile:
    """The zip in a seekable ``file``, of which every byte is as ``_pack`` would write it.

    Raises ``BundleError``; reads no content.
    """
    start, size = _directory(file)
    try:
        zipped = zipfile.ZipFile(file)
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error) as error:
        raise _refused(f"has a directory that cannot be read: {error}") from error
    place, record = 0, start
    for info in zipped.infolist():
        # zipfile cuts a name at its first NUL and keeps what it said.
        name = info.orig_filename
        wanted = _entry(name, zipped.infolist()[0].date_time)
        wanted.flag_bits = 0 if name.isascii() else 0x800
        wanted.compress_size, wanted.header_offset = info.file_size, place
        for field, words in FIELDS.items():
            if getattr(info, field) != getattr(wanted, field):
                raise _refused(f"has an entry, {name[:80]!r}, that {words}")
        if reason := description.name_problem(name):
            raise _damaged(f"the entry {name[:80]!r} {reason}")
        # zipfile reads an extra field or a comment that the directory is too short for as none.
        file.seek(record + LENGTHS_AT)
        if file.read(LENGTHS.size) != LENGTHS.pack(len(name.encode()), 0, 0):
            raise _refused(f"says that {name!r} has a comment or extra fields")
        header = info.FileHeader()
        file.seek(place)
        if file.read(len(header)) != header:
            raise _refused(f"describes {name!r} in two different ways")
        place += len(header) + info.file_size
        record += CENTRAL + len(name.encode())
    if (place, record) != (start, start + size):
        raise _refused("holds other data than its entries")
    return zipped


def _directory(file: BinaryIO) -> tuple[int, int]:
    """Where the directory starts and how many bytes it has, by the record at the end.

    ``zipfile`` would look for that record, believe no count in it, and read a directory of any
    size into memory.
    """
    length = file.seek(0, os.SEEK_END)
    if not END.size <= length <= SIZE_LIMIT + ENTRIES_LIMIT * (CENTRAL + NAME_BYTES):
        raise _refused(f"has {length} bytes, which no bundle has")
    file.seek(length - END.size)
    signature, disk, first, here, count, size, start, comment = END.unpack(file.read(END.size))
    if signature != b"PK\5\6" or comment:
        raise _refused("does not end in a zip directory: truncated, or followed by other data")
    if disk or first or here != count or not 0 < count <= ENTRIES_LIMIT:
        raise _refused(f"says that it holds {count} entries on {disk + 1} disks")
    if start + size + END.size != length or size > count * (CENTRAL + NAME_BYTES):
        raise _refused("has its directory in another place than it says")
    # Where zipfile finds this, it reads the directory of Zip64 that it points to instead.
    file.seek(max(length - END.size - 20, 0))
    if file.read(4) == b"PK\6\7":
        raise _refused("has a second directory, of Zip64")
    return start, size


def _examine(zipped: zipfile.ZipFile) -> tuple[dict[str, FileEntry], Manifest]:
    """Check all that can be checked of a bundle; nothing is written anywhere."""
    present = zipped.namelist()
    for clash in description.name_clashes(present):
        raise _damaged(clash)
    if missing := [name for name in (*UNLISTED, *REQUIRED) if name not in present]:
        raise _damaged(f"{missing[0]} is missing")
    if present != [*UNLISTED, *sorted(present[len(UNLISTED) :])]:
        raise _damaged("its entries are not in order")
    found = {name: entry_of_blocks(_content(zipped, name)) for name in present}
    described = description.decode(_text(zipped, DESCRIPTION))
    _compare(found, described)
    sums = description.sums({**described.files, DESCRIPTION: found[DESCRIPTION]})
    if _text(zipped, SUMS) != sums:
        raise _damaged(f"{SUMS} does not list the files of {DESCRIPTION}")
    manifest = export_directory.decode(_text(zipped, MANIFEST), Path(MANIFEST))
    _refuse_inconsistent(manifest, described)
    for name in present:
        if name.endswith(".npy"):
            with zipped.open(name) as content:
                golden.check_array(name, content.read(golden.NPY_PREFIX), found[name].bytes)
    return found, manifest


def _content(zipped: zipfile.ZipFile, name: str) -> Iterator[bytes]:
    """What an entry holds, piece by piece; its checksum is compared at the end."""
    try:
        with zipped.open(name) as content:
            yield from blocks(content)  # type: ignore[arg-type]
    except (zipfile.BadZipFile, EOFError) as error:
        raise _damaged(f"{name} cannot be read: {error}") from error


def _text(zipped: zipfile.ZipFile, name: str) -> bytes:
    size = zipped.getinfo(name).file_size
    if size > TEXT_LIMIT:
        raise _damaged(f"{name} has {size} bytes, more than {TEXT_LIMIT}")
    return b"".join(_content(zipped, name))


def _compare(found: Mapping[str, FileEntry], described: Description) -> None:
    """Raise where a file is missing, strange or altered."""
    present = found.keys() - set(UNLISTED)
    for name in sorted(described.files.keys() - present):
        raise _damaged(f"{name} is missing")
    for name in sorted(present - described.files.keys()):
        raise _damaged(f"{name} is not in {DESCRIPTION}")
    for name in sorted(present):
        if found[name] != described.files[name]:
            raise _damaged(f"{name} is not the file that {DESCRIPTION} describes")


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


def _extract(zipped: zipfile.ZipFile, name: str, wanted: FileEntry, path: Path) -> None:
    """Write one file, hashed again: the zip may have changed since it was examined."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as out:
        for block in _content(zipped, name):
            out.write(block)
    if file_entry(path) != wanted:
        raise _damaged(f"{name} changed while it was read")


def _damaged(what: str) -> BundleError:
    return BundleError(
        what, remedy="Do not use this bundle: copy it again, or make it anew from the export."
    )


def _refused(what: str) -> BundleError:
    return BundleError(
        f"the file {what}",
        remedy="Copy the bundle again as levit-export wrote it; zips packed by other programs "
        "are not read, but their unpacked folder can be checked.",
    )
