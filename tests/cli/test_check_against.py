"""``check --against``: the same file on other versions of its runtime."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fake_wheels
import pytest
from support import Cli, Exported

from levit_export.core.errors import NotInstalledError
from levit_export.core.progress import Silent
from levit_export.formats import environments
from levit_export.formats.environments import Version, interpreter


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A cache that is filled by the tests, and a folder of wheels."""
    wheels = fake_wheels.write(tmp_path_factory.mktemp("wheels"))
    return tmp_path_factory.mktemp("cache"), wheels


@pytest.fixture(autouse=True)
def _no_index(prepared: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Pip finds the wheels and nothing else."""
    cache, wheels = prepared
    monkeypatch.setenv("LEVIT_EXPORT_CACHE", str(cache))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setattr(environments, "uv", lambda: None)
    monkeypatch.setattr(environments, "PYTHONS", ())


def against(*releases: str) -> list[str]:
    """The options."""
    return [word for each in releases for word in ("--against", f"onnxruntime=={each}")]


def findings(row: dict[str, Any]) -> dict[str, str]:
    """What was found of a row: kinds and sentences."""
    return {each["kind"]: each["sentence"] for each in row["parity"]["findings"]}


def test_each_version_is_a_row(cli: Cli, exported: Exported, tmp_path: Path) -> None:
    """Wrong answers, a refusal and a crash fail, what does not start is not run, right passes."""
    asked = against("1.6", "1.5", "1.4", "1.3", "1.2")
    junit = tmp_path / "junit.xml"
    result = cli("check", exported.folder, *asked, "--json", "-", "--junit", junit)
    assert result.exit_code == 1, result.output
    own, *rows = json.loads(result.stdout)["artifacts"]
    assert (own["device"], own["parity"]["verdict"]) == ("", "pass")
    verdicts = {row["device"].split()[1]: row["parity"]["verdict"] for row in rows}
    assert verdicts == {
        "1.2": "not-run",
        "1.3": "fail",
        "1.4": "fail",
        "1.5": "pass",
        "1.6": "fail",
    }
    two, three, four, five, six = rows
    assert "libgone.so.1" in findings(two)["not-run"]
    assert "Unsupported model IR version" in findings(three)["run-failed"]
    assert findings(four).keys() >= {"too-far"}
    assert "ended with status 7" in findings(six)["run-failed"]
    said = findings(five)["oldest-that-passes"]
    assert said.startswith("onnxruntime 1.5 is the oldest tried that passes (")
    assert "onnxruntime 1.2: not run" in said
    assert "onnxruntime 1.6: fail" in said
    assert said in junit.read_text()
    assert five["parity"]["runtime"].startswith("onnxruntime ")
    assert ", Python 3." in five["parity"]["runtime"]
    assert five["parity"]["weights"]["tensors"] == own["parity"]["weights"]["tensors"]


def test_a_version_that_passes(cli: Cli, exported: Exported) -> None:
    """Where all versions pass the status is 0, and the console names the oldest."""
    file = exported.folder / "onnx-fp32" / "levit_digits.onnx"
    result = cli("check", file, "--model", "levit_digits", *against("1.5"))
    assert result.exit_code == 0, result.output
    assert "onnx-fp32 (onnxruntime 1.5)" in result.stdout
    assert "onnxruntime 1.5 is the oldest tried that passes" in result.stdout
    assert "checking levit_digits.onnx on onnxruntime 1.5" in result.stderr


def test_drift_is_not_advised(cli: Cli, exported: Exported) -> None:
    """Where another version alone fails nobody is sent to drift, which runs what is here."""
    result = cli("check", exported.folder, *against("1.3"))
    assert result.exit_code == 1
    assert "onnx-fp32 (onnxruntime 1.3) parity: onnxruntime 1.3 does not take" in result.stdout
    assert "levit-export drift" not in result.stdout


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (against("1.7"), "there is no onnxruntime 1.7 for Python"),
        (["--against", "torch==2.7"], "PyTorch computes the reference"),
        (["--against", "openvino==2025.2"], "none of what is checked is in that format"),
        ([*against("1.5"), "--provider", "openvino"], "on the CPU only"),
        ([*against("1.5"), "--baseline", "r.json", "--latency-slack", "5"], "did not time"),
    ],
)
def test_what_cannot_be_asked(
    cli: Cli, exported: Exported, options: list[str], words: str
) -> None:
    """A version that there is not, and contradictions: status 2 and no verdict."""
    result = cli("check", exported.folder, *options)
    assert result.exit_code == 2, result.output
    assert words in result.stderr
    assert result.stdout == ""


def test_offline(cli: Cli, exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    """A version that cannot be fetched is not run, status 3; the file is checked all the same."""
    monkeypatch.setenv("PIP_FIND_LINKS", "/nowhere")
    result = cli("check", exported.folder, *against("1.1"), "--json", "-")
    assert result.exit_code == 3, result.output
    own, row = json.loads(result.stdout)["artifacts"]
    assert (own["parity"]["verdict"], row["parity"]["verdict"]) == ("pass", "not-run")
    assert "no package index answers" in row["parity"]["reason"]


def test_a_published_version(
    cli: Cli, exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime 1.20.1, installed for the purpose, gives the right answers."""
    for name in ("PIP_CONFIG_FILE", "PIP_NO_INDEX", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("LEVIT_EXPORT_CACHE", str(tmp_path))
    try:
        interpreter(Version("onnxruntime", "1.20.1"), Silent())
    except NotInstalledError as error:
        pytest.skip(str(error))
    result = cli("check", exported.folder, *against("1.20.1"), "--json", "-")
    assert result.exit_code == 0, result.output
    row = json.loads(result.stdout)["artifacts"][1]
    assert row["parity"]["runtime"].startswith("onnxruntime 1.20.1 (CPU, Python 3.")
