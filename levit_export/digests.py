"""SHA-256 of files that may be larger than memory."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

BLOCK = 1 << 20


def sha256_of(*paths: Path) -> str:
    """Hex digest of a file's content, or of several files' put together. Raises ``OSError``."""
    digest = sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                digest.update(block)
    return digest.hexdigest()
