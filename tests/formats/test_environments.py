"""Environments with other versions of runtimes: whole or not there, and made once."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import sleep

import fake_wheels
import pytest

from levit_export.core.errors import (
    NotInstalledError,
    UnknownNameError,
    UnknownVersionError,
    UsageError,
)
from levit_export.core.progress import Silent
from levit_export.formats import environments
from levit_export.formats.environments import Version, interpreter

FIVE = Version("onnxruntime", "1.5.0")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and pip with no index but a folder of wheels."""
    monkeypatch.setenv("LEVIT_EXPORT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(fake_wheels.write(tmp_path / "wheels")))
    monkeypatch.setattr(environments, "uv", lambda: None)
    monkeypatch.setattr(environments, "PYTHONS", ())
    return tmp_path / "cache" / "environments"


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("torch==2.7", UsageError, "computes the reference"),
        ("coremltools==8.0", UnknownNameError, "onnxruntime, openvino"),
        ("onnxruntime", UsageError, "not a runtime and a release"),
        ("onnxruntime>=1.20", UsageError, "not a runtime and a release"),
        ("onnxruntime==latest", UsageError, "not a runtime and a release"),
    ],
)
def test_what_is_not_a_version(text: str, error: type[UsageError], words: str) -> None:
    """Only releases of runtimes can be tried; the message says what to give."""
    with pytest.raises(error, match=words):
        Version.parse(text)


def test_releases_are_ordered_as_numbers() -> None:
    """1.9 is older than 1.20, and 1.20 is the release 1.20.0; early ones need an early NumPy."""
    texts = ("1.20", "1.9", "1.20.1", "1.20.0")
    found = {text: Version.parse(f"onnxruntime=={text}") for text in texts}
    assert found["1.9"].order < found["1.20"].order < found["1.20.1"].order
    assert found["1.20"].order == found["1.20.0"].order
    assert found["1.9"].requirements == ("onnxruntime==1.9", "numpy<2")
    assert Version.parse("OpenVINO == 2025.2").requirements == ("openvino==2025.2", "numpy")


def test_an_environment_is_made_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second call takes what the first one made, also where no index answers any more."""
    python = interpreter(FIVE, Silent())
    assert python.is_relative_to(cache)
    code = "import onnxruntime, numpy; print(onnxruntime.InferenceSession.__name__)"
    done = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "InferenceSession"
    monkeypatch.setenv("PIP_FIND_LINKS", "/nowhere")
    assert interpreter(Version("onnxruntime", "1.5"), Silent()) == python
    assert [path.name for path in cache.iterdir() if not path.name.startswith(".")] == [
        python.parents[1].name
    ]


def pretended(made: list[Path], pause: float = 0.0) -> Callable[..., None]:
    """A maker that puts an empty file in place of an interpreter, and notes where."""

    def run(command: list[object], _: Version) -> None:
        if "venv" in command:
            made.append(Path(str(command[-1])))
            (made[-1] / "bin").mkdir()
            sleep(pause)
            (made[-1] / "bin" / "python").touch()

    return run


def test_two_processes_make_it_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who needs what another one is making waits for it."""
    made: list[Path] = []
    monkeypatch.setattr(environments, "_run", pretended(made, pause=0.2))
    with ThreadPoolExecutor(2) as pool:
        found = set(pool.map(lambda _: interpreter(FIVE, Silent()), range(2)))
    assert len(found) == len(made) == 1
    assert found.pop().is_relative_to(cache)


def test_half_an_environment_is_none(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a run left that was interrupted is not taken for an environment, and cleared away."""
    made: list[Path] = []
    whole = pretended(made)

    def interrupted(command: list[object], version: Version) -> None:
        whole(command, version)
        if "install" in command:
            raise KeyboardInterrupt

    monkeypatch.setattr(environments, "_run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        interpreter(FIVE, Silent())
    assert [path for path in cache.iterdir() if not path.name.startswith(".")] == []
    monkeypatch.setattr(environments, "_run", whole)
    place = interpreter(FIVE, Silent()).parents[1]
    # As after a kill, and where the Python it was made of is gone.
    left = place.with_name(f"{place.name}.making-x")
    place.rename(left)
    (place / "bin").mkdir(parents=True)
    (place / "bin" / "python").symlink_to("/nowhere/python")
    assert interpreter(FIVE, Silent()).is_file()
    assert len(made) == 3
    assert not left.exists()


@pytest.mark.usefixtures("cache")
def test_a_version_that_there_is_not() -> None:
    """A mistyped version is a usage error that names those that there are."""
    with pytest.raises(UnknownVersionError, match=r"no onnxruntime 1\.7 for Python .*1\.6\.0"):
        interpreter(Version("onnxruntime", "1.7"), Silent())


def test_no_network(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an index nothing is said of the version: it could not be installed."""
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pytest.raises(NotInstalledError, match="no package index answers"):
        interpreter(FIVE, Silent())
    assert [path for path in cache.iterdir() if not path.name.startswith(".")] == []
