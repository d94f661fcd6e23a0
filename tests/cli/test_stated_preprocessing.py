"""``--preprocessing FILE`` and what is assumed without it: in artifacts, bundle and report."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx
import pytest
from folders import TINY, in_timm, written
from PIL import Image
from support import Cli, Exported

from levit_export.core import hashing
from levit_export.core.values import Preprocessing
from levit_export.inputs import preprocessing
from levit_export.storage import export_directory
from levit_export.storage.device_bundle.golden import picture
from levit_export.workflows.sweep.plan import read

RECIPE = Preprocessing(
    "mine", (70, 80), (64, 64), "fit", "hamming", (0.1, 0.2, 0.3), (0.9, 0.8, 0.7), fill=(1, 2, 3)
)
REFUSED = {"architecture": "levit_128s", "pretrained_cfg": {"interpolation": "random"}}
FLAGS = ("--format", "onnx", "--no-bench")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of timm whose recipe cannot be followed."""
    return written(tmp_path_factory.mktemp("timm"), in_timm(TINY), config=REFUSED)


@pytest.fixture(scope="module")
def stated(place: Path, tmp_path_factory: pytest.TempPathFactory, cli: Cli) -> Exported:
    """Its export with a recipe that was stated by hand; do not change its files."""
    folder = tmp_path_factory.mktemp("stated")
    (folder / "recipe.json").write_text(json.dumps(asdict(RECIPE)), encoding="utf-8")
    given = ("--checkpoint", place, "--preprocessing", folder / "recipe.json")
    result = cli("export", *given, *FLAGS, "--output", folder / "out")
    return Exported(folder / "out", result.stdout, result.stderr, result.exit_code)


def test_a_refusal_names_the_way_out(place: Path, tmp_path: Path, cli: Cli) -> None:
    """A folder that cannot be followed is refused by its setting, with the option to give."""
    result = cli("export", "--checkpoint", place, *FLAGS, "--output", tmp_path / "out")
    assert result.exit_code == 2
    assert "interpolation is 'random'" in result.stderr
    assert "--preprocessing FILE" in result.stderr


def test_it_is_in_everything_that_is_written(stated: Exported) -> None:
    """Manifest, report and the file itself hold it like a recipe that a folder says."""
    assert stated.status == 0, stated.stdout + stated.stderr
    manifest = export_directory.read_manifest(stated.folder)
    assert manifest.model.preprocessing == RECIPE
    report = json.loads((stated.folder / "report.json").read_text("utf-8"))
    assert preprocessing.from_json(report["model"]["preprocessing"]) == RECIPE
    (artifact,) = export_directory.artifacts(stated.folder, manifest)
    said = {p.key: p.value for p in onnx.load(artifact.path).metadata_props}
    assert preprocessing.from_json(json.loads(said["levit_export.preprocessing"])) == RECIPE
    assert RECIPE.in_words() in (stated.folder / "report.html").read_text("utf-8")
    assert not any("pictures" in each for each in manifest.model.assumptions)


def test_its_bundle_verifies_itself(stated: Exported, tmp_path: Path, cli: Cli) -> None:
    """Padding, fill and filter are repeated by ``verify.py``, and a black border is told."""
    result = cli("bundle", stated.folder, "-o", tmp_path / "b.zip")
    assert result.exit_code == 0, result.stderr
    with zipfile.ZipFile(tmp_path / "b.zip") as archive:
        archive.extractall(tmp_path / "b")
    program = next((tmp_path / "b").rglob("verify.py"))
    command = [sys.executable, "-I", str(program), str(program.parent)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, "pass    pixels" in done.stdout) == (0, True), done.stdout
    pixels = np.load(program.parent / "golden" / "pixels" / "resize-landscape.npy")
    black = Preprocessing(**{**vars(RECIPE), "fill": (0, 0, 0)})
    np.save(tmp_path / "fed.npy", preprocessing.apply(black, pixels))
    given = ["--input", str(tmp_path / "fed.npy"), "--sample", "resize-landscape"]
    done = subprocess.run([*command, *given], capture_output=True, text=True, check=False)
    assert "padded with black" in done.stdout, done.stdout


def test_a_label_that_moved_is_found(stated: Exported, tmp_path: Path, cli: Cli) -> None:
    """``labels.txt`` has to be the manifest's names line by line, whatever its hash is."""
    copied = shutil.copytree(stated.folder, tmp_path / "copied")
    (copied / "labels.txt").write_text("0\n1\nnew\nline\n3\n4\n", encoding="utf-8")
    content = json.loads((copied / "manifest.json").read_text("utf-8"))
    content["files"]["labels.txt"] = vars(hashing.file_entry(copied / "labels.txt"))
    (copied / "manifest.json").write_text(json.dumps(content), encoding="utf-8")
    manifest = export_directory.read_manifest(copied)
    assert export_directory.damage(copied, manifest) == [
        "labels.txt does not hold the 5 names of the manifest, a line each"
    ]
    result = cli("bundle", copied, "-o", tmp_path / "b.zip")
    assert result.exit_code == 2
    assert "labels.txt does not hold the 5 names" in result.stderr
    content["model"]["labels"][2] = "new\nline"
    (copied / "manifest.json").write_text(json.dumps(content), encoding="utf-8")
    result = cli("check", copied)
    assert result.exit_code != 0
    assert "calls class 2 'new\\nline', which is not a name of one line" in result.stderr


def test_assumptions_are_reported_as_such(tmp_path: Path, cli: Cli) -> None:
    """Assumed recipe and activation are called so: on the screen, in JSON and on the page."""
    place = written(tmp_path, in_timm(TINY))
    result = cli("export", "--checkpoint", place, *FLAGS, "--output", tmp_path / "out")
    assert result.exit_code == 0, result.stdout + result.stderr
    model = json.loads((tmp_path / "out" / "report.json").read_text("utf-8"))["model"]
    for said in ("the activation: hardswish is assumed", "timm's for its LeViT models is assumed"):
        assert any(said in each for each in model["assumptions"]), said
    assert cli("bundle", tmp_path / "out", "-o", tmp_path / "b.zip").exit_code == 0
    with zipfile.ZipFile(tmp_path / "b.zip") as archive:
        card = archive.read("README.md").decode()
    shown = " ".join(result.stdout.split())
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert "<dt>assumption</dt>" in page
    for each in model["assumptions"]:
        assert f"assumption: {each}" in shown
        assert each not in model["remarks"]
        assert f"\nAssumed: {each}.\n" in card


def test_an_evaluation_can_take_another_recipe(stated: Exported, tmp_path: Path, cli: Cli) -> None:
    """``evaluate --preprocessing`` on a directory uses it and says that it is not the export's."""
    for label in range(5):
        (tmp_path / "data" / str(label)).mkdir(parents=True)
        Image.fromarray(picture(50, 60 + label)).save(tmp_path / "data" / str(label) / "x.png")
    other = {**asdict(RECIPE), "interpolation": "box"}
    (tmp_path / "other.json").write_text(json.dumps(other), encoding="utf-8")
    given = ("--data", tmp_path / "data", "--preprocessing", tmp_path / "other.json")
    result = cli("evaluate", stated.folder, *given, "--json", "-")
    text = " ".join((result.stdout + result.stderr).split())
    assert "images go through this recipe" in text, text
    assert "(box, antialiased)" in text


def test_a_check_without_a_checkpoint_has_no_use_for_it(
    stated: Exported, tmp_path: Path, cli: Cli
) -> None:
    """What would be ignored is refused: the directory is held against its own golden vectors."""
    (tmp_path / "recipe.json").write_text(json.dumps(asdict(RECIPE)), encoding="utf-8")
    result = cli("check", stated.folder, "--preprocessing", tmp_path / "recipe.json")
    assert result.exit_code == 2
    assert "--preprocessing would change nothing" in result.stderr
    assert "add the --checkpoint" in result.stderr
    result = cli("check", stated.folder, "--data", tmp_path)
    assert result.exit_code == 2
    assert "--data would change nothing" in result.stderr


def test_a_pipe_states_nothing(tmp_path: Path, cli: Cli) -> None:
    """A named pipe, which would be waited for, is refused at once."""
    os.mkfifo(tmp_path / "pipe")
    result = cli("export", "--preprocessing", tmp_path / "pipe", *FLAGS)
    assert result.exit_code == 2
    assert "does not state a preprocessing" in result.stderr


def test_a_sweep_takes_it(tmp_path: Path, place: Path) -> None:
    """``preprocessing`` of a model in a sweep's file is a path beside it, and part of its key."""
    (tmp_path / "recipe.json").write_text(json.dumps(asdict(RECIPE)), encoding="utf-8")
    file = tmp_path / "sweep.toml"
    table = f'[[models]]\nname = "one"\ncheckpoint = "{place}"\nformats = ["onnx"]\n'
    file.write_text(f'{table}preprocessing = "recipe.json"\n', encoding="utf-8")
    (cell,) = read(file).cells
    assert cell.choice.preprocessing == RECIPE
    file.write_text(table, encoding="utf-8")
    (without,) = read(file).cells
    assert without.key != cell.key
