"""Types that tests and fixtures share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from levit_export.formats.coreai.target import CoreaiTarget
from levit_export.formats.onnx.target import OLDEST_RUNTIME

Cli = Callable[..., Result]


@dataclass(frozen=True)
class Exported:
    """An export directory and what the command line said while it wrote it."""

    folder: Path
    stdout: str
    stderr: str
    status: int


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])


RUNNABLE = tuple(
    opset
    for opset, release in OLDEST_RUNTIME.items()
    if _release(version("onnxruntime")) >= _release(release)
)
"""The opsets of ONNX that the installed ONNX Runtime can read."""

_CORE_AI = CoreaiTarget().can_export()
needs_core_ai = pytest.mark.skipif(not _CORE_AI.ok, reason=_CORE_AI.reason)
"""Marks tests of a format whose package is a pre-release, with wheels for some systems only."""


def of_formats(kinds: Iterable[tuple[str, str]]) -> list[Any]:
    """Parameters of a test: formats with a precision; those of Core AI where it is installed."""
    return [
        pytest.param(
            (kind, precision),
            marks=[needs_core_ai] if kind == "coreai" else [],
            id=f"{kind}-{precision}",
        )
        for kind, precision in kinds
    ]
