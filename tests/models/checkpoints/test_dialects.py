"""Every form in which LeViT checkpoints are published: told, loaded strictly, spelled back."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from folders import TINY, in_timm, outline, tensors_of, written
from transformers import LevitConfig as TransformersConfig
from transformers.models.levit.modeling_levit import (
    LevitForImageClassification,
    LevitForImageClassificationWithTeacher,
)

try:  # transformers 5 has two, and the other one needs torchvision
    from transformers.models.levit.image_processing_pil_levit import (
        LevitImageProcessorPil as LevitImageProcessor,
    )
except ImportError:
    from transformers.models.levit.image_processing_levit import LevitImageProcessor

from folders import same

from levit_export.core.errors import CheckpointError, UsageError
from levit_export.core.precisions import UNIT_ROUNDOFF
from levit_export.models import checkpoints
from levit_export.models.architectures.levit import Levit
from levit_export.models.architectures.random_weights import randomize_
from levit_export.models.checkpoints import huggingface, timm
from levit_export.models.checkpoints.levit import Outline
from levit_export.models.loading import ModelChoice
from levit_export.models.passes import PASSES, apply_passes
from levit_export.models.zoo import VARIANTS, LevitConfig, variant

LEVITS = [known for known in VARIANTS if isinstance(known.config, LevitConfig)]
BOUND = UNIT_ROUNDOFF["fp64"] * 2**5 * 2**10
"""Twice the layers of the small model, more terms than any of its sums has."""


def logits(module: torch.nn.Module, side: int) -> torch.Tensor:
    """What a module says of a seeded batch in float64."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, 3, side, side, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        answer = module.double().eval()(images)
    return answer if isinstance(answer, torch.Tensor) else answer.logits


# --- names ----------------------------------------------------------------------------------


@pytest.mark.parametrize("known", LEVITS, ids=lambda known: known.name)
@pytest.mark.parametrize("names", [timm.names, huggingface.names], ids=["timm", "transformers"])
def test_names_are_a_bijection(known: Any, names: Callable[[Outline], dict[str, str]]) -> None:
    """Every tensor of every size has exactly one name in the other dialect."""
    with torch.device("meta"):
        ours = Levit(known.config).state_dict()
    theirs = names(outline(known.config))
    assert theirs.keys() == ours.keys()
    assert len(set(theirs.values())) == len(theirs)


@pytest.mark.parametrize("known", LEVITS, ids=lambda known: known.name)
@pytest.mark.parametrize("maps", [False, True], ids=["tokens", "maps"])
def test_timm_and_back(known: Any, maps: bool) -> None:  # noqa: FBT001
    """Tensors of every size go to timm's form, are recognised there, and come back bit by bit."""
    with torch.device("meta"):
        shapes = {name: t.shape for name, t in Levit(known.config).state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    ours = {
        name: torch.randn(shape, generator=generator).half()
        for name, shape in shapes.items()
        if not name.endswith("attention_bias_idxs")
    }
    theirs = timm.to_theirs(ours, outline(known.config), maps=maps)
    stored = checkpoints.Stored(theirs, None, None, Path("w"), (), ())
    assert timm.recognises(theirs)
    found = timm.understand(stored, "w", ModelChoice())
    assert same(found.tensors, ours)
    assert found.config == known.config
    assert same(timm.to_theirs(found.tensors, timm.outline(theirs), maps=maps), theirs)
    assert {t.dim() for n, t in theirs.items() if n.endswith("qkv.linear.weight")} == {
        2 + 2 * maps
    }


# --- transformers ---------------------------------------------------------------------------


def theirs(two_heads: bool) -> torch.nn.Module:  # noqa: FBT001
    """A small model of ``transformers`` with random weights and labels."""
    kind = LevitForImageClassificationWithTeacher if two_heads else LevitForImageClassification
    config = TransformersConfig(
        image_size=TINY.image_size[0],
        hidden_sizes=list(TINY.dims),
        num_attention_heads=list(TINY.heads),
        depths=list(TINY.depths),
        key_dim=[TINY.key_dim] * 3,
        attention_ratio=[2, 2, 2],
        mlp_ratio=[2, 2, 2],
        id2label={index: f"class {index}" for index in range(TINY.classes)},
        down_ops=[
            ["Subsample", TINY.key_dim, TINY.dims[0] // TINY.key_dim, 4, 2, 2],
            ["Subsample", TINY.key_dim, TINY.dims[1] // TINY.key_dim, 4, 2, 2],
            [""],
        ],
    )
    return randomize_(kind(config), 0).eval()


@pytest.mark.parametrize("two_heads", [False, True])
def test_transformers_folder(tmp_path: Path, two_heads: bool) -> None:  # noqa: FBT001
    """A folder of ``save_pretrained`` gives their logits, labels and preprocessing."""
    model = theirs(two_heads)
    model.save_pretrained(tmp_path / "m")
    LevitImageProcessor(image_mean=[0.5, 0.4, 0.3], size={"shortest_edge": 64}).save_pretrained(
        tmp_path / "m"
    )
    settings = json.loads((tmp_path / "m" / "preprocessor_config.json").read_text())
    settings["crop_size"] = {"height": 64, "width": 64}
    (tmp_path / "m" / "preprocessor_config.json").write_text(json.dumps(settings))
    found = checkpoints.load(tmp_path / "m")
    assert found.dialect == "transformers"
    assert found.config == replace(TINY, two_heads=two_heads)
    assert found.labels == tuple(f"class {index}" for index in range(5))
    assert found.preprocessing.mean == (0.5, 0.4, 0.3)
    assert (found.preprocessing.resize, found.preprocessing.crop) == ((73, 73), (64, 64))
    expected = logits(model, 64)
    error = (logits(found.build(), 64) - expected).abs().max() / expected.abs().max()
    assert error <= BOUND


# --- timm -----------------------------------------------------------------------------------


def test_timm_folder(tmp_path: Path) -> None:
    """A folder that timm pushed to the Hub gives activation, labels and preprocessing."""
    said = {
        "architecture": "levit_256",
        "model_args": {"act_layer": "silu"},
        "label_names": list("abcde"),
        "pretrained_cfg": {
            "input_size": [3, 64, 64],
            "crop_pct": 0.8,
            "interpolation": "bilinear",
            "mean": [0.5, 0.5, 0.5],
            "std": [0.25, 0.5, 0.5],
        },
    }
    found = checkpoints.load(written(tmp_path, in_timm(TINY), config=said))
    assert found.config == replace(TINY, activation="silu")
    assert found.labels == tuple("abcde")
    recipe = found.preprocessing
    assert (recipe.resize, recipe.crop, recipe.interpolation) == ((80, 80), (64, 64), "bilinear")
    assert (recipe.mean, recipe.std) == ((0.5, 0.5, 0.5), (0.25, 0.5, 0.5))
    assert not any("activation" in assumption for assumption in found.assumptions)


@pytest.mark.parametrize("maps", [False, True])
def test_timm_file_is_the_same_model(tmp_path: Path, maps: bool) -> None:  # noqa: FBT001
    """A bare file of tokens or maps gives the logits of the network it was made of."""
    found = checkpoints.load(written(tmp_path, in_timm(TINY, maps=maps)))
    assert found.dialect == f"timm ({'maps' if maps else 'tokens'})"
    expected = logits(randomize_(Levit(TINY), 0), 64)
    assert (logits(found.build(), 64) - expected).abs().max() <= BOUND * expected.abs().max()
    assert found.preprocessing.resize == (71, 71)  # 64 / 0.9, as timm cuts it off


def test_stem_of_stride_8(tmp_path: Path) -> None:
    """Three convolutions make a stem of stride 8, told by their number."""
    config = replace(TINY, stem_stride=8, image_size=(32, 32), two_heads=False)
    found = checkpoints.load(written(tmp_path, in_timm(config)))
    assert found.config == config
    assert logits(found.build(), 32).shape == (2, 5)


@pytest.mark.parametrize("name", ["levit_256d", "levit_512"])
def test_activation_of_a_known_size(name: str) -> None:
    """Sizes of timm's own have SiLU; the paper's have Hardswish. No tensor tells."""
    config = variant(name).config
    assert isinstance(config, LevitConfig)
    assert config.activation == "silu"
    assert timm._activation({}, replace(config, activation="hardswish")) == ("silu", False)
    assert timm._activation({}, TINY) == ("hardswish", False)
    said = {"architecture": name.replace("levit_", "levit_conv_")}
    assert timm._activation(said, TINY) == ("silu", True)
    assert timm._activation({"architecture": "levit_384"}, config) == ("hardswish", True)


def test_unknown_activation(tmp_path: Path) -> None:
    """An activation that this network is not built with is refused, with the known ones."""
    said = {"model_args": {"act_layer": "mish"}}
    with pytest.raises(UsageError, match="'mish'"):
        checkpoints.load(written(tmp_path, in_timm(TINY), config=said))
    said = {"model_args": {"act_layer": "silu", "attn_act_layer": "relu"}}
    with pytest.raises(UsageError, match="'relu' in attentions"):
        checkpoints.load(written(tmp_path / "other", in_timm(TINY), config=said))


# --- what no tensor tells -------------------------------------------------------------------


def test_activation_is_stated_and_can_be_overridden(tmp_path: Path) -> None:
    """An assumed activation is said; ``--activation`` takes its place and changes the answer."""
    place = written(tmp_path, in_timm(TINY))
    assumed = checkpoints.load(place)
    assert any("hardswish is assumed" in each for each in assumed.assumptions)
    given = checkpoints.load(place, ModelChoice(activation="relu"))
    assert isinstance(given.config, LevitConfig)
    assert given.config.activation == "relu"
    assert not any("activation" in each for each in given.assumptions)
    assert not torch.equal(logits(given.build(), 64), logits(assumed.build(), 64))


# --- fused checkpoints ----------------------------------------------------------------------


def test_fused_checkpoint(tmp_path: Path) -> None:
    """Weights saved without BatchNorm load, and the ledger says that they were found fused."""
    whole = randomize_(Levit(TINY), 0).eval()
    others = {each.name for each in PASSES} - {"fuse_batchnorm"}
    fused, _ = apply_passes(whole, PASSES, input_shape=(3, 64, 64), skip=others)
    found = checkpoints.load(written(tmp_path, fused.state_dict()))
    assert found.dialect == "fair (fused)"
    assert found.config == replace(TINY, fused=True)
    expected = logits(whole, 64)
    error = (logits(found.build(), 64) - expected).abs().max() / expected.abs().max()
    assert error <= 2**5 * 2**5 * UNIT_ROUNDOFF["fp32"]  # the weights were rounded once
    _, ledger = apply_passes(found.build(), PASSES, input_shape=(3, 64, 64))
    assert (ledger[0].status, ledger[0].reason) == (
        "not-applicable",
        "no BatchNorm in the model: found fused",
    )
    assert {record.status for record in ledger[1:]} == {"applied"}


def test_half_fused_checkpoint(tmp_path: Path) -> None:
    """A file with some BatchNorms fused and others not is refused with the names."""
    tensors = tensors_of(TINY)
    tensors["head.weight"], tensors["head.bias"] = (
        tensors.pop("head.l.weight"),
        tensors.pop("head.l.bias"),
    )
    with pytest.raises(CheckpointError, match=r"head\.bn\.weight: unexpected"):
        checkpoints.load(written(tmp_path, tensors))


# --- errors speak the file's language -------------------------------------------------------


def test_misfits_are_named_as_the_file_names_them(tmp_path: Path) -> None:
    """Missing, unexpected and mis-shaped tensors carry timm's names in a file of timm's."""
    tensors = in_timm(TINY)
    del tensors["stages.1.blocks.0.mlp.ln2.bn.bias"]
    tensors["head.linear.bias"] = torch.zeros(7)
    tensors["stages.9.gamma"] = torch.zeros(1)
    with pytest.raises(CheckpointError) as caught:
        checkpoints.load(written(tmp_path, tensors))
    said = str(caught.value)
    assert "head.linear.bias: expected [5], found [7]" in said
    assert "stages.9.gamma: unexpected" in said
    assert "stages.1.blocks.0.mlp.ln2.bn.bias: missing" in said


def test_more_than_ten_misfits_are_counted(tmp_path: Path) -> None:
    """The first ten differences are listed and the rest counted."""
    tensors = in_timm(TINY)
    for name in [name for name in tensors if name.endswith("running_var")][:14]:
        del tensors[name]
    with pytest.raises(CheckpointError, match="and 4 more"):
        checkpoints.load(written(tmp_path, tensors))


def test_two_models_in_one_file(tmp_path: Path) -> None:
    """A file that fits two dialects is refused with both."""
    both = in_timm(TINY) | tensors_of(TINY)
    with pytest.raises(CheckpointError, match="fair and timm"):
        checkpoints.load(written(tmp_path, both))


def test_a_model_of_another_kind(tmp_path: Path) -> None:
    """``--model`` of another family than the file is refused."""
    choices = ModelChoice(model="deit_s")
    with pytest.raises(CheckpointError, match="not deit_s"):
        checkpoints.load(written(tmp_path, in_timm(TINY)), choices)


# --- other image sizes ----------------------------------------------------------------------


def test_another_image_size_is_refused_with_the_way_out(tmp_path: Path) -> None:
    """The trained resolution is in the weights; changing it takes a flag that says so."""
    place = written(tmp_path, in_timm(TINY))
    with pytest.raises(UsageError, match="--resize-bias"):
        checkpoints.load(place, ModelChoice(image_size=(96, 96)))


def test_resized_tables(tmp_path: Path) -> None:
    """``--resize-bias`` interpolates every table, keeps offset 0, and says what it did."""
    place = written(tmp_path, in_timm(TINY))
    whole = checkpoints.load(place)
    resized = checkpoints.load(place, ModelChoice(image_size=(96, 96), resize_bias=True))
    assert resized.config == replace(TINY, image_size=(96, 96))
    assert resized.preprocessing.crop == (96, 96)
    assert any("an approximation: trained at 64 px, 6 tables" in r for r in resized.remarks)
    tables = [name for name in whole.tensors if name.endswith("attention_biases")]
    for name in tables:
        assert torch.allclose(resized.tensors[name][:, 0], whole.tensors[name][:, 0])
    assert logits(resized.build(), 96).shape == (2, 5)
    assert resized.describe().doubt == ""


def test_a_constant_table_stays_constant(tmp_path: Path) -> None:
    """Interpolation of equal biases gives these biases, at a larger and at a smaller size."""
    tensors = in_timm(replace(TINY, image_size=(112, 112)))
    for name in tensors:
        if name.endswith("attention_biases"):
            tensors[name] = torch.full_like(tensors[name], 0.75)
    place = written(tmp_path, tensors)
    for side in (64, 224):
        found = checkpoints.load(place, ModelChoice(image_size=(side, side), resize_bias=True))
        biases = [t for n, t in found.tensors.items() if n.endswith("attention_biases")]
        assert biases
        for table in biases:
            assert torch.allclose(table, torch.tensor(0.75), rtol=0, atol=2**-23)
