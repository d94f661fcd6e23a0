"""What training scripts and libraries put around a network: found, or refused for a reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from folders import in_a_file
from safetensors.torch import save_file
from timm_levits import RECORDED, image, recorded, weights
from torch import nn

from levit_export.core.errors import CheckpointError
from levit_export.models import checkpoints
from levit_export.models.architectures import build
from levit_export.models.architectures.random_weights import randomize_
from levit_export.models.checkpoints import huggingface, timm
from levit_export.models.checkpoints.levit import Outline
from levit_export.models.loading import ModelChoice
from levit_export.models.preparation import laid_out, rewrite
from levit_export.models.zoo import LevitConfig

Tensors = dict[str, torch.Tensor]

CONFIG = LevitConfig((32, 48, 64), 16, (2, 3, 4), (1, 1, 1), image_size=(96, 96), classes=5)
OUTLINE = Outline(4, (1, 1, 1), two_heads=True)


def network(seed: int = 0) -> nn.Module:
    """A small network with random weights, under the authors' names."""
    return randomize_(build(CONFIG), seed).eval()


def in_form(form: str, seed: int = 0) -> Tensors:
    """Its state dict as one of the libraries saves it."""
    own = dict(network(seed).state_dict())
    if form == "fair":
        return own
    names = {"timm": timm, "transformers": huggingface}[form].names(OUTLINE)
    return {n: own[o] for o, n in names.items() if not o.endswith("attention_bias_idxs")}


def led(prefix: str, tensors: Tensors) -> Tensors:
    """The tensors with a prefix."""
    return {prefix + name: tensor for name, tensor in tensors.items()}


def holds(checkpoint: checkpoints.Checkpoint, seed: int = 0) -> bool:
    """Whether it is the network of that seed, bit for bit."""
    expected = network(seed).state_dict()
    built = checkpoint.build().state_dict()
    return built.keys() == expected.keys() and all(
        torch.equal(built[n], expected[n]) for n in built
    )


def counted(tensors: Tensors) -> Tensors:
    """What thop's ``profile`` leaves in every module that it was given."""
    parts = {name.rpartition(".")[0] for name in tensors} | {""}
    counters = {
        f"{part}.{leaf}".lstrip(".") for part in parts for leaf in ("total_ops", "total_params")
    }
    return {**tensors, **{name: torch.zeros(1, dtype=torch.float64) for name in counters}}


def compiled_layers(tensors: Tensors) -> Tensors:
    """Each block compiled by itself."""
    return {n.replace("blocks.0.", "blocks.0._orig_mod."): t for n, t in tensors.items()}


def fsdp(tensors: Tensors) -> Tensors:
    """The names that FullyShardedDataParallel and activation checkpointing leave."""
    inner = {n.replace(".m.", ".m._checkpoint_wrapped_module."): t for n, t in tensors.items()}
    return led("_fsdp_wrapped_module.", inner)


SPELT: dict[str, Callable[[Tensors], object]] = {
    "the tutorials": lambda t: {"epoch": 3, "model_state_dict": t, "optimizer_state_dict": {}},
    "Lightning": lambda t: {
        "state_dict": led("model.", t),
        "pytorch-lightning_version": "2.5.0",
        "hyper_parameters": {"lr": 1e-3},
    },
    "Lightning with a weighted loss": lambda t: {
        "state_dict": {**led("model.", t), "criterion.weight": torch.ones(5)}
    },
    "Lightning, compiled, with metrics": lambda t: {
        "state_dict": {
            **led("net._orig_mod.", t),
            "loss_fn.pos_weight": torch.ones(5),
            "val_acc.tp": torch.zeros(5, dtype=torch.int64),
        }
    },
    "TimmWrapper": lambda t: led("timm_model.", t),
    "thop": counted,
    "thop in DistributedDataParallel": lambda t: {"model": led("module.", counted(t))},
    "torch.compile": lambda t: led("_orig_mod.", t),
    "compiled layers": compiled_layers,
    "compiled, distributed": lambda t: {"state_dict": led("module._orig_mod.", t)},
    "a module with a backbone": lambda t: led("backbone.", t),
    "a module with a student": lambda t: {"model": led("module.student.backbone.", t)},
    "BasicSR": lambda t: {"params_ema": t, "params": {n: x + 1 for n, x in t.items()}},
    "DeepSpeed": lambda t: {
        "module": t,
        "buffer_names": ["head.bn.running_mean"],
        "optimizer": None,
        "dp_world_size": 2,
    },
    "FSDP": fsdp,
    "SWA": lambda t: {**led("module.", t), "n_averaged": torch.tensor(7)},
    "ema-pytorch": lambda t: {
        "initted": torch.tensor(True),
        "step": torch.tensor(9),
        **led("ema_model.", t),
        **led("online_model.", {n: x + 1 for n, x in t.items()}),
    },
    "mmengine": lambda t: {
        "meta": {"epoch": 3},
        "state_dict": {n: x + 1 for n, x in t.items()},
        "ema_state_dict": led("module.", t) | {"steps": torch.tensor(1)},
    },
    "Composer": lambda t: {"state": {"model": led("module.", t), "optimizers": {"AdamW": {}}}},
    "a key of somebody's own": lambda t: {
        "best_weights": t,
        "score": 0.9,
    },
    "numbers beside the weights": lambda t: {**t, "epoch": 3, "args": {"lr": 0.1}},
    "deep": lambda t: {"a": {"b": {"state_dict": led("x.y.z.", t)}}},
}


INSIDE = ("compiled layers", "FSDP")
"""Wrappers of inner layers, spelt out for the authors' names alone."""


@pytest.mark.parametrize(
    ("form", "wrapper"),
    [
        (f, w)
        for f in ("fair", "timm", "transformers")
        for w in SPELT
        if f == "fair" or w not in INSIDE
    ],
)
def test_it_is_found_whatever_wraps_it(tmp_path: Path, wrapper: str, form: str) -> None:
    """Every wrapper around every form leads to the very tensors that were wrapped."""
    assert holds(checkpoints.load(in_a_file(tmp_path, SPELT[wrapper](in_form(form)))))


@pytest.mark.parametrize(
    ("wrapper", "said"),
    [
        (
            "Lightning with a weighted loss",
            "left out, as they belong to training: criterion.weight",
        ),
        (
            "BasicSR",
            "averaged weights under 'params_ema' were taken; the file also holds 'params'",
        ),
        ("ema-pytorch", "under 'ema_model' were taken; the file also holds 'online_model'"),
        ("thop", "total_"),
    ],
)
def test_what_was_taken_and_left_is_said(tmp_path: Path, wrapper: str, said: str) -> None:
    """A choice, and everything that is not taken, is in the report."""
    remarks = checkpoints.load(in_a_file(tmp_path, SPELT[wrapper](in_form("fair")))).remarks
    assert any(said in remark for remark in remarks)
    assert "stored as float32:" not in remarks[0]


def test_as_torch_itself_wraps(tmp_path: Path) -> None:
    """DataParallel, an average and a compiled module, in each other."""
    model = network()
    averaged = torch.optim.swa_utils.AveragedModel(torch.compile(nn.DataParallel(model)))
    file = in_a_file(tmp_path, {"model_ema": averaged.state_dict(), "epoch": 1})
    assert holds(checkpoints.load(file))


def test_a_folder_of_timm_wrapper(tmp_path: Path) -> None:
    """Timm's LeViT as transformers saves it: weights, labels and description are its own."""
    save_file(
        {n: t.contiguous() for n, t in led("timm_model.", in_form("timm")).items()},
        tmp_path / "model.safetensors",
    )
    described = {
        "architecture": "levit_128s",
        "model_type": "timm_wrapper",
        "model_args": {"act_layer": "silu"},
        "pretrained_cfg": {"input_size": [3, 96, 96]},
    }
    (tmp_path / "config.json").write_text(json.dumps(described))
    found = checkpoints.load(tmp_path)
    assert (found.dialect, found.config.activation) == ("timm (tokens)", "silu")
    assert all(
        torch.equal(found.tensors[n], t)
        for n, t in network().state_dict().items()
        if n in found.tensors
    )


# --- refused --------------------------------------------------------------------------------


def refused(folder: Path, content: object, choices: ModelChoice | None = None) -> CheckpointError:
    """The error that says why ``content`` is not loaded."""
    with pytest.raises(CheckpointError) as raised:
        checkpoints.load(in_a_file(folder, content), choices)
    assert raised.value.exit_status == 2
    return raised.value


def test_two_networks_are_not_guessed_between(tmp_path: Path) -> None:
    """Neither of a student and its teacher is the obvious one."""
    content = {"student": in_form("fair"), "teacher": in_form("fair", 1)}
    assert "holds 2 networks, under 'student' and 'teacher'" in refused(tmp_path, content).what
    flat = {**led("student.", in_form("timm")), **led("teacher.", in_form("timm", 1))}
    assert "under 'student' and 'teacher'" in refused(tmp_path, flat).what


def test_a_layer_beside_the_network_is_not_dropped(tmp_path: Path) -> None:
    """What stands behind a network may change its answers; a loss does not."""
    beside = {"final.weight": torch.ones(2, 5), "criterion.weight": torch.ones(5)}
    error = refused(tmp_path, {"state_dict": {**led("model.", in_form("fair")), **beside}})
    assert (
        "holds a network under 'model' and 1 tensors beside it, first final.weight" in error.what
    )
    assert "your_model.model.state_dict()" in error.remedy
    error = refused(tmp_path, {**in_form("fair"), "final.weight": torch.ones(2, 5)})
    assert "final.weight: unexpected" in error.what


def without_heads(form: str) -> Tensors:
    """A backbone."""
    return {n: t for n, t in in_form(form).items() if not n.startswith(("head", "classifier"))}


@pytest.mark.parametrize(
    ("form", "said", "remedy"),
    [
        (
            "fair",
            "the authors' code builds one without with num_classes=0",
            "trained with its head",
        ),
        ("timm", "timm builds one without with num_classes=0", "model.reset_classifier("),
        ("transformers", "LevitModel", "Save a LevitForImageClassification"),
    ],
)
def test_a_backbone_is_called_one(tmp_path: Path, form: str, said: str, remedy: str) -> None:
    """A network without classes is named in its library's words, with that library's way out."""
    error = refused(tmp_path, without_heads(form))
    assert "is a backbone" in error.what
    assert said in error.what
    assert remedy in error.remedy


def test_the_bare_levit_model(tmp_path: Path) -> None:
    """``LevitModel.save_pretrained`` writes names without ``levit.``."""
    bare = {n.removeprefix("levit."): t for n, t in without_heads("transformers").items()}
    error = refused(tmp_path, bare)
    assert "the LevitModel of transformers without a classifier head" in error.what


def test_a_head_of_ones_own_on_transformers_body(tmp_path: Path) -> None:
    """Somebody's own head beside ``levit.`` is not taken for the authors' one."""
    own = {"head.weight": torch.ones(5, 64), "head.bias": torch.ones(5)}
    error = refused(tmp_path, {**without_heads("transformers"), **own})
    assert "tensors that transformers' LeViT does not have, first head.weight" in error.what


@pytest.mark.parametrize("form", ["fair", "timm", "transformers"])
def test_a_head_of_several_layers(tmp_path: Path, form: str) -> None:
    """What lies between two layers, or around one in a Sequential, no tensor tells."""
    head = "classifier" if form == "transformers" else "head"
    own = {f"{head}.1.weight": torch.ones(5, 64), f"{head}.1.bias": torch.ones(5)}
    error = refused(tmp_path, {**without_heads(form), **own})
    assert f"is not one layer: it has {head}.1.weight, {head}.1.bias" in error.what
    assert "model.head = model.head[1]" in error.remedy


def test_one_replaced_head_of_two(tmp_path: Path) -> None:
    """Two heads of different widths have no mean."""
    tensors = {n: t for n, t in in_form("timm").items() if not n.startswith("head.")}
    own = {"head.weight": torch.ones(3, 64), "head.bias": torch.ones(3)}
    error = refused(tmp_path, {**tensors, **own})
    assert "have 3 and 5 classes" in error.what


def test_remedies_are_about_what_was_typed(tmp_path: Path) -> None:
    """``--model`` is to be left out where it was given, and not mentioned where it was not."""
    tensors = in_form("fair")
    tensors["blocks.1.m.0.c.weight"] = torch.ones(7, 32)
    assert "--model" not in refused(tmp_path, tensors).remedy
    choices = ModelChoice(model="levit_128s")
    error = refused(tmp_path, in_form("fair"), choices)
    assert (
        error.remedy
        == "The file is not of levit_128s: leave out --model to let the shapes decide."
    )
    missing = {n: t for n, t in in_form("timm").items() if "stages.1.blocks.0.attn.qkv" not in n}
    assert "--model" not in refused(tmp_path, missing).remedy


def test_what_several_ranks_saved(tmp_path: Path) -> None:
    """Weights that lie on several ranks are refused with the command that joins them; beside
    whole ones, DeepSpeed's states of the optimizer are passed by.
    """
    parts = tmp_path / "fsdp"
    parts.mkdir()
    for name in (".metadata", "__0_0.distcp", "__1_0.distcp"):
        (parts / name).write_bytes(b"parts")
    with pytest.raises(CheckpointError) as raised:
        checkpoints.load(parts)
    assert "torch.distributed.checkpoint.format_utils dcp_to_torch" in raised.value.remedy
    empty = {name: torch.empty(0) for name in in_form("timm")}
    error = refused(tmp_path, {"module": empty, "ds_version": "0.16"})
    assert "tensors without elements, first stem.conv1.linear.weight" in error.what
    assert "zero_to_fp32.py" in error.remedy
    whole = tmp_path / "global_step7"
    whole.mkdir()
    torch.save({"module": in_form("fair")}, whole / "mp_rank_00_model_states.pt")
    for rank in range(2):
        name = f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
        torch.save({"optimizer_state_dict": {}}, whole / name)
    assert holds(checkpoints.load(whole))


# --- linear heads ---------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["fair", "timm", "transformers"])
@pytest.mark.parametrize("heads", [("head",), ("head", "head_dist")], ids=len)
def test_heads_that_were_replaced(tmp_path: Path, form: str, heads: tuple[str, ...]) -> None:
    """``model.head = nn.Linear(...)`` has no BatchNorm: loaded, rewritten and exported so."""
    model = network()
    for name in heads:
        setattr(model, name, randomize_(nn.Linear(64, 5), 1))
    own = model.state_dict()
    tensors = dict(own)
    if form != "fair":
        linear = tuple(("head", "head_dist").index(name) for name in heads)
        outline = Outline(4, (1, 1, 1), two_heads=True, linear_heads=linear)
        names = {"timm": timm, "transformers": huggingface}[form].names(outline)
        tensors = {n: own[o] for o, n in names.items() if not o.endswith("attention_bias_idxs")}
    found = checkpoints.load(in_a_file(tmp_path, tensors))
    assert found.config.linear_heads == heads
    pixels = image(3, 96, 96)
    with torch.no_grad():
        expected = model.double()(pixels)
        assert torch.allclose(found.build().double()(pixels), expected, rtol=1e-12)
        (*_, merged) = rewrite(found).passes
        assert (merged.name, merged.status) == ("merge_heads", "applied")
        module = laid_out(rewrite(found), "maps").module.double()
        assert torch.allclose(module(pixels), expected, rtol=0, atol=1e-5)


def test_linear_heads_as_timm_computes_them(tmp_path: Path) -> None:
    """With ``nn.Linear`` in the place of both heads the answers are timm's own."""
    kept, size = recorded()["linear-heads"], tuple(RECORDED["linear-heads"]["img_size"])
    shapes = {key: tuple(shape) for key, shape in kept["shapes"].items()}
    found = checkpoints.load(in_a_file(tmp_path, weights(shapes)))
    expected = torch.tensor(kept["logits"], dtype=torch.float64)
    with torch.no_grad():
        answer = found.build().double()(image(3, *size))
    assert float((answer - expected).abs().max() / expected.abs().max()) < 1e-12


# --- other channels -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "name", "word"),
    [
        ("fair", "patch_embed.0.c.weight", "input channels=1"),
        ("timm", "stem.conv1.linear.weight", "in_chans=1"),
        ("transformers", huggingface.STEMS[0], "num_channels=1"),
    ],
)
def test_grey_pictures_are_refused_with_a_way(
    tmp_path: Path, form: str, name: str, word: str
) -> None:
    """No file says how grey is made of colour. What the remedy says makes a network of RGB that
    answers to grey pictures what the network of grey ones does.
    """
    tensors = in_form(form)
    tensors[name] = tensors[name][:, :1].contiguous()
    error = refused(tmp_path, tensors)
    assert f"does not take RGB images ({word})" in error.what
    assert f"{name!r}] = w.repeat(1, 3, 1, 1) / 3" in error.remedy
    grey = network()
    grey.patch_embed[0].c = nn.Conv2d(1, 4, 3, 2, 1, bias=False)
    grey.patch_embed[0].c.weight = nn.Parameter(tensors[name])
    tensors[name] = tensors[name].repeat(1, 3, 1, 1) / 3
    found = checkpoints.load(in_a_file(tmp_path, tensors)).build().double()
    pixels = image(1, 96, 96)
    with torch.no_grad():
        expected = grey.double()(pixels)
        assert torch.allclose(found(pixels.expand(-1, 3, -1, -1)), expected, rtol=0, atol=1e-6)


def test_five_channels_are_refused(tmp_path: Path) -> None:
    """Pictures of another number of channels are refused, and no way out is promised."""
    tensors = in_form("timm")
    tensors["stem.conv1.linear.weight"] = torch.ones(4, 5, 3, 3)
    error = refused(tmp_path, tensors)
    assert "in_chans=5" in error.what
    assert error.remedy == "Export a model of RGB pictures."
