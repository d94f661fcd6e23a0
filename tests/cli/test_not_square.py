"""A model of 64x160 px through every verb: height and width keep their places."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from support import Cli

from levit_export.storage import export_directory

SIZE = ("--random-weights", 0, "--imgsz", "64x160")


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory, cli: Cli) -> Path:
    """All formats, from raw pixels to probabilities; do not change its files."""
    folder = tmp_path_factory.mktemp("wide") / "out"
    embedded = ("--embed-preprocessing", "--softmax", "--no-bench")
    result = cli("export", "-f", "all", *SIZE, *embedded, "-o", folder)
    assert result.exit_code == 0, result.output
    return folder


def test_what_ships_says_height_and_width(wide: Path) -> None:
    """Signature, recipe, configuration and golden arrays are 64 high and 160 wide."""
    manifest = export_directory.read_manifest(wide)
    assert manifest.signature.inputs[0].shape == (1, 64, 160, 3)
    assert manifest.model.preprocessing.crop == (64, 160)
    assert manifest.model.config["image_size"] == [64, 160]
    samples, _ = export_directory.read_golden(wide, manifest)
    assert samples.inputs.shape[1:] == (64, 160, 3)
    assert {pixels.shape for pixels in samples.pixels.values()} == {(64, 160, 3)}
    gradient = samples.pixels["gradient"]  # red grows to the right, green downwards
    assert (np.ptp(gradient[..., 0], axis=1) == 255).all()
    assert (np.ptp(gradient[..., 1], axis=0) == 255).all()


def test_every_check_passes(wide: Path, cli: Cli) -> None:
    """By the golden vectors, and by a reference of the same weights and size made anew; one of
    the transposed size is not compared.
    """
    for more in ((), SIZE):
        result = cli("check", wide, *more)
        assert result.exit_code == 0, result.output
    assert cli("check", wide, "--random-weights", 0, "--imgsz", "160x64").exit_code != 0


def test_drift_finds_nothing(tmp_path: Path, cli: Cli) -> None:
    """Maps of the artifact and tokens of the network are the same values, position by position."""
    result = cli(
        "export", "-f", "onnx", *SIZE, "--layout", "maps", "--no-bench", "-o", tmp_path / "x"
    )
    assert result.exit_code == 0, result.output
    drawn = tmp_path / "drift.json"
    result = cli("drift", tmp_path / "x", "--samples", 2, "--json", drawn)
    assert result.exit_code == 0, result.output
    assert json.loads(drawn.read_text("utf-8"))["verdict"] == "pass"
    assert "introduces" not in result.output


def test_a_device_checks_itself(wide: Path, tmp_path: Path, cli: Cli) -> None:
    """The bundle's own verifier prepares the pictures and gets the golden answers."""
    result = cli("bundle", wide, "-f", "onnx", "-o", tmp_path / "b.zip")
    assert result.exit_code == 0, result.output
    with zipfile.ZipFile(tmp_path / "b.zip") as archive:
        archive.extractall(tmp_path / "b")
    script = next((tmp_path / "b").rglob("verify.py"))
    command = [sys.executable, "-I", str(script), str(script.parent), "--format", "onnx"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_size_that_cannot_be_is_refused(cli: Cli) -> None:
    """Sides that the stem does not divide, and words that are no size, with what is meant."""
    for given, said in (("100x512", "such as 96x512"), ("64x", "128x512"), ("0x64", "128x512")):
        result = cli("export", "--random-weights", 0, "--imgsz", given)
        assert result.exit_code == 2
        assert said in result.output
