"""One file over HTTP that is known by its hash, and the folder where it is kept.

``torch.hub.download_url_to_file`` is not enough here: it sets no timeout and waits for a silent
server for ever, tries once, takes a transfer that broke off for a wrong hash, follows a redirect
from https to http, and needs torch, which a bundle's web page does without. Nothing is resumed: a
download begins anew, and what arrived of an earlier one is never trusted.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING

from levit_export._version import __version__
from levit_export.core import files
from levit_export.core.errors import DownloadError, OutputError, UsageError, WrongHashError
from levit_export.core.progress import Progress

if TYPE_CHECKING:
    import requests

WEIGHTS_URL = "https://dl.fbaipublicfiles.com/LeViT"
"""Where the authors put their checkpoints (README of facebookresearch/LeViT)."""

CHUNK = 1 << 16
"""Bytes read at a time."""
STEP = 1 << 20
"""Bytes for each step of the progress."""


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
        try:
            if own := environment.get("LEVIT_EXPORT_CACHE"):
                return cls(Path(own).expanduser().absolute(), url.rstrip("/"))
            shared = Path(environment.get("XDG_CACHE_HOME", ""))
            # A relative XDG path is to be ignored (XDG Base Directory Specification).
            root = shared if shared.is_absolute() else Path("~/.cache").expanduser()
        except RuntimeError as error:
            raise UsageError(
                f"no folder to keep downloads in: {error}",
                remedy="Name one with LEVIT_EXPORT_CACHE.",
            ) from error
        return cls(root / "levit-export", url.rstrip("/"))

    def url(self, file: str) -> str:
        """Address of one of the authors' files."""
        return f"{self.weights_url.rstrip('/')}/{file}"


@dataclass(frozen=True)
class KnownFile:
    """A file whose hash is known: its address, its place in the cache, and how it is hashed.

    ``expected`` is what the hash of the content begins with, eight hex digits or all of it.
    ``by_hand`` says how to do without a download, ``mirror`` how to name another server.
    """

    url: str
    path: Path
    hash_of: Callable[[Path], str]
    expected: str
    by_hand: str
    mirror: str

    def is_whole(self, path: Path) -> bool:
        """Whether the file at ``path`` is there and has the hash."""
        return path.is_file() and self.hash_of(path).startswith(self.expected)

    def unreachable(self, why: str) -> DownloadError:
        """The error that it could not be fetched, with the way around."""
        return DownloadError(
            f"{self.url} could not be fetched: {why}", remedy=f"{self.by_hand} {self.mirror}"
        )


def fetch_file(file: KnownFile, *, offline: bool, transfer: Transfer, progress: Progress) -> Path:
    """``file`` in the cache, its hash checked on each use; downloaded where it is not there.

    Raises ``DownloadError`` where it cannot be had, ``WrongHashError`` where the server sends
    something else, and ``OutputError`` where the cache cannot be written.
    """
    path = file.path
    with disk_errors(path.parent):
        if file.is_whole(path):
            return path
        if offline:
            state = "damaged in" if path.is_file() else "not in"
            raise DownloadError(
                f"{path.name} is {state} the cache {path.parent}, and --offline forbids fetching "
                "it",
                remedy=f"Run once without --offline, or put {file.url} there. {file.by_hand}",
            )
        with locked(path.parent, path.name, progress):
            # The process that was waited for may have fetched it.
            if not file.is_whole(path):
                _download(file, transfer, progress)
    return path


def _download(file: KnownFile, transfer: Transfer, progress: Progress) -> None:
    """Put a file of the right hash in its place in one step, or raise and leave none there."""
    import requests

    file.path.unlink(missing_ok=True)  # it is damaged
    # Only the holder of the lock writes here, so what a killed run left is simply overwritten.
    partial = file.path.with_name(f"{file.path.name}.partial")
    with files.transient(partial), requests.Session() as session:
        session.headers["User-Agent"] = f"levit-export/{__version__}"
        # So that the length that is announced is that of what arrives.
        session.headers["Accept-Encoding"] = "identity"
        for attempt in range(1, transfer.attempts + 1):
            try:
                _receive(session, file, partial, transfer, progress)
                break
            except (
                requests.TooManyRedirects,
                requests.exceptions.InvalidSchema,
                requests.exceptions.InvalidURL,
                requests.exceptions.MissingSchema,
            ) as error:  # which another attempt would meet as well
                raise file.unreachable(str(error)) from error
            except requests.RequestException as error:
                why = reason(error)
                if attempt == transfer.attempts:
                    raise file.unreachable(f"{why} ({attempt} attempts)") from error
                progress.stage(f"trying again: {why}")
                time.sleep(transfer.backoff * 2 ** (attempt - 1))
        found = file.hash_of(partial)
        if not found.startswith(file.expected):
            raise WrongHashError(
                f"{file.url} has the hash {found}, not {file.expected}; it was not kept",
                remedy="Something on the way answers in the server's place (a proxy or a login "
                f"page), or the mirror is damaged. {file.by_hand}",
            )
        partial.replace(file.path)


def _receive(
    session: requests.Session,
    file: KnownFile,
    partial: Path,
    transfer: Transfer,
    progress: Progress,
) -> None:
    """One request. Raises ``RequestException`` for what another attempt may not meet."""
    import requests

    timeouts = (transfer.connect_timeout, transfer.read_timeout)
    with session.get(file.url, stream=True, timeout=timeouts) as response:
        hops = [each.url for each in (*response.history, response)]
        # From https to http, eight hex digits would be the only proof of origin.
        if hops[0].startswith("https:") and not all(hop.startswith("https:") for hop in hops):
            raise file.unreachable(f"it redirects to {hops[-1]}, which is not encrypted")
        status = response.status_code
        if status != HTTPStatus.OK:
            answer = f"the server answered {status} {response.reason or ''}".strip()
            passing = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS)
            if status in passing or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
                raise requests.HTTPError(answer)
            raise file.unreachable(answer)
        length = response.headers.get("Content-Length", "")
        total = int(length) if length.isdecimal() else None
        progress.stage(f"downloading {file.path.name}")
        if total is not None:
            progress.steps(max(1, -(-total // STEP)))
        size = 0
        with partial.open("wb") as stream:
            for chunk in response.iter_content(CHUNK):
                stream.write(chunk)
                for _ in range((size + len(chunk)) // STEP - size // STEP):
                    progress.advance()
                size += len(chunk)
        if total is not None and size != total:
            raise requests.ConnectionError(f"{size} of {total} bytes arrived")


def reason(error: BaseException) -> str:
    """The innermost cause in a line; what HTTP libraries wrap around it repeats the address."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


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
