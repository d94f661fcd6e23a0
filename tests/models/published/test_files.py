"""The authors' files in the cache: verified, locked, offline."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from downloads import CONTENT, OTHER, Recorder, Setting
from weights_server import Handler, ranged

from levit_export.core.errors import OutputError
from levit_export.models.published import DownloadError, WrongHashError, fetch


def test_a_file_is_downloaded_once(setting: Setting) -> None:
    """It ends up in the cache under its own name; the second time the server is not asked."""
    assert setting.fetch() == setting.path
    assert setting.fetch() == setting.path
    assert setting.path.read_bytes() == CONTENT
    assert setting.left() == {setting.path.name}
    ((asked, headers),) = setting.site.requests
    assert asked == f"/LeViT/{setting.path.name}"
    assert headers["Accept-Encoding"] == "identity"
    assert headers["User-Agent"].startswith("levit-export/")


def test_a_wrong_hash_is_refused(setting: Setting) -> None:
    """The error names both hashes, and nothing of the file is kept."""
    setting.site.usual = ranged(OTHER)
    with pytest.raises(WrongHashError) as caught:
        setting.fetch()
    assert hashlib.sha256(OTHER).hexdigest() in caught.value.what
    assert hashlib.sha256(CONTENT).hexdigest()[:8] in caught.value.what
    assert "--checkpoint FILE" in caught.value.remedy
    assert setting.left() == set()
    assert len(setting.site.requests) == 1


def test_a_cache_that_cannot_be_made(setting: Setting) -> None:
    """The cache's place is taken by a file."""
    setting.transfer.cache.write_text("mine")
    with pytest.raises(OutputError, match="cannot be used") as caught:
        setting.fetch()
    assert str(setting.transfer.cache) in caught.value.what
    assert setting.transfer.cache.read_text() == "mine"


def test_offline_takes_what_the_cache_has(setting: Setting) -> None:
    """No request is made, and nothing in the cache is written."""
    setting.transfer.cache.mkdir()
    setting.path.write_bytes(CONTENT)
    assert setting.fetch(offline=True) == setting.path
    assert setting.site.requests == []
    assert [p.name for p in setting.transfer.cache.iterdir()] == [setting.path.name]


def test_offline_without_the_file(setting: Setting) -> None:
    """The error says which file, where it would be looked for, and how to get it."""
    with pytest.raises(DownloadError, match="is not in the cache") as caught:
        setting.fetch(offline=True)
    assert setting.path.name in caught.value.what
    assert str(setting.transfer.cache) in caught.value.what
    assert setting.transfer.url(setting.path.name) in caught.value.remedy
    assert "--checkpoint FILE" in caught.value.remedy
    assert setting.site.requests == []
    assert not setting.transfer.cache.exists()


def test_offline_with_a_damaged_file(setting: Setting) -> None:
    """A file of the wrong content is refused without a network too."""
    setting.transfer.cache.mkdir()
    setting.path.write_bytes(CONTENT[:-1])
    with pytest.raises(DownloadError, match="is damaged in the cache"):
        setting.fetch(offline=True)
    assert setting.site.requests == []


@pytest.mark.parametrize("damaged", [CONTENT[:-1], OTHER, b""])
def test_a_damaged_file_in_the_cache_is_fetched_again(setting: Setting, damaged: bytes) -> None:
    """The hash is checked on each use, not only after the download."""
    setting.fetch()
    setting.path.write_bytes(damaged)
    assert setting.fetch().read_bytes() == CONTENT
    assert len(setting.site.requests) == 2


FETCH = """
import sys
from pathlib import Path
from levit_export.core.progress import Silent
from levit_export.models.published import HashedFile, Published, Transfer, fetch

cache, url, name, sign = sys.argv[1:]

class Listener(Silent):
    def stage(self, text):
        if text.startswith("waiting"):
            Path(sign).touch()

published = Published("tiny", "tiny", HashedFile(name))
transfer = Transfer(cache=Path(cache), weights_url=url)
print(fetch(published, progress=Listener(), transfer=transfer))
"""


def test_two_processes_at_once(setting: Setting, tmp_path: Path) -> None:
    """The second waits for the first and takes its file; the server is asked once."""
    sign = tmp_path / "waiting"

    def when_both_are_here(handler: Handler) -> None:
        pause = threading.Event()
        for _ in range(3000):
            if sign.exists():
                break
            pause.wait(0.01)
        ranged(CONTENT)(handler)

    setting.site.usual = when_both_are_here
    arguments = (setting.transfer.cache, setting.transfer.weights_url, setting.path.name, sign)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", FETCH, *arguments], stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=60)[0].strip() for process in processes]
    assert sign.exists()
    assert [process.returncode for process in processes] == [0, 0]
    assert outputs == [str(setting.path)] * 2
    assert setting.path.read_bytes() == CONTENT
    assert setting.left() == {setting.path.name}
    assert setting.site.ranges == [None]


def test_another_process_is_waited_for(setting: Setting) -> None:
    """While a process holds the lock, nothing is asked for, and the listener is told why."""
    from filelock import FileLock

    setting.transfer.cache.mkdir()
    lock = FileLock(setting.transfer.cache / f".{setting.path.name}.lock")
    waiting = threading.Event()

    class Listener(Recorder):
        def stage(self, text: str) -> None:
            super().stage(text)
            waiting.set()

    listener = Listener([], [])
    with lock:
        thread = threading.Thread(target=replace(setting, progress=listener).fetch)
        thread.start()
        assert waiting.wait(30)
        assert setting.site.requests == []
        assert listener.stages == [f"waiting for another process that fetches {setting.path.name}"]
        setting.path.write_bytes(CONTENT)
    thread.join(30)
    assert not thread.is_alive()
    assert setting.site.requests == []


def test_the_environment_names_mirror_and_cache(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a given transfer, both come from the environment."""
    monkeypatch.setenv("LEVIT_EXPORT_CACHE", str(setting.transfer.cache))
    monkeypatch.setenv("LEVIT_EXPORT_WEIGHTS_URL", setting.transfer.weights_url)
    assert fetch(setting.published).read_bytes() == CONTENT
    assert len(setting.site.requests) == 1


def test_importing_and_parsing_load_no_network_library() -> None:
    """A cached file needs neither requests nor huggingface_hub."""
    script = (
        "import sys; from levit_export.models.published import parse; parse('levit_256');"
        "print(sorted({'requests', 'urllib3', 'huggingface_hub', 'filelock'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
