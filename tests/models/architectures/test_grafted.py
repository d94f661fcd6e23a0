"""ResNet-50 below DeiT-S: table 1's figures, and both halves against ``transformers``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    ResNetConfig,
    ResNetForImageClassification,
    ResNetModel,
    ViTConfig,
    ViTForImageClassification,
)

from levit_export.core.precisions import UNIT_ROUNDOFF
from levit_export.models.architectures.census import count_parameters
from levit_export.models.architectures.grafted import Grafted, SelfAttention, trunk_width
from levit_export.models.architectures.random_weights import randomize_
from levit_export.models.passes import fold_attention_scale, fuse_batchnorm
from levit_export.models.zoo import GraftedConfig

PAIRS = ((0, 12), (1, 9), (2, 6), (3, 3), (4, 0))
"""The stages and layers of table 1's rows."""

SMALL = {
    "deit": GraftedConfig(0, 2, dim=128, heads=2, image_size=(64, 64), classes=5),
    "one": GraftedConfig(1, 2, dim=128, heads=2, image_size=(64, 64), classes=5),
    "two": GraftedConfig(2, 1, dim=64, heads=4, mlp_ratio=2, image_size=(48, 48), classes=3),
    "three": GraftedConfig(3, 1, dim=64, heads=1, image_size=(80, 80), classes=3),
    "resnet": GraftedConfig(4, 0, image_size=(64, 64), classes=5),
}

LAYERS = 2**7
"""No network here has more layers in a row (DeiT-S: 12 layers of 8 steps, and 4 = 100)."""
TERMS = 2**13
"""No sum here has more terms (ResNet-50's last 3x3 convolution: 9 * 512 = 4608)."""
BOUND = UNIT_ROUNDOFF["fp64"] * LAYERS * TERMS
"""A sum of n terms errs by n unit roundoffs of its size at most, and layers add up: 1.2e-10."""


def _model(config: GraftedConfig, seed: int = 7) -> Grafted:
    return randomize_(Grafted(config), seed).double().eval().requires_grad_(requires_grad=False)


def _images(config: GraftedConfig, batch: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(11)
    side, _ = config.image_size
    return torch.randn(batch, 3, side, side, dtype=torch.float64, generator=generator)


def _agree(mine: torch.Tensor, reference: torch.Tensor) -> None:
    assert mine.shape == reference.shape
    assert reference.unique().numel() == reference.numel()  # nothing is constant
    assert (mine - reference).abs().max() <= BOUND * reference.abs().max()


# --- against transformers -------------------------------------------------------------------


def _resnet_name(name: str) -> str:
    """What ``transformers`` calls the tensor ``name`` of our trunk."""
    parts = name.split(".")
    kind = {"c": "convolution", "bn": "normalization"}[parts[-2]]
    if parts[0] == "conv1":
        return f"embedder.embedder.{kind}.{parts[-1]}"
    stage, block, layer = int(parts[0][-1]) - 1, parts[1], parts[2]
    place = "shortcut" if layer == "downsample" else f"layer.{int(layer[-1]) - 1}"
    return f"encoder.stages.{stage}.layers.{block}.{place}.{kind}.{parts[-1]}"


def _their_resnet(model: Grafted, kind: Any, extra: Mapping[str, torch.Tensor]) -> nn.Module:
    """The first stages of the ResNet of ``transformers``, its weights loaded strictly."""
    stages = model.config.stages
    theirs: Any = kind(
        ResNetConfig(
            embedding_size=64,
            hidden_sizes=[256, 512, 1024, 2048][:stages],
            depths=[3, 4, 6, 3][:stages],
            layer_type="bottleneck",
            downsample_in_bottleneck=False,
            num_labels=model.config.classes,
        )
    )
    prefix = "resnet." if extra else ""
    state = {f"{prefix}{_resnet_name(n)}": t for n, t in model.trunk.state_dict().items()}
    theirs.double().load_state_dict({**state, **extra}, strict=True)
    return theirs.eval()


VIT_LAYERS = {
    "vit.encoder.layer": {  # transformers 4
        "q": "attention.attention.query",
        "k": "attention.attention.key",
        "v": "attention.attention.value",
        "norm1": "layernorm_before",
        "attn.proj": "attention.output.dense",
        "norm2": "layernorm_after",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    },
    "vit.layers": {  # transformers 5
        "q": "attention.q_proj",
        "k": "attention.k_proj",
        "v": "attention.v_proj",
        "norm1": "layernorm_before",
        "attn.proj": "attention.o_proj",
        "norm2": "layernorm_after",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
    },
}
"""By the prefix of a layer, what ``transformers`` calls its parts."""


def _vit_tensors(name: str, tensor: torch.Tensor, prefix: str) -> dict[str, torch.Tensor]:
    """The tensor ``name`` of our transformer as ``transformers`` names and splits it."""
    top = {
        "cls_token": "vit.embeddings.cls_token",
        "pos_embed": "vit.embeddings.position_embeddings",
    }
    if name in top:
        return {top[name]: tensor}
    part, leaf = name.rsplit(".", 1)
    outer = {
        "patch_embed.proj": "vit.embeddings.patch_embeddings.projection",
        "norm": "vit.layernorm",
        "head": "classifier",
    }
    if part in outer:
        return {f"{outer[part]}.{leaf}": tensor}
    _, index, inner = part.split(".", 2)
    names = {own: f"{prefix}.{index}.{theirs}" for own, theirs in VIT_LAYERS[prefix].items()}
    if inner == "attn.qkv":
        thirds = zip("qkv", tensor.chunk(3), strict=True)
        return {f"{names[each]}.{leaf}": third for each, third in thirds}
    return {f"{names[inner]}.{leaf}": tensor}


def _their_vit(model: Grafted) -> nn.Module:
    """The ViT of ``transformers`` over images, or over the trunk's map as an image of 1x1 patches.

    Its weights are those of our transformer, loaded strictly.
    """
    config = model.config
    patch = 1 if config.stages else 16
    theirs: Any = ViTForImageClassification(
        ViTConfig(
            hidden_size=config.dim,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            intermediate_size=config.mlp_ratio * config.dim,
            hidden_act="gelu",
            layer_norm_eps=1e-6,
            image_size=config.image_size[0] // 16 * patch,
            patch_size=patch,
            num_channels=trunk_width(config.stages),
            qkv_bias=True,
            num_labels=config.classes,
            attn_implementation="sdpa",  # "eager" takes its softmax in float32
        )
    )
    prefix = "vit.layers" if hasattr(theirs.vit, "layers") else "vit.encoder.layer"
    state: dict[str, torch.Tensor] = {}
    for name, tensor in model.transformer.state_dict().items():
        state |= _vit_tensors(name, tensor, prefix)
    theirs.double().load_state_dict(state, strict=True)
    return theirs.eval()


@torch.no_grad()
def _their_logits(model: Grafted, images: torch.Tensor) -> torch.Tensor:
    config = model.config
    if not config.layers:
        head = {f"classifier.1.{leaf}": model.fc.state_dict()[leaf] for leaf in ("weight", "bias")}
        return _their_resnet(model, ResNetForImageClassification, head)(images).logits
    if config.stages:
        maps = _their_resnet(model, ResNetModel, {})(images).last_hidden_state
        images = functional.adaptive_avg_pool2d(maps, config.image_size[0] // 16)
    return _their_vit(model)(images).logits


@pytest.mark.parametrize("name", SMALL)
def test_the_same_weights_give_the_same_logits(name: str) -> None:
    """In float64 each combination computes what the ResNet and ViT of ``transformers`` do."""
    model, images = _model(SMALL[name]), _images(SMALL[name])
    _agree(model(images), _their_logits(model, images))


@pytest.mark.parametrize("stages", [0, 1, 4])
def test_published_sizes_give_the_same_logits(stages: int) -> None:
    """DeiT-S, ResNet-50 and their first grafting agree with ``transformers`` at 224 pixels."""
    config = GraftedConfig(*PAIRS[stages])
    model, images = _model(config), _images(config, batch=1)
    _agree(model(images), _their_logits(model, images))


# --- table 1 --------------------------------------------------------------------------------


def _counts(config: GraftedConfig) -> tuple[int, int, int]:
    """Multiply-accumulates of convolutions and of other products, and BatchNorm and ReLU work."""
    with torch.device("meta"):
        model = Grafted(config).eval()
    work = 0

    def seen(part: nn.Module, _: object, output: torch.Tensor) -> None:
        nonlocal work
        work += output.numel() * (2 if isinstance(part, nn.BatchNorm2d) else 1)

    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d | nn.ReLU):
            part.register_forward_hook(seen)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, 224, 224, device="meta"))
    products = {str(op): n // 2 for op, n in counter.get_flop_counts()["Global"].items()}
    convolutions = products.pop("aten.convolution", 0)
    return convolutions, sum(products.values()), work


@pytest.mark.parametrize(
    ("pair", "parameters", "published"),
    [
        ((0, 12), 22_050_664, 22.0),
        ((1, 9), 16_756_008, 17.1),
        ((2, 6), 12_750_504, 13.1),
        ((3, 3), 14_722_088, 15.1),
        ((4, 0), 25_557_032, 25.5),
    ],
    ids=str,
)
def test_parameters_of_table_1(pair: tuple[int, int], parameters: int, published: float) -> None:
    """Both ends of the table are met; each grafting lacks as much as a second classifier has."""
    with torch.device("meta"):
        assert count_parameters(Grafted(GraftedConfig(*pair))) == parameters
    grafting = pair[0] > 0 and pair[1] > 0
    second_classifier = 384 * 1000 + 1000 if grafting else 0
    # The table shows one decimal; at its ends it cuts off rather than rounds.
    assert 0 <= (parameters + second_classifier) / 1e6 - (published - 0.05) < 0.11


@pytest.mark.parametrize(
    ("pair", "exact", "published"),
    [
        ((0, 12), 57_802_752, 57),
        ((1, 9), 805_224_448, 820),
        ((2, 6), 1_852_096_512, 1876),
        ((3, 3), 3_354_968_064, 3385),
        ((4, 0), 4_087_136_256, 4119),
    ],
    ids=str,
)
def test_convolutions_of_table_1(pair: tuple[int, int], exact: int, published: int) -> None:
    """With BatchNorm counted twice and ReLU once an output, the table's figures come out."""
    convolutions, _, work = _counts(GraftedConfig(*pair))
    assert convolutions == exact
    millions = (convolutions + work) / 1e6
    assert published == (int(millions) if pair[0] == 0 else round(millions))


@pytest.mark.parametrize(
    ("pair", "published"), [((0, 12), 4519), ((1, 9), 3389), ((2, 6), 2260), ((3, 3), 1130)]
)
def test_transformer_of_table_1(pair: tuple[int, int], published: int) -> None:
    """Matrix products are half a percent above the table, which leaves out the class token."""
    dim, layers, classes = 384, pair[1], 1000

    def products(tokens: int) -> int:
        return layers * (12 * dim * dim * tokens + 2 * tokens * tokens * dim) + dim * classes

    _, others, _ = _counts(GraftedConfig(*pair))
    assert others == products(197)
    assert round(others / published / 1e6, 3) == 1.005
    assert round(products(196) / published / 1e6, 3) in (0.999, 1.0)


def test_resnet_50_has_no_other_product_than_its_classifier() -> None:
    """The last row's transformer is nothing; 2048 channels are classified."""
    assert _counts(GraftedConfig(4, 0))[1] == 2048 * 1000


# --- shapes and rewrites --------------------------------------------------------------------


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("side", [64, 96])
def test_other_image_sizes_work(name: str, side: int) -> None:
    """A multiple of the stride gives one finite row of logits for each image."""
    config = replace(SMALL[name], image_size=(side, side))
    logits = _model(config)(_images(config))
    assert logits.shape == (2, config.classes)
    assert torch.isfinite(logits).all()


def test_the_class_token_comes_first() -> None:
    """The class token takes the first position: changing both by opposite amounts is no change."""
    config = SMALL["one"]
    model, images = _model(config), _images(config)
    before = model(images)
    shift = torch.linspace(-1, 1, config.dim, dtype=torch.float64)
    model.transformer.cls_token += shift
    assert (model(images) - before).abs().max() > BOUND * before.abs().max()
    model.transformer.pos_embed[:, 0] -= shift
    _agree(model(images), before)


@pytest.mark.parametrize("name", SMALL)
def test_the_passes_keep_the_function(name: str) -> None:
    """Every BatchNorm is fused and every attention scale folded, and the logits stay."""
    config = SMALL[name]
    model, images = _model(config), _images(config)
    before = model(images)
    fuse_batchnorm.apply(model)
    fold_attention_scale.apply(model)
    assert not [part for part in model.modules() if isinstance(part, nn.BatchNorm2d)]
    scales = [part.scale for part in model.modules() if isinstance(part, SelfAttention)]
    assert scales == [1.0] * config.layers
    _agree(model(images), before)


def test_query_rows_are_the_first_third() -> None:
    """The rows of q come before those of k and v, for all heads at once."""
    block = SelfAttention(8, heads=2, tokens=5)
    layer, rows = block.query_rows()
    assert layer is block.qkv
    assert rows.tolist() == [True] * 8 + [False] * 16
