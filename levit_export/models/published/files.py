"""The authors' checkpoints: files that carry the start of their SHA-256 in their names."""

from __future__ import annotations

from pathlib import Path

from levit_export.core.errors import DownloadError, WrongHashError
from levit_export.core.hashing import sha256_of
from levit_export.core.progress import Progress
from levit_export.models.published.cache import disk_errors, locked
from levit_export.models.published.names import HashedFile
from levit_export.models.published.transfer import Transfer


def fetch(file: HashedFile, *, offline: bool, progress: Progress, transfer: Transfer) -> Path:
    """``file`` in the cache, its hash checked; raises what ``published.fetch`` does."""
    path = transfer.cache / file.name
    with disk_errors(transfer.cache):
        if _holds(path, file):
            return path
        if offline:
            raise _not_here(path, transfer)
        with locked(transfer.cache, file.name, progress):
            # The process that was waited for may have fetched it.
            if not _holds(path, file):
                _download(path, file, progress=progress, transfer=transfer)
    return path


def _holds(path: Path, file: HashedFile) -> bool:
    return path.is_file() and sha256_of(path).startswith(file.digits)


def _download(path: Path, file: HashedFile, *, progress: Progress, transfer: Transfer) -> None:
    """Put a file of the right hash at ``path`` in one step, or raise and leave none there."""
    from levit_export.models.published.download import Partial, download

    path.unlink(missing_ok=True)  # it is damaged
    partial = Partial(path.with_name(f"{file.name}.partial"))
    url = transfer.url(file.name)
    # What an earlier run left may have been damaged since; that is worth a second try.
    for is_last in (False, True) if partial.size else (True,):
        download(url, partial, transfer=transfer, progress=progress)
        found = sha256_of(partial.path)
        if found.startswith(file.digits):
            partial.path.replace(path)
            partial.discard()
            return
        partial.discard()
        if is_last:
            raise WrongHashError(
                f"{url} has SHA-256 {found[:16]}…, not {file.digits}… as its name says; it was "
                "not kept",
                remedy="Something on the way answers in the server's place (a proxy or a login "
                "page), or the mirror is damaged. Fetch the file elsewhere and give it with "
                "--checkpoint FILE.",
            )


def _not_here(path: Path, transfer: Transfer) -> DownloadError:
    state = "damaged in" if path.is_file() else "not in"
    return DownloadError(
        f"{path.name} is {state} the cache {path.parent}, and --offline forbids fetching it",
        remedy=f"Run once without --offline, or put {transfer.url(path.name)} there, "
        "or give it with --checkpoint FILE.",
    )
