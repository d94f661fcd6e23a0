"""A small published file, a server that has it, and an empty cache."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from downloads import CONTENT, Recorder, Setting, published
from weights_server import ranged, serving

from levit_export.models.published import Transfer


@pytest.fixture(autouse=True)
def _direct(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server is reached without the machine's proxies."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def setting(tmp_path: Path) -> Iterator[Setting]:
    """A well-behaved server, an empty cache, and no patience."""
    with serving(ranged(CONTENT)) as site:
        transfer = Transfer(
            cache=tmp_path / "cache",
            weights_url=f"{site.url}/LeViT",
            connect_timeout=5,
            read_timeout=5,
            attempts=3,
            backoff=0,
        )
        yield Setting(site, published(CONTENT), transfer, Recorder([], []))


@pytest.fixture
def over() -> Iterator[threading.Event]:
    """Set when the test is over, so that stalled answers end."""
    event = threading.Event()
    yield event
    event.set()
