"""timm's checkpoints: ``levit_*`` (tokens) and ``levit_conv_*`` (maps), files and Hub folders.

A Hub folder's ``config.json`` also says how pictures are prepared, and at which size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, get_args

from levit_export.core.errors import CheckpointError, UsageError
from levit_export.core.values import Interpolation, Preprocessing, Resize, Size
from levit_export.inputs.preprocessing import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    sides_of,
    three_of,
)
from levit_export.models.checkpoints import levit, positions
from levit_export.models.checkpoints.dialect import (
    Found,
    Settled,
    Stored,
    Tensors,
    renamed,
)
from levit_export.models.checkpoints.levit import (
    Outline,
    Place,
    Spelling,
    count,
    linear_heads,
    tensor_names,
)
from levit_export.models.loading import ModelChoice
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


def understand(stored: Stored, source: str, choice: ModelChoice) -> Found:
    """Configuration and tensors; 1x1 convolutions over maps are linear layers over tokens."""
    theirs = names(outline(stored.tensors))
    named = renamed(stored.tensors, theirs)
    maps = [
        name
        for name, tensor in named.items()
        if name.startswith("blocks.") and tensor.dim() == 4 and tensor.shape[2:] == (1, 1)
    ]
    tensors = named | {name: named[name][:, :, 0, 0] for name in maps}
    config, fitting = levit.infer_config(tensors, source, LIBRARY, theirs)
    built_with, usual = sizes_said(stored.config, source)
    settled = positions.settle(config, fitting, choice, source, built_with=built_with, usual=usual)
    activation, said = _activation(stored.config or {}, config)
    return Found(
        dialect=f"{NAME} ({'maps' if maps else 'tokens'})",
        config=replace(settled.value, activation=activation),
        tensors=tensors,
        theirs=theirs,
        remarks=settled.remarks,
        assumptions=settled.assumptions,
        activation_said=said,
        recipe="timm",
    )


def sizes_said(config: Mapping[str, Any] | None, source: str) -> tuple[Size | None, Size | None]:
    """What a config.json says: the size that the model was built with, and the usual one.

    Raises ``CheckpointError`` where the first is not a size; the second is then for the recipe to
    refuse.
    """
    said = config or {}
    try:
        built = _built_with(said)
    except ValueError as error:
        raise CheckpointError(
            f"in the config.json of {source}, {error}",
            remedy="Mend model_args.img_size there: a side, or [height, width].",
        ) from error
    usual = None
    with suppress(ValueError):
        usual = _pictured(described(said))
    return built, usual


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


# --- config.json ----------------------------------------------------------------------------

USUAL = {"crop_pct": 0.9}
"""What timm's registry says of its LeViT models."""
DEFAULT_CROP_PCT = 0.875
"""What timm takes where a ``config.json`` does not say it."""


def described(said: Mapping[str, Any]) -> Mapping[str, Any]:
    """What timm makes ``pretrained_cfg`` of: it stands in ``config.json``, or is the whole of it.

    Names of classes beside it come before those inside it, as they do in timm.
    """
    inner = said.get("pretrained_cfg")
    if not isinstance(inner, Mapping):
        older = {"label_names": said["labels"]} if "labels" in said else {}
        return {**said, **older}
    beside = {key: said[key] for key in ("label_names", "label_descriptions") if key in said}
    return {**inner, **beside}


def recipe(said: Mapping[str, Any], taken: Size) -> Settled[Preprocessing]:
    """The evaluation transform that timm makes of ``config.json``, and what was assumed.

    ``taken`` is what the weights take. This is what ``timm.data.resolve_data_config`` and
    ``create_transform`` do (``tests/models/checkpoints/test_transforms.py`` compares the two).
    Raises ``ValueError``, which names the setting, for what cannot be followed.
    """
    fields = described(said)
    if fields.get("test_crop_pct") and fields["test_crop_pct"] != fields.get("crop_pct"):
        raise ValueError(
            f"test_crop_pct is {fields['test_crop_pct']} and crop_pct {fields.get('crop_pct')}: "
            "timm's own scripts evaluate with the first, its transforms are made with the second"
        )
    assumed = _refuse_other_size(said, fields, taken)
    kind: Any = fields.get("interpolation") or "bicubic"
    if kind not in get_args(Interpolation):
        known = ", ".join(get_args(Interpolation))
        raise ValueError(f"interpolation is {kind!r} (known: {known})")
    share = fields.get("crop_pct")
    share = DEFAULT_CROP_PCT if share is None else share
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share < math.inf:
        raise ValueError(f"crop_pct is {share!r}")
    crop_mode = fields.get("crop_mode") or "center"
    if crop_mode not in ("center", "squash", "border"):
        raise ValueError(f"crop_mode is {crop_mode!r} (known: center, squash, border)")
    numbers = []
    for key, usual in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
        value = fields.get(key) or usual
        is_one = isinstance(value, list) and len(value) == 1
        numbers.append(three_of(key, [*value] * 3 if is_one else value))
    mean, std = numbers
    height, width = (math.floor(side / share) for side in taken)
    mode: Resize = {"squash": "exact", "border": "fit"}.get(crop_mode, "cover")  # type: ignore[assignment]
    if mode == "cover" and height == width:
        mode = "shorter-side"  # torchvision's Resize, which cuts off where timm's own rounds
    red, green, blue = (round(255 * one) if mode == "fit" else 0 for one in mean)
    found = Preprocessing(
        "timm",
        resize=(height, width),
        crop=taken,
        resize_mode=mode,
        interpolation=kind,
        mean=mean,
        std=std,
        fill=(red, green, blue),
    )
    return Settled(found, assumptions=assumed)


def _built_with(said: Mapping[str, Any]) -> Size | None:
    """``model_args.img_size``, which the network was built with; None where it is not said.

    Raises ``ValueError`` for what is not a size.
    """
    arguments = said.get("model_args")
    given = arguments.get("img_size") if isinstance(arguments, Mapping) else None
    return None if given is None else sides_of("img_size", given)


def _pictured(fields: Mapping[str, Any]) -> Size | None:
    """``input_size``, which pictures are brought to; None where it is not said.

    Raises ``ValueError`` for what is not a size of RGB pictures.
    """
    given = fields.get("input_size")
    if given is None:
        return None
    if not isinstance(given, list) or len(given) != 3 or given[0] != 3:
        raise ValueError(f"input_size is {given!r}; [3, height, width] is needed")
    return sides_of("input_size", given[1:])


def _refuse_other_size(
    said: Mapping[str, Any], fields: Mapping[str, Any], taken: Size
) -> tuple[str, ...]:
    """Raise unless timm would make pictures of the size that the weights take."""
    built, pictures = _built_with(said), _pictured(fields)
    if pictures is None or (built is not None and fields.get("fixed_input_size")):
        pictures = built  # as timm does it when it reads the file
    if pictures is None:
        shown = "x".join(map(str, taken))
        return (
            f"config.json does not say the input size: {shown}, that of the weights, is assumed",
        )
    if pictures != taken:
        raise ValueError(
            f"input_size asks for {pictures[0]} x {pictures[1]} pixels, the weights take "
            f"{taken[0]} x {taken[1]}"
        )
    return ()
