"""Whose images a model is judged by: the bundled digits belong to the bundled weights alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support import Cli

from levit_export.checks import reference
from levit_export.checks.reference import Reference
from levit_export.core.errors import UsageError
from levit_export.models import checkpoints, loading
from levit_export.models.checkpoints import Checkpoint
from levit_export.models.loading import ModelChoice
from levit_export.models.zoo import bundled_weights, variant
from levit_export.workflows.export_plan import ExportRequest, plan

DIGITS = variant("levit_digits")


@pytest.fixture(scope="module")
def bundled_file() -> Path:
    """The bundled weights as a file."""
    return bundled_weights()


def trained_otherwise(bundled_file: Path, folder: Path) -> Checkpoint:
    """Weights of the same network that saw something else: their classes come in another order."""
    tensors = load_file(bundled_file)
    order = torch.arange(9, -1, -1)
    for head in ("head", "head_dist"):
        for leaf in ("weight", "bias"):
            tensors[f"{head}.l.{leaf}"] = tensors[f"{head}.l.{leaf}"][order].contiguous()
    save_file(tensors, folder / "mine.safetensors")
    return checkpoints.load(folder / "mine.safetensors")


def judged(checkpoint: Checkpoint) -> Reference:
    """What artifacts of the checkpoint are held against."""
    return reference.with_tolerances(reference.answered(checkpoint), ["fp32"])


def test_the_bundled_weights_bring_their_images(bundled_file: Path, tmp_path: Path) -> None:
    """Weights chosen without a name, or from a copy of their file, are known by their hash."""
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(bundled_file.read_bytes())
    for checkpoint in (checkpoints.bundled(), checkpoints.load(copy)):
        made = judged(checkpoint)
        assert made.dataset == reference.DIGITS
        assert made.images is not None
        assert made.predictions is not None
        assert np.mean(made.predictions == made.images.labels) > 0.98
        calibration = loading.calibration(checkpoint, None, count=7)
        assert calibration is not None
        assert "UCI digits" in calibration.source


def test_other_weights_of_that_shape_have_none(bundled_file: Path, tmp_path: Path) -> None:
    """A fine-tuned copy of the network and random weights are not judged on somebody's digits."""
    for checkpoint in (
        trained_otherwise(bundled_file, tmp_path),
        checkpoints.randomised(DIGITS, 0),
    ):
        assert checkpoint.config == DIGITS.config
        made = judged(checkpoint)
        assert (made.images, made.predictions, made.dataset) == (None, None, "")
        assert not any(name.startswith("real") for name in made.samples.names)
        assert loading.calibration(checkpoint, None, count=7) is None


@pytest.mark.parametrize("precision", ["int8", "auto"])
@pytest.mark.parametrize(
    "choice",
    [ModelChoice(random_seed=0), ModelChoice("levit_digits", random_seed=0)],
    ids=["bare", "named"],
)
def test_what_needs_images_asks_for_them(choice: ModelChoice, precision: str) -> None:
    """Random weights of the bundled network are refused with ``--data`` before any work."""
    request = ExportRequest(choice, ("onnx",), {"onnx": (precision,)})
    with pytest.raises(UsageError, match="--data"):
        plan(request)
    assert plan(ExportRequest(ModelChoice(), ("onnx",), {"onnx": (precision,)}))


def test_random_weights_never_print_an_accuracy(cli: Cli, tmp_path: Path) -> None:
    """There is nothing that a random network could be right about."""
    result = cli("export", "--random-weights", 0, "-f", "onnx", "--no-bench", "-o", tmp_path / "x")
    assert result.exit_code == 0, result.output
    assert "top-1" not in result.output


def test_at_another_size_they_are_still_digits() -> None:
    """With interpolated tables the bundled weights see their own images by their own recipe."""
    choices = ModelChoice(image_size=(112, 96), resize_bias=True)
    for checkpoint in (checkpoints.bundled(choices), checkpoints.randomised(DIGITS, 0, choices)):
        recipe = checkpoint.preprocessing
        assert (recipe.name, recipe.resize, recipe.crop) == ("digits", (112, 96), (112, 96))
    made = judged(checkpoints.bundled(choices))
    assert made.images is not None
    assert made.images.inputs.shape == (360, 3, 112, 96)
    assert np.mean(made.predictions == made.images.labels) > 0.5
