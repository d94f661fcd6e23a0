"""Image sizes: what tables tell of them, what else decides, and what is refused as open."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from folders import in_timm, written
from hypothesis import given
from hypothesis import strategies as st
from timm_levits import RECORDED, image, recorded, weights

from levit_export.core.errors import CheckpointError, UsageError
from levit_export.core.values import Size
from levit_export.models import checkpoints
from levit_export.models.architectures import build
from levit_export.models.architectures.random_weights import randomize_
from levit_export.models.checkpoints import grafted, huggingface, timm
from levit_export.models.checkpoints.levit import Outline
from levit_export.models.checkpoints.positions import fitting
from levit_export.models.loading import ModelChoice
from levit_export.models.preparation import laid_out, rewrite
from levit_export.models.zoo import GraftedConfig, LevitConfig, halving

BODY = ((32, 48, 64), 16, (2, 3, 4), (1, 1, 1))
WIDE = LevitConfig(*BODY, image_size=(128, 512), classes=5)
OUTLINE = Outline(4, (1, 1, 1), two_heads=True)


# --- what tables tell -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tables", "stride", "sizes"),
    [
        ((196, 49, 16), 16, [(224, 224)]),
        ((36, 9, 4), 16, [(96, 96)]),
        ((256, 64, 16), 16, [(256, 256), (512, 128), (128, 512), (1024, 64), (64, 1024)]),
        ((784, 196, 49), 8, [(224, 224), (1568, 32), (32, 1568)]),
        ((3,), 16, [(48, 16), (16, 48)]),
    ],
)
def test_sizes_that_fit(tables: tuple[int, ...], stride: int, sizes: list[Size]) -> None:
    """The grids of all stages decide together; the squarest comes first."""
    assert list(fitting(tables, stride)) == sizes


@given(st.integers(1, 64), st.integers(1, 64), st.integers(1, 4))
def test_the_trained_size_always_fits(rows: int, columns: int, stages: int) -> None:
    """Whatever a model was trained at is among the sizes that its own tables fit, and so is its
    transpose.
    """
    grids = halving((rows, columns), stages)
    found = fitting([height * width for height, width in grids], 16)
    assert {(16 * rows, 16 * columns), (16 * columns, 16 * rows)} <= set(found)
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("tables", [(196, 50, 16), (0, 0), (4097,)])
def test_tables_of_no_grid(tables: tuple[int, ...]) -> None:
    """Tables that no grid has are an error, and never a nearest size."""
    with pytest.raises(ValueError, match=r"entries|tokens"):
        fitting(tables, 16)


# --- what decides ---------------------------------------------------------------------------


def test_an_open_size_is_refused_with_its_choices(tmp_path: Path) -> None:
    """Tables of 16x16 tokens are as well those of 8x32: nothing is guessed, exit status 2."""
    with pytest.raises(UsageError) as refused:
        checkpoints.load(written(tmp_path, in_timm(WIDE)))
    assert refused.value.exit_status == 2
    assert "256, 512x128, 128x512, 1024x64 and 64x1024 (height x width)" in refused.value.what
    assert "--imgsz 256 or --imgsz 512x128 or --imgsz 128x512" in refused.value.remedy


@pytest.mark.parametrize("size", [(128, 512), (512, 128), (256, 256), (64, 1024)])
def test_the_user_says_which(tmp_path: Path, size: Size) -> None:
    """``--imgsz`` decides among the sizes that fit, and the remark says that it did."""
    found = checkpoints.load(written(tmp_path, in_timm(WIDE)), ModelChoice(image_size=size))
    assert found.config.image_size == found.preprocessing.crop == size
    assert any("is taken, as --imgsz says" in remark for remark in found.remarks)


def test_a_size_that_does_not_fit_decides_nothing(tmp_path: Path) -> None:
    """The choices are listed, and that the asked one is not among them."""
    place = written(tmp_path, in_timm(WIDE))
    with pytest.raises(UsageError, match="none of which is 224"):
        checkpoints.load(place, ModelChoice(image_size=(224, 224)))


def test_interpolation_has_to_know_where_it_starts(tmp_path: Path) -> None:
    """``--imgsz`` beside ``--resize-bias`` is where to, and another way to say where from is
    named; with that said, the tables are those of the trained shape.
    """
    place = written(tmp_path, in_timm(WIDE))
    choices = ModelChoice(image_size=(128, 512), resize_bias=True)
    with pytest.raises(UsageError) as refused:
        checkpoints.load(place, choices)
    assert '{"model_args": {"img_size": [256, 256]}}' in refused.value.remedy
    assert "--imgsz" not in refused.value.remedy
    (place / "config.json").write_text(json.dumps({"model_args": {"img_size": [64, 1024]}}))
    found = checkpoints.load(place, choices)
    assert found.config.image_size == (128, 512)
    assert any("trained at 64x1024 px, 5 tables" in remark for remark in found.remarks)


def test_interpolation_of_a_table_that_is_not_square(tmp_path: Path) -> None:
    """A bias that grows with the distance down stays one that does so at another shape."""
    tensors = in_timm(WIDE)
    name = "stages.0.blocks.0.attn.attention_biases"
    tensors[name] = torch.arange(8.0).repeat_interleave(32).repeat(2, 1)
    place = written(tmp_path, tensors, config={"model_args": {"img_size": [128, 512]}})
    found = checkpoints.load(place, ModelChoice(image_size=(240, 256), resize_bias=True))
    table = found.tensors["blocks.0.m.attention_biases"].reshape(2, 15, 16)
    assert torch.equal(table, table[:, :, :1].expand(2, 15, 16))
    assert torch.allclose(table[0, ::14, 0], torch.tensor([0.0, 7.0]))


@pytest.mark.parametrize(
    "config",
    [
        {
            "model_args": {"img_size": [128, 512]},
            "pretrained_cfg": {"input_size": [3, 224, 224], "fixed_input_size": True},
        },
        {
            "model_args": {"img_size": [128, 512]},
            "pretrained_cfg": {"input_size": [3, 256, 256], "fixed_input_size": True},
        },
        {"pretrained_cfg": {"input_size": [3, 128, 512]}},
        {"input_size": [3, 128, 512]},
    ],
)
def test_timms_description_decides(tmp_path: Path, config: dict[str, Any]) -> None:
    """``img_size`` is what the model was built with; ``input_size`` counts where it fits."""
    found = checkpoints.load(written(tmp_path, in_timm(WIDE), config=config))
    assert found.config == WIDE


def test_a_description_that_contradicts_the_tables(tmp_path: Path) -> None:
    """``img_size`` is refused where the tables are of no such grid; a default input_size is not
    about these weights and settles nothing.
    """
    place = written(tmp_path, in_timm(WIDE), config={"model_args": {"img_size": 224}})
    with pytest.raises(CheckpointError, match="says image size 224, its tables of positions fit"):
        checkpoints.load(place)
    (place / "config.json").write_text(json.dumps({"pretrained_cfg": {"input_size": [3, 9, 9]}}))
    with pytest.raises(UsageError, match="leaves its image size open"):
        checkpoints.load(place)
    (place / "config.json").write_text(json.dumps({"model_args": {"img_size": "128x512"}}))
    with pytest.raises(CheckpointError, match="img_size is '128x512'"):
        checkpoints.load(place)


def test_the_index_in_the_file_decides(tmp_path: Path) -> None:
    """The authors' files hold which offset each pair of positions has: that is of one grid."""
    tensors = randomize_(build(WIDE), 0).state_dict()
    found = checkpoints.load(written(tmp_path, dict(tensors)))
    assert found.config.image_size == (128, 512)
    assert not any("--imgsz" in remark for remark in found.remarks)


def test_a_known_model_has_its_published_size() -> None:
    """Tables of 28x28 tokens are also those of 4x196: timm's levit_384_s8 is one of 224 px, which
    is said to be an assumption. Where a user says otherwise, it is his word.
    """
    config = LevitConfig(
        (384, 512, 768), 32, (6, 9, 12), (4, 4, 4), activation="silu", stem_stride=8, classes=7
    )
    with torch.device("meta"):
        tensors = in_timm_hollow(config)
    stored = checkpoints.Stored(tensors, None, None, Path("w"), (), ())
    found = timm.understand(stored, "w", ModelChoice())
    assert found.config.image_size == (224, 224)
    assert "224 is assumed, the size of levit_384_s8" in found.assumptions[0]
    other = timm.understand(stored, "w", ModelChoice(image_size=(32, 1568)))
    assert other.config.image_size == (32, 1568)


def in_timm_hollow(config: LevitConfig) -> dict[str, torch.Tensor]:
    """Tensors without storage under timm's names."""
    outline = Outline(config.stem_stride.bit_length() - 1, config.depths, config.two_heads)
    own = build(config).state_dict().items()
    kept = {name: tensor for name, tensor in own if not name.endswith("attention_bias_idxs")}
    return timm.to_theirs(kept, outline, maps=False)


def test_transformers_builds_squares(tmp_path: Path) -> None:
    """Its LeViT has one side, so tables of 16x16 leave nothing open; those of 4x9 are refused."""
    for size, tokens in (((256, 256), None), ((64, 144), "48x192|64x144|144x64")):
        config = LevitConfig(*BODY, image_size=size, classes=5)
        own = randomize_(build(config), 0).state_dict()
        names = huggingface.names(OUTLINE)
        theirs = {names[n]: t for n, t in own.items() if n in names}
        place = written(tmp_path / str(size[0]), theirs)
        if tokens is None:
            assert checkpoints.load(place).config.image_size == (256, 256)
        else:
            with pytest.raises(CheckpointError, match="transformers builds LeViT for squares"):
                checkpoints.load(place)


def test_a_deit_that_is_not_square(tmp_path: Path) -> None:
    """196 embeddings are those of 14x14 patches and of 7x28: DeiT-S is known, others are not."""
    config = GraftedConfig(0, 1, dim=64, heads=1, image_size=(64, 96), classes=5)
    tensors = grafted.to_theirs(randomize_(build(config), 0).state_dict(), config)
    place = written(tmp_path, dict(tensors))
    with pytest.raises(UsageError, match="fit 96x64, 64x96, 128x48"):
        checkpoints.load(place)
    found = checkpoints.load(place, ModelChoice(image_size=(64, 96)))
    assert found.config == config
    pixels = image(3, 64, 96)
    with torch.no_grad():
        expected = found.build().double()(pixels)
        resized = checkpoints.load(
            written(tmp_path, dict(tensors), config={"model_args": {"img_size": [64, 96]}}),
            ModelChoice(image_size=(96, 64), resize_bias=True),
        )
        turned = resized.build().double()(pixels.transpose(2, 3))
    assert expected.shape == turned.shape == (2, 5)
    assert found.tensors["transformer.pos_embed"].shape == (1, 25, 64)
    assert not torch.allclose(expected, turned)


# --- as timm computes it --------------------------------------------------------------------


@pytest.mark.parametrize("name", ["wide", "tall-in-maps", "stride-8"])
def test_answers_are_timms(tmp_path: Path, name: str) -> None:
    """Height and width go the right way round through stem, tables and shrinking, rewritten and
    laid out as maps as well: timm's own answers, in float64.
    """
    kept, size = recorded()[name], tuple(RECORDED[name]["img_size"])
    shapes = {key: tuple(shape) for key, shape in kept["shapes"].items()}
    activation = RECORDED[name].get("act_layer", "hard_swish")
    config = {"model_args": {"img_size": list(size), "act_layer": activation}}
    checkpoint = checkpoints.load(written(tmp_path, weights(shapes), config=config))
    expected = torch.tensor(kept["logits"], dtype=torch.float64)
    scale = expected.abs().max()
    assert (expected[0] - expected[1]).abs().max() > scale / 200  # the images matter
    rewritten = rewrite(checkpoint)
    exact = {"built": 1e-12, "tokens": 1e-6, "maps": 1e-6}  # the rewritten are rounded to float32
    modules = (checkpoint.build(), rewritten.module, laid_out(rewritten, "maps").module)
    for module, bound in zip(modules, exact.values(), strict=True):
        with torch.no_grad():
            answer = module.double()(image(3, *size))
        assert float((answer - expected).abs().max() / scale) < bound
