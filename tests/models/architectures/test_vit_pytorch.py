"""The LeViT of vit-pytorch, held against that package's own file."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from functools import cache
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from levit_export.core.precisions import UNIT_ROUNDOFF
from levit_export.models.architectures.census import count_parameters
from levit_export.models.architectures.levit import AttentionBias
from levit_export.models.architectures.random_weights import randomize_
from levit_export.models.architectures.vit_pytorch import MapAttention, VitPytorchLevit
from levit_export.models.checkpoints import vit_pytorch
from levit_export.models.passes import bake_attention_bias, fold_attention_scale, fuse_batchnorm
from levit_export.models.zoo import VitPytorchConfig

TINY = VitPytorchConfig((32, 48, 64), (1, 2, 3), (1, 2, 1), 8, 12, image_size=(64, 64), classes=5)
"""Every kind of layer, for the tests that do not ask for a published size."""
PUBLISHED = VitPytorchConfig((256, 384, 512), (4, 6, 8), (4, 4, 4))

CONFIGS = {
    "tiny": TINY,
    "distill": VitPytorchConfig(**{**vars(TINY), "distill_classes": 7}),
    "distill-alike": VitPytorchConfig(**{**vars(TINY), "distill_classes": 5}),
    "odd-grid": VitPytorchConfig(**{**vars(TINY), "image_size": (112, 112)}),
    "wide-mlp": VitPytorchConfig(**{**vars(TINY), "mlp_ratio": 3}),
    "same-width": VitPytorchConfig(
        (32, 32), (2, 1), (1, 1), 16, 8, image_size=(48, 48), classes=3
    ),
    "one-stage": VitPytorchConfig((24,), (3,), (2,), 8, 8, image_size=(32, 32), classes=2),
    "four-stages": VitPytorchConfig(
        (16, 24, 32, 40), (1, 2, 1, 2), (1, 1, 1, 1), 8, 16, image_size=(144, 144), classes=3
    ),
    "published": VitPytorchConfig(**{**vars(PUBLISHED), "distill_classes": 1000}),
}

LAYERS = 2**6
"""No network here has more layers in a row (the published one: 4 + 14 pairs of 4, and 1 = 61)."""
TERMS = 2**11
"""No sum here has more terms (the published stem's last convolution: 9 * 128 = 1152)."""
BOUND = UNIT_ROUNDOFF["fp64"] * LAYERS * TERMS
"""A sum of n terms errs by n unit roundoffs of its size at most, and layers add up: 1.5e-11."""


@cache
def _package() -> ModuleType:
    """``vit_pytorch/levit.py`` alone: the package's ``__init__`` imports what is not needed."""
    file = importlib.metadata.distribution("vit-pytorch").locate_file("vit_pytorch/levit.py")
    spec = importlib.util.spec_from_file_location("vit_pytorch_levit", str(file))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def theirs(config: VitPytorchConfig, seed: int = 7) -> nn.Module:
    """The package's network with seeded weights, in eval mode."""
    model: nn.Module = _package().LeViT(
        image_size=config.image_size[0],
        num_classes=config.classes,
        dim=config.dims,
        depth=config.depths,
        heads=config.heads,
        mlp_mult=config.mlp_ratio,
        stages=len(config.dims),
        dim_key=config.key_dim,
        dim_value=config.value_dim,
        num_distill_classes=config.distill_classes,
    )
    return randomize_(model, seed).eval()


def ours(config: VitPytorchConfig, reference: nn.Module) -> VitPytorchLevit:
    """Our network with the same weights; loading is strict, so each tensor has its partner."""
    model = VitPytorchLevit(config).to(next(reference.parameters()).dtype)
    model.load_state_dict(vit_pytorch.to_ours(reference.state_dict(), config), strict=True)
    return model.eval()


def _images(config: VitPytorchConfig, batch: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(11)
    side, _ = config.image_size
    return torch.randn(batch, 3, side, side, dtype=torch.float64, generator=generator)


@torch.no_grad()
def _outputs(model: nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
    outputs: Any = model(images)
    return outputs if isinstance(outputs, tuple) else (outputs,)


def _agree(mine: tuple[torch.Tensor, ...], reference: tuple[torch.Tensor, ...]) -> None:
    assert len(mine) == len(reference)
    for one, other in zip(mine, reference, strict=True):
        assert one.shape == other.shape
        assert other.unique().numel() == other.numel()  # nothing is constant
        assert (one - other).abs().max() <= BOUND * other.abs().max()


@pytest.mark.parametrize("name", CONFIGS)
def test_the_same_weights_give_the_same_outputs(name: str) -> None:
    """Ours computes what the package's own network computes, in float64, output by output."""
    config = CONFIGS[name]
    reference = theirs(config).double()
    images = _images(config, batch=1 if name == "published" else 2)
    results = _outputs(ours(config, reference), images)
    _agree(results, _outputs(reference, images))
    assert [tensor.shape[1] for tensor in results] == [width for _, width in config.outputs]


def test_the_bias_is_divided_by_the_scale() -> None:
    """``bias()`` is the table over ``key_dim ** -0.5``, unlike in the paper's network."""
    block = randomize_(
        MapAttention(8, 8, key_dim=16, value_dim=8, heads=2, grid=(3, 3), stride=1), seed=1
    )
    table = block.attention_biases[:, block.attention_bias_idxs]
    assert torch.equal(block.bias(), table * 4)  # 16 ** 0.5, an exact power of two


def test_the_bias_tables_are_numbered_alike() -> None:
    """Which entry belongs to which pair of positions is the same in every attention."""
    config = CONFIGS["odd-grid"]
    model = VitPytorchLevit(config)
    indices = {n: b for n, b in model.named_buffers() if n.endswith("attention_bias_idxs")}
    reference = dict(theirs(config).named_buffers())
    names = vit_pytorch.renaming(config)
    assert len(indices) == sum(config.depths) + len(config.dims) - 1
    for name, index in indices.items():
        assert torch.equal(index, reference[names[name]]), name


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "norms"])
@pytest.mark.parametrize("baked_first", [True, False], ids=["bake-fold", "fold-bake"])
def test_the_passes_keep_the_function(*, fused: bool, baked_first: bool) -> None:
    """Fusing, folding the scale and baking the bias, in either order, change no output."""
    config = CONFIGS["distill"]
    model = ours(config, theirs(config).double()).requires_grad_(requires_grad=False)
    images = _images(config)
    before = _outputs(model, images)
    later = [fold_attention_scale, bake_attention_bias]
    for each in [fuse_batchnorm] * fused + later[:: -1 if baked_first else 1]:
        each.apply(model)
    blocks = [block for block in model.modules() if isinstance(block, MapAttention)]
    assert len(blocks) == 6 - 1  # of the last one, over one key, the values are left
    assert {block.scale for block in blocks} == {1.0}
    assert all(block.baked_bias is not None for block in blocks)
    assert any(isinstance(part, nn.BatchNorm2d) for part in model.modules()) is not fused
    _agree(_outputs(model, images), before)


def test_query_rows_name_all_rows_of_q() -> None:
    """Every output of the layer called q belongs to q; k and v have layers of their own."""
    block = MapAttention(8, 8, key_dim=16, value_dim=8, heads=2, grid=(4, 4), stride=2)
    layer, rows = block.query_rows()
    assert layer is block.q
    assert rows.tolist() == [True] * 32


def test_the_parameter_count_is_the_published_one() -> None:
    """The network of the package's README has 17,348,972 parameters."""
    with torch.device("meta"):
        assert count_parameters(VitPytorchLevit(PUBLISHED)) == 17_348_972


def test_one_output_is_a_tensor_and_two_are_a_pair() -> None:
    """Without a distillation head the logits come bare, with one as (logits, distill)."""
    images = torch.zeros(1, 3, 64, 64)
    assert isinstance(VitPytorchLevit(TINY).eval()(images), torch.Tensor)
    pair = VitPytorchLevit(CONFIGS["distill"]).eval()(images)
    assert [tuple(tensor.shape) for tensor in pair] == [(1, 5), (1, 7)]


def test_a_fresh_network_keeps_its_branches_silent() -> None:
    """As in the package, each output projection's BatchNorm starts from a scale of 0."""
    fresh = VitPytorchLevit(TINY)
    blocks = [block for block in fresh.modules() if isinstance(block, AttentionBias)]
    assert all(not block.proj[1].bn.weight.any() for block in blocks)
