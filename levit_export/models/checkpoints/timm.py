"""timm's checkpoints: ``levit_*`` (tokens) and ``levit_conv_*`` (maps), files and Hub folders."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from levit_export.core.errors import CheckpointError, UsageError
from levit_export.core.values import Size
from levit_export.models.checkpoints import levit, positions, recipes
from levit_export.models.checkpoints.dialect import Choices, Found, Stored, Tensors, renamed
from levit_export.models.checkpoints.levit_names import (
    Outline,
    Place,
    Spelling,
    count,
    linear_heads,
    tensor_names,
)
from levit_export.models.zoo import VARIANTS, LevitConfig, usual_activation

NAME = "timm"
STEMS = ("stem.conv1.linear.weight",)
LIBRARY = levit.Library(
    "timm's form",
    "timm builds one without with num_classes=0, for features",
    "Give it one, model.reset_classifier(number_of_classes), train it and save that state dict.",
    "in_chans",
)
ACTIVATIONS = {"hard_swish": "hardswish", "silu": "silu", "swish": "silu", "gelu": "gelu"}
"""timm's names of activations, and ours."""
ARCHITECTURES = {
    known.name: known.config.activation
    for known in VARIANTS[1:]
    if isinstance(known.config, LevitConfig)
}
"""The activation of each of timm's models, which it calls as we do."""


def recognises(tensors: Tensors) -> bool:
    """Whether the tensors have this dialect's names."""
    return STEMS[0] in tensors and any(
        n.startswith("stages.0.blocks.0.attn.qkv.") for n in tensors
    )


def _block(place: Place) -> str:
    return {
        "stem": f"stem.conv{place.index + 1}",
        "attention": f"stages.{place.stage}.blocks.{place.index}.attn",
        "mlp": f"stages.{place.stage}.blocks.{place.index}.mlp",
        "shrink": f"stages.{place.stage}.downsample.attn_downsample",
        "shrink_mlp": f"stages.{place.stage}.downsample.mlp",
        "head": "head_dist" if place.index else "head",
    }[place.part]


SPELLING = Spelling(
    block=_block,
    layers={
        "qkv": "qkv",
        "kv": "kv",
        "q": "q.ln",
        "proj": "proj.ln",
        "up": "ln1",
        "down": "ln2",
    },
    conv="linear",
    linear="linear",
    norm="bn",
)


def names(outline: Outline) -> dict[str, str]:
    """For each tensor of our module, what timm calls it."""
    return tensor_names(outline, SPELLING)


def outline(tensors: Tensors) -> Outline:
    """Which layers the names speak of."""
    stages = count(tensors, "stages.{}.")
    return Outline(
        convolutions=sum(f"stem.conv{i}.linear.weight" in tensors for i in range(1, 5)),
        depths=tuple(count(tensors, f"stages.{stage}.blocks.{{}}.") for stage in range(stages)),
        two_heads=any(f"head_dist{inner}.weight" in tensors for inner in (".linear", "")),
        linear_heads=linear_heads(tensors, ("head", "head_dist")),
    )


def understand(stored: Stored, source: str, choices: Choices) -> Found:
    """Configuration and tensors; 1x1 convolutions over maps are linear layers over tokens."""
    theirs = names(outline(stored.tensors))
    named = renamed(stored.tensors, theirs)
    maps = [
        name
        for name, tensor in named.items()
        if name.startswith("blocks.") and tensor.dim() == 4 and tensor.shape[2:] == (1, 1)
    ]
    tensors = named | {name: named[name][:, :, 0, 0] for name in maps}
    described = stored.config or {}
    config, sizes = levit.infer_config(tensors, source, LIBRARY, theirs)
    config, settled = positions.settle(
        config,
        sizes,
        choices,
        source,
        built_with=built_with(described, source),
        usual=usual_size(described),
    )
    activation, said = _activation(described, config)
    return Found(
        dialect=f"{NAME} ({'maps' if maps else 'tokens'})",
        config=LevitConfig(**{**vars(config), "activation": activation}),
        tensors=tensors,
        theirs=theirs,
        remarks=settled.remarks,
        assumptions=settled.assumptions,
        activation_said=said,
        recipe="timm",
    )


def built_with(described: Mapping[str, Any], source: str) -> Size | None:
    """The ``img_size`` that timm's ``create_model`` was given, as config.json keeps it."""
    try:
        return recipes.built_with(described)
    except ValueError as error:
        raise CheckpointError(
            f"in the config.json of {source}, {error}",
            remedy="Mend model_args.img_size there: a side, or [height, width].",
        ) from error


def usual_size(described: Mapping[str, Any]) -> Size | None:
    """``input_size`` of config.json, ``[channels, height, width]``, where there is one."""
    try:
        return recipes.pictured(recipes.described(described))
    except ValueError:
        return None  # which the recipe refuses


def _activation(said: Mapping[str, Any], config: LevitConfig) -> tuple[str, bool]:
    """The activation that ``config.json`` asks for or its architecture has, and whether it does.

    Else it is that of timm's model of this size.
    """
    arguments = said.get("model_args")
    arguments = arguments if isinstance(arguments, Mapping) else {}
    given = arguments.get("act_layer")
    if arguments.get("attn_act_layer") not in (None, given):
        raise UsageError(
            f"config.json asks for the activation {arguments['attn_act_layer']!r} in attentions",
            remedy="Networks of one activation are built; export a model that has one.",
        )
    name = str(said.get("architecture")).replace("levit_conv_", "levit_")
    if given is None and name in ARCHITECTURES:
        return ARCHITECTURES[name], True
    if given is None:
        return usual_activation(config), False
    if given not in ACTIVATIONS:
        raise UsageError(
            f"config.json asks for the activation {given!r}",
            remedy=f"Known: {', '.join(ACTIVATIONS)}; override it with --activation.",
        )
    return ACTIVATIONS[given], True


def to_theirs(tensors: Tensors, outline: Outline, *, maps: bool) -> dict[str, Any]:
    """Our tensors as timm stores them; ``maps`` for ``levit_conv_*``. The inverse of reading."""
    theirs = names(outline)
    out = {}
    for name, tensor in tensors.items():
        is_layer = name.startswith("blocks.") and name.endswith(".c.weight")
        out[theirs[name]] = tensor[:, :, None, None] if maps and is_layer else tensor
    return out
