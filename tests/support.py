"""Types that tests and fixtures share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from click.testing import Result

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
