"""Checkpoints of the Hub, fetched by its client from a server on the loopback interface."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from downloads import CONTENT, Recorder
from hub_server import Repository
from weights_server import Site, serving, status

from levit_export.core.errors import MissingDependencyError, OutputError
from levit_export.models.published import (
    DownloadError,
    HubModel,
    Published,
    Transfer,
    WrongHashError,
    fetch,
)

pytest.importorskip("huggingface_hub")

MODEL = HubModel("facebook/levit-tiny", ("config.json", "preprocessor_config.json"))
SMALL = {"config.json": b"{}", "preprocessor_config.json": b'{"size": 224}'}
OTHER = {"README.md": b"read me", "tf_model.h5": b"another framework's"}


@dataclass(frozen=True)
class Hub:
    """A repository, the server that has it, and where it goes."""

    site: Site
    repository: Repository
    transfer: Transfer
    progress: Recorder

    def fetch(self, *, offline: bool = False) -> Path:
        published = Published(MODEL.id, "levit_tiny", MODEL)
        return fetch(published, offline=offline, progress=self.progress, transfer=self.transfer)

    def serve(self, files: dict[str, bytes]) -> Repository:
        """Another state of the repository."""
        repository = Repository(MODEL.id, files)
        self.site.usual = repository.answer()
        return repository


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub with a repository that holds both kinds of weights, and an empty cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("time.sleep", lambda _: None)  # the client's own patience
    files = SMALL | OTHER | {"model.safetensors": CONTENT, "pytorch_model.bin": CONTENT[::-1]}
    repository = Repository(MODEL.id, files)
    with serving(repository.answer()) as site:
        transfer = Transfer(cache=tmp_path / "cache", hub_url=site.url, connect_timeout=5)
        yield Hub(site, repository, transfer, Recorder([], []))


def test_weights_and_companions_are_fetched(hub: Hub) -> None:
    """The safetensors and the configuration, and nothing else of the repository."""
    weights = hub.fetch()
    assert weights.name == "model.safetensors"
    assert weights.read_bytes() == CONTENT
    assert weights.is_relative_to(hub.transfer.cache / "huggingface")
    assert {p.name for p in weights.parent.iterdir()} == {*SMALL, weights.name}
    assert sorted(hub.repository.asked) == sorted({*SMALL, weights.name})
    assert hub.progress.stages == [f"fetching {MODEL.id} from the Hugging Face Hub"]


def test_nobodys_token_travels(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Public weights are asked for without the user's credentials."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.fetch()
    sent = [{name.lower() for name in headers} for _, headers in hub.site.requests]
    assert len(sent) > 2
    assert not any("authorization" in names for names in sent)


def test_pickled_weights_where_there_are_no_others(hub: Hub) -> None:
    """A repository without safetensors gives its ``pytorch_model.bin``."""
    hub.serve(SMALL | {"pytorch_model.bin": CONTENT})
    weights = hub.fetch()
    assert weights.name == "pytorch_model.bin"
    assert hub.fetch(offline=True) == weights


def test_what_is_cached_is_not_asked_for(hub: Hub) -> None:
    """The second use needs no network, offline or not."""
    weights = hub.fetch()
    asked = len(hub.site.requests)
    assert hub.fetch() == weights
    assert hub.fetch(offline=True) == weights
    assert len(hub.site.requests) == asked


def test_offline_without_the_files(hub: Hub) -> None:
    """The error names the repository and the cache, and no request is made."""
    with pytest.raises(DownloadError, match="is not in the cache") as caught:
        hub.fetch(offline=True)
    assert MODEL.id in caught.value.what
    assert "without --offline" in caught.value.remedy
    assert hub.site.requests == []


def test_an_incomplete_snapshot_is_completed(hub: Hub) -> None:
    """Weights without their configuration are not taken for a checkpoint."""
    weights = hub.fetch()
    (weights.parent / "config.json").unlink()
    with pytest.raises(DownloadError, match="is not in the cache"):
        hub.fetch(offline=True)
    hub.fetch()
    assert (weights.parent / "config.json").read_bytes() == b"{}"


def test_damaged_weights_are_fetched_again(hub: Hub) -> None:
    """The client trusts its cache; the SHA-256 is checked on each use all the same."""
    weights = hub.fetch()
    weights.resolve().write_bytes(CONTENT[:-1])
    with pytest.raises(DownloadError, match="is damaged in the cache"):
        hub.fetch(offline=True)
    assert hub.fetch().read_bytes() == CONTENT
    assert hub.repository.asked.count("model.safetensors") == 2


def test_a_wrong_hash_is_refused(hub: Hub) -> None:
    """A body that is not what its hash announces is removed, and both hashes are named."""
    hub.repository.sent["model.safetensors"] = bytes(len(CONTENT))
    with pytest.raises(WrongHashError, match=r"has SHA-256 \w{64}, not \w{64} as published"):
        hub.fetch()
    with pytest.raises(DownloadError, match="is not in the cache"):
        hub.fetch(offline=True)
    hub.repository.sent.clear()
    assert hub.fetch().read_bytes() == CONTENT


def test_an_unknown_repository(hub: Hub) -> None:
    """The Hub does not know the id: the error says so, with a way around."""
    hub.site.usual = status(404, X_Error_Code="RepoNotFound")
    with pytest.raises(DownloadError, match=f"{MODEL.id} could not be fetched.*404") as caught:
        hub.fetch()
    assert "--checkpoint FILE" in caught.value.remedy


def test_a_repository_without_weights(hub: Hub) -> None:
    """Nothing that could be loaded: the error lists what was looked for."""
    hub.serve(SMALL | OTHER)
    with pytest.raises(DownloadError, match=r"no model.safetensors and no pytorch_model.bin"):
        hub.fetch()


def test_no_network(hub: Hub) -> None:
    """Nobody answers: the innermost reason is told."""
    away = replace(hub.transfer, hub_url="http://127.0.0.1:9")
    with pytest.raises(DownloadError, match="refused") as caught:
        replace(hub, transfer=away).fetch()
    assert "--checkpoint FILE" in caught.value.remedy


def test_a_full_disk(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk's errors are told as such, not as the network's."""

    def full(*_: object, **options: object) -> str:
        if options.get("local_files_only"):
            from huggingface_hub.errors import LocalEntryNotFoundError

            raise LocalEntryNotFoundError("nothing there")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("huggingface_hub.snapshot_download", full)
    with pytest.raises(OutputError, match="No space left on device") as caught:
        hub.fetch()
    assert "LEVIT_EXPORT_CACHE" in caught.value.remedy


def test_without_the_client(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Hub id without huggingface_hub says what to install."""
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingDependencyError) as caught:
        hub.fetch()
    assert "pip install 'levit-export[hub]'" in caught.value.remedy


@pytest.mark.parametrize("disabled", [True, False])
def test_the_clients_bars(hub: Hub, monkeypatch: pytest.MonkeyPatch, *, disabled: bool) -> None:
    """Its progress bars are off while we fetch, and as they were afterwards."""
    import huggingface_hub
    from huggingface_hub.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    seen: list[bool] = []
    download = huggingface_hub.snapshot_download

    def watched(*arguments: Any, **options: Any) -> str:
        if not options.get("local_files_only"):
            seen.append(are_progress_bars_disabled())
        return download(*arguments, **options)

    monkeypatch.setattr("huggingface_hub.snapshot_download", watched)
    was_disabled = are_progress_bars_disabled()
    (disable_progress_bars if disabled else enable_progress_bars)()
    try:
        hub.fetch()
        assert are_progress_bars_disabled() == disabled
    finally:
        (disable_progress_bars if was_disabled else enable_progress_bars)()
    assert seen == [True]
