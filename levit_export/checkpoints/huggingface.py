"""``transformers``' checkpoints: ``LevitForImageClassification`` and ``…WithTeacher``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from levit_export.checkpoints import fair, shapes
from levit_export.checkpoints.found import Choices, Found, Stored, Tensors, renamed
from levit_export.checkpoints.levit_names import Outline, Place, Spelling, tensor_names
from levit_export.core import Preprocessing
from levit_export.errors import CheckpointError
from levit_export.preprocessing import from_fields

NAME = "transformers"
STEM = "levit.patch_embeddings.embedding_layer_1.convolution.weight"
LAYERS = "levit.encoder.stages.{}.layers."
SHORTER_SIDE = 256 / 224
"""What LevitImageProcessor multiplies ``size.shortest_edge`` with before it resizes."""
STEPS = ("do_resize", "do_center_crop", "do_rescale", "do_normalize")
RESAMPLING = {2: "bilinear", 3: "bicubic"}
"""Pillow's numbers of filters, which ``resample`` holds."""


def recognises(tensors: Tensors) -> bool:
    """Whether the tensors have this dialect's names."""
    return STEM in tensors and any(name.startswith(LAYERS.format(0)) for name in tensors)


def _block(place: Place) -> str:
    if place.part == "stem":
        return f"levit.patch_embeddings.embedding_layer_{place.index + 1}"
    if place.part == "head":
        return "classifier_distill" if place.index else "classifier"
    # A shrinking attention and the MLP behind it end the stage below.
    stage = place.stage - (place.part in ("shrink", "shrink_mlp"))
    number = 2 * (place.below or place.index) + (place.part in ("mlp", "shrink_mlp"))
    module = "" if place.part == "shrink" else ".module"
    return f"{LAYERS.format(stage)}{number}{module}"


SPELLING = Spelling(
    block=_block,
    layers={
        "qkv": "queries_keys_values",
        "kv": "keys_values",
        "q": "queries",
        "proj": "projection",
        "up": "linear_up",
        "down": "linear_down",
    },
    conv="convolution",
    linear="linear",
    norm="batch_norm",
)


def names(outline: Outline) -> dict[str, str]:
    """For each tensor of our module, what ``transformers`` calls it."""
    return tensor_names(outline, SPELLING)


def outline(tensors: Tensors) -> Outline:
    """Which layers the names speak of."""
    depths: list[int] = []
    while any(name.startswith(LAYERS.format(len(depths))) for name in tensors):
        prefix, number = LAYERS.format(len(depths)), 0
        while any(n.startswith(f"{prefix}{2 * number}.module.attention_b") for n in tensors):
            number += 1
        depths.append(number)
    return Outline(
        convolutions=4,
        depths=tuple(depths),
        two_heads="classifier_distill.linear.weight" in tensors,
    )


def understand(stored: Stored, source: str, choices: Choices) -> Found:
    """Configuration and tensors; labels from ``id2label``; the processor's own preprocessing."""
    theirs = names(outline(stored.tensors))
    tensors = renamed(stored.tensors, theirs)
    config, sizes = fair.infer_config(tensors, source)
    squares = [size for size in sizes if size[0] == size[1]]  # it builds no others
    if not squares:
        raise CheckpointError(
            f"{source} has tables for {sizes[0][0]}x{sizes[0][1]} px, and transformers builds "
            "LeViT for squares only",
            remedy="Give the checkpoint of the model itself, under the names of its library.",
        )
    config, remarks = shapes.settle(config, squares, choices, source)
    return Found(
        dialect=NAME,
        config=replace(config, activation="hardswish"),
        tensors=tensors,
        theirs=theirs,
        labels=_labels(stored.config or {}, config.classes, source),
        preprocessing=_preprocessing(stored.preprocessor or {}, config.image_size[0], source),
        remarks=remarks,
        activation_said=True,  # this implementation has no other
    )


def _labels(said: Mapping[str, Any], classes: int, source: str) -> tuple[str, ...]:
    table = said.get("id2label")
    if not isinstance(table, Mapping):
        return ()
    names = tuple(str(table.get(str(index), "")) for index in range(classes))
    if len(table) != classes or "" in names:
        raise CheckpointError(
            f"the id2label of {source} names {len(table)} classes, the head has {classes}",
            remedy="Mend config.json, or give --labels FILE with --checkpoint of the weight file.",
        )
    if names == tuple(f"LABEL_{index}" for index in range(classes)):
        return ()  # what transformers invents where nothing was given
    return names


def _edge(size: Any, key: str, default: int) -> int:
    if isinstance(size, Mapping):
        size = size.get(key, size.get("height", default))
    return default if size is None else int(size)


def _preprocessing(said: Mapping[str, Any], side: int, source: str) -> Preprocessing:
    """What LevitImageProcessor does with these settings, at the size that the weights have."""
    try:
        return _recipe(said, side)
    except (TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(
            f"the preprocessor_config.json of {source} describes no preprocessing that this "
            f"toolchain can follow: {error}",
            remedy="Mend the file, or give --checkpoint the weight file alone.",
        ) from error


def _recipe(said: Mapping[str, Any], side: int) -> Preprocessing:
    """The recipe. Raises ``ValueError`` for settings that this toolchain has no step for."""
    if off := [step for step in STEPS if said.get(step, True) is not True]:
        raise ValueError(f"{off[0]} is {said[off[0]]!r}")
    edge = _edge(said.get("size"), "shortest_edge", side)
    crop = _edge(said.get("crop_size"), "height", side)
    if crop != side:
        raise ValueError(f"it crops to {crop} pixels, the weights take {side}")
    resample = said.get("resample", 3)
    if resample not in RESAMPLING:
        raise ValueError(f"resample {resample} (known: 2 bilinear, 3 bicubic)")
    return from_fields(
        NAME,
        resize=int(SHORTER_SIDE * edge),
        crop=crop,
        interpolation=RESAMPLING[resample],
        mean=said.get("image_mean"),
        std=said.get("image_std"),
        centre="floored",
    )
