"""What outputs mean: read, followed by what gives probabilities, or refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support import Cli

from levit_export.core.errors import CheckpointError, UsageError
from levit_export.core.values import Task
from levit_export.models import checkpoints
from levit_export.models.architectures import build
from levit_export.models.architectures.random_weights import randomize_
from levit_export.models.graph_ends import CLASSIFIER, refuse_task
from levit_export.models.loading import ModelChoice
from levit_export.models.zoo import LevitConfig
from levit_export.storage import export_directory


def written(folder: Path, classes: int = 5, problem: str | None = None) -> Path:
    """A small model's folder, as ``save_pretrained`` lays it out."""
    config = LevitConfig(
        (32, 48, 64), 16, (2, 3, 4), (1, 1, 1), image_size=(96, 96), classes=classes
    )
    save_file(dict(randomize_(build(config), 0).state_dict()), folder / "model.safetensors")
    names = {str(index): f"thing {index}" for index in range(classes)}
    described = {"id2label": names, "problem_type": problem}
    (folder / "config.json").write_text(json.dumps(described))
    return folder


@pytest.mark.parametrize(
    ("classes", "problem", "given", "task"),
    [
        (5, "multi_label_classification", None, "multi-label"),
        (5, "single_label_classification", None, "single-label"),
        (5, "regression", None, "regression"),
        (1, "multi_label_classification", None, "multi-label"),
        (5, None, None, "single-label"),
        (1, None, None, "unsaid"),
        (1, None, "regression", "regression"),
        (5, "regression", "multi-label", "multi-label"),
        (5, "ranking", "multi-label", "multi-label"),
    ],
)
def test_the_task_is_the_folders_or_the_users(
    tmp_path: Path, classes: int, problem: str | None, given: Task | None, task: Task
) -> None:
    """``problem_type`` decides, ``--task`` in its place; what nobody said is assumed aloud, and of
    a single output nothing is assumed.
    """
    found = checkpoints.load(written(tmp_path, classes, problem), ModelChoice(task=given))
    assert found.task == found.describe().task == task
    assumed = [words for words in found.assumptions if "what the outputs mean" in words]
    assert bool(assumed) == (task == "single-label" and problem is None)
    said = [words for words in found.remarks if "--task says" in words or "outputs mean" in words]
    assert bool(said) == (task != "single-label")


def test_an_unknown_problem_is_refused(tmp_path: Path) -> None:
    """A ``problem_type`` that transformers does not have is not taken for a usual one."""
    with pytest.raises(CheckpointError, match="problem_type 'ranking'") as refused:
        checkpoints.load(written(tmp_path, problem="ranking"))
    assert "--task" in refused.value.remedy


@pytest.mark.parametrize(
    ("task", "outputs", "option", "said"),
    [
        ("regression", 5, "--softmax", "numbers"),
        ("regression", 5, CLASSIFIER, "numbers"),
        ("unsaid", 1, "--softmax", "--task"),
        ("unsaid", 1, CLASSIFIER, "--task"),
        ("single-label", 1, "--softmax", "always 1"),
        ("multi-label", 5, CLASSIFIER, "each label by itself"),
    ],
)
def test_what_has_no_meaning_is_refused(task: Task, outputs: int, option: str, said: str) -> None:
    """Probabilities of numbers, of one class, or of labels as if they were classes are refused,
    with the option that was typed and the way out.
    """
    with pytest.raises(UsageError) as refused:
        refuse_task(task, outputs, option)
    assert said in f"{refused.value.what} {refused.value.remedy}"
    assert refused.value.what.startswith(option)


@pytest.mark.parametrize(("task", "outputs"), [("single-label", 2), ("multi-label", 1)])
def test_what_has_one_is_not(task: Task, outputs: int) -> None:
    """A softmax over classes, and a sigmoid of labels, one of them as well."""
    refuse_task(task, outputs, "--softmax")


@pytest.mark.parametrize(("classes", "kind"), [(5, "all"), (1, "onnx")])
def test_labels_get_a_sigmoid(cli: Cli, tmp_path: Path, classes: int, kind: str) -> None:
    """``--softmax`` of a multi-label model is a sigmoid in the file of every format, checked, in
    the manifest, and the very numbers that PyTorch gives.
    """
    place = written(tmp_path, classes, "multi_label_classification")
    out = tmp_path / "out"
    result = cli("export", "-c", place, "-f", kind, "--softmax", "--no-bench", "-o", out)
    assert result.exit_code == 0, result.output
    manifest = export_directory.read_manifest(out)
    assert (manifest.model.task, manifest.embedded.softmax) == ("multi-label", True)
    samples, outputs = export_directory.read_golden(out, manifest)
    with torch.no_grad():
        logits = checkpoints.load(place).build()(torch.from_numpy(samples.inputs))
    assert np.allclose(outputs["probabilities"], logits.sigmoid().numpy(), rtol=1e-5)
    assert cli("check", out, *(("-c", place) if classes == 1 else ())).exit_code == 0
    refused = cli("evaluate", out, "--data", "digits")
    assert refused.exit_code == 2
    assert "multi-label" in refused.output
    assert "multi-label image classifier" in manifest.model.kind


def test_another_activation_fails_the_check(cli: Cli, tmp_path: Path) -> None:
    """A softmax in the place of the sigmoid is found out."""
    place = written(tmp_path, 5, "single_label_classification")
    out = tmp_path / "out"
    flags = ("-f", "onnx", "--softmax", "--no-bench", "--no-check")
    assert cli("export", "-c", place, *flags, "-o", out).exit_code in (0, 3)
    other = ("--task", "multi-label", "--no-drift")
    assert cli("check", out, "-c", place, *other).exit_code == 1


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--softmax",), "numbers (regression)"),
        (("--classifier", "-f", "coreml"), "numbers (regression)"),
        (("--precision", "auto", "--data", "digits"), "the model's task is regression"),
    ],
)
def test_a_regression_on_the_command_line(
    cli: Cli, tmp_path: Path, flags: tuple[str, ...], said: str
) -> None:
    """It is refused before anything is exported, and exported where nothing asks for classes."""
    place = written(tmp_path, 1, "regression")
    refused = cli("export", "-c", place, *flags, "-o", tmp_path / "out")
    assert refused.exit_code == 2
    assert said in refused.output.replace("\n", " ")
    assert not (tmp_path / "out").exists()
