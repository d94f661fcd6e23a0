"""Numbers narrower than a byte, packed from the lowest bit of every byte upwards.

Source: coremltools, MIL op ``constexpr_lut_to_dense`` (iOS 16), and the blob file format.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt


def packed_size(bits: int, count: int) -> int:
    """Bytes that ``count`` numbers of ``bits`` bits take."""
    return (bits * count + 7) // 8


def unpack(
    data: bytes, bits: int, shape: tuple[int, ...], *, signed: bool = False
) -> npt.NDArray[np.uint8] | npt.NDArray[np.int8]:
    """The numbers in ``data`` as uint8 (int8 if ``signed``: two's complement) of ``shape``.

    Raises ``ValueError`` unless ``data`` is exactly as long as the shape needs.
    """
    count = math.prod(shape)
    if len(data) != packed_size(bits, count):
        raise ValueError(
            f"{len(data)} bytes, but {count} numbers of {bits} bits take {packed_size(bits, count)}"
        )
    raw = np.frombuffer(data, dtype=np.uint8)
    if bits == 8:
        numbers = raw.copy()
    else:
        every_bit = np.unpackbits(raw, count=bits * count, bitorder="little")
        numbers = np.packbits(every_bit.reshape(count, bits), axis=1, bitorder="little")[:, 0]
    numbers = numbers.reshape(shape)
    if not signed:
        return numbers
    # Shifting left puts the sign bit where int8 has it; shifting back repeats it.
    return (numbers << (8 - bits)).astype(np.uint8).view(np.int8) >> (8 - bits)
