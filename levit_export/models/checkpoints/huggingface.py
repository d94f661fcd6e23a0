"""``transformers``' checkpoints: ``LevitForImageClassification`` and ``…WithTeacher``."""

from __future__ import annotations

from dataclasses import replace

from levit_export.core.errors import CheckpointError
from levit_export.models.checkpoints import levit, positions
from levit_export.models.checkpoints.dialect import Found, Stored, Tensors, renamed
from levit_export.models.checkpoints.levit import (
    Outline,
    Place,
    Spelling,
    linear_heads,
    tensor_names,
)
from levit_export.models.loading import ModelChoice

NAME = "transformers"
STEMS = ("levit.patch_embeddings.embedding_layer_1.convolution.weight",)
LIBRARY = levit.Library(
    "transformers' form",
    "LevitModel, and LevitForImageClassification with num_labels=0, have none",
    "Save a LevitForImageClassification with its classifier.",
    "num_channels",
)
LAYERS = "levit.encoder.stages.{}.layers."


def recognises(tensors: Tensors) -> bool:
    """Whether the tensors have this dialect's names."""
    return STEMS[0] in tensors and any(name.startswith(LAYERS.format(0)) for name in tensors)


def is_bare_body(tensors: Tensors) -> bool:
    """Whether they are those of ``LevitModel``, which has neither the prefix nor a classifier."""
    return STEMS[0].removeprefix("levit.") in tensors


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
        two_heads=any(f"classifier_distill{inner}.weight" in tensors for inner in (".linear", "")),
        linear_heads=linear_heads(tensors, ("classifier", "classifier_distill")),
    )


def understand(stored: Stored, source: str, choice: ModelChoice) -> Found:
    """Configuration and tensors."""
    if strange := [n for n in stored.tensors if not n.startswith(("levit.", "classifier"))]:
        raise CheckpointError(
            f"{source} holds {len(strange)} tensors that transformers' LeViT does not have, first "
            f"{strange[0]}",
            remedy=LIBRARY.remedy,
        )
    theirs = names(outline(stored.tensors))
    tensors = renamed(stored.tensors, theirs)
    config, sizes = levit.infer_config(tensors, source, LIBRARY, theirs)
    squares = [size for size in sizes if size[0] == size[1]]  # it builds no others
    if not squares:
        raise CheckpointError(
            f"{source} has tables for {sizes[0][0]}x{sizes[0][1]} px, and transformers builds "
            "LeViT for squares only",
            remedy="Give the checkpoint of the model itself, under the names of its library.",
        )
    settled = positions.settle(config, squares, choice, source)
    return Found(
        dialect=NAME,
        config=replace(settled.value, activation="hardswish"),
        tensors=tensors,
        theirs=theirs,
        remarks=settled.remarks,
        assumptions=settled.assumptions,
        activation_said=True,  # this implementation has no other
        recipe="transformers",
    )
