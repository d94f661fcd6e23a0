"""The directory of a zip file that ``torch.save`` wrote, read strictly.

Zip files can be ambiguous: two directories, two entries of one name, headers that contradict the
directory. PyTorch reads them with another library than we do, so that only files are let through
on which there can be no two opinions.
"""

from __future__ import annotations

import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from levit_export.core import files
from levit_export.core.errors import CheckpointError
from levit_export.models.checkpoints.limits import PICKLE_BYTES, TENSORS

END = struct.Struct("<4s4H2IH")
END_64 = struct.Struct("<4sQ2H2I4Q")
LOCATOR_64 = struct.Struct("<4sIQI")
LOCAL = struct.Struct("<4s5H3I2H")
DIRECTORY_BYTES = 64 << 20


@dataclass(frozen=True)
class Archive:
    """The pickle of an archive, and the bytes that each storage has."""

    pickle: bytes
    storages: dict[str, int]


def read_archive(path: Path) -> Archive:
    """The pickle and the sizes of the storages of a ``torch.save`` file.

    Raises ``CheckpointError`` for archives of other programs, ``ValueError`` and
    ``zipfile.BadZipFile`` for damaged and ambiguous ones.
    """
    with files.open_regular(path) as file:
        start = _directory_start(file, path.stat().st_size)
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            _refuse_doubtful(entries, start)
            _refuse_hidden_data(file, entries, start)
            names = {entry.filename.partition("/")[2]: entry for entry in entries}
            _refuse_others(path, names)
            pickled = names["data.pkl"]
            if pickled.file_size > PICKLE_BYTES:
                raise ValueError(f"a pickle of {pickled.file_size:,} bytes")
            content = archive.read(pickled)
    storages = {
        name.removeprefix("data/"): entry.file_size
        for name, entry in names.items()
        if name.startswith("data/")
    }
    return Archive(content, storages)


def _directory_start(file: BinaryIO, size: int) -> int:
    """Offset of the one directory, which is followed by the end records and nothing else."""
    if size < END.size:
        raise ValueError("the end is missing")
    file.seek(size - END.size)
    signature, *disks, here, entries, length, start, comment = END.unpack(file.read(END.size))
    if signature != b"PK\x05\x06" or comment or any(disks):
        raise ValueError("the end is missing")
    stop = size - END.size
    file.seek(max(stop - LOCATOR_64.size, 0))
    locator = file.read(LOCATOR_64.size)
    if locator[:4] == b"PK\x06\x07" and len(locator) == LOCATOR_64.size:
        stop -= LOCATOR_64.size + END_64.size
        _, disk, offset, disks_64 = LOCATOR_64.unpack(locator)
        if offset != stop or disk or disks_64 > 1 or stop < 0:
            raise ValueError("the zip64 record is not where it belongs")
        file.seek(stop)
        record = END_64.unpack(file.read(END_64.size))
        if record[:2] != (b"PK\x06\x06", END_64.size - 12) or any(record[4:6]):
            raise ValueError("the zip64 record is damaged")
        short = (here, entries, length, start)
        here, entries, length, start = record[6:]
        for told, meant, full in zip(short, record[6:], (2**16, 2**16, 2**32, 2**32), strict=True):
            if told not in {meant, full - 1}:
                raise ValueError("two directories")
    if start + length != stop or here != entries or length > DIRECTORY_BYTES:
        raise ValueError("the directory is not where it belongs")
    return int(start)


def _refuse_doubtful(entries: list[zipfile.ZipInfo], directory: int) -> None:
    """Raise for entries that are packed, encrypted, doubled or outside of the file's data."""
    if not entries or len(entries) > TENSORS + 100:
        raise ValueError(f"{len(entries):,} entries")
    folders = {entry.filename.partition("/")[0] for entry in entries}
    names = {entry.orig_filename.lower() for entry in entries}  # PyTorch's reader ignores case
    if len(names) != len(entries) or len(folders) != 1:
        raise ValueError("entries of one name, or in several folders")
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
            raise ValueError(
                "its entries are compressed, which torch.save never does; unpack it and pack "
                "it without compression"
            )
        if entry.flag_bits & 1 or entry.orig_filename != entry.filename:
            raise ValueError("an encrypted entry, or an odd name")
        if entry.header_offset + LOCAL.size + entry.file_size > directory:
            raise ValueError("an entry beyond the data")


def _refuse_hidden_data(file: BinaryIO, entries: list[zipfile.ZipInfo], directory: int) -> None:
    """Raise unless the entries' own headers agree, and none reaches into the next."""
    ordered = sorted(entries, key=lambda entry: entry.header_offset)
    limits = [*(entry.header_offset for entry in ordered[1:]), directory]
    for entry, limit in zip(ordered, limits, strict=True):
        file.seek(entry.header_offset)
        fields = LOCAL.unpack(file.read(LOCAL.size))
        name = file.read(fields[9])
        end = entry.header_offset + LOCAL.size + fields[9] + fields[10] + entry.file_size
        if fields[0] != b"PK\x03\x04" or fields[3] != 0 or end > limit:
            raise ValueError("entries that overlap")
        if name != entry.filename.encode("utf-8" if entry.flag_bits & 0x800 else "cp437"):
            raise ValueError("an entry of two names")


def _refuse_others(path: Path, names: dict[str, zipfile.ZipInfo]) -> None:
    """Raise for zip files that ``torch.save`` did not write, by name where they are known."""
    if "constants.pkl" in names:
        raise CheckpointError(
            f"{path} is a TorchScript archive: a program, not only weights",
            remedy="Where it was made, save the weights: torch.save("
            "torch.jit.load(FILE).state_dict(), 'weights.pth').",
        )
    if "data.pkl" not in names:
        shown = ", ".join(ascii(n)[1:-1][:40] for n in list(names)[:3])
        raise CheckpointError(
            f"{path} is a zip archive that torch.save did not write ({shown})",
            remedy="Give a .pth or .safetensors checkpoint; unpack the archive if it holds one.",
        )
