"""PNG with a fixed encoding, so that equal pixels give equal bytes under every zlib."""

from __future__ import annotations

import struct
import zlib

import numpy as np

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GREY, RGB = 0, 2
BLOCK = 65535
"""Most bytes of a deflate block that is stored as it is."""


def encode(pixels: np.ndarray) -> bytes:
    """``pixels`` uint8 ``(H, W)`` or ``(H, W, 3)``: no filter, nothing compressed."""
    height, width = pixels.shape[:2]
    kind = GREY if pixels.ndim == 2 else RGB
    rows = np.zeros((height, 1 + pixels[0].size), np.uint8)
    rows[:, 1:] = pixels.reshape(height, -1)
    header = struct.pack(">2I5B", width, height, 8, kind, 0, 0, 0)
    body = _stored(rows.tobytes())
    return SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", body) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _stored(raw: bytes) -> bytes:
    """A zlib stream (RFC 1950) of stored deflate blocks (RFC 1951, 3.2.4)."""
    parts = [b"\x78\x01"]
    for start in range(0, len(raw), BLOCK):
        block = raw[start : start + BLOCK]
        is_last = start + BLOCK >= len(raw)
        parts.append(struct.pack("<B2H", is_last, len(block), len(block) ^ 0xFFFF) + block)
    return b"".join(parts) + struct.pack(">I", zlib.adler32(raw))
