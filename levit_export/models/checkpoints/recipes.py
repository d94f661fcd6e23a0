"""How pictures become inputs, as the folder of a checkpoint says it: followed, or refused.

``preprocessor_config.json`` is read by :mod:`levit_export.models.checkpoints.processors`;
timm's settings in ``config.json`` are read here. Where no file says anything, the form of the
weights suggests a recipe, and that is an assumption.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, get_args

from levit_export.core.errors import CheckpointError
from levit_export.core.values import Interpolation, Preprocessing, Resize, Size
from levit_export.inputs import preprocessing
from levit_export.inputs.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from levit_export.models.checkpoints import processors
from levit_export.models.checkpoints.dialect import Found, Stored
from levit_export.models.zoo import VARIANTS, Config

REMEDY = (
    "State the recipe with --preprocessing FILE (docs/checkpoints.md shows one), which replaces "
    "the folder's, or correct that setting."
)
TIMMS_USUAL = {"crop_pct": 0.9}
"""What timm's registry says of its LeViT models."""
DEFAULT_CROP_PCT = 0.875
"""What timm takes where a ``config.json`` does not say it."""

Recipe = tuple[Preprocessing, tuple[str, ...]]
"""A recipe, and what was assumed where the file says nothing, a sentence each."""


def of(stored: Stored, found: Found, taken: Size, source: str) -> Recipe | None:
    """The recipe that the files beside the weights say, None where there is none.

    ``taken`` is what the weights take. Raises ``CheckpointError`` for settings that cannot be
    followed, and where two files say different things.
    """
    said = [
        _followed(read, content, taken, f"the {file} of {source}")
        for file, read, content in (
            ("preprocessor_config.json", processors.recipe, stored.preprocessor),
            ("config.json", timm, _timms(stored.config, found)),
        )
        if content is not None
    ]
    if len(said) == 2 and said[0][0] != replace(said[1][0], name=said[0][0].name):
        raise CheckpointError(
            f"the preprocessor_config.json and the config.json of {source} describe different "
            f"preprocessings: {said[0][0].in_words()}, and {said[1][0].in_words()}",
            remedy=REMEDY,
        )
    return said[0] if said else None


def _followed(
    read: Callable[[Mapping[str, Any], Size], Recipe],
    content: Mapping[str, Any],
    taken: Size,
    file: str,
) -> Recipe:
    try:
        return read(content, taken)
    except (TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(
            f"{file} describes no preprocessing that this toolchain can follow: {error}",
            remedy=REMEDY,
        ) from error


def _timms(config: Mapping[str, Any] | None, found: Found) -> Mapping[str, Any] | None:
    """``config`` where it is timm's, nested or flat; transformers' has ``architectures``."""
    is_timms = config is not None and ("pretrained_cfg" in config or "architecture" in config)
    return config if is_timms or (found.recipe == "timm" and config) else None


def assumed(found: Found, taken: Size) -> Recipe:
    """The recipe that the form of the weights suggests, for inputs of this size."""
    if is_of_digits(found.config):
        recipe, whose = preprocessing.RECIPES["digits"], "that of the bundled digits"
    elif found.recipe == "timm":
        recipe, whose = timm(TIMMS_USUAL, taken)[0], "timm's for its LeViT models"
    elif found.recipe == "transformers" and taken[0] == taken[1]:
        usual = {
            "image_processor_type": processors.ASSUMED,
            "size": {"shortest_edge": taken[0]},
            "crop_size": taken[0],
        }
        recipe, whose = processors.recipe(usual, taken)[0], f"that of {processors.ASSUMED}"
    else:
        recipe, whose = preprocessing.RECIPES["fair"], "the authors' evaluation"
    words = f"nothing beside the weights says how pictures are prepared: {whose} is assumed"
    return preprocessing.for_image_size(recipe, taken), (
        f"{words}; --preprocessing FILE says another",
    )


def is_of_digits(config: Config) -> bool:
    """Whether it is the bundled network, at whatever size it takes its images."""
    bundled = VARIANTS[0].config
    return {**vars(config), "image_size": bundled.image_size} == vars(bundled)


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


def timm(said: Mapping[str, Any], taken: Size) -> tuple[Preprocessing, tuple[str, ...]]:
    """The evaluation transform that timm makes of ``config.json``, and what was assumed.

    ``taken`` is what the weights take. This is what ``timm.data.resolve_data_config`` and
    ``create_transform`` do, which ``tests/checkpoints/test_transforms.py`` holds it against.
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
    mean, std = _three(fields, "mean", IMAGENET_MEAN), _three(fields, "std", IMAGENET_STD)
    height, width = (math.floor(side / share) for side in taken)
    mode: Resize = {"squash": "exact", "border": "fit"}.get(crop_mode, "cover")  # type: ignore[assignment]
    if mode == "cover" and height == width:
        mode = "shorter-side"  # torchvision's Resize, which cuts off where timm's own rounds
    red, green, blue = (round(255 * one) if mode == "fit" else 0 for one in mean)
    return Preprocessing(
        "timm",
        resize=(height, width),
        crop=taken,
        resize_mode=mode,
        interpolation=kind,
        mean=mean,
        std=std,
        fill=(red, green, blue),
    ), assumed


def built_with(said: Mapping[str, Any]) -> Size | None:
    """``model_args.img_size``, which the network was built with; None where it is not said.

    Raises ``ValueError`` for what is not a size.
    """
    arguments = said.get("model_args")
    given = arguments.get("img_size") if isinstance(arguments, Mapping) else None
    return None if given is None else _sides("img_size", given)


def pictured(fields: Mapping[str, Any]) -> Size | None:
    """``input_size``, which pictures are brought to; None where it is not said.

    Raises ``ValueError`` for what is not a size of RGB pictures.
    """
    given = fields.get("input_size")
    if given is None:
        return None
    if not isinstance(given, list) or len(given) != 3 or given[0] != 3:
        raise ValueError(f"input_size is {given!r}; [3, height, width] is needed")
    return _sides("input_size", given[1:])


def _sides(key: str, given: Any) -> Size:
    sides = [given, given] if type(given) is int else given
    if isinstance(sides, list) and len(sides) == 2:
        height, width = sides
        if type(height) is int and type(width) is int and min(sides) > 0:
            return height, width
    raise ValueError(f"{key} is {given!r}; one whole number or two are needed")


def _refuse_other_size(
    said: Mapping[str, Any], fields: Mapping[str, Any], taken: Size
) -> tuple[str, ...]:
    """Raise unless timm would make pictures of the size that the weights take."""
    built, pictures = built_with(said), pictured(fields)
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


def _three(
    fields: Mapping[str, Any], key: str, usual: tuple[float, float, float]
) -> tuple[float, float, float]:
    value = fields.get(key) or usual
    numbers = [*value] * 3 if isinstance(value, list) and len(value) == 1 else value
    if not isinstance(numbers, list | tuple) or len(numbers) != 3:
        raise ValueError(f"{key} is {value!r}; three numbers are needed")
    if not all(isinstance(one, int | float) and not isinstance(one, bool) for one in numbers):
        raise ValueError(f"{key} is {value!r}; three numbers are needed")
    red, green, blue = map(float, numbers)
    return red, green, blue
