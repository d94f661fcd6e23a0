"""The weight file of an ML Program: format, bounds, one tensor at a time, packed numbers.

The format is ``MILBlob``'s version 2 (coremltools, ``MILBlob/Blob/StorageFormat.hpp``),
little-endian, everything at multiples of 64 bytes::

    header    u32 count, u32 version (2), 56 bytes reserved
    metadata  u32 0xDEADBEEF, u32 type, u64 bytes, u64 offset, u64 unused bits, 32 bytes reserved
    data      ``bytes`` bytes at ``offset``

A program refers to a metadata record by its offset. Reading is our own, and not coremltools'
``_BlobStorageReader``, so that damage is told apart precisely: that reader trusts the sizes in the
file, and does not know the shape that the program expects.

The file is read once rather than mapped: a mapped file that shrinks kills the process.

Numbers narrower than a byte are packed from the lowest bit of every byte upwards, here and in the
operands of ``constexpr_lut_to_dense`` (iOS 16).
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from levit_export.core import files
from levit_export.core.errors import PackageError
from levit_export.formats.mil.elements import MAX_ELEMENTS, Array, TensorType

_ALIGNMENT = 64
_HEADER = struct.Struct("<II56x")
_METADATA = struct.Struct("<IIQQQ32x")
_VERSION = 2
_SENTINEL = 0xDEADBEEF
_REMEDY = "Export the model again, or restore the package from a copy."

_TYPES = {
    1: "float16",
    2: "float32",
    3: "uint8",
    4: "int8",
    6: "int16",
    7: "uint16",
    8: "int4",
    9: "uint1",
    10: "uint2",
    11: "uint4",
    12: "uint3",
    13: "uint6",
    14: "int32",
    15: "uint32",
}
"""Element type by the code in a metadata record (``BlobDataType.hpp``)."""


@dataclass(frozen=True)
class Blob:
    """A weight file in memory; ``path`` is for messages."""

    path: Path
    data: bytes

    @classmethod
    def read(cls, path: Path) -> Blob:
        """Read ``path`` and check its header; raises :class:`PackageError`."""
        try:
            data = files.read_bytes(path)
        except OSError as error:
            raise PackageError(
                f"weight file {path} cannot be read: {error}", remedy=_REMEDY
            ) from (error)
        blob = cls(path, data)
        if len(data) < _HEADER.size:
            raise blob._damaged(f"has {len(data)} bytes, less than its header")
        _, version = _HEADER.unpack_from(data)
        if version != _VERSION:
            raise blob._damaged(f"has format version {version}, not {_VERSION}")
        return blob

    def tensor(self, offset: int, declared: TensorType) -> Array:
        """The tensor whose metadata is at ``offset``, if it is what the program declares.

        The array is read-only where it is a view of the file. Raises :class:`PackageError`.
        """
        name, start, size, unused = self._metadata(offset)
        element = declared.element
        if name != element.name:
            raise self._damaged(f"holds {name} at offset {offset}, not {declared}")
        expected = packed_size(element.bits, declared.size)
        padding = 8 * expected - element.bits * declared.size
        if declared.size > MAX_ELEMENTS or size != expected or unused != padding:
            raise self._damaged(
                f"holds {size} bytes at offset {offset}, but {declared} takes {expected}"
            )
        if start % _ALIGNMENT or start + size > len(self.data):
            raise self._damaged(
                f"is said to hold {size} bytes from {start}, but has {len(self.data)}"
            )
        return decode(memoryview(self.data)[start : start + size], declared)

    def _metadata(self, offset: int) -> tuple[str, int, int, int]:
        if offset % _ALIGNMENT or offset + _METADATA.size > len(self.data):
            raise self._damaged(f"has no record at offset {offset} (of {len(self.data)} bytes)")
        sentinel, code, size, start, unused = _METADATA.unpack_from(self.data, offset)
        if sentinel != _SENTINEL:
            raise self._damaged(
                f"has {sentinel:#010x} at offset {offset}, where a record has {_SENTINEL:#010x}"
            )
        if code not in _TYPES:
            raise self._damaged(f"has a record of unknown type {code} at offset {offset}")
        return _TYPES[code], start, size, unused

    def _damaged(self, what: str) -> PackageError:
        return PackageError(f"weight file {self.path} {what}", remedy=_REMEDY)


def decode(data: bytes | memoryview, declared: TensorType) -> Array:
    """Raw little-endian bytes as the array that holds ``declared`` under evaluation.

    Raises ``ValueError`` if the length does not match.
    """
    element = declared.element
    if element.bits < 8:
        signed = not element.name.startswith("u")
        return unpack(bytes(data), element.bits, declared.shape, signed=signed)
    if element.name == "bool":
        return np.asarray(np.frombuffer(data, dtype=np.uint8).reshape(declared.shape) != 0)
    raw = np.frombuffer(data, dtype=np.dtype(element.name).newbyteorder("<"))
    # Converts float16 to the float32 that holds it, once; a float32 tensor stays a view.
    return raw.reshape(declared.shape).astype(element.held_as, copy=False)


def packed_size(bits: int, count: int) -> int:
    """Bytes that ``count`` numbers of ``bits`` bits take."""
    return (bits * count + 7) // 8


def unpack(
    data: bytes, bits: int, shape: tuple[int, ...], *, signed: bool = False
) -> npt.NDArray[Any]:
    """The numbers in ``data``, of ``shape``: uint8, or int8 (two's complement) if ``signed``.

    Raises ``ValueError`` unless ``data`` is exactly as long as the shape needs.
    """
    count = math.prod(shape)
    expected = packed_size(bits, count)
    if len(data) != expected:
        raise ValueError(f"{len(data)} bytes; {count} numbers of {bits} bits take {expected}")
    raw = np.frombuffer(data, dtype=np.uint8)
    every_bit = np.unpackbits(raw, count=bits * count, bitorder="little")
    packed = np.packbits(every_bit.reshape(count, bits), axis=1, bitorder="little")
    numbers: npt.NDArray[Any] = packed.reshape(shape)
    if not signed:
        return numbers
    # Shifting left puts the sign bit where int8 has it; shifting back repeats it.
    return np.asarray((numbers << (8 - bits)).astype(np.uint8).view(np.int8) >> (8 - bits))
