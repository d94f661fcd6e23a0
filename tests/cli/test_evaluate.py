"""``levit-export evaluate``: exit statuses, tables and JSON."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from support import Exported

from levit_export.cli.evaluate import evaluate
from levit_export.inputs import samples

Run = Callable[..., Result]


@pytest.fixture
def exported(exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A copy of the shared export: ``evaluate`` writes what it found into the report there."""
    folder = tmp_path_factory.mktemp("copy") / "levit_digits"
    shutil.copytree(exported.folder, folder)
    return dataclasses.replace(exported, folder=folder)


@pytest.fixture
def run() -> Run:
    """Run the verb in this process and with one worker."""

    def invoke(*arguments: object) -> Result:
        given = [str(a) for a in arguments]
        return CliRunner().invoke(evaluate, ["--workers", "1", *given], prog_name="levit-export")

    return invoke


@pytest.fixture
def threes(tmp_path: Path) -> Path:
    """Held-out digits that all claim to be threes, in an archive."""
    pixels, labels = samples.held_out_digits()
    others = pixels[labels != 3][:20]
    np.savez(tmp_path / "threes.npz", images=others, labels=np.full(20, 3))
    return tmp_path / "threes.npz"


def test_pass(run: Run, exported: Exported) -> None:
    """The table shows accuracy with its interval, agreement, flips and the gate: status 0."""
    result = run(exported.folder, "--data", "digits", "--max-drop", 0.5)
    assert result.exit_code == 0, result.output
    row = " ".join(line for line in result.stdout.splitlines() if line.startswith("onnx-fp32 "))
    for part in ("357/360", "99.17 % (97.6–99.7)", "100.00 % (98.9–100.0)", "0.00 of 0.5"):
        assert part in row
    assert "360 images of held-out UCI digits" in result.stdout
    assert "onnxruntime" in result.stdout
    assert result.stderr.startswith("stage 1/1: evaluating on 360 images")


def test_wrong_labels_hurt_both_alike(run: Run, exported: Exported, threes: Path) -> None:
    """The gate compares with PyTorch on the same images: where both are wrong it passes."""
    result = run(exported.folder, "-d", threes, "--max-drop", 0, "--json", "-")
    assert result.exit_code == 0, result.output
    accuracy = json.loads(result.stdout)["artifacts"][0]["accuracy"]
    assert (accuracy["correct"], accuracy["reference_correct"], accuracy["drop"]) == (0, 0, 0)
    assert accuracy["top1_interval"][0] == 0


def test_gate(run: Run, exported: Exported, tmp_path: Path) -> None:
    """Against another checkpoint the answers differ: status 1. Each stage has its number."""
    arguments = (exported.folder, "-d", "digits", "--limit", 36, "--model", "levit_digits")
    passed = run(*arguments, "--max-drop", 0)
    assert passed.exit_code == 0
    stages = [line.partition(" (")[0] for line in passed.stderr.splitlines()]
    assert stages == ["stage 1/2: reading the checkpoint", "stage 2/2: evaluating on 36 images"]
    pixels, _ = samples.held_out_digits()
    np.savez(tmp_path / "x.npz", images=pixels[:20])
    random = ("--model", "levit_digits", "--random-weights", 0)
    result = run(exported.folder, "-d", tmp_path / "x.npz", *random, "--max-drop", 10)
    assert result.exit_code == 1
    assert "exceeds 10" in result.stdout
    result = run(exported.folder, "-d", tmp_path / "x.npz", *random)
    assert result.exit_code == 0


def test_skipped_images_are_named(run: Run, exported: Exported, tmp_path: Path) -> None:
    """Unreadable images stand below the table with their reasons."""
    for i, image in enumerate(samples.held_out_digits()[0][:12]):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    (tmp_path / "broken.png").write_bytes(b"x")
    result = run(exported.folder, "-d", tmp_path)
    assert result.exit_code == 0
    assert "1 image could not be read and is left out: broken.png: not an image" in result.stdout


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder as the current one."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-d", "nowhere"), "nowhere does not exist"),
        (("-d", "."), "holds no images"),
        (("-d", "digits", "--labels", "nowhere.txt"), "nowhere.txt"),
        (("-d", "digits", "--max-drop", "101"), "101"),
        (("-d", "digits", "--json", "no/where.json"), "no/where.json"),
        ((), "--data"),
    ],
)
def test_bad_input(run: Run, exported: Exported, arguments: tuple[str, ...], message: str) -> None:
    """What cannot be used ends with status 2 and its name, and nothing on standard output."""
    result = run(exported.folder, *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert "bug" not in result.stderr


def test_not_run(run: Run, exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    """An artifact that cannot be run here ends with status 3."""
    from levit_export.core.values import Availability
    from levit_export.formats.onnx.target import OnnxTarget

    absent = Availability(ok=False, reason="no runtime", fix="get one")
    monkeypatch.setattr(OnnxTarget, "can_run", lambda _: absent)
    result = run(exported.folder, "-d", "digits")
    assert result.exit_code == 3
    assert "not evaluated: no runtime" in result.stdout


def test_quiet(run: Run, exported: Exported) -> None:
    """``-q`` says nothing where nothing is wrong."""
    result = run(exported.folder, "-d", "digits", "--limit", 5, "-q")
    assert (result.exit_code, result.output) == (0, "")
