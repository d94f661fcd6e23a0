"""SHA-256 of files that may be larger than memory."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

from levit_export.core import files

BLOCK = 1 << 20


def sha256_of(*paths: Path) -> str:
    """Hex digest of a file's content, or of several files' put together. Raises ``OSError``."""
    digest = sha256()
    for path in paths:
        with files.open_regular(path) as file:
            while block := file.read(BLOCK):
                digest.update(block)
    return digest.hexdigest()
