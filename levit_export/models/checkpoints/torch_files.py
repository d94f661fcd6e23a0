"""What ``torch.save`` wrote, loaded after its archive and its pickle were looked through.

``torch.load(weights_only=True)`` does the loading and runs no code. It trusts sizes, however, and
can be made to allocate what a file does not hold; so every size is held against the file first
(:mod:`~levit_export.models.checkpoints.pickle_program`).

Zip files can be ambiguous: two directories, two entries of one name, headers that contradict the
directory. PyTorch reads them with another library than this module, so that only files are let
through on which there can be no two opinions.
"""

from __future__ import annotations

import argparse
import io
import pickle
import re
import struct
import warnings
import zipfile
from pathlib import Path
from typing import BinaryIO, Literal

import torch

from levit_export.core import files
from levit_export.core.errors import CheckpointError, LevitExportError
from levit_export.models.checkpoints.limits import PICKLE_BYTES, TENSORS, size_of
from levit_export.models.checkpoints.pickle_program import StackMachine, unsafe_checkpoint

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001
"""The bytes that ``torch.save`` begins a file with that is not a zip archive."""

END = struct.Struct("<4s4H2IH")
END_64 = struct.Struct("<4sQ2H2I4Q")
LOCATOR_64 = struct.Struct("<4sIQI")
LOCAL = struct.Struct("<4s5H3I2H")
DIRECTORY_BYTES = 64 << 20


def read_torch_file(path: Path, kind: Literal["zip", "legacy"]) -> object:
    """Whatever ``torch.save`` was given, its tensors on the CPU.

    Raises ``UnsafeCheckpointError`` when the pickle asks for more than a state dict and its
    training state need, ``CheckpointError`` for files that are damaged or declare more than they
    hold.
    """
    try:
        (_check_archive if kind == "zip" else _check_legacy)(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols; what matters raises
            # Training scripts keep their arguments beside the weights. A namespace holds values
            # and runs nothing.
            with torch.serialization.safe_globals([argparse.Namespace]):
                return torch.load(path, map_location="cpu", weights_only=True)
    except LevitExportError:
        raise
    except Exception as error:  # a damaged file raises whatever its bytes lead to
        text = str(error) or type(error).__name__
        if isinstance(error, pickle.UnpicklingError):
            # PyTorch asks in several lines whether the file is trusted; only the reason is wanted.
            if wanted := re.search(r"GLOBAL (\S+)", text):
                raise unsafe_checkpoint(path, wanted[1]) from error
            detail = re.search(r"WeightsUnpickler error:\s*(.+)", text)
            text = detail[1] if detail else "it is not a pickle"
        line = "".join(c if c.isprintable() else "?" for c in text.split("\n", maxsplit=1)[0])
        raise CheckpointError(
            f"{path} is not a whole PyTorch checkpoint: {line[:200]}",
            remedy="Copy it again, or save the weights as safetensors.",
        ) from error


def _check_archive(path: Path) -> None:
    """Hold the pickle of an archive against the storages beside it."""
    content, held = _read_archive(path)
    machine = StackMachine(path, size_of(path))
    machine.run(io.BytesIO(content))
    for key, storage in machine.storages.items():
        if held.get(key) != storage.nbytes:
            raise ValueError(
                f"storage {ascii(key)[:40]} is to have {storage.nbytes:,} bytes and has "
                f"{held.get(key, 0):,}"
            )


def _check_legacy(path: Path) -> None:
    """The older format: five pickles (magic number, version, system, content, keys), then data.

    Each storage of the keys follows as its number of elements, 8 bytes, and its elements.
    """
    machine = StackMachine(path, size := size_of(path))
    with files.open_regular(path) as file:
        stream = io.BytesIO(file.read(PICKLE_BYTES))
        if bytes(stream.getbuffer()[:1]) != b"\x80":
            raise ValueError("it is not a pickle")
        if machine.run(stream) != MAGIC or machine.run(stream) != PROTOCOL:
            raise ValueError("a pickle, but not one of torch.save")
        system = machine.run(stream)
        if isinstance(system, dict) and system.get("little_endian") is False:
            raise ValueError("written on a machine of the other byte order")
        machine.run(stream)
        keys = machine.run(stream)
        if type(keys) is not list or any(type(key) is not str for key in keys):
            raise ValueError("its storages are not listed")
        if len(keys) != len(machine.storages) or set(keys) != machine.storages.keys():
            raise ValueError("storages are missing, or too many")
        position = stream.tell()
        for key in keys:
            storage = machine.storages[key]
            file.seek(position)
            if int.from_bytes(file.read(8), "little", signed=True) != storage.count:
                raise ValueError(f"storage {ascii(key)[:40]} has another size than declared")
            position += 8 + storage.nbytes
        if position > size:
            raise ValueError(f"{position - size:,} bytes are missing")


# --- the zip archive -------------------------------------------------------------------------


def _read_archive(path: Path) -> tuple[bytes, dict[str, int]]:
    """The pickle of a ``torch.save`` file, and the bytes that each of its storages has.

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
                    remedy="Give a .pth or .safetensors checkpoint; unpack the archive if it "
                    "holds one.",
                )
            pickled = names["data.pkl"]
            if pickled.file_size > PICKLE_BYTES:
                raise ValueError(f"a pickle of {pickled.file_size:,} bytes")
            content = archive.read(pickled)
    return content, {
        name.removeprefix("data/"): entry.file_size
        for name, entry in names.items()
        if name.startswith("data/")
    }


def _directory_start(file: BinaryIO, size: int) -> int:
    """Offset of the one directory, which is followed by the end records and nothing else."""
    if size < END.size:
        raise ValueError("the end is missing")
    # The last 22 bytes are the end record. A comment behind it, which zip files may have, could
    # itself be a second end record.
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
        # A field of the short record holds the number, or only ones where the number is too large.
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
        # 3 is the kind of compression, 9 and 10 are the lengths of the name and of extra data.
        name = file.read(fields[9])
        end = entry.header_offset + LOCAL.size + fields[9] + fields[10] + entry.file_size
        if fields[0] != b"PK\x03\x04" or fields[3] != 0 or end > limit:
            raise ValueError("entries that overlap")
        if name != entry.filename.encode("utf-8" if entry.flag_bits & 0x800 else "cp437"):
            raise ValueError("an entry of two names")
