"""Where published weights come from, where they are kept, and how patient a download is."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from levit_export.core.errors import UsageError

WEIGHTS_URL = "https://dl.fbaipublicfiles.com/LeViT"
"""Where the authors put their checkpoints (README of facebookresearch/LeViT)."""


@dataclass(frozen=True)
class Transfer:
    """Places and patience.

    ``cache`` is the folder for downloads, ``weights_url`` that of the authors' files or a mirror
    of it, ``hub_url`` the Hub's (None: the one that huggingface_hub knows). Timeouts are in
    seconds: ``connect_timeout`` to reach a server, ``read_timeout`` of silence from it. After the
    n-th failed attempt of ``attempts`` the pause is ``backoff * 2 ** (n - 1)`` seconds.
    """

    cache: Path
    weights_url: str = WEIGHTS_URL
    hub_url: str | None = None
    connect_timeout: float = 10.0
    read_timeout: float = 30.0
    attempts: int = 5
    backoff: float = 0.5

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Transfer:
        """As the user set it.

        The cache is ``LEVIT_EXPORT_CACHE``, else ``XDG_CACHE_HOME/levit-export``, else
        ``~/.cache/levit-export`` on every system: the rule of torch.hub and huggingface_hub, so
        that all weights of a machine lie together. ``LEVIT_EXPORT_WEIGHTS_URL`` names a mirror of
        the authors' folder; the SHA-256 in a file's name is checked all the same.
        """
        url = environment.get("LEVIT_EXPORT_WEIGHTS_URL") or WEIGHTS_URL
        return cls(cache=_cache(environment), weights_url=url.rstrip("/"))

    def url(self, file: str) -> str:
        """Address of one of the authors' files."""
        return f"{self.weights_url.rstrip('/')}/{file}"


def _cache(environment: Mapping[str, str]) -> Path:
    try:
        if own := environment.get("LEVIT_EXPORT_CACHE"):
            return Path(own).expanduser().absolute()
        shared = environment.get("XDG_CACHE_HOME", "")
        # A relative XDG path is to be ignored (XDG Base Directory Specification).
        root = Path(shared) if Path(shared).is_absolute() else Path("~/.cache").expanduser()
    except RuntimeError as error:
        raise UsageError(
            f"no folder to keep downloads in: {error}",
            remedy="Name one with LEVIT_EXPORT_CACHE.",
        ) from error
    return root / "levit-export"
