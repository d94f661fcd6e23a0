"""One file over HTTP, from a real server on the loopback interface."""

from __future__ import annotations

import errno
import io
import os
import socket
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import requests
from downloads import ARRIVED, CONTENT, OTHER, Setting, published
from weights_server import broken_off, etag, ranged, stalled, status, whole

from levit_export.core.errors import OutputError
from levit_export.models.published import DownloadError
from levit_export.models.published.download import CHUNK, STEP, Partial

if TYPE_CHECKING:
    from typing_extensions import Self

KEPT = ARRIVED // CHUNK * CHUNK
"""How much of what arrived is on disk when a connection breaks: whole reads."""


def test_progress_is_told_in_steps_of_a_megabyte(setting: Setting) -> None:
    """The total is known from the first answer, and every whole step is reported."""
    content = os.urandom(2 * STEP + 5)
    setting.site.usual = ranged(content)
    replace(setting, published=published(content)).fetch()
    assert setting.progress.totals == [3]
    assert setting.progress.advanced == 2


def test_a_broken_connection_is_resumed(setting: Setting) -> None:
    """The second request asks for the rest only, on condition that it is of the same file."""
    setting.site.script = [broken_off(CONTENT, ARRIVED)]
    assert setting.fetch().read_bytes() == CONTENT
    assert 0 < KEPT < ARRIVED
    assert setting.site.ranges == [None, f"bytes={KEPT}-"]
    assert setting.site.requests[1][1]["If-Range"] == etag(CONTENT)
    assert setting.left() == {setting.path.name}


def test_a_later_run_goes_on_where_an_earlier_one_failed(setting: Setting) -> None:
    """What has arrived outlives the process."""
    setting.site.script = [broken_off(CONTENT, ARRIVED)]
    with pytest.raises(DownloadError):
        replace(setting, transfer=replace(setting.transfer, attempts=1)).fetch()
    assert setting.partial.stat().st_size == KEPT
    setting.fetch()
    assert setting.site.ranges == [None, f"bytes={KEPT}-"]


def test_resumed_progress_begins_where_the_file_does(setting: Setting) -> None:
    """Bytes of an earlier run count as done."""
    content = os.urandom(2 * STEP + 5)
    setting.site.usual = ranged(content)
    other = replace(setting, published=published(content))
    other.leave_partial(content[: STEP + 1], etag(content))
    other.fetch()
    assert setting.site.ranges == [f"bytes={STEP + 1}-"]
    assert (setting.progress.totals, setting.progress.advanced) == ([3], 2)


def test_a_server_without_ranges_sends_all_again(setting: Setting) -> None:
    """A 200 in answer to a request for the rest replaces what was there."""
    setting.site.script = [broken_off(CONTENT, ARRIVED)]
    setting.site.usual = whole(CONTENT)
    assert setting.fetch().read_bytes() == CONTENT
    assert setting.site.ranges == [None, f"bytes={KEPT}-"]


def test_a_server_may_send_less_than_the_rest(setting: Setting) -> None:
    """A shorter range than was asked for is kept, and what is missing is asked for."""
    setting.leave_partial(CONTENT[:ARRIVED], etag(CONTENT))
    span = f"bytes {ARRIVED}-{2 * ARRIVED - 1}/{len(CONTENT)}"
    part = CONTENT[ARRIVED : 2 * ARRIVED]
    setting.site.script = [
        lambda h: h.respond(206, part, Content_Range=span, ETag=etag(CONTENT)),
    ]
    assert setting.fetch().read_bytes() == CONTENT
    assert setting.site.ranges == [f"bytes={ARRIVED}-", f"bytes={2 * ARRIVED}-"]


def test_without_a_validator_nothing_is_resumed(setting: Setting) -> None:
    """Parts of what may be two different files are not put together."""
    setting.leave_partial(CONTENT[:ARRIVED], "")
    assert setting.fetch().read_bytes() == CONTENT
    assert setting.site.ranges == [None]


def test_a_weak_validator_is_no_validator(setting: Setting) -> None:
    """RFC 9110 forbids weak tags in If-Range; the date serves instead."""
    date = "Wed, 21 Oct 2020 07:28:00 GMT"
    weak = {"ETag": 'W/"1"', "Last_Modified": date}
    setting.site.script = [
        lambda handler: handler.respond(
            200, CONTENT[:ARRIVED], Content_Length=str(len(CONTENT)), **weak
        )
    ]
    assert setting.fetch().read_bytes() == CONTENT
    assert setting.site.requests[1][1]["If-Range"] == date


def test_a_changed_file_is_not_appended_to(setting: Setting) -> None:
    """What is left of another content fails the condition and is replaced."""
    setting.leave_partial(OTHER[:ARRIVED], etag(OTHER))
    assert setting.fetch().read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("span", "tag"),
    [("bytes 0-9/10", etag(CONTENT)), ("nonsense", etag(CONTENT)), (None, etag(OTHER))],
)
def test_a_part_that_was_not_asked_for_is_refused(
    setting: Setting, span: str | None, tag: str
) -> None:
    """A 206 of another range, of none, or of another file is thrown away, and all fetched anew."""
    setting.leave_partial(CONTENT[:ARRIVED], etag(CONTENT))
    span = span or f"bytes {ARRIVED}-{len(CONTENT) - 1}/{len(CONTENT)}"
    rest = OTHER[ARRIVED:]
    setting.site.script = [lambda h: h.respond(206, rest, Content_Range=span, ETag=tag)]
    assert setting.fetch().read_bytes() == CONTENT
    assert setting.site.ranges == [f"bytes={ARRIVED}-", None]
    assert "trying again: the server sent another part than it was asked for" in (
        setting.progress.stages
    )


def test_more_than_the_server_has_is_thrown_away(setting: Setting) -> None:
    """416 with another size: what is there does not fit, and the file is fetched anew."""
    setting.leave_partial(CONTENT + b"more", etag(CONTENT))
    assert setting.fetch().read_bytes() == CONTENT
    assert setting.site.ranges == [f"bytes={len(CONTENT) + 4}-", None]
    assert setting.progress.stages[0] == (
        "trying again: what was left of an earlier download does not fit"
    )


def test_a_missing_file_is_not_asked_for_again(setting: Setting) -> None:
    """404 is final; the error has the address and the way around."""
    setting.site.usual = status(404)
    with pytest.raises(DownloadError, match="the server answered 404 Not Found") as caught:
        setting.fetch()
    assert setting.transfer.url(setting.path.name) in caught.value.what
    assert "--checkpoint FILE" in caught.value.remedy
    assert len(setting.site.requests) == 1


@pytest.mark.parametrize("code", [500, 503, 429, 408])
def test_a_server_in_trouble_is_asked_again(setting: Setting, code: int) -> None:
    """Statuses that pass are waited out, and the listener is told."""
    setting.site.script = [status(code)]
    assert setting.fetch().read_bytes() == CONTENT
    assert len(setting.site.requests) == 2
    assert any(stage.startswith("trying again:") for stage in setting.progress.stages)


def test_the_pauses_double(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exponential backoff, and none after the last attempt."""
    pauses: list[float] = []
    monkeypatch.setattr("time.sleep", pauses.append)
    setting.site.usual = status(502)
    patient = replace(setting.transfer, attempts=4, backoff=0.5)
    with pytest.raises(DownloadError, match=r"502 Bad Gateway \(4 attempts\)"):
        replace(setting, transfer=patient).fetch()
    assert pauses == [0.5, 1.0, 2.0]
    assert len(setting.site.requests) == 4


def test_a_server_that_falls_silent_is_left_and_resumed(
    setting: Setting, over: threading.Event
) -> None:
    """Silence longer than the timeout counts as a broken connection."""
    setting.site.script = [stalled(CONTENT, ARRIVED, over)]
    hasty = replace(setting.transfer, read_timeout=0.2)
    assert replace(setting, transfer=hasty).fetch().read_bytes() == CONTENT
    assert "trying again: timed out" in setting.progress.stages
    assert setting.site.ranges == [None, f"bytes={KEPT}-"]


def test_no_network(setting: Setting) -> None:
    """Nobody answers: say why, how often it was tried, and how to do without."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        away = replace(setting.transfer, weights_url=url)
        with pytest.raises(DownloadError, match=r"refused \(3 attempts\)") as caught:
            replace(setting, transfer=away).fetch()
    assert f"{url}/{setting.path.name}" in caught.value.what
    assert "--checkpoint FILE" in caught.value.remedy
    assert setting.left() == set()


def test_an_address_that_is_none(setting: Setting) -> None:
    """A mirror that is no http address is refused at once."""
    odd = replace(setting.transfer, weights_url="ftp://mirror")
    with pytest.raises(DownloadError, match="No connection adapters were found for 'ftp://mirror"):
        replace(setting, transfer=odd).fetch()
    assert setting.progress.stages == []


def test_redirects_are_followed(setting: Setting) -> None:
    """The file may lie elsewhere."""
    setting.site.script = [status(302, Location=f"{setting.site.url}/elsewhere")]
    assert setting.fetch().read_bytes() == CONTENT
    assert setting.site.requests[1][0] == "/elsewhere"


def test_a_redirect_to_an_unencrypted_address_is_refused(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight hex digits are no proof of origin; from https the way may not leave https."""
    first, last = requests.Response(), requests.Response()
    first.url, last.url = "https://one/file", "http://two/file"
    last.history, last.status_code, last.raw = [first], 200, io.BytesIO(CONTENT)
    monkeypatch.setattr(requests.Session, "get", lambda *_, **__: last)
    with pytest.raises(DownloadError, match="http://two/file, which is not encrypted"):
        setting.fetch()
    assert setting.left() == set()


def test_endless_redirects_are_not(setting: Setting) -> None:
    """A circle is an error, not a reason to try again."""
    setting.site.usual = status(302, Location=f"{setting.site.url}/again")
    with pytest.raises(DownloadError, match="Exceeded 30 redirects"):
        setting.fetch()
    assert len(setting.site.requests) == 31


@pytest.mark.parametrize("stage", ["at once", "in the middle"])
def test_a_full_disk(setting: Setting, monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    """A typed error that names the folder, and nothing broken is left."""
    room = 0 if stage == "at once" else CHUNK
    opened = Path.open

    def full(path: Path, mode: str = "r", **options: Any) -> Any:
        file = opened(path, mode, **options)
        if mode == "ab":
            written = file.write

            def write(data: bytes) -> int:
                if file.tell() + len(data) > room:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                return int(written(data))

            return _Writer(file, write)
        return file

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(OutputError, match="No space left on device") as caught:
        setting.fetch()
    assert str(setting.transfer.cache) in caught.value.what
    assert "LEVIT_EXPORT_CACHE" in caught.value.remedy
    assert setting.left() == set()


class _Writer:
    """A file whose ``write`` is another's."""

    def __init__(self, file: Any, write: Any) -> None:
        self.file, self.write = file, write

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_a_really_full_disk(setting: Setting) -> None:
    """The same with the kernel's own error: the file that is written to is always full."""
    setting.transfer.cache.mkdir()
    setting.site.usual = whole(CONTENT)
    begin = Partial.begin
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            Partial,
            "begin",
            lambda self, note: (begin(self, note), self.path.symlink_to("/dev/full"))[0],
        )
        with pytest.raises(OutputError, match="No space left on device"):
            setting.fetch()
    assert setting.left() == set()
