"""The folder in which downloads are kept: hashes, one writer at a time, errors of the disk."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from levit_export.core.errors import OutputError
from levit_export.core.progress import Progress


@contextmanager
def locked(folder: Path, name: str, progress: Progress) -> Iterator[None]:
    """Make ``folder`` and be the only process that writes ``name`` there; wait for another.

    The system frees the lock of a process that dies. The lock's file stays: deleting it would let
    two processes hold locks on two files of one name.
    """
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / f".{name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        progress.stage(f"waiting for another process that fetches {name}")
        lock.acquire()
    except NotImplementedError as error:
        raise OSError(f"its file system has no locks ({error})") from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Every ``OSError`` of the block becomes ``OutputError``."""
    try:
        yield
    except OSError as error:
        raise unusable(folder, error) from error


def unusable(folder: Path, error: OSError) -> OutputError:
    """What to tell when the disk refuses."""
    return OutputError(
        f"the cache {folder} cannot be used: {error.strerror or error}",
        remedy="Check permissions and free space, or name another folder with LEVIT_EXPORT_CACHE.",
    )
