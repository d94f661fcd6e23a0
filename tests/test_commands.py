"""Every documented command does what a newcomer expects of it, in a folder of its own."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
import subjects
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from support import Cli, Exported
from test_readme import OURS

from levit_export.inputs.samples import held_out_digits

NOT_HERE = {
    "--pretrained": "it fetches published weights",
    "--scheduler": "it needs the workers of a cluster",
    "--with web": "it fetches the npm package onnxruntime-web",
    "--results": "it reads what devices found; tests/storage/device_bundle/test_results.py does",
    "--workers": "it starts processes; tests/workflows/test_evaluation.py and test_sweep.py do so",
    "--against": "it installs other versions of runtimes, as tests/cli/test_check_against.py does",
    "auto": "it searches for minutes; tests/workflows/test_precision_search.py runs searches",
}
"""What makes a command impossible here, or too slow, and why."""
SMALLER = {
    "--model levit_256": "--model levit_digits",
    "-c levit_256.pth": "-c my.safetensors",
}
"""What is run in place of a model that takes long, and the weights that the exports were made of
(tests/test_readme.py has an export of other weights).

Nor are exports timed here, which takes most of an export's time: tests/cli/test_export.py
times one.
"""

SWEEP = """
bench = false
formats = ["onnx"]
[[models]]
checkpoint = "levit_256.pth"
"""


def reason_not_to(command: str) -> str:
    """Why a command is not run here; empty where it is."""
    return next((why for part, why in NOT_HERE.items() if part in command), "")


RUN = [each for each in OURS if not reason_not_to(each)]


@pytest.fixture(scope="module")
def place(
    tmp_path_factory: pytest.TempPathFactory, exported: Exported, digits_file: Path, cli: Cli
) -> Path:
    """A folder with all that documented commands name: weights, images, exports, reports."""
    folder = tmp_path_factory.mktemp("newcomer")
    tensors = load_file(digits_file)
    torch.save(tensors, folder / "levit_256.pth")
    shutil.copy(digits_file, folder / "my.safetensors")
    (folder / "classes.txt").write_text("".join(f"digit {i}\n" for i in range(10)), "utf-8")
    (folder / "saved_pretrained").mkdir()
    save_file(tensors, folder / "saved_pretrained" / "model.safetensors")
    pixels, labels = held_out_digits()
    for number, (image, label) in enumerate(zip(pixels[:40], labels[:40], strict=True)):
        for where in (folder / "val" / str(label), folder / "photos"):
            where.mkdir(parents=True, exist_ok=True)
            picture = Image.fromarray((image.astype(float) * 255 / 16).round().astype("uint8"))
            picture.convert("RGB").save(where / f"{number}.png")
    for name in ("exported/levit_256", "exported/levit_digits", "DIR"):
        shutil.copytree(exported.folder, folder / name)
    (folder / "ci").mkdir()
    shutil.copy(exported.folder / "report.json", folder / "ci" / "baseline.json")
    shutil.copy(exported.folder / "report.json", folder / "report.json")
    shutil.copy(exported.folder / "onnx-fp32" / "levit_digits.onnx", folder / "model.onnx")
    assert cli("bundle", exported.folder, "-o", folder / "levit_256.zip").exit_code == 0
    package = subjects.artifact("coreml", "fp16").path
    shutil.copytree(package, folder / "model.mlpackage")
    (folder / "zoo.toml").write_text(SWEEP, "utf-8")
    return folder


@pytest.mark.parametrize("command", RUN)
def test_a_documented_command_runs(
    command: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    """It ends with status 0 where its files are there, without a word about a bug."""
    for large, small in SMALLER.items():
        command = command.replace(large, small)
    here = shutil.copytree(place, tmp_path / "here")
    monkeypatch.chdir(here)
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(here / "summary.md"))
    given = [part.replace("$GITHUB_STEP_SUMMARY", "summary.md") for part in shlex.split(command)]
    is_export = given[1].startswith("-")
    result = cli(*given[1:], *["--no-bench"] * is_export)
    assert result.exit_code == 0, result.output
    assert "bug" not in result.stderr


def test_commands_that_are_not_run() -> None:
    """Each has a reason, and every reason is still that of a documented command."""
    assert RUN
    for part in NOT_HERE:
        assert any(re.search(re.escape(part), each) for each in OURS), part
