"""Types that tests and fixtures share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from click.testing import Result

Cli = Callable[..., Result]


@dataclass(frozen=True)
class Exported:
    """An export directory and what the command line said while it wrote it."""

    folder: Path
    stdout: str
    stderr: str
    status: int
