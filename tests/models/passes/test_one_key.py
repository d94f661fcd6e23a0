"""Attentions over a single key: what cannot change an answer is known, and in no file."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from support import Cli
from timm_levits import RECORDED, image, recorded, weights

from levit_export.core.errors import PassError
from levit_export.core.values import Size
from levit_export.models import checkpoints
from levit_export.models.architectures.vit_pytorch import VitPytorchLevit
from levit_export.models.checkpoints import Checkpoint
from levit_export.models.loading import ModelChoice
from levit_export.models.passes import bake_attention_bias
from levit_export.models.preparation import laid_out, prepare, rewrite, weights_of
from levit_export.models.zoo import LevitConfig, Variant, VitPytorchConfig, variant

LEVIT = LevitConfig((32, 48, 64), 16, (2, 3, 4), (1, 1, 2), classes=5)
VIT = VitPytorchConfig((32, 48, 64), (2, 3, 4), (1, 1, 2), 16, 16, classes=5, distill_classes=4)


def at(size: Size, config: LevitConfig | VitPytorchConfig = LEVIT) -> Checkpoint:
    """Random weights of a small network for images of ``size``."""
    known = variant("levit_128s" if isinstance(config, LevitConfig) else "vit_pytorch_levit")
    model = Variant(**{**vars(known), "config": config})
    return checkpoints.randomised(model, 3, ModelChoice(image_size=size))


@pytest.mark.parametrize(
    ("size", "said", "idle"),
    [
        ((16, 16), "16", ["stage1.block0", "shrink1", "stage2.block0", "shrink2"]),
        ((32, 32), "32", ["stage2.block0", "shrink2"]),
        ((48, 64), "48x64", []),
    ],
    ids=str,
)
def test_they_are_named(size: Size, said: str, idle: list[str]) -> None:
    """The report of a small image says whose biases, queries and keys cannot matter."""
    names = [f"{block}.attention" for block in (*idle, "stage3.block0", "stage3.block1")]
    assert at(size).describe().remarks[-1] == (
        f"at {said} px the last grid is one token: biases, queries and keys of "
        f"{', '.join(names)} cannot change an answer; bake_attention_bias leaves them out"
    )


@pytest.mark.parametrize("size", [(96, 96), (32, 256)], ids=str)
def test_more_than_one_key_leaves_none(size: Size) -> None:
    """A grid of 1x4 has four keys: nothing is left out, and nothing said."""
    assert not any("one token" in remark for remark in at(size).describe().remarks)
    assert not any(name.endswith(".m.v") for name, _ in rewrite(at(size)).module.named_modules())


@pytest.mark.parametrize("size", [(16, 16), (32, 32), (48, 64)], ids=str)
@pytest.mark.parametrize("config", [LEVIT, VIT], ids=["levit", "vit-pytorch"])
@pytest.mark.parametrize("skip", [(), ("fuse_batchnorm", "merge_heads")], ids=["fused", "norms"])
def test_the_function_is_kept_exactly(
    size: Size, config: LevitConfig | VitPytorchConfig, skip: tuple[str, ...]
) -> None:
    """The values alone are the attention, bit for bit, with BatchNorm inside or beside."""
    checkpoint = at(size, config)
    (record,) = [
        r for r in rewrite(checkpoint, skip=skip).passes if r.name == "bake_attention_bias"
    ]
    assert record.error <= 1e-15
    assert record.parameters[1] < record.parameters[0]


def test_no_answer_depends_on_what_is_left_out() -> None:
    """Other biases, queries and keys give the very same answers; other values do not."""
    module = at((48, 48)).build().double()
    other = copy.deepcopy(module)
    block = other.blocks[-2].m
    assert block.has_one_key
    layer, rows = block.value_rows()
    with torch.no_grad():
        block.attention_biases += 5
        layer.c.weight[~rows] *= -3
        pixels = image(3, 48, 48)
        assert torch.allclose(other(pixels), module(pixels), rtol=1e-14, atol=0)
        layer.c.weight[rows] *= 2
        assert not torch.allclose(other(pixels), module(pixels), rtol=1e-3, atol=0)


def test_what_a_file_must_hold() -> None:
    """The weights to look for are those that an answer depends on; with the pass left out they
    are those that the network reads, tables among them.
    """
    checkpoint = at((48, 64))
    tensors = weights_of(rewrite(checkpoint).module)
    names = {name for name in tensors if name.startswith("blocks.10.m.")}
    assert names == {
        f"blocks.10.m.{n}" for n in ("v.weight", "v.bias", "proj.1.weight", "proj.1.bias")
    }
    assert tensors["blocks.10.m.v.weight"].shape == (4 * 32, 64)
    skip = ["bake_attention_bias"]
    assert weights_of(rewrite(checkpoint, skip=skip).module) == {}
    plain = prepare(checkpoint, skip=skip).weights
    assert {f"blocks.10.m.{n}" for n in ("qkv.weight", "proj.1.weight")} <= set(plain)
    assert prepare(checkpoint, layout="maps").weights["blocks.10.m.v.weight"].shape[0] == 4 * 32


def test_timms_answers(tmp_path: Path) -> None:
    """At 48x64 px: timm's own answers, in every form."""
    kept, size = recorded()["one-token"], tuple(RECORDED["one-token"]["img_size"])
    shapes = {key: tuple(shape) for key, shape in kept["shapes"].items()}
    torch.save(weights(shapes), tmp_path / "w.pth")
    checkpoint = checkpoints.load(tmp_path / "w.pth", ModelChoice(image_size=size))
    expected = torch.tensor(kept["logits"], dtype=torch.float64)
    for layout in ("tokens", "maps"):
        module = laid_out(rewrite(checkpoint), layout).module.double()
        with torch.no_grad():
            answer = module(image(3, *size))
        assert torch.allclose(answer, expected, rtol=0, atol=1e-6 * float(expected.abs().max()))


@pytest.mark.parametrize("size", [32, 48, 64])
def test_a_correct_file_passes(cli: Cli, tmp_path: Path, size: int) -> None:
    """Small images export, with every weight found that is looked for, and no block is blamed for
    what it does not compute.
    """
    place = ("--model", "levit_digits", "--random-weights", 0, "--imgsz", size, "-f", "onnx")
    result = cli("export", *place, "--no-bench", "-o", tmp_path / "x")
    assert result.exit_code == 0, result.output
    assert "one token" in result.output
    assert cli("check", tmp_path / "x").exit_code == 0
    if size == 32:  # the most of such attentions
        drawn = cli("drift", tmp_path / "x", "--samples", 2)
        assert drawn.exit_code == 0, drawn.output
        assert "missing" not in drawn.output


def test_an_unknown_layer_behind_v_is_refused() -> None:
    """A value layer that is none of the known ones is an error, not a guess."""
    module = at((48, 48), VIT).build()
    assert isinstance(module, VitPytorchLevit)
    module.blocks[-2].m.v = torch.nn.Identity()
    with pytest.raises(PassError, match="v is made by a Identity"):
        bake_attention_bias.apply(module)
