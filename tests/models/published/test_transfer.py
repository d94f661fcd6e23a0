"""Where downloads go and come from."""

from __future__ import annotations

from pathlib import Path

import pytest

from levit_export.core.errors import UsageError
from levit_export.models.published import Transfer
from levit_export.models.published.download import WEIGHTS_URL


@pytest.mark.parametrize(
    ("environment", "cache"),
    [
        ({"LEVIT_EXPORT_CACHE": "/one", "XDG_CACHE_HOME": "/two"}, Path("/one")),
        ({"LEVIT_EXPORT_CACHE": "", "XDG_CACHE_HOME": "/two"}, Path("/two/levit-export")),
        ({"XDG_CACHE_HOME": "relative"}, Path("~/.cache/levit-export").expanduser()),
        ({}, Path("~/.cache/levit-export").expanduser()),
        ({"LEVIT_EXPORT_CACHE": "~/mine"}, Path("~/mine").expanduser()),
        ({"LEVIT_EXPORT_CACHE": "here"}, Path.cwd() / "here"),
    ],
)
def test_the_cache(environment: dict[str, str], cache: Path) -> None:
    """Our own variable, else XDG's unless relative, else the home folder."""
    assert Transfer.from_environment(environment).cache == cache


def test_without_a_home_the_cache_has_to_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user without a home folder is told which variable helps."""

    def homeless(_: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", homeless)
    with pytest.raises(UsageError) as caught:
        Transfer.from_environment({})
    assert "LEVIT_EXPORT_CACHE" in caught.value.remedy


def test_a_mirror() -> None:
    """The authors' folder can be replaced by a mirror, with or without a slash at its end."""
    url = "LEVIT_EXPORT_WEIGHTS_URL"
    assert Transfer.from_environment({}).url("a.pth") == f"{WEIGHTS_URL}/a.pth"
    for mirror in ("https://mirror/levit", "https://mirror/levit/"):
        found = Transfer.from_environment({url: mirror})
        assert found.url("a.pth") == "https://mirror/levit/a.pth"
