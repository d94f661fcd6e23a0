"""``levit-export compare``: options, reports and exit statuses."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import onnx
import pytest
import subjects
from onnx import numpy_helper
from support import Cli, Exported, needs_core_ai


@pytest.fixture(scope="module")
def sound(exported: Exported) -> Path:
    """The bundled model as an ONNX file."""
    return exported.folder / "onnx-fp32" / "levit_digits.onnx"


@pytest.fixture(scope="module")
def changed(sound: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with its largest weight tensor 1 % larger."""
    proto = onnx.load(sound)
    tensor = max(proto.graph.initializer, key=lambda each: numpy_helper.to_array(each).size)
    larger = numpy_helper.to_array(tensor) * np.float32(1.01)
    tensor.CopyFrom(numpy_helper.from_array(larger, tensor.name))
    path = tmp_path_factory.mktemp("changed") / "changed.onnx"
    onnx.save(proto, path)
    return path


def test_a_failure_has_status_1_and_every_form_of_report(
    cli: Cli, sound: Path, changed: Path, tmp_path: Path
) -> None:
    """JSON, JUnit, Markdown and the page say the same."""
    names = {"--json": "a.json", "--junit": "a.xml", "--markdown": "a.md", "--html": "a.html"}
    files = [part for option, name in names.items() for part in (option, tmp_path / name)]
    result = cli("compare", sound, sound, changed, *files)
    assert result.exit_code == 1, result.output
    content = json.loads((tmp_path / "a.json").read_text("utf-8"))
    assert [each["parity"]["verdict"] for each in content["artifacts"]] == ["pass", "fail"]
    assert content["artifacts"][1]["drift"]["tap"]
    assert content["vouching"]["by"] == "reference"
    assert ET.parse(tmp_path / "a.xml").getroot().get("failures") == "1"
    assert "❌ fail" in (tmp_path / "a.md").read_text("utf-8")
    assert "changed.onnx" in (tmp_path / "a.html").read_text("utf-8")
    assert "held against" in result.stdout


@needs_core_ai
def test_an_asset_of_core_ai_is_a_candidate(cli: Cli, sound: Path) -> None:
    """It runs in Apple's runtime, and is judged by the tolerance of the ONNX file."""
    result = cli("compare", sound, subjects.artifact("coreai", "fp32").path)
    assert result.exit_code == 0, result.output
    assert "coreai-fp32  pass" in result.stdout


def test_a_given_tolerance_decides(cli: Cli, sound: Path, changed: Path) -> None:
    """What the derived tolerance refuses, a wide one accepts, and the report says whose it was."""
    result = cli("compare", sound, changed, "--rtol", 0.1, "--no-drift")
    assert result.exit_code == 0, result.output
    assert "a tolerance that was given" in result.stdout


def test_what_decides_nothing_has_status_3(cli: Cli, sound: Path) -> None:
    """A reference in OpenVINO has no float64; --allow-not-run accepts that."""
    reference = subjects.artifact("openvino", "fp32").path
    result = cli("compare", reference, sound)
    assert result.exit_code == 3, result.output
    assert "cannot be run in float64" in " ".join(result.stdout.split())
    assert cli("compare", reference, sound, "--allow-not-run").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--inputs", "none.npz"), "none.npz cannot be read as arrays"),
        (("--data", "none"), "--data none does not exist"),
        (("--data", "DIR", "--inputs", "y"), "exclude each other"),
    ],
)
def test_samples_that_cannot_be_had_have_status_2(
    cli: Cli,
    sound: Path,
    tmp_path: Path,
    arguments: tuple[str, ...],
    words: str,
) -> None:
    """The message names the option or the file."""
    arguments = tuple(part.replace("DIR", str(tmp_path)) for part in arguments)
    result = cli("compare", sound, sound, *arguments)
    assert result.exit_code == 2, result.output
    assert words in " ".join(result.stderr.split())
