"""What a checkpoint's folder says of pictures: followed, refused, replaced by hand, or assumed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from folders import TINY, in_timm, outline, tensors_of, written

from levit_export.core.errors import CheckpointError, UsageError
from levit_export.core.values import Preprocessing
from levit_export.models import checkpoints
from levit_export.models.checkpoints import huggingface
from levit_export.models.loading import ModelChoice

LEVIT = {"image_processor_type": "LevitImageProcessor"}
SQUASHED = {
    "architecture": "levit_128s",
    "pretrained_cfg": {"input_size": [3, 64, 64], "crop_mode": "squash", "crop_pct": 0.9},
}
BY_HAND = Preprocessing("mine", (70, 80), (64, 64), "cover", "lanczos")


def in_transformers() -> dict[str, Any]:
    """The small model under transformers' names."""
    names = huggingface.names(outline(TINY))
    return {names[name]: tensor for name, tensor in tensors_of(TINY).items()}


def test_an_exact_resize_is_not_cropped(tmp_path: Path) -> None:
    """``size`` with height and width has no 256/224 step; ViT's processor crops nothing."""
    said = {**LEVIT, "size": {"height": 70, "width": 72}, "crop_size": 64}
    place = written(tmp_path, in_transformers(), preprocessor_config=said)
    recipe = checkpoints.load(place).preprocessing
    assert (recipe.resize, recipe.crop, recipe.resize_mode) == ((70, 72), (64, 64), "exact")
    said = {"image_processor_type": "ViTImageProcessor", "size": 64}
    place = written(tmp_path / "other", in_transformers(), preprocessor_config=said)
    found = checkpoints.load(place)
    assert found.preprocessing.in_words() == (
        "RGB; resize to 64x64 px (bilinear, antialiased); centre crop 64 px (offset floored); "
        "divide by 255; subtract [0.5, 0.5, 0.5]; divide by [0.5, 0.5, 0.5]; NCHW"
    )
    assert not any("picture" in each for each in found.assumptions)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({**LEVIT, "resample": 1}, "resample is 1 .lanczos."),
        ({**LEVIT, "do_normalize": "no"}, "do_normalize is 'no'"),
        ({**LEVIT, "image_std": [0.2, 0.0, 0.2]}, "positive"),
        ({**LEVIT, "image_mean": [0.2, float("nan"), 0.2]}, "finite"),
        ({**LEVIT, "image_mean": [0.2]}, "three"),
        ({**LEVIT, "crop_size": 62}, "it gives 62 x 62 pixels, the weights take 64 x 64"),
        ({**LEVIT, "size": {"shortest_edge": "many"}}, "size is {'shortest_edge': 'many'}"),
        ({**LEVIT, "do_sharpen": True}, "do_sharpen is not a setting"),
        ({"image_processor_type": "PerceiverImageProcessor"}, "'PerceiverImageProcessor'"),
        ({"auto_map": {"AutoImageProcessor": "mine.Own"}}, "auto_map names a processor"),
    ],
)
def test_processors_that_cannot_be_followed(
    tmp_path: Path, said: dict[str, Any], message: str
) -> None:
    """A processor whose work cannot be repeated is refused by its setting, with the way out."""
    usual = {"size": {"shortest_edge": 64}, "crop_size": {"height": 64, "width": 64}}
    place = written(tmp_path, in_transformers(), preprocessor_config={**usual, **said})
    with pytest.raises(CheckpointError, match=message) as refused:
        checkpoints.load(place)
    assert "--preprocessing FILE" in refused.value.remedy
    found = checkpoints.load(place, ModelChoice(preprocessing=BY_HAND))
    assert found.preprocessing == BY_HAND


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"crop_pct": 0}, "crop_pct is 0"),
        ({"crop_pct": "0.9"}, "crop_pct is '0.9'"),
        ({"std": [0, 1, 1]}, "positive"),
        ({"interpolation": "random"}, "interpolation is 'random'"),
        ({"crop_mode": "middle"}, "crop_mode is 'middle'"),
        ({"mean": 3}, "mean is 3"),
        ({"test_crop_pct": 1.0}, "test_crop_pct is 1.0"),
        ({"input_size": [3, 128, 128]}, "input_size asks for 128 x 128 pixels"),
        ({"input_size": [1, 64, 64]}, r"input_size is \[1, 64, 64\]"),
    ],
)
def test_timms_settings_that_cannot_be_followed(
    tmp_path: Path, said: dict[str, Any], message: str
) -> None:
    """Timm's settings are refused by name, whether they are nested or flat."""
    forms = (
        {"architecture": "levit_128s", "pretrained_cfg": said},
        {"architecture": "levit_128s", **said},
    )
    for number, config in enumerate(forms):
        place = written(tmp_path / str(number), in_timm(TINY), config=config)
        with pytest.raises(CheckpointError, match=message):
            checkpoints.load(place)
        checkpoints.load(place, ModelChoice(preprocessing=BY_HAND))


def test_timms_crop_mode_and_older_form(tmp_path: Path) -> None:
    """Squash resizes both sides, and a flat file without ``pretrained_cfg`` says the same."""
    flat = {"architecture": "levit_128s", **SQUASHED["pretrained_cfg"]}  # type: ignore[dict-item]
    for number, config in enumerate((SQUASHED, flat)):
        place = written(tmp_path / str(number), in_timm(TINY), config=config)
        recipe = checkpoints.load(place).preprocessing
        assert (recipe.resize_mode, recipe.resize, recipe.crop) == ("exact", (71, 71), (64, 64))


def test_a_size_that_timm_does_not_say_is_assumed(tmp_path: Path) -> None:
    """Without ``input_size`` the settings are followed at the size that the weights have."""
    config = {"architecture": "levit_128s", "pretrained_cfg": {"crop_pct": 0.8}}
    found = checkpoints.load(written(tmp_path, in_timm(TINY), config=config))
    assert found.preprocessing.resize == (80, 80)
    assert any("does not say the input size: 64x64" in each for each in found.assumptions)


def test_files_beside_the_authors_weights_count(tmp_path: Path) -> None:
    """Whatever form the weights have, the files beside them are followed."""
    tensors = tensors_of(TINY)
    found = checkpoints.load(written(tmp_path, tensors, config=SQUASHED))
    assert (found.dialect, found.preprocessing.resize_mode) == ("fair", "exact")
    said = {**LEVIT, "size": 64, "crop_size": 64}
    found = checkpoints.load(written(tmp_path / "other", tensors, preprocessor_config=said))
    assert (found.dialect, found.preprocessing.resize) == ("fair", (73, 73))


def test_two_files_that_disagree(tmp_path: Path) -> None:
    """A folder with two different recipes is refused; two that say the same are one."""
    said = {**LEVIT, "size": {"height": 71, "width": 71}, "crop_size": 64}
    place = written(tmp_path, in_timm(TINY), config=SQUASHED, preprocessor_config=said)
    with pytest.raises(CheckpointError, match="describe different preprocessings"):
        checkpoints.load(place)  # half a pixel of the crop's offset is settled differently
    place = written(
        tmp_path / "other", in_timm(TINY), preprocessor_config=said, processor_config={}
    )
    assert checkpoints.load(place).preprocessing.resize == (71, 71)
    other = {"image_processor": {**said, "crop_size": 62}}
    place = written(
        tmp_path / "third", in_timm(TINY), preprocessor_config=said, processor_config=other
    )
    with pytest.raises(CheckpointError, match=r"processor_config\.json of .* differ"):
        checkpoints.load(place)


def test_version_fives_processor_file(tmp_path: Path) -> None:
    """``image_processor`` of ``processor_config.json`` is followed as the file of its own."""
    said = {**LEVIT, "size": 64, "crop_size": 64, "resample": 2}
    place = written(tmp_path, in_transformers(), processor_config={"image_processor": said})
    assert checkpoints.load(place).preprocessing.interpolation == "bilinear"


def test_what_nobody_said_is_an_assumption(tmp_path: Path) -> None:
    """Bare weights get the recipe of their form, and the report calls that an assumption."""
    forms = {"fair": tensors_of(TINY), "timm": in_timm(TINY), "hf": in_transformers()}
    resized = {}
    for name, tensors in forms.items():
        found = checkpoints.load(written(tmp_path / name, tensors))
        resized[name] = found.preprocessing.resize
        (said,) = [each for each in found.assumptions if "pictures" in each]
        assert "--preprocessing FILE says another" in said
        assert said in found.describe().assumptions
        assert said not in found.remarks
    assert resized == {"fair": (73, 73), "timm": (71, 71), "hf": (73, 73)}


def test_the_bundled_model_assumes_nothing() -> None:
    """Everything of the model that travels with the package is known."""
    assert checkpoints.bundled().assumptions == ()


def test_a_recipe_by_hand_has_to_fit(tmp_path: Path) -> None:
    """Its crop is what the network takes, at the size that was asked for."""
    place = written(tmp_path, in_timm(TINY))
    other = replace(BY_HAND, crop=(96, 96))
    with pytest.raises(UsageError, match="crops to 96 px, the model takes 64") as refused:
        checkpoints.load(place, ModelChoice(preprocessing=other))
    assert '"crop": [64, 64]' in refused.value.remedy
    choices = ModelChoice(preprocessing=other, image_size=(96, 96), resize_bias=True)
    found = checkpoints.load(place, choices)
    assert found.preprocessing == other
    assert not any("pictures" in each for each in found.assumptions)


def test_another_size_keeps_the_ratio_of_a_stated_recipe(tmp_path: Path) -> None:
    """With ``--resize-bias`` a folder's recipe is scaled with the network, its mode kept."""
    place = written(tmp_path, in_timm(TINY), config=SQUASHED)
    found = checkpoints.load(place, ModelChoice(image_size=(96, 64), resize_bias=True))
    recipe = found.preprocessing
    assert (recipe.resize, recipe.crop, recipe.resize_mode) == ((106, 71), (96, 64), "exact")
