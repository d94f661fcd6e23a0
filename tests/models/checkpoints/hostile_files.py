"""Files that no training writes: pickles put together by hand, headers that lie."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2)
SYSTEM = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}


class Runs:
    """A pickle of this makes a file when something executes it."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.marker),)


class Calls:
    """A pickle of this calls ``function``."""

    def __init__(self, function: Any, *arguments: object) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[object, ...]:
        return self.function, self.arguments


class Stored:
    """Stands for a storage of ``count`` float32 numbers."""

    def __init__(self, count: int, key: str = "0", kind: Any = torch.FloatStorage) -> None:
        self.count, self.key, self.kind = count, key, kind


class Pickler(pickle.Pickler):
    """Writes :class:`Stored` as PyTorch writes storages."""

    def __init__(self, stream: io.BytesIO, *, old: bool = False) -> None:
        super().__init__(stream, 2)
        self.old = old

    def persistent_id(self, obj: object) -> tuple[object, ...] | None:
        if not isinstance(obj, Stored):
            return None
        identity = ("storage", obj.kind, obj.key, "cpu", obj.count)
        return (*identity, None) if self.old else identity


def pickled(content: object, *, old: bool = False) -> bytes:
    """``content`` as PyTorch's pickler writes it."""
    stream = io.BytesIO()
    Pickler(stream, old=old).dump(content)
    return stream.getvalue()


def tensor(
    count: int, sizes: tuple[int, ...], strides: tuple[int, ...], offset: int = 0, key: str = "0"
) -> Calls:
    """A float32 tensor over a storage of ``count`` numbers."""
    rebuild = torch._utils._rebuild_tensor_v2
    return Calls(rebuild, Stored(count, key), offset, sizes, strides, False, None)


def archive(
    content: object,
    data: Mapping[str, bytes] | None = None,
    *,
    compression: int = zipfile.ZIP_STORED,
) -> bytes:
    """A zip file as ``torch.save`` writes it; ``content`` is pickled unless it is bytes."""
    stream = io.BytesIO()
    program = content if isinstance(content, bytes) else pickled(content)
    with zipfile.ZipFile(stream, "w", compression) as file:
        file.writestr("w/data.pkl", program)
        file.writestr("w/byteorder", "little")
        for key, values in ({"0": bytes(4)} if data is None else data).items():
            file.writestr(f"w/data/{key}", values)
        file.writestr("w/version", "3\n")
    return stream.getvalue()


def legacy(content: object, data: Mapping[str, bytes] | None = None) -> bytes:
    """A file of PyTorch's older format, float32 storages."""
    program = content if isinstance(content, bytes) else pickled(content, old=True)
    stored = {"0": bytes(4)} if data is None else data
    parts = [MAGIC, pickle.dumps(SYSTEM, 2), program, pickle.dumps(list(stored), 2)]
    parts += [struct.pack("<q", len(values) // 4) + values for values in stored.values()]
    return b"".join(parts)


def safetensors(header: object, data: bytes = b"") -> bytes:
    """A safetensors file; ``header`` is dumped unless it is bytes."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data
