"""A published file, the server that has it, and somebody who listens."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from weights_server import Site

from levit_export.models.published import HashedFile, Published, Transfer, fetch

CONTENT = bytes(range(256)) * 1200
"""300 KiB: some reads, less than one step of progress."""


OTHER = bytes(len(CONTENT))
"""As long as the published file, and something else."""

ARRIVED = 100_000
"""Bytes that a server sends before it gives up; less than the file."""


@dataclass
class Recorder:
    """A listener that keeps what it is told."""

    stages: list[str]
    totals: list[int]
    advanced: int = 0

    def plan(self, total: int) -> None:
        """Not kept: nothing that is downloaded knows how many stages a run has."""

    def stage(self, text: str) -> None:
        self.stages.append(text)
        self.advanced = 0

    def steps(self, total: int) -> None:
        self.totals.append(total)

    def advance(self) -> None:
        self.advanced += 1


@dataclass(frozen=True)
class Setting:
    """A published file, the server that has it, and where it goes."""

    site: Site
    published: Published
    transfer: Transfer
    progress: Recorder
    content: bytes = CONTENT

    @property
    def path(self) -> Path:
        """Where the file ends up."""
        assert isinstance(self.published.source, HashedFile)
        return self.transfer.cache / self.published.source.name

    @property
    def partial(self) -> Path:
        """Where it is while it arrives."""
        return self.path.with_name(f"{self.path.name}.partial")

    def fetch(self, *, offline: bool = False) -> Path:
        return fetch(
            self.published, offline=offline, progress=self.progress, transfer=self.transfer
        )

    def left(self) -> set[str]:
        """Files in the cache but for locks, which stay."""
        folder = self.transfer.cache
        names = {p.name for p in folder.iterdir()} if folder.is_dir() else set()
        return {name for name in names if not name.endswith(".lock")}


def published(content: bytes) -> Published:
    """What the authors would have published, had they trained ``content``."""
    digits = hashlib.sha256(content).hexdigest()[:8]
    return Published("levit_tiny", "levit_tiny", HashedFile(f"LeViT-tiny-{digits}.pth"))
