"""One file over HTTP: resumed, retried, and never taken for whole when it is not.

Ranges and conditions follow RFC 9110, sections 13.1.5 (If-Range), 14 (Range) and 15.5.17 (416).
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

import requests

from levit_export._version import __version__
from levit_export.core.errors import DownloadError
from levit_export.core.progress import Progress
from levit_export.models.published.cache import unusable
from levit_export.models.published.failures import reason
from levit_export.models.published.transfer import Transfer

CHUNK = 1 << 16
"""Bytes read at a time; at most so many are lost when a connection breaks."""

STEP = 1 << 20
"""Bytes for each step of the progress."""

_CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)")
_TRANSIENT = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS}
_FINAL = (
    requests.TooManyRedirects,
    requests.exceptions.InvalidSchema,
    requests.exceptions.InvalidURL,
    requests.exceptions.MissingSchema,
)


class _RetryableError(Exception):
    """An attempt failed in a way that another may not."""


@dataclass(frozen=True)
class Partial:
    """What has arrived of a file, and beside it the validator of the content it belongs to."""

    path: Path

    @property
    def _note(self) -> Path:
        return self.path.with_name(f"{self.path.name}.validator")

    @property
    def size(self) -> int:
        """How many bytes are there."""
        return self.path.stat().st_size if self.path.exists() else 0

    @property
    def validator(self) -> str:
        """Strong ETag or date of what the bytes are a part of; empty when it is not known."""
        return self._note.read_text(encoding="latin-1") if self._note.exists() else ""

    def begin(self, validator: str) -> None:
        """Start over, with the content that ``validator`` stands for."""
        self.discard()
        if validator:
            self._note.write_text(validator, encoding="latin-1")

    def discard(self) -> None:
        """Leave nothing."""
        self.path.unlink(missing_ok=True)
        self._note.unlink(missing_ok=True)


def download(url: str, partial: Partial, *, transfer: Transfer, progress: Progress) -> None:
    """Complete ``partial`` from ``url``.

    What has arrived stays after a failure, for a later call to go on from, but for failures of
    the disk. Raises ``DownloadError``, and ``OutputError`` when the disk refuses.
    """
    with requests.Session() as session:
        session.headers.update(
            {
                "User-Agent": f"levit-export/{__version__}",
                "Accept-Encoding": "identity",  # ranges are of what is stored
            }
        )
        for attempt in range(1, transfer.attempts + 1):
            try:
                _attempt(session, url, partial, transfer=transfer, progress=progress)
            except _RetryableError as error:
                if attempt == transfer.attempts:
                    raise _unreachable(url, f"{error} ({attempt} attempts)") from error
                progress.stage(f"trying again: {error}")
                time.sleep(transfer.backoff * 2 ** (attempt - 1))
            else:
                return


def _attempt(
    session: requests.Session,
    url: str,
    partial: Partial,
    *,
    transfer: Transfer,
    progress: Progress,
) -> None:
    """One request; returns when the file is whole."""
    timeouts = (transfer.connect_timeout, transfer.read_timeout)
    try:
        with session.get(
            url, headers=_conditions(partial), stream=True, timeout=timeouts
        ) as response:
            _refuse_downgrade(response)
            if response.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                _settle_unsatisfiable(response, partial)
            else:
                _refuse_status(response)
                _receive(response, partial, progress)
    except _FINAL as error:
        raise _unreachable(url, str(error)) from error
    except requests.RequestException as error:
        raise _RetryableError(reason(error)) from error


def _conditions(partial: Partial) -> dict[str, str]:
    """Ask for the rest, if the content is still the same; without a validator for all of it."""
    if not partial.size or not partial.validator:
        return {}
    return {"Range": f"bytes={partial.size}-", "If-Range": partial.validator}


def _settle_unsatisfiable(response: requests.Response, partial: Partial) -> None:
    """416: nothing comes after what is there. Either it is all, or it is of something else."""
    _, total = _content_range(response)
    if total is None or total != partial.size:
        partial.discard()
        raise _RetryableError("what was left of an earlier download does not fit")


def _refuse_status(response: requests.Response) -> None:
    status = response.status_code
    if status in {HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT}:
        return
    answer = f"{status} {response.reason or ''}".strip()
    if status in _TRANSIENT or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        raise _RetryableError(f"the server answered {answer}")
    raise _unreachable(response.url, f"the server answered {answer}")


def _refuse_downgrade(response: requests.Response) -> None:
    """A redirect from https to http would leave eight hex digits as the only proof of origin."""
    hops = [each.url for each in (*response.history, response)]
    if hops[0].startswith("https:") and not all(hop.startswith("https:") for hop in hops):
        raise _unreachable(hops[0], f"it redirects to {hops[-1]}, which is not encrypted")


def _receive(response: requests.Response, partial: Partial, progress: Progress) -> None:
    """Append the body of a 206, or begin anew with that of a 200."""
    length = response.headers.get("Content-Length", "")
    total = int(length) if length.isdecimal() else None
    start = 0
    if response.status_code == HTTPStatus.PARTIAL_CONTENT:
        first, total = _content_range(response)
        is_of_another = _validator(response) not in {"", partial.validator}
        if first != partial.size or is_of_another:
            partial.discard()
            raise _RetryableError("the server sent another part than it was asked for")
        start = partial.size
    progress.stage(f"downloading {partial.path.stem}")
    if total is not None:
        progress.steps(max(1, -(-total // STEP)))
    try:
        if start == 0:
            partial.begin(_validator(response))
        _write(response, partial, start, progress)
    except requests.RequestException:
        raise
    except OSError as error:
        partial.discard()
        raise unusable(partial.path.parent, error) from error
    if total is not None and partial.size != total:
        raise _RetryableError(f"{partial.size} of {total} bytes arrived")


def _write(response: requests.Response, partial: Partial, start: int, progress: Progress) -> None:
    for _ in range(start // STEP):
        progress.advance()
    size = start
    with partial.path.open("ab") as file:
        for chunk in response.iter_content(CHUNK):
            file.write(chunk)
            for _ in range((size + len(chunk)) // STEP - size // STEP):
                progress.advance()
            size += len(chunk)


def _validator(response: requests.Response) -> str:
    """What If-Range may hold: a strong ETag, else a date."""
    etag = response.headers.get("ETag", "")
    return etag if etag.startswith('"') else response.headers.get("Last-Modified", "")


def _content_range(response: requests.Response) -> tuple[int | None, int | None]:
    """First byte and total size, as far as the answer tells."""
    found = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    if found is None:
        return None, None
    first, total = found.groups()
    return (
        int(first) if first is not None else None,
        int(total) if total != "*" else None,
    )


def _unreachable(url: str, why: str) -> DownloadError:
    return DownloadError(
        f"{url} could not be fetched: {why}",
        remedy="Download it by hand, on another machine if need be, and give it with "
        "--checkpoint FILE; LEVIT_EXPORT_WEIGHTS_URL names a mirror.",
    )
