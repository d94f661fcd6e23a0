"""What every reader of checkpoints refuses: strange files, and more than a LeViT can need.

A LeViT has at most some 100 million weights. With its average and an optimizer's two moments that
is 2 GB in float32 and some 5,000 tensors; the limits leave room for that, and refuse what is not a
checkpoint.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterable
from pathlib import Path

from levit_export.core import hashing
from levit_export.core.errors import CheckpointError

FILE_BYTES = 16 << 30
TENSORS = 20_000
JSON_BYTES = 16 << 20
"""Of a ``config.json`` or a safetensors header; 1,000 labels in both directions take 60 KB."""

PICKLE_BYTES = 64 << 20
PICKLE_OPERATIONS = 1_000_000
"""An operation takes at most some 220 bytes of memory (an empty set), 220 MB together.
Five thousand tensors take 200,000."""

VIEWS = 4
"""Tensors may together have this many times the bytes of their file: weights appear again as
their own average, or tied. A stride of 0 makes terabytes of one stored number, which is free
until somebody copies it."""

RANK = 16
NAME = re.compile(r"[!-~]{1,500}")
"""Names of tensors: visible ASCII. They are printed, in terminals too."""


def refuse_names(names: Iterable[object], path: Path) -> None:
    """Raise for names that cannot be those of tensors: not text, too long, control characters."""
    for name in names:
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise CheckpointError(
                f"{path} holds a tensor under the name {ascii(name)[:80]}",
                remedy="Names are attribute paths such as 'head.l.weight'; "
                "save model.state_dict().",
            )


def refuse_long_text(size: int, path: Path) -> None:
    """Raise for JSON of ``size`` bytes that no model has to say of itself."""
    if size > JSON_BYTES:
        raise CheckpointError(
            f"{path} declares {size:,} bytes of JSON, more than {JSON_BYTES:,}",
            remedy="Copy it again, or shorten it.",
        )


def refuse_count(count: int, path: Path) -> None:
    """Raise for more tensors than a training run of any LeViT leaves behind."""
    if count > TENSORS:
        raise CheckpointError(
            f"{path} holds more than {TENSORS:,} tensors",
            remedy="Save model.state_dict() alone.",
        )


def refuse_views(logical: int, size: int, path: Path) -> None:
    """Raise when tensors of ``logical`` bytes are to come out of a file of ``size`` bytes."""
    if logical > VIEWS * size:
        raise CheckpointError(
            f"{path} declares tensors of {logical:,} bytes in a file of {size:,} bytes",
            remedy="Save contiguous tensors: {k: v.contiguous() for k, v in "
            "model.state_dict().items()}.",
        )


def size_of(path: Path) -> int:
    """Bytes of a regular file within limits; a pipe or a device is refused and not opened."""
    try:
        status = path.stat()
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist", remedy="Check the path.") from error
    except (OSError, ValueError) as error:  # a loop of links, a path with a zero byte
        raise cannot_be_read(path, error) from error
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError(
            f"{path} is not a regular file", remedy="Give a file; pipes and devices are not read."
        )
    if status.st_size == 0:
        raise CheckpointError(f"{path} is empty", remedy="Copy the checkpoint again.")
    if status.st_size > FILE_BYTES:
        raise CheckpointError(
            f"{path} has {status.st_size:,} bytes, more than any LeViT needs",
            remedy="Save model.state_dict() alone.",
        )
    return status.st_size


def cannot_be_read(path: Path, error: OSError | ValueError) -> CheckpointError:
    """The system's refusal to open ``path``."""
    reason = getattr(error, "strerror", None) or error
    return CheckpointError(
        f"{ascii(str(path)) if isinstance(error, ValueError) else path} cannot be read: {reason}",
        remedy="Check the path and its permissions.",
    )


def sha256_of(*paths: Path) -> str:
    """Hex digest of a file, or of several put together. Raises ``CheckpointError``."""
    try:
        return hashing.sha256_of(*paths)
    except OSError as error:
        raise cannot_be_read(Path(error.filename or paths[0]), error) from error
