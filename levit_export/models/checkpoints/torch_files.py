"""What ``torch.save`` wrote, loaded after its pickle was looked through.

``torch.load(weights_only=True)`` does the loading and runs no code. It trusts sizes, however, and
can be made to allocate what a file does not hold; so every size is held against the file first.
"""

from __future__ import annotations

import argparse
import io
import pickle
import re
import warnings
from pathlib import Path
from typing import Literal

import torch

from levit_export.core import files
from levit_export.core.errors import LevitExportError
from levit_export.models.checkpoints.kinds import size_of
from levit_export.models.checkpoints.limits import PICKLE_BYTES, unreadable
from levit_export.models.checkpoints.pickle_program import Machine, unsafe
from levit_export.models.checkpoints.torch_archive import read_archive

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001
"""The bytes that ``torch.save`` begins a file with that is not a zip archive."""


def read_pickle(path: Path, kind: Literal["zip", "legacy"]) -> object:
    """Whatever ``torch.save`` was given, its tensors on the CPU.

    Raises ``UnsafeCheckpointError`` when the pickle asks for more than a state dict and its
    training state needs, ``CheckpointError`` for files that are damaged or declare more than
    they hold.
    """
    try:
        (_check_archive if kind == "zip" else _check_legacy)(path)
        return _load(path)
    except LevitExportError:
        raise
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        if wanted is not None:
            raise unsafe(path, wanted[1]) from error
        detail = re.search(r"WeightsUnpickler error:\s*(.+)", str(error))
        raise unreadable(path, detail[1] if detail else "no pickle") from error
    except Exception as error:  # a damaged file raises whatever its bytes lead to
        raise unreadable(path, str(error) or type(error).__name__) from error


def _load(path: Path) -> object:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about pickle protocols; what matters raises
        # Training scripts keep their arguments beside the weights. A namespace holds values and
        # runs nothing.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)


def _check_archive(path: Path) -> None:
    archive = read_archive(path)
    machine = Machine(path, size_of(path))
    machine.run(io.BytesIO(archive.pickle))
    for key, storage in machine.storages.items():
        if archive.storages.get(key) != storage.nbytes:
            raise ValueError(
                f"storage {ascii(key)[:40]} is to have {storage.nbytes:,} bytes and has "
                f"{archive.storages.get(key, 0):,}"
            )


def _check_legacy(path: Path) -> None:
    """The older format: five pickles (magic number, version, system, content, keys), then data.

    Each storage of the keys follows as its number of elements, 8 bytes, and its elements.
    """
    machine = Machine(path, size := size_of(path))
    with files.open_regular(path) as file:
        stream = io.BytesIO(file.read(PICKLE_BYTES))
        if bytes(stream.getbuffer()[:1]) != b"\x80":
            raise ValueError("no pickle")
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
