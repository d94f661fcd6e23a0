"""Numbers narrower than a byte, packed from the lowest bit of every byte upwards.

Source: coremltools, MIL op ``constexpr_lut_to_dense`` (iOS 16), and the blob file format.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt


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
