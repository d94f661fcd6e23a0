"""ResNet-50, DeiT and their graftings: recognised, told by shapes, translated, others refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from folders import in_a_file

from levit_export.core.errors import CheckpointError
from levit_export.models import checkpoints
from levit_export.models.architectures.grafted import Grafted
from levit_export.models.architectures.random_weights import randomize_
from levit_export.models.checkpoints import grafted, huggingface, levit, timm, vit_pytorch
from levit_export.models.loading import ModelChoice
from levit_export.models.zoo import GraftedConfig

Tensors = dict[str, torch.Tensor]

DEIT = GraftedConfig(0, 2, dim=128, heads=2, image_size=(64, 64), classes=5)
ONE = GraftedConfig(1, 1, dim=64, heads=1, mlp_ratio=2, image_size=(48, 48), classes=3)
CONFIGS = {
    "deit": DEIT,
    "one": ONE,
    "two": replace(ONE, stages=2, layers=3),
    "three": replace(ONE, stages=3, image_size=(80, 80)),
    "resnet": GraftedConfig(4, 0, classes=7),
}
PAIRS = ((0, 12), (1, 9), (2, 6), (3, 3), (4, 0))
"""The stages and layers of table 1's rows."""


def stored(config: GraftedConfig, seed: int = 0) -> Tensors:
    """A seeded state dict under the names of torchvision and timm."""
    return grafted.to_theirs(randomize_(Grafted(config), seed).state_dict(), config)


def hollow(config: GraftedConfig) -> Tensors:
    """The same without any values, for the sizes that would take long to fill."""
    with torch.device("meta"):
        return grafted.to_theirs(Grafted(config).state_dict(), config)


# --- names, written down from torchvision's and timm's layouts --------------------------------

NORM = ("weight", "bias", "running_mean", "running_var")


def _conv(conv: str, norm: str, *shape: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{conv}.weight": shape,
        f"{norm}.num_batches_tracked": (),
        **{f"{norm}.{leaf}": shape[:1] for leaf in NORM},
    }


def _names_of_resnet(stages: int) -> dict[str, tuple[int, ...]]:
    names = _conv("conv1", "bn1", 64, 3, 7, 7)
    below = 64
    for stage, (depth, width) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512)), start=1):
        if stage > stages:
            break
        for index in range(depth):
            block = f"layer{stage}.{index}"
            names |= _conv(f"{block}.conv1", f"{block}.bn1", width, below, 1, 1)
            names |= _conv(f"{block}.conv2", f"{block}.bn2", width, width, 3, 3)
            names |= _conv(f"{block}.conv3", f"{block}.bn3", 4 * width, width, 1, 1)
            if index == 0:
                down = f"{block}.downsample"
                names |= _conv(f"{down}.0", f"{down}.1", 4 * width, below, 1, 1)
            below = 4 * width
    return names


def _names_of_deit(layers: int, projection: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    names: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, 384),
        "pos_embed": (1, 197, 384),
        "patch_embed.proj.weight": projection,
        "patch_embed.proj.bias": (384,),
        "norm.weight": (384,),
        "norm.bias": (384,),
        "head.weight": (1000, 384),
        "head.bias": (1000,),
    }
    linear = {
        "attn.qkv": (1152, 384),
        "attn.proj": (384, 384),
        "mlp.fc1": (1536, 384),
        "mlp.fc2": (384, 1536),
    }
    for index in range(layers):
        for norm in ("norm1", "norm2"):
            names |= {f"blocks.{index}.{norm}.{leaf}": (384,) for leaf in ("weight", "bias")}
        for part, shape in linear.items():
            names |= {f"blocks.{index}.{part}.weight": shape}
            names |= {f"blocks.{index}.{part}.bias": shape[:1]}
    return names


@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_the_names_are_those_of_torchvision_and_timm(pair: tuple[int, int]) -> None:
    """Each row of table 1 has exactly the names and shapes of the two, no more and no fewer."""
    stages, layers = pair
    expected = _names_of_resnet(stages) if stages else {}
    if stages == 4:
        expected |= {"fc.weight": (1000, 2048), "fc.bias": (1000,)}
    else:
        below = (3, 256, 512, 1024)[stages]
        patch = (1, 1) if stages else (16, 16)
        expected |= _names_of_deit(layers, (384, below, *patch))
    tensors = hollow(GraftedConfig(*pair))
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == expected


# --- recognised and translated --------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_shapes_tell_the_configuration(name: str) -> None:
    """Stages, layers, width, image size and classes follow from the names and shapes."""
    tensors = hollow(CONFIGS[name])
    assert grafted.recognises(tensors)
    assert grafted.infer_config(tensors, "w.pth") == CONFIGS[name]


@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_the_published_sizes_are_told(pair: tuple[int, int]) -> None:
    """DeiT-S, ResNet-50 and the three graftings are told with their heads and image size."""
    config = grafted.infer_config(hollow(GraftedConfig(*pair)), "w.pth")
    assert config == GraftedConfig(*pair)
    assert (config.heads, config.image_size) == (6, (224, 224))


@pytest.mark.parametrize(
    "config",
    [
        GraftedConfig(0, 12, image_size=(384, 384)),
        GraftedConfig(0, 12, classes=10),
        GraftedConfig(0, 12, dim=192, heads=3),
        GraftedConfig(0, 12, dim=768, heads=12),
        GraftedConfig(4, 0, classes=10),
    ],
    ids=["deit-s-384", "deit-s-10-classes", "deit-ti", "deit-b", "resnet50-10-classes"],
)
def test_relatives_are_told(config: GraftedConfig) -> None:
    """Other sizes of DeiT, other image sizes and class counts are no other kind."""
    assert grafted.infer_config(hollow(config), "w.pth") == config


@pytest.mark.parametrize("name", CONFIGS)
def test_there_and_back_is_the_same_bit_for_bit(name: str) -> None:
    """Translating to ours and back loses no tensor and changes none."""
    config, tensors = CONFIGS[name], stored(CONFIGS[name])
    ours = grafted.to_ours(tensors, config)
    assert ours.keys() == Grafted(config).state_dict().keys()
    assert ours.keys() == (names := grafted.renaming(config)).keys()
    assert len(set(names.values())) == len(names)
    back = grafted.to_theirs(ours, config)
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[key], tensors[key]) for key in tensors)


@pytest.mark.parametrize("name", ["deit", "one", "resnet"])
def test_a_file_is_loaded_whole(tmp_path: Path, name: str) -> None:
    """A saved state dict becomes a module that holds its tensors under our names."""
    config, tensors = CONFIGS[name], stored(CONFIGS[name])
    loaded = checkpoints.load(
        in_a_file(tmp_path, tensors, "w.safetensors"), ModelChoice(image_size=config.image_size)
    )
    assert (loaded.dialect, loaded.config) == ("grafted", config)
    built = loaded.build().state_dict()
    assert built.keys() == (expected := grafted.to_ours(tensors, config)).keys()
    assert all(torch.equal(built[key], expected[key]) for key in built)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("deit", "2 heads, at 64 channels each: the shapes do not tell"),
        ("resnet", "image size 224: ResNet-50's weights fit every size"),
    ],
)
def test_what_no_shape_tells_is_said(tmp_path: Path, name: str, said: str) -> None:
    """The number of heads and a ResNet's image size are choices, and said to be."""
    choices = ModelChoice(image_size=CONFIGS[name].image_size)
    loaded = checkpoints.load(in_a_file(tmp_path, stored(CONFIGS[name]), "w.safetensors"), choices)
    assert said in loaded.assumptions


def test_no_other_dialect_takes_it() -> None:
    """Its names are its own: neither does another dialect recognise it, nor it the authors'."""
    for config in (DEIT, ONE, CONFIGS["resnet"]):
        tensors = hollow(config)
        assert not any(d.recognises(tensors) for d in (levit, timm, huggingface, vit_pytorch))
    assert not grafted.recognises({"patch_embed.0.c.weight": torch.ones(1)})


# --- refused --------------------------------------------------------------------------------

RESNET = CONFIGS["resnet"]


def _without(*parts: str) -> Callable[[Tensors], Tensors]:
    return lambda t: {k: v for k, v in t.items() if not any(part in k for part in parts)}


def _with(name: str, *shape: int) -> Callable[[Tensors], Tensors]:
    return lambda t: {**t, name: torch.empty(shape, device="meta")}


REFUSED: dict[str, tuple[GraftedConfig, Callable[[Tensors], Tensors], str]] = {
    "resnet34": (RESNET, _without("conv3", "bn3"), "layer1 is of basic blocks"),
    "resnet101": (
        RESNET,
        _with("layer3.6.conv1.weight", 256, 1024, 1, 1),
        "layer3 has 7 blocks, ResNet-50 6",
    ),
    "wide": (
        RESNET,
        _with("layer1.0.conv3.weight", 256, 128, 1, 1),
        "layer1.0.conv3.weight is [256, 128, 1, 1], ResNet-50's [256, 64, 1, 1]",
    ),
    "headless-resnet": (RESNET, _without("fc."), "'fc.weight' is missing"),
    "stage-missing": (RESNET, _without("layer4."), "'pos_embed' is missing"),
    "squeeze": (RESNET, _with("layer1.0.se.fc1.weight", 8, 256), "layer1.0.se.fc1.weight"),
    "distilled": (DEIT, _with("dist_token", 1, 1, 128), "it also holds dist_token (1 such"),
    "layer-scale": (DEIT, _with("blocks.0.ls1.gamma", 128), "blocks.0.ls1.gamma"),
    "patch-8": (
        DEIT,
        _with("patch_embed.proj.weight", 128, 3, 8, 8),
        "patch_embed.proj.weight is [128, 3, 8, 8], expected [128, 3, 16, 16]",
    ),
    "other-graft": (
        ONE,
        _with("patch_embed.proj.weight", 64, 256, 2, 2),
        "patch_embed.proj.weight is [64, 256, 2, 2], expected [64, 256, 1, 1]",
    ),
    "no-class-token": (DEIT, _without("cls_token"), "'cls_token' is missing"),
    "lone-position": (DEIT, _with("pos_embed", 1, 1, 128), "a table for 0 tokens"),
    "positions": (DEIT, _with("pos_embed", 1, 4098, 128), "4097 tokens, expected 1 to 4096"),
    "flat-positions": (DEIT, _with("pos_embed", 17, 128), "pos_embed is [17, 128]"),
    "empty": (DEIT, _with("pos_embed", 1, 0, 128), "none of them 0"),
    "width": (DEIT, _with("pos_embed", 1, 17, 100), "its 100 channels are not a multiple of 64"),
    "mlp": (DEIT, _with("blocks.0.mlp.fc1.weight", 500, 128), "its MLP of 500 rows"),
    "headless-deit": (DEIT, _without("head."), "'head.weight' is missing"),
    "all-of-both": (
        ONE,
        lambda t: {**hollow(RESNET), **t, **_with("patch_embed.proj.weight", 64, 2048, 1, 1)(t)},
        "4 ResNet-50 stages with 1 DeiT-S layers are not a grafted network",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_other_networks_are_refused(kind: str) -> None:
    """Other ResNets, other ViTs and broken files are named for what does not fit."""
    config, change, said = REFUSED[kind]
    tensors = change(hollow(config))
    assert grafted.recognises(tensors)
    with pytest.raises(CheckpointError) as refused:
        grafted.infer_config(tensors, "w.pth")
    assert refused.value.what.startswith("w.pth looks like a ResNet-50, a DeiT or both, but ")
    assert said in refused.value.what
    assert "64 channels a head" in refused.value.remedy


@pytest.mark.parametrize(
    ("config", "name"),
    [(DEIT, "blocks.1.mlp.fc2.weight"), (ONE, "layer1.2.bn2.running_mean")],
    ids=["deit", "one"],
)
def test_a_layer_unlike_its_siblings_is_refused_by_the_files_name(
    tmp_path: Path, config: GraftedConfig, name: str
) -> None:
    """What the first layer does not tell is held against the network, tensor by tensor."""
    tensors = stored(config)
    tensors[name] = tensors[name][:-1].contiguous()
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        checkpoints.load(
            in_a_file(tmp_path, tensors, "w.safetensors"),
            ModelChoice(image_size=config.image_size),
        )
