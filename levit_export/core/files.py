"""Files: only regular ones are read, and one is replaced whole or not at all.

What a user names is read and written through here; the files of a folder that is still being made
are written plainly. What is refused is an ``OSError``, which each caller turns into an error of
its own that names the file.
"""

from __future__ import annotations

import errno
import glob
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

_IRREGULAR = {
    stat.S_IFDIR: "is a folder",
    stat.S_IFIFO: "is a named pipe, not a regular file",
    stat.S_IFCHR: "is a device, not a regular file",
    stat.S_IFBLK: "is a device, not a regular file",
    stat.S_IFSOCK: "is a socket, not a regular file",
}
PARTIAL = ".partial-"
_HELD = 1 << 26
"""Bytes for a stream that are held in memory; beyond, in a temporary file."""

_transient: set[Path] = set()


def open_regular(path: Path) -> BinaryIO:
    """``path`` opened for reading; a pipe or a device, which could block for ever, is refused."""
    # Opened without blocking and judged afterwards: between a look at the path and its opening
    # it could become another file.
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        _require_regular(os.fstat(handle), path)
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def require_regular(path: Path) -> Path:
    """``path`` itself, for libraries that open files by their name; refuses as the above does."""
    _require_regular(os.stat(path), path)  # noqa: PTH116 - also takes what is not a Path
    return path


def _require_regular(found: os.stat_result, path: Path) -> None:
    kind = stat.S_IFMT(found.st_mode)
    if kind != stat.S_IFREG:
        number = errno.EISDIR if kind == stat.S_IFDIR else errno.EINVAL
        raise OSError(number, _IRREGULAR.get(kind, "is not a regular file"), str(path))


def read_bytes(path: Path) -> bytes:
    """The content of a regular file."""
    with open_regular(path) as file:
        return file.read()


def read_text(path: Path, encoding: str = "utf-8") -> str:
    """The text of a regular file, its line ends as they are."""
    return read_bytes(path).decode(encoding)


def write(path: Path, content: str | bytes) -> None:
    """Make ``content`` that of the file at ``path``; see :func:`replacing`."""
    with replacing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def append(path: Path, content: str) -> None:
    """Add ``content`` to the end of the file at ``path``, in one piece."""
    with path.open("ab") as file:
        file.write(content.encode())


def is_replaced(path: Path) -> bool:
    """Whether :func:`replacing` would put another file in the place of ``path``, or make one."""
    try:
        return not _is_stream(path.stat())
    except FileNotFoundError:
        return True


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A stream whose content becomes that of ``path`` when the block ends well.

    A regular file, or the one that a link leads to, is replaced in one step, and stays as it was
    when the block or the disk fails. A pipe, a terminal, a device, and a file that this process's
    own output goes to are opened and written to.
    """
    try:
        found = path.stat()
    except FileNotFoundError:
        found = None
    if found is not None and _is_stream(found):
        # Held back until the block ends well: what went into a pipe cannot be taken back.
        with tempfile.SpooledTemporaryFile(max_size=_HELD) as held:
            yield held  # type: ignore[misc]
            held.seek(0)
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND), "wb") as out:
                shutil.copyfileobj(held, out)
        return
    place = Path(os.path.realpath(path))
    if found is not None and not os.access(place, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
    mode = 0o666 & ~umask() if found is None else stat.S_IMODE(found.st_mode)
    prefix = f".{place.name}{PARTIAL}"
    for left in abandoned(place.parent, prefix):
        if left.is_file():  # a folder of this name is an export that was being made
            _remove(left)
    handle, name = tempfile.mkstemp(prefix=f"{prefix}{os.getpid()}-", dir=place.parent)
    with transient(Path(name)) as temporary:
        with os.fdopen(handle, "w+b") as file:
            yield file
            file.flush()
            if found is not None:  # the old content is given up for what the disk really holds
                os.fsync(handle)
        temporary.chmod(mode)
        temporary.replace(place)


def _is_stream(found: os.stat_result) -> bool:
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(found.st_mode):
        return True
    for own in (1, 2):
        with suppress(OSError):
            if os.path.samestat(found, os.fstat(own)):
                return True
    return False


def abandoned(folder: Path, prefix: str) -> Iterator[Path]:
    """What runs that were killed left in ``folder``: ``prefix``, their process's number, ``-``."""
    for left in folder.glob(f"{glob.escape(prefix)}*"):
        owner = left.name.removeprefix(prefix).split("-")[0]
        if owner.isdecimal() and not is_alive(int(owner)):
            yield left


@contextmanager
def transient(path: Path) -> Iterator[Path]:
    """``path`` for as long as the block lasts; then, or when the run is ended, it is removed."""
    _transient.add(path)
    try:
        yield path
    finally:
        _remove(path)
        _transient.discard(path)


@contextmanager
def temporary_folder(beside: Path | None = None, prefix: str = "levit-export-") -> Iterator[Path]:
    """A new folder that disappears with the block: the system's, or in the folder ``beside``."""
    with transient(Path(tempfile.mkdtemp(prefix=prefix, dir=beside))) as folder:
        yield folder


def remove_transient() -> None:
    """Remove all that is there for a time only, because the process ends now."""
    for path in tuple(_transient):
        _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def umask() -> int:
    """The permissions that new files of this process lack."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def is_alive(process: int) -> bool:
    """Whether there is a process of this number; one that may not be asked counts as there."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True
