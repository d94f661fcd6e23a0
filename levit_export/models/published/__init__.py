"""Published weights: what can be asked for by name, and how it gets onto this machine.

::

    parse("levit_256") ──▶ Published ──fetch──▶ a verified file in the cache
                               │
                               ├── HashedFile  the authors' file, SHA-256 in its name (download)
                               └── HubModel    a Hugging Face repository (hub)

Nothing is opened before its SHA-256 was checked, and a file in the cache is checked on each use.
"""

from __future__ import annotations

from pathlib import Path

from levit_export.core.errors import DownloadError, WrongHashError
from levit_export.core.hashing import sha256_of
from levit_export.core.progress import Progress, Silent
from levit_export.models.published.download import KnownFile, Transfer, fetch_file
from levit_export.models.published.names import HashedFile, HubModel, Published, known_names, parse

__all__ = [
    "DownloadError",
    "HashedFile",
    "HubModel",
    "Published",
    "Transfer",
    "WrongHashError",
    "fetch",
    "known_names",
    "parse",
]


def fetch(
    published: Published,
    *,
    offline: bool = False,
    progress: Progress | None = None,
    transfer: Transfer | None = None,
) -> Path:
    """The weights' file on this machine, downloaded unless the cache has it.

    What comes from the Hub has its ``config.json`` beside it. ``offline`` never touches the
    network. ``transfer`` is taken from the environment when not given.

    Raises ``DownloadError`` when the weights cannot be had, ``WrongHashError`` when what was
    fetched is something else, ``OutputError`` when the cache cannot be written, and
    ``MissingDependencyError`` for a Hub id without the extra ``hub``.
    """
    progress = progress or Silent()
    transfer = transfer or Transfer.from_environment()
    source = published.source
    if isinstance(source, HubModel):
        from levit_export.models.published import hub

        return hub.fetch(source, offline=offline, progress=progress, transfer=transfer)
    file = KnownFile(
        url=transfer.url(source.name),
        path=transfer.cache / source.name,
        hash_of=sha256_of,
        expected=source.digits,
        by_hand="Fetch it by hand, on another machine if need be, and give it with "
        "--checkpoint FILE.",
        mirror="LEVIT_EXPORT_WEIGHTS_URL names a mirror.",
    )
    return fetch_file(file, offline=offline, progress=progress, transfer=transfer)
