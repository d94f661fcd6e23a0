"""The one form of ``.npy`` that a bundle holds, simple enough to be read in any language."""

from __future__ import annotations

import io
import re
import struct

import numpy as np

from levit_export.core.errors import BundleError

MAGIC = b"\x93NUMPY\x01\x00"
HEADER = re.compile(
    rb"\{'descr': '(<f8|<f4|<f2|\|u1)', 'fortran_order': False, "
    rb"'shape': \(((?:\d{1,10}, ?)*\d{0,10})\), \} *\n"
)
WIDTH = {b"<f8": 8, b"<f4": 4, b"<f2": 2, b"|u1": 1}
PREFIX = 4096
"""More than any header of this form takes."""


def encode(array: np.ndarray) -> bytes:
    """``array`` as ``.npy`` version 1.0, little-endian, in C order."""
    buffer = io.BytesIO()
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    np.save(buffer, np.ascontiguousarray(little))
    return buffer.getvalue()


def check(name: str, start: bytes, size: int) -> None:
    """Raise ``BundleError`` unless a file of ``size`` bytes that begins with ``start`` is such an
    array: a header that promises more than the file holds makes NumPy ask for the memory.
    """
    header, ends = b"", 0
    if start.startswith(MAGIC) and len(start) >= len(MAGIC) + 2:
        (length,) = struct.unpack_from("<H", start, len(MAGIC))
        ends = len(MAGIC) + 2 + length
        header = start[len(MAGIC) + 2 : ends]
    match = HEADER.fullmatch(header)
    if match:
        count = 1
        for number in match[2].replace(b" ", b"").split(b","):
            count *= int(number) if number else 1
        if count * WIDTH[match[1]] == size - ends:
            return
    raise BundleError(
        f"{name} is not an array of the form that bundles hold",
        remedy="It has to be .npy 1.0, little-endian, in C order, of float or uint8 numbers.",
    )
