"""From a file, the bundled model or a seed to a :class:`Checkpoint` that can build its module."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

import torch
from torch import nn

from levit_export.core.errors import CheckpointError, UsageError
from levit_export.core.values import ModelInfo, Preprocessing, Task
from levit_export.inputs import preprocessing
from levit_export.models.architectures import build
from levit_export.models.architectures.blocks import block_names
from levit_export.models.architectures.census import (
    count_macs,
    count_parameters,
    dead_branches,
    idle_attentions,
)
from levit_export.models.architectures.random_weights import randomize_
from levit_export.models.checkpoints import (
    grafted,
    huggingface,
    labels,
    levit,
    meanings,
    recipes,
    timm,
    vit_pytorch,
)
from levit_export.models.checkpoints.dialect import Choices, Dialect, Found, Stored
from levit_export.models.checkpoints.fitting import described, refuse_misfit
from levit_export.models.checkpoints.reading import read, refuse_unusable
from levit_export.models.checkpoints.resizing import holds_positions, resized
from levit_export.models.zoo import (
    VARIANTS,
    Config,
    GraftedConfig,
    LevitConfig,
    Variant,
    VitPytorchConfig,
    size_in_words,
    variant_of,
)

__all__ = ["DIALECTS", "Checkpoint", "Choices", "bundled", "load", "randomised"]

CUSTOM = {
    LevitConfig: "levit_custom",
    VitPytorchConfig: "vit_pytorch_custom",
    GraftedConfig: "grafted_custom",
}
"""What a network of no known size is called."""

DIALECTS: tuple[Dialect, ...] = (levit, timm, huggingface, vit_pytorch, grafted)


@dataclass(frozen=True)
class Checkpoint:
    """Tensors as they were stored, under our names, and what is needed to rebuild their model.

    ``remarks`` say what was found and what was chosen, ``assumptions`` what was taken for granted
    because nothing was said, a sentence each.
    """

    name: str
    dialect: str
    source: str
    sha256: str
    config: Config
    tensors: Mapping[str, torch.Tensor]
    labels: tuple[str, ...]
    preprocessing: Preprocessing
    licence: str
    remarks: tuple[str, ...] = ()
    assumptions: tuple[str, ...] = ()
    task: Task = "single-label"

    def build(self) -> nn.Module:
        """A fresh float32 module in eval mode that holds exactly these tensors.

        Built anew on every call: a module that was used before may carry stale state.
        """
        with torch.device("meta"):  # weights that are about to be replaced need no values
            module = build(self.config)
        # Not zeros_like: of a meta tensor that imports sympy, 0.35 s of every command.
        own = {
            name: torch.zeros(t.shape, dtype=t.dtype, device="cpu") if t.is_meta else t
            for name, t in module.state_dict().items()
        }
        own |= {
            name: tensor.to(own[name].dtype, copy=True) for name, tensor in self.tensors.items()
        }
        module.load_state_dict(own, strict=True, assign=True)
        return module.eval().requires_grad_(requires_grad=False)

    def describe(self) -> ModelInfo:
        """What manifests and metadata say of the model."""
        module = self.build()
        dead, branches = dead_branches(module)
        idle = idle_attentions(module, block_names(self.config))
        remark = (
            f"at {size_in_words(self.config.image_size)} px the last grid is one token: biases, "
            f"queries and keys of {', '.join(idle)} cannot change an answer; bake_attention_bias "
            "leaves them out"
        )
        return ModelInfo(
            name=self.name,
            dialect=self.dialect,
            checkpoint=self.source,
            checkpoint_sha256=self.sha256,
            parameters=count_parameters(module),
            macs=count_macs(module.to("meta"), (3, *self.config.image_size)),
            heads=self.config.head_count,
            config=vars(self.config),
            labels=self.labels,
            preprocessing=self.preprocessing,
            licence=self.licence,
            remarks=(*self.remarks, *[remark] * bool(idle)),
            assumptions=self.assumptions,
            doubt=f"{dead} of {branches} residual branches contribute exactly zero (untrained)"
            if dead
            else "",
            task=self.task,
        )


def load(path: Path, choices: Choices | None = None) -> Checkpoint:
    """Read a checkpoint, find out what it is, and hold it against the network of that name."""
    choices = choices or Choices()
    stored = read(path, DIALECTS)
    refuse_unusable(stored.tensors, str(path))
    found = _settled(_understood(stored, path, choices), choices, path)
    refuse_misfit(found, str(path), choices.model)
    said = _stated(stored, found, choices, path)
    if choices.image_size not in (None, found.config.image_size):
        found = _at_size(found, choices, path)
    config, named = found.config, choices.model or variant_of(found.config)
    recipe, assumed = _recipe(said, found, choices)
    names = labels.settled(config, choices.labels, stored.config, str(path))
    means = meanings.settled(config, choices.task, stored.config, str(path))
    return Checkpoint(
        name=named.name if named else CUSTOM[type(config)],
        dialect=found.dialect,
        source=path.name,
        sha256=stored.sha256,
        config=config,
        tensors=found.tensors,
        labels=names.names,
        preprocessing=recipe,
        licence=named.licence if named else "",
        remarks=(
            _said(found, named, stored),
            *stored.remarks,
            *found.remarks,
            *names.remarks,
            *means.remarks,
        ),
        assumptions=(*found.assumptions, *assumed, *names.assumptions, *means.assumptions),
        task=means.task,
    )


def _stated(stored: Stored, found: Found, choices: Choices, path: Path) -> recipes.Recipe | None:
    """What the files beside the weights say of pictures; not looked at where the user said it."""
    if choices.preprocessing is not None:
        return choices.preprocessing, ()
    return recipes.of(stored, found, found.config.image_size, str(path))


def _recipe(said: recipes.Recipe | None, found: Found, choices: Choices) -> recipes.Recipe:
    """The recipe for the size that the network takes now."""
    taken = found.config.image_size
    if said is None:
        return recipes.assumed(found, taken)
    if choices.preprocessing is None:
        return preprocessing.for_image_size(said[0], taken), said[1]
    return _fitting(choices.preprocessing, found.config), ()


def _fitting(given: Preprocessing, config: Config) -> Preprocessing:
    """``given``, which has to crop to what the network takes."""
    if given.crop != config.image_size:
        height, width = config.image_size
        raise UsageError(
            f"--preprocessing crops to {size_in_words(given.crop)} px, the model takes "
            f"{size_in_words(config.image_size)}",
            remedy=f'Write "crop": [{height}, {width}], or give the --imgsz that is meant.',
        )
    return given


def _understood(stored: Stored, path: Path, choices: Choices) -> Found:
    """What the one dialect that knows these names makes of them."""
    known = [dialect for dialect in DIALECTS if dialect.recognises(stored.tensors)]
    if len(known) == 1:
        return known[0].understand(stored, str(path), choices)
    shown = ", ".join(list(stored.tensors)[:3])
    if huggingface.is_bare_body(stored.tensors):
        raise CheckpointError(
            f"{path} is a backbone, the LevitModel of transformers without a classifier head",
            remedy=huggingface.LIBRARY.remedy,
        )
    if not known:
        raise CheckpointError(
            f"{path} is no checkpoint of a known form ({len(stored.tensors)} tensors: {shown}, …)",
            remedy="Known forms: the authors' LeViT (patch_embed.…, blocks.…), timm's "
            "(stem.…, stages.…), transformers' (levit.encoder.…), vit-pytorch's "
            "(conv_embedding.…, backbone.…), ResNet-50 and DeiT-S and their graftings.",
        )
    names = " and ".join(dialect.NAME for dialect in known)
    raise CheckpointError(
        f"{path} holds the tensors of several models: {names}",
        remedy="Save the state dict of one model.",
    )


def _settled(found: Found, choices: Choices, path: Path) -> Found:
    """``found`` with what the user chose, and a remark on what no tensor tells."""
    config = found.config
    if choices.model is not None:
        config = _as_asked(choices.model, config, path)
    if choices.activation is not None:
        return replace(found, config=_with_activation(config, choices.activation, str(path)))
    if found.activation_said or not isinstance(config, LevitConfig):
        return replace(found, config=config)
    known = ", as in the known model of this size" if variant_of(config) else ""
    assumption = (
        f"no tensor tells the activation: {config.activation} is assumed{known}; "
        "--activation says another"
    )
    return replace(found, config=config, assumptions=(*found.assumptions, assumption))


def _with_activation(config: Config, activation: str, source: str) -> Config:
    if not isinstance(config, LevitConfig):
        raise UsageError(
            f"--activation is for LeViT; {source} is {described(config)}", remedy="Leave it out."
        )
    return replace(config, activation=activation)


def _as_asked(model: Variant, found: Config, path: Path) -> Config:
    """``model`` with the classes, heads and image size found in the file."""
    if type(model.config) is not type(found):
        raise CheckpointError(
            f"{path} is {described(found)}, not {model.name}",
            remedy="Leave out --model to let the file decide.",
        )
    free = ("classes", "two_heads", "image_size", "fused", "distill_classes", "linear_heads")
    taken = {name: value for name, value in vars(found).items() if name in free}
    return replace(model.config, **taken)


def _at_size(found: Found, choices: Choices, path: Path) -> Found:
    size = choices.image_size or found.config.image_size
    if holds_positions(found) and not choices.resize_bias:
        asked, trained = size_in_words(size), size_in_words(found.config.image_size)
        raise UsageError(
            f"--imgsz {asked} does not fit {path}, trained at {trained}: "
            "it learned a number for each position of that grid",
            remedy=f"Export at {trained}, fine-tune at {asked}, or accept "
            "interpolated tables with --resize-bias.",
        )
    return resized(found, size)


def _said(found: Found, named: Variant | None, stored: Stored) -> str:
    """What was found, in one sentence."""
    kinds = {str(t.dtype).removeprefix("torch.") for t in stored.tensors.values()} - {"int64"}
    what = described(found.config)
    name = "" if named is None else f"{named.name}, "
    return f"{found.dialect} checkpoint: {name}{what}, stored as {' and '.join(sorted(kinds))}"


def bundled(choices: Choices | None = None) -> Checkpoint:
    """The digits model that travels with the package."""
    file = resources.files("levit_export.inputs.data") / "levit_digits.safetensors"
    with resources.as_file(file) as path:
        found = load(path, replace(choices or Choices(), model=VARIANTS[0]))
    return replace(found, assumptions=())  # of its own weights all of it is known


def randomised(model: Variant, seed: int, choices: Choices | None = None) -> Checkpoint:
    """``model`` with seeded weights that exercise every branch; for dry runs and tests."""
    choices = choices or Choices()
    config = replace(model.config, image_size=choices.image_size or model.config.image_size)
    if choices.activation is not None:
        config = _with_activation(config, choices.activation, model.name)
    tensors = randomize_(build(config), seed).state_dict()
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(name.encode() + tensor.numpy().tobytes())
    recipe = preprocessing.RECIPES["digits" if recipes.is_of_digits(config) else "fair"]
    return Checkpoint(
        name=model.name,
        dialect="random",
        source=f"random weights, seed {seed}",
        sha256=digest.hexdigest(),
        config=config,
        tensors=tensors,
        labels=labels.settled(config, choices.labels, None, "").names,
        preprocessing=preprocessing.for_image_size(recipe, config.image_size)
        if choices.preprocessing is None
        else _fitting(choices.preprocessing, config),
        licence=model.licence,
        task=choices.task or "single-label",
    )
