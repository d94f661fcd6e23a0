"""The zip form of a bundle: stored entries one after the other, and nothing that is not needed.

A list of files has one representation: no compression (its bytes depend on the version of zlib,
and it is what bombs are made of), no comments, no extra fields, no gaps, one date. So the reader
decodes a record, encodes it again, and refuses what differs; two entries cannot overlap, nothing
lies before, between or behind them, and the directory cannot say other than the entries.
"""

from __future__ import annotations

import stat
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import BinaryIO

from levit_export.core.errors import BundleError

CHUNK = 1 << 20
ENTRIES_LIMIT = 10_000
SIZE_LIMIT = 2**32 - 2**24
"""What plain zip can address, with room for its directory; Zip64 is not used."""

LOCAL = struct.Struct("<4s5H3I2H")
CENTRAL = struct.Struct("<4s6H3I5H2I")
END = struct.Struct("<4s4H2IH")
MADE_BY = 3 << 8 | 20  # Unix, zip 2.0
NEEDED = 10
UTF8 = 1 << 11
ENCRYPTED = 1
REGULAR = (stat.S_IFREG | 0o644) << 16
NAME_LIMIT = 1024


@dataclass(frozen=True)
class Entry:
    """One file of the zip; ``start`` is where its header lies, ``stamp`` its DOS date and time."""

    name: str
    crc: int
    size: int
    start: int
    stamp: int

    @property
    def local(self) -> bytes:
        """The header in front of the data."""
        raw = self.name.encode()
        time, date = self.stamp & 0xFFFF, self.stamp >> 16
        fields = (NEEDED, UTF8, 0, time, date, self.crc, self.size, self.size, len(raw), 0)
        return LOCAL.pack(b"PK\3\4", *fields) + raw

    @property
    def central(self) -> bytes:
        """The record in the directory at the end."""
        raw = self.name.encode()
        time, date = self.stamp & 0xFFFF, self.stamp >> 16
        head = (MADE_BY, NEEDED, UTF8, 0, time, date, self.crc, self.size, self.size, len(raw))
        return CENTRAL.pack(b"PK\1\2", *head, 0, 0, 0, 0, REGULAR, self.start) + raw

    @property
    def data(self) -> int:
        """Where the content starts."""
        return self.start + len(self.local)

    @property
    def end(self) -> int:
        """Where the next entry starts."""
        return self.data + self.size


def directory(entries: Sequence[Entry]) -> bytes:
    """What follows the last entry."""
    records = b"".join(entry.central for entry in entries)
    start, count = entries[-1].end, len(entries)
    return records + END.pack(b"PK\5\6", 0, 0, count, count, len(records), start, 0)


def write(
    file: BinaryIO, sources: Sequence[tuple[str, Callable[[], BinaryIO]]], stamp: int
) -> None:
    """Write every source, in this order, to an empty seekable ``file``."""
    entries: list[Entry] = []
    for name, opened in sources:
        entry = Entry(name, 0, 0, file.tell(), stamp)
        file.write(entry.local)
        with opened() as content:
            for chunk in iter(lambda: content.read(CHUNK), b""):
                file.write(chunk)
                entry = replace(
                    entry, crc=zlib.crc32(chunk, entry.crc), size=entry.size + len(chunk)
                )
                if entry.end > SIZE_LIMIT:
                    raise BundleError(
                        f"the bundle would exceed {SIZE_LIMIT} bytes",
                        remedy="Bundle fewer formats: --format NAME.",
                    )
        file.seek(entry.start)
        file.write(entry.local)
        file.seek(entry.end)
        entries.append(entry)
    file.write(directory(entries))


def read(file: BinaryIO) -> tuple[Entry, ...]:
    """The entries of a seekable ``file``. Raises ``BundleError``; reads no content."""
    length = file.seek(0, 2)
    if length < END.size:
        raise _refused("is too short to be a zip")
    file.seek(length - END.size)
    signature, disk, first, here, count, size, start, comment = END.unpack(file.read(END.size))
    if signature != b"PK\5\6" or comment:
        raise _refused("does not end in a zip directory: truncated, or followed by other data")
    if disk or first or here != count or not 0 < count <= ENTRIES_LIMIT:
        raise _refused(f"says that it holds {count} entries on {disk + 1} disks")
    if start + size + END.size != length or size > count * (CENTRAL.size + NAME_LIMIT):
        raise _refused("has its directory in another place than it says")
    file.seek(start)
    records = file.read(size)
    entries = tuple(_entries(records, count))
    if directory(entries) != records + _end_of(file, length):
        raise _refused("has a directory that describes other entries than it holds")
    for entry in entries:
        file.seek(entry.start)
        if file.read(len(entry.local)) != entry.local:
            raise _refused(f"describes {entry.name!r} in two different ways")
    return entries


def _end_of(file: BinaryIO, length: int) -> bytes:
    file.seek(length - END.size)
    return file.read(END.size)


def _entries(records: bytes, count: int) -> Iterator[Entry]:
    """Decode the directory; each entry has to start where the one before ends."""
    position, start, stamp = 0, 0, None
    for _ in range(count):
        if position + CENTRAL.size > len(records):
            raise _refused("has a directory that ends early")
        fields = CENTRAL.unpack_from(records, position)
        position += CENTRAL.size
        raw = records[position : position + fields[10]]
        position += fields[10]
        entry = _entry(fields, raw)
        if entry.start != start:
            raise _refused(f"has entries that overlap or leave a gap at {entry.name!r}")
        if entry.stamp != (entry.stamp if stamp is None else stamp):
            raise _refused(f"has another date on {entry.name!r} than on the entries before")
        start, stamp = entry.end, entry.stamp
        yield entry


def _entry(fields: tuple[int, ...], raw: bytes) -> Entry:
    """One record, if it is what :class:`Entry` would write."""
    (_, _, _, flags, method, time, date, crc, packed, size, _, extra, comment, *_) = fields
    mode, start = fields[15] >> 16, fields[16]
    try:
        name = raw.decode()
    except UnicodeDecodeError:
        raise _refused(f"has a name that is not UTF-8: {raw[:40]!r}") from None
    shown = name[:80]
    if flags & ENCRYPTED:
        raise _refused(f"has an encrypted entry, {shown!r}")
    if method or packed != size:
        raise _refused(f"has a compressed entry, {shown!r}; a bundle's entries are stored")
    if extra or comment:
        raise _refused(f"has extra fields or a comment on {shown!r}")
    if stat.S_IFMT(mode) != stat.S_IFREG:
        raise _refused(f"has an entry that is a link, a folder or a device: {shown!r}")
    return Entry(name, crc, size, start, date << 16 | time)


def _refused(what: str) -> BundleError:
    return BundleError(
        f"the file {what}",
        remedy="Copy the bundle again as levit-export wrote it; zips packed by other programs "
        "are not read, but their unpacked folder can be checked.",
    )
