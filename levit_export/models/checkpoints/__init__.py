"""From a file, the bundled model or a seed to a :class:`Checkpoint` that can build its module.

::

    read ──▶ Stored ──a dialect──▶ Found ──held against its network──▶ Checkpoint
    reading     levit, timm, huggingface,       description, positions
                vit_pytorch, grafted

Nothing that a file asks for is run, and nothing is guessed without being said in the report.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from levit_export.core.errors import CheckpointError, UsageError
from levit_export.core.values import ModelInfo, Preprocessing, Size, Task
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
    description,
    grafted,
    huggingface,
    levit,
    positions,
    timm,
    vit_pytorch,
)
from levit_export.models.checkpoints.dialect import Dialect, Found, Stored
from levit_export.models.checkpoints.reading import read, refuse_unusable
from levit_export.models.loading import ModelChoice
from levit_export.models.zoo import (
    VARIANTS,
    Config,
    GraftedConfig,
    LevitConfig,
    Variant,
    VitPytorchConfig,
    bundled_weights,
    size_in_words,
    variant,
    variant_of,
)

__all__ = ["DIALECTS", "Checkpoint", "bundled", "load", "randomised"]

CUSTOM = {
    LevitConfig: "levit_custom",
    VitPytorchConfig: "vit_pytorch_custom",
    GraftedConfig: "grafted_custom",
}
"""What a network of no known size is called."""

LISTED = 10
"""Differences that a message names before it counts the rest."""
DERIVED = (positions.BIAS_INDEX, "num_batches_tracked")
"""Buffers that follow from the shapes or play no part at inference; they may be absent."""

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
            macs=count_macs(module, (3, *self.config.image_size)),
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


def load(path: Path, choice: ModelChoice | None = None) -> Checkpoint:
    """Read a checkpoint, find out what it is, and hold it against the network of that name.

    ``choice`` settles what a file leaves open.
    """
    choice, source = choice or ModelChoice(), str(path)
    model = None if choice.model is None else variant(choice.model)
    stored = read(path, DIALECTS)
    refuse_unusable(stored.tensors, source)
    trained = _as_chosen(_understood(stored, path, choice), model, choice.activation, path)
    _refuse_misfit(trained, source, model)
    found = trained
    if choice.image_size not in (None, trained.config.image_size):
        found = _at_size(trained, choice.image_size, choice, path)
    config = found.config
    recipe = description.settle_recipe(
        choice.preprocessing, stored, trained, config.image_size, source
    )
    labels = description.settle_labels(config, choice.labels, stored.config, source)
    task = description.settle_task(config, choice.task, stored.config, source)
    named = model or variant_of(config)
    kinds = {str(t.dtype).removeprefix("torch.") for t in stored.tensors.values()} - {"int64"}
    name = "" if named is None else f"{named.name}, "
    summary = (
        f"{_in_words(found.dialect)}: {name}{_described(config)}, "
        f"stored as {' and '.join(sorted(kinds))}"
    )
    return Checkpoint(
        name=named.name if named else CUSTOM[type(config)],
        dialect=found.dialect,
        source=path.name,
        sha256=stored.sha256,
        config=config,
        tensors=found.tensors,
        labels=labels.value,
        preprocessing=recipe.value,
        licence=named.licence if named else "",
        remarks=(summary, *stored.remarks, *found.remarks, *labels.remarks, *task.remarks),
        assumptions=(
            *found.assumptions,
            *recipe.assumptions,
            *labels.assumptions,
            *task.assumptions,
        ),
        task=task.value,
    )


def _understood(stored: Stored, path: Path, choice: ModelChoice) -> Found:
    """What the one dialect that knows these names makes of them."""
    known = [dialect for dialect in DIALECTS if dialect.recognises(stored.tensors)]
    if len(known) == 1:
        return known[0].understand(stored, str(path), choice)
    shown = ", ".join(list(stored.tensors)[:3])
    if huggingface.is_bare_body(stored.tensors):
        raise CheckpointError(
            f"{path} is a backbone, the LevitModel of transformers without a classifier head",
            remedy=huggingface.LIBRARY.remedy,
        )
    if not known:
        raise CheckpointError(
            f"{path} is not a checkpoint of a known form "
            f"({len(stored.tensors)} tensors: {shown}, …)",
            remedy="Known forms: the authors' LeViT (patch_embed.…, blocks.…), timm's "
            "(stem.…, stages.…), transformers' (levit.encoder.…), vit-pytorch's "
            "(conv_embedding.…, backbone.…), ResNet-50 and DeiT-S and their graftings.",
        )
    names = " and ".join(dialect.NAME for dialect in known)
    raise CheckpointError(
        f"{path} holds the tensors of several models: {names}",
        remedy="Save the state dict of one model.",
    )


def _as_chosen(found: Found, model: Variant | None, activation: str | None, path: Path) -> Found:
    """``found`` with the model and activation that the user chose, or a remark on what no tensor
    tells.
    """
    config = found.config
    if model is not None:
        if type(model.config) is not type(config):
            raise CheckpointError(
                f"{path} is {_described(config)}, not {model.name}",
                remedy="Leave out --model to let the file decide.",
            )
        # A variant says the dimensions; what people change when they fine-tune it is the file's.
        free = ("classes", "two_heads", "image_size", "fused", "distill_classes", "linear_heads")
        own = {name: value for name, value in vars(config).items() if name in free}
        config = replace(model.config, **own)
    if activation is not None:
        return replace(found, config=_with_activation(config, activation, str(path)))
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
            f"--activation is for LeViT; {source} is {_described(config)}", remedy="Leave it out."
        )
    return replace(config, activation=activation)


def _at_size(found: Found, size: Size, choice: ModelChoice, path: Path) -> Found:
    """``found`` for another image size, which has to be allowed where it is an approximation."""
    # The weights of a plain ResNet fit every size; all others learned something for each position.
    learned = not (isinstance(found.config, GraftedConfig) and found.config.layers == 0)
    if learned and not choice.resize_bias:
        asked, trained = size_in_words(size), size_in_words(found.config.image_size)
        raise UsageError(
            f"--imgsz {asked} does not fit {path}, trained at {trained}: "
            "it learned a number for each position of that grid",
            remedy=f"Export at {trained}, fine-tune at {asked}, or accept "
            "interpolated tables with --resize-bias.",
        )
    return positions.resized(found, size)


def _refuse_misfit(found: Found, source: str, model: Variant | None = None) -> None:
    """Raise unless the tensors are exactly those that the configuration has, derived ones aside.

    Names are the file's own. The first ten differences are listed, the rest counted. ``model`` is
    the one that was asked for by name.
    """
    with torch.device("meta"):
        expected = build(found.config).state_dict()
    lines = _differences(found, expected)
    if lines:
        shown = "; ".join(lines[:LISTED])
        rest = f"; and {len(lines) - LISTED} more" if len(lines) > LISTED else ""
        raise CheckpointError(
            f"{source} does not fit {_described(found.config)}: {shown}{rest}",
            remedy=f"The file is not of {model.name}: leave out --model to let the shapes decide."
            if model
            else "The dimensions are those of its own first layers, so a part of the network was "
            "changed, added or lost. Save model.state_dict() of the network as its library "
            "builds it.",
        )


def _differences(found: Found, expected: Mapping[str, torch.Tensor]) -> list[str]:
    def spelled(name: str) -> str:
        return found.theirs.get(name, name)

    shapes = [
        f"{spelled(name)}: expected {list(expected[name].shape)}, found {list(tensor.shape)}"
        for name, tensor in found.tensors.items()
        if name in expected and tensor.shape != expected[name].shape
    ]
    tables = [
        f"{spelled(name)}: not the table that the grid gives"
        for name, tensor in found.tensors.items()
        if name.endswith(DERIVED[0])
        and name in expected
        and tensor.shape == expected[name].shape
        and not torch.equal(tensor, expected[name])
    ]
    strangers = [f"{name}: unexpected" for name in found.tensors if name not in expected]
    absent = [
        f"{spelled(name)}: missing"
        for name in expected
        if name not in found.tensors and not name.endswith(DERIVED)
    ]
    return [*shapes, *strangers, *tables, *absent]


def _in_words(dialect: str) -> str:
    """Whose format a checkpoint has; ``fair`` is that of the paper's authors, of FAIR."""
    if dialect.startswith("fair"):
        return f"checkpoint in the authors' format{dialect.removeprefix('fair')}"
    return f"{dialect} checkpoint"


def _described(config: Config) -> str:
    """The network in a few words: its dimensions, classes, heads and image size."""
    many = "es" * (config.classes != 1)
    classes = f"{config.classes} class{many}, {size_in_words(config.image_size)} px"
    if isinstance(config, GraftedConfig):
        stages = "stage" if config.stages == 1 else "stages"
        parts = f"{config.stages} ResNet-50 {stages} and {config.layers} DeiT layers"
        return f"a network of {parts}, dim {config.dim}, {classes}"
    sizes = f"dims {list(config.dims)}, depths {list(config.depths)}"
    heads = ("no", "one classifier head", "two classifier heads")[config.head_count]
    attention = f"attention heads {list(config.heads)}, key dim {config.key_dim}"
    return f"a LeViT of {sizes}, {attention}, {classes}, {heads}"


def bundled(choice: ModelChoice | None = None) -> Checkpoint:
    """The digits model that travels with the package."""
    found = load(bundled_weights(), replace(choice or ModelChoice(), model=VARIANTS[0].name))
    return replace(found, assumptions=())  # of its own weights all of it is known


def randomised(model: Variant, seed: int, choice: ModelChoice | None = None) -> Checkpoint:
    """``model`` with seeded weights that exercise every branch; for dry runs and tests."""
    choice = choice or ModelChoice()
    config = replace(model.config, image_size=choice.image_size or model.config.image_size)
    if choice.activation is not None:
        config = _with_activation(config, choice.activation, model.name)
    if choice.preprocessing is not None:
        recipe = description.refuse_other_crop(choice.preprocessing, config.image_size)
    else:
        usual = "digits" if description.is_of_digits(config) else "fair"
        recipe = preprocessing.for_image_size(preprocessing.RECIPES[usual], config.image_size)
    tensors = randomize_(build(config), seed).state_dict()
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(name.encode() + tensor.numpy().tobytes())
    return Checkpoint(
        name=model.name,
        dialect="random",
        source=f"random weights, seed {seed}",
        sha256=digest.hexdigest(),
        config=config,
        tensors=tensors,
        labels=description.settle_labels(config, choice.labels, None, "").value,
        preprocessing=recipe,
        licence=model.licence,
        task=choice.task or "single-label",
    )
