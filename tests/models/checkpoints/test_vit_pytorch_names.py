"""State dicts of vit-pytorch's LeViT: recognised, told by shapes, translated, refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from folders import in_a_file

from levit_export.core.errors import CheckpointError
from levit_export.models import checkpoints
from levit_export.models.architectures.random_weights import randomize_
from levit_export.models.architectures.vit_pytorch import VitPytorchLevit
from levit_export.models.checkpoints import grafted, huggingface, levit, timm, vit_pytorch
from levit_export.models.zoo import VitPytorchConfig

Tensors = dict[str, torch.Tensor]

TINY = VitPytorchConfig((16, 24, 32), (1, 2, 3), (1, 2, 1), 8, 12, image_size=(64, 64), classes=5)
CONFIGS = {
    "tiny": TINY,
    "distill": replace(TINY, distill_classes=7),
    "odd-grid": replace(TINY, image_size=(112, 112)),
    "wide-mlp": replace(TINY, mlp_ratio=3),
    "one-stage": VitPytorchConfig((24,), (3,), (2,), 8, 8, image_size=(32, 32), classes=2),
    "two-stages": VitPytorchConfig(
        (16, 16), (2, 1), (1, 1), 16, 8, image_size=(48, 48), classes=3
    ),
    "four-stages": VitPytorchConfig(
        (16, 24, 32, 40), (1, 2, 1, 2), (1, 1, 1, 1), image_size=(144, 144)
    ),
    "published": VitPytorchConfig((256, 384, 512), (4, 6, 8), (4, 4, 4)),
}


def stored(config: VitPytorchConfig, seed: int = 0) -> Tensors:
    """A state dict as ``vit_pytorch`` saves it, seeded."""
    model = randomize_(VitPytorchLevit(config), seed)
    return vit_pytorch.to_theirs(model.state_dict(), config)


@pytest.mark.parametrize("name", CONFIGS)
def test_shapes_tell_the_configuration(name: str) -> None:
    """Dimensions, heads, depths, image size, classes and the second head follow from shapes."""
    tensors = stored(CONFIGS[name])
    assert vit_pytorch.recognises(tensors)
    assert vit_pytorch.infer_config(tensors, "w.pt") == CONFIGS[name]


@pytest.mark.parametrize("name", ["tiny", "distill", "two-stages"])
def test_there_and_back_is_the_same_bit_for_bit(name: str) -> None:
    """Translating to ours and back loses no tensor and changes none."""
    config, tensors = CONFIGS[name], stored(CONFIGS[name])
    ours = vit_pytorch.to_ours(tensors, config)
    assert ours.keys() == VitPytorchLevit(config).state_dict().keys()
    back = vit_pytorch.to_theirs(ours, config)
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)
    assert all(tensor.is_contiguous() for tensor in (*ours.values(), *back.values()))


def test_every_tensor_has_one_name_on_either_side() -> None:
    """The renaming covers the whole module and gives no name twice."""
    config = CONFIGS["distill"]
    names = vit_pytorch.renaming(config)
    assert names.keys() == VitPytorchLevit(config).state_dict().keys()
    assert len(set(names.values())) == len(names)


def test_landmarks_of_the_package_are_there() -> None:
    """Names that the package gives its tensors have the shapes that it gives them."""
    shapes = {name: tuple(tensor.shape) for name, tensor in stored(CONFIGS["distill"]).items()}
    landmarks = {
        "conv_embedding.3.weight": (16, 128, 3, 3),
        "backbone.0.layers.0.0.pos_bias.weight": (16, 1),
        "backbone.1.layers.0.0.pos_indices": (4, 16),
        "backbone.1.layers.0.0.to_q.0.weight": (16, 16, 1, 1),
        "backbone.1.layers.0.0.to_out.2.running_var": (24,),
        "backbone.2.layers.1.1.net.3.weight": (24, 48, 1, 1),
        "distill_head.bias": (7,),
        "mlp_head.weight": (5, 32),
    }
    assert landmarks.items() <= shapes.items()


@pytest.mark.parametrize("name", ["tiny", "distill", "two-stages"])
def test_a_file_is_loaded_whole(tmp_path: Path, name: str) -> None:
    """A saved state dict becomes a module that holds its tensors under our names."""
    config, tensors = CONFIGS[name], stored(CONFIGS[name])
    loaded = checkpoints.load(in_a_file(tmp_path, tensors, "w.safetensors"))
    assert (loaded.dialect, loaded.config) == ("vit-pytorch", config)
    built = loaded.build().state_dict()
    assert built.keys() == (expected := vit_pytorch.to_ours(tensors, config)).keys()
    assert all(torch.equal(built[key], expected[key]) for key in built)


def test_a_stranger_keeps_its_name() -> None:
    """A tensor that no such network has is neither dropped nor renamed."""
    extra = {"extra.weight": torch.ones(2), "extra.attention_biases": torch.ones(2, 3, 4)}
    ours = vit_pytorch.to_ours({**stored(TINY), **extra}, TINY)
    assert all(torch.equal(ours[name], extra[name]) for name in extra)


def test_no_other_dialect_takes_it() -> None:
    """Its names are its own: neither does another dialect recognise it, nor it the authors'."""
    tensors = stored(TINY)
    assert not any(d.recognises(tensors) for d in (levit, timm, huggingface, grafted))
    assert not vit_pytorch.recognises({"patch_embed.0.c.weight": torch.ones(1)})


FIRST = "backbone.0.layers.0.0"


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        (f"{FIRST}.pos_bias.weight", lambda t: t[:-1], "15 offsets is not that of a square grid"),
        (f"{FIRST}.pos_bias.weight", lambda t: t[:, 0], "expected 2 dimensions"),
        ("backbone.4.layers.0.0.pos_bias.weight", lambda t: t[..., None], "expected 2 dimensions"),
        (f"{FIRST}.pos_bias.weight", lambda t: t[:, :0], "none of them 0"),
        (f"{FIRST}.pos_bias.weight", lambda t: t.repeat(1, 3), "8 rows of to_q do not divide"),
        (f"{FIRST}.to_q.0.weight", lambda t: t[:, :, 0, 0], "expected 4 dimensions"),
        (
            "backbone.0.layers.0.1.net.0.weight",
            lambda t: t[:-1],
            "31 rows of the MLP do not divide among 16 channels",
        ),
        ("mlp_head.weight", lambda t: t[0], "expected 2 dimensions"),
        (f"{FIRST}.to_v.0.weight", None, f"'{FIRST}.to_v.0.weight' is missing"),
    ],
)
def test_shapes_that_fit_nothing_are_refused(
    name: str, change: Callable[[torch.Tensor], torch.Tensor] | None, said: str
) -> None:
    """A tensor that is missing or of an impossible shape is named, with the value seen."""
    tensors = stored(TINY)
    value = tensors.pop(name)
    if change is not None:
        tensors[name] = change(value)
    with pytest.raises(CheckpointError) as refused:
        vit_pytorch.infer_config(tensors, "w.pt")
    assert refused.value.what.startswith("w.pt looks like a LeViT of vit-pytorch, but ")
    assert said in refused.value.what
    assert refused.value.remedy == "Save the whole model.state_dict()."


def test_a_state_dict_without_blocks_is_refused() -> None:
    """Stem and head alone are no network."""
    tensors = {k: v for k, v in stored(TINY).items() if not k.startswith("backbone.")}
    with pytest.raises(CheckpointError) as refused:
        vit_pytorch.infer_config(tensors, "w.pt")
    assert f"'{FIRST}.pos_bias.weight' is missing" in refused.value.what


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("backbone.1.layers.0.0.pos_bias.weight", lambda t: t[:, :1]),
        ("backbone.2.layers.1.0.to_k.0.weight", lambda t: t[:-1]),
        ("backbone.2.layers.0.0.pos_indices", lambda t: t.flip(0)),
    ],
)
def test_a_layer_unlike_its_siblings_is_refused_by_the_files_name(
    tmp_path: Path, name: str, change: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    """What the first layer of a stage does not tell is held against the network, by name."""
    tensors = stored(TINY)
    tensors[name] = change(tensors[name]).contiguous()
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        checkpoints.load(in_a_file(tmp_path, tensors, "w.safetensors"))
