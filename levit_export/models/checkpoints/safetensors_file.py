"""Tensors from a safetensors file whose header was held against its size first.

Layout: 8 bytes, the header's length n; n bytes of JSON, ``name: {dtype, shape, data_offsets}``;
then the data, which the offsets cover without gap or overlap.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch

from levit_export.core import files
from levit_export.core.errors import CheckpointError
from levit_export.models.checkpoints.kinds import size_of
from levit_export.models.checkpoints.limits import JSON_BYTES, RANK, refuse_count, refuse_names

BITS = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E5M2FNUZ": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E8M0": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}
"""Bits of an element of each type, those under a byte left out: no weights are stored so."""


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of ``path``, in memory of their own.

    Raises ``CheckpointError`` for a header that is not true of the file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        _check(path)
        mapped: dict[str, torch.Tensor] = load_file(path)
        # They are views of the mapped file: who overwrites it would change them, who shortens it
        # would kill this process.
        return {name: tensor.clone() for name, tensor in mapped.items()}
    except CheckpointError:
        raise
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(path, str(error)) from error
    except (RuntimeError, MemoryError, RecursionError) as error:
        raise _damaged(path, str(error) or type(error).__name__) from error


def _damaged(path: Path, reason: str) -> CheckpointError:
    line = "".join(c if c.isprintable() else "?" for c in reason.split("\n", maxsplit=1)[0])
    return CheckpointError(
        f"{path} is not a whole safetensors file: {line[:200]}",
        remedy="Copy it again, or write it again with safetensors.torch.save_file.",
    )


def _check(path: Path) -> None:
    size = size_of(path)
    with files.open_regular(path) as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise ValueError(f"it declares a header of {length:,} bytes and has {size:,}")
        if length > JSON_BYTES:
            raise ValueError(f"its header of {length:,} bytes is beyond {JSON_BYTES:,}")
        header = json.loads(file.read(length).decode("utf-8"), object_pairs_hook=_unique)
    if not isinstance(header, dict):
        raise TypeError("its header is no JSON object")
    header.pop("__metadata__", None)
    refuse_count(len(header), path)
    refuse_names(header, path)
    spans = sorted(_span(name, entry) for name, entry in header.items())
    end = 0
    for start, stop, name in spans:
        if start != end:
            raise ValueError(f"the data of {name} begins at {start} where {end} was expected")
        end = stop
    if end != size - 8 - length:
        raise ValueError(f"it declares {end:,} bytes of data and has {size - 8 - length:,}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("its header names an entry twice")
    return found


def _span(name: str, entry: dict[str, Any]) -> tuple[int, int, str]:
    """Where a tensor's data begins and ends, both of which its shape has to explain."""
    dtype, shape, (start, stop) = entry["dtype"], entry["shape"], entry["data_offsets"]
    if dtype not in BITS:
        raise ValueError(f"{name} has the type {ascii(dtype)[:40]}")
    numbers = [start, stop, *shape]
    if any(type(n) is not int or not 0 <= n < 2**62 for n in numbers) or len(shape) > RANK:
        raise ValueError(f"{name} has the shape {ascii(shape)[:80]} at {start}-{stop}"[:200])
    if math.prod(shape) * BITS[dtype] != 8 * (stop - start):
        raise ValueError(f"{name} {dtype} {shape} cannot have {stop - start:,} bytes")
    return start, stop, name
