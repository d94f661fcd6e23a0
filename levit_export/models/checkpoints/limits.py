"""How much a checkpoint may ask for, and the errors that say so.

A LeViT has at most some 100 million weights. With its average and an optimizer's two moments that
is 2 GB in float32 and some 5,000 tensors; the limits leave room for that, and refuse what is not a
checkpoint.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

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

COPY_AGAIN = "Copy it again, or save the weights as safetensors."


def unreadable(path: Path, reason: str) -> CheckpointError:
    """A ``.pth`` that is damaged or something else; the first line of ``reason`` is shown."""
    line = "".join(c if c.isprintable() else "?" for c in reason.split("\n", maxsplit=1)[0])
    return CheckpointError(
        f"{path} is not a whole PyTorch checkpoint: {line[:200]}", remedy=COPY_AGAIN
    )


def refuse_names(names: Iterable[object], path: Path) -> None:
    """Raise for names that cannot be those of tensors: no text, too long, control characters."""
    for name in names:
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise CheckpointError(
                f"{path} holds a tensor under the name {ascii(name)[:80]}",
                remedy="Names are attribute paths such as 'head.l.weight'; "
                "save model.state_dict().",
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
