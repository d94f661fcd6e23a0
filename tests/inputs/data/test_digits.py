"""The bundled model and the images that come with it."""

from __future__ import annotations

import json
import sys
from importlib import resources
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import load
from support import script_module
from torch import nn

from levit_export.inputs.preprocessing import RECIPES, apply
from levit_export.models.architectures.layers import Residual
from levit_export.models.architectures.levit import Levit
from levit_export.models.zoo import bundled_weights, variant

DATA = resources.files("levit_export.inputs.data")
SCRIPT = Path(__file__).resolve().parents[3] / "scripts" / "train-digits"
CLASSES = 10


@pytest.fixture(scope="module")
def weights() -> bytes:
    """The bundled checkpoint's bytes."""
    return bundled_weights().read_bytes()


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    """The bundled images and labels."""
    with resources.as_file(DATA / "digits.npz") as path, np.load(path) as archive:
        return dict(archive)


@pytest.fixture(scope="module")
def model(weights: bytes) -> Levit:
    """The bundled model in eval mode."""
    model = Levit(variant("levit_digits").config)
    model.load_state_dict(load(weights), strict=True)
    return model.eval()


@pytest.fixture(scope="module")
def images(arrays: dict[str, np.ndarray]) -> torch.Tensor:
    """The held-out images as the shipped preprocessing gives them to the model."""
    recipe = RECIPES["digits"]
    return torch.from_numpy(np.stack([apply(recipe, x) for x in arrays["heldout_images"]]))


@pytest.fixture(scope="module")
def heads(model: Levit, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What each head says of the held-out images."""
    with torch.no_grad():
        pooled = model.blocks(model.patch_embed(images).flatten(2).transpose(1, 2)).mean(1)
        return model.head(pooled), model.head_dist(pooled)


def percent_right(logits: torch.Tensor, labels: np.ndarray) -> float:
    """Percent of rows whose largest logit is the label's."""
    return 100 * float((logits.argmax(1).numpy() == labels).mean())


def residual_branches() -> list[str]:
    """The names of the residual branches, one test for each."""
    with torch.device("meta"):
        model = Levit(variant("levit_digits").config)
    return [name for name, part in model.named_modules() if isinstance(part, Residual)]


def test_classifies_held_out_images(
    model: Levit, images: torch.Tensor, arrays: dict[str, np.ndarray]
) -> None:
    """The bundled weights get 99 % of unseen digits right, as many as the zoo says they do."""
    with torch.no_grad():
        accuracy = percent_right(model(images), arrays["heldout_labels"])
    assert accuracy >= 99.0
    assert variant("levit_digits").top1 == round(accuracy, 1)


@pytest.mark.parametrize("head", [0, 1])
def test_each_head_classifies(
    heads: tuple[torch.Tensor, torch.Tensor], arrays: dict[str, np.ndarray], head: int
) -> None:
    """Each head has learned to classify by itself, which their mean would not prove."""
    assert percent_right(heads[head], arrays["heldout_labels"]) >= 98.5


def test_heads_differ(heads: tuple[torch.Tensor, torch.Tensor]) -> None:
    """The heads are different functions, so that a mistake in their mean shows in the logits."""
    first, second = heads
    assert (first - second).abs().amax(1).min() > 0.1
    assert (first - second).abs().max() > 1.0


def test_logits_are_the_mean_of_the_heads(
    model: Levit, images: torch.Tensor, heads: tuple[torch.Tensor, torch.Tensor]
) -> None:
    """The model's logits are the plain mean of both heads' logits."""
    with torch.no_grad():
        torch.testing.assert_close(model(images), (heads[0] + heads[1]) / 2)


@pytest.mark.parametrize("name", residual_branches())
def test_every_residual_branch_contributes(
    model: Levit, images: torch.Tensor, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No branch is still at the zero it started from: without it every image's logits change."""
    branch = model.get_submodule(name).get_submodule("m")
    norms = [part for part in branch.modules() if isinstance(part, nn.BatchNorm1d)]
    assert norms[-1].weight.abs().mean() > 0.01
    few = images[:16]
    with torch.no_grad():
        whole = model(few)
        monkeypatch.setattr(branch, "forward", torch.zeros_like)
        without = model(few)
    assert (whole - without).abs().amax(1).min() > 0.01


def test_batchnorm_statistics_are_learned(model: Levit) -> None:
    """No BatchNorm channel kept mean 0 and variance 1, which would hide mistakes in fusing it."""
    norms = [part for part in model.modules() if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d)]
    for norm in norms:
        mean, variance = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
        assert norm.get_buffer("num_batches_tracked") > 0
        assert mean.abs().max() > 0.01
        assert not torch.any((mean == 0) | (variance == 1))


def test_attention_biases_are_learned(model: Levit) -> None:
    """Every attention's bias table varies over positions; a wrong look-up would change logits."""
    tables = [x for name, x in model.named_parameters() if name.endswith("attention_biases")]
    assert tables
    assert all((table.amax(1) - table.amin(1)).min() > 0.1 for table in tables)


def test_checkpoint_is_small_and_says_what_it_is(weights: bytes) -> None:
    """At most 3 MB of float32 weights, with name and licence and the authors' buffers."""
    assert len(weights) <= 3_000_000
    header = json.loads(weights[8 : 8 + int.from_bytes(weights[:8], "little")])
    assert header.pop("__metadata__") == {"model": "levit_digits", "licence": "Apache-2.0"}
    assert {entry["dtype"] for entry in header.values()} == {"F32", "I64"}
    assert any(name.endswith("attention_bias_idxs") for name in header)


def test_images_have_the_documented_form(arrays: dict[str, np.ndarray]) -> None:
    """360 held-out and 200 calibration images of 8x8 grey levels that use the range of uint8."""
    for name, count in (("heldout", 360), ("calibration", 200)):
        images, labels = arrays[f"{name}_images"], arrays[f"{name}_labels"]
        assert (str(images.dtype), images.shape) == ("uint8", (count, 8, 8))
        assert (str(labels.dtype), labels.shape) == ("int64", (count,))
        assert (images.min(), images.max()) == (0, 255)


@pytest.mark.parametrize("name", ["heldout", "calibration"])
def test_images_are_stratified(arrays: dict[str, np.ndarray], name: str) -> None:
    """Each digit has its tenth of the images, give or take two."""
    counts = np.bincount(arrays[f"{name}_labels"], minlength=CLASSES)
    assert np.abs(counts - counts.sum() / CLASSES).max() <= 2


def test_no_held_out_image_calibrates(arrays: dict[str, np.ndarray]) -> None:
    """No held-out image is among the calibration images, and none occurs twice."""
    held_out = {image.tobytes() for image in arrays["heldout_images"]}
    calibration = {image.tobytes() for image in arrays["calibration_images"]}
    assert (len(held_out), len(calibration)) == (360, 200)
    assert not held_out & calibration


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """``scripts/train-digits`` as a module."""
    pytest.importorskip("sklearn", reason="scikit-learn carries the digits the script splits")
    if not SCRIPT.exists():
        pytest.skip("the training script is only in the source checkout")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return script_module("train-digits")


def test_split_comes_from_the_script(script: ModuleType, arrays: dict[str, np.ndarray]) -> None:
    """The shipped images are what the script's seed splits off; training saw none of them."""
    training, held_out = script.load().split(script.HELD_OUT)
    _, calibration = training.split(script.CALIBRATION)
    for name, part in (("heldout", held_out), ("calibration", calibration)):
        np.testing.assert_array_equal(part.images, arrays[f"{name}_images"])
        np.testing.assert_array_equal(part.labels, arrays[f"{name}_labels"])
    seen = {image.tobytes() for image in training.images}
    assert not any(image.tobytes() in seen for image in arrays["heldout_images"])
    assert all(image.tobytes() in seen for image in arrays["calibration_images"])


def test_checkpoint_bytes_do_not_depend_on_the_process(
    script: ModuleType, model: Levit, weights: bytes
) -> None:
    """The script writes the same model to the same bytes, the shipped file's."""
    assert script.checkpoint(model) == weights
