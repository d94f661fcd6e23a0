"""One file over HTTP, from a real server on the loopback interface."""

from __future__ import annotations

import io
import os
import socket
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import requests
from downloads import ARRIVED, CONTENT, OTHER, Setting, published
from weights_server import broken_off, ranged, stalled, status

from levit_export.core.errors import OutputError
from levit_export.models.published import DownloadError
from levit_export.models.published.download import STEP


def test_progress_is_told_in_steps_of_a_megabyte(setting: Setting) -> None:
    """The total is known from the first answer, and every whole step is reported."""
    content = os.urandom(2 * STEP + 5)
    setting.site.usual = ranged(content)
    replace(setting, published=published(content)).fetch()
    assert setting.progress.totals == [3]
    assert setting.progress.advanced == 2


def test_a_broken_connection_is_tried_again(setting: Setting) -> None:
    """The second attempt begins anew, and only the whole file is left."""
    setting.site.script = [broken_off(CONTENT, ARRIVED)]
    assert setting.fetch().read_bytes() == CONTENT
    assert setting.site.ranges == [None, None]
    assert setting.left() == {setting.path.name}


def test_a_transfer_that_never_ends_well_leaves_nothing(setting: Setting) -> None:
    """What has arrived of a file is not kept when the attempts are used up."""
    setting.site.usual = broken_off(CONTENT, ARRIVED)
    with pytest.raises(DownloadError, match=r"\(3 attempts\)"):
        setting.fetch()
    assert setting.left() == set()


def test_an_interrupt_leaves_nothing(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C during a download takes away what has arrived."""
    setting.site.usual = ranged(os.urandom(2 * STEP))

    def interrupted() -> None:
        assert setting.partial.exists()
        raise KeyboardInterrupt

    monkeypatch.setattr(setting.progress, "advance", interrupted)
    with pytest.raises(KeyboardInterrupt):
        setting.fetch()
    assert setting.left() == set()


def test_what_a_killed_run_left_is_overwritten(setting: Setting) -> None:
    """No byte of an earlier run is taken for one of the file."""
    setting.transfer.cache.mkdir()
    setting.partial.write_bytes(OTHER + OTHER)
    assert setting.fetch().read_bytes() == CONTENT
    assert setting.left() == {setting.path.name}


def test_a_server_that_falls_silent_is_left(setting: Setting, over: threading.Event) -> None:
    """Silence longer than the timeout counts as a broken connection."""
    setting.site.script = [stalled(CONTENT, ARRIVED, over)]
    hasty = replace(setting.transfer, read_timeout=0.2)
    assert replace(setting, transfer=hasty).fetch().read_bytes() == CONTENT
    assert "trying again: timed out" in setting.progress.stages


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


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_a_full_disk(setting: Setting) -> None:
    """The kernel's own error becomes a typed one that names the folder; nothing is left."""
    setting.transfer.cache.mkdir()
    setting.partial.symlink_to("/dev/full")
    with pytest.raises(OutputError, match="No space left on device") as caught:
        setting.fetch()
    assert str(setting.transfer.cache) in caught.value.what
    assert "LEVIT_EXPORT_CACHE" in caught.value.remedy
    assert setting.left() == set()
