"""LeViT as its authors' checkpoints have it, and where each layer of any LeViT stands.

Our names are those of the authors' checkpoints. timm and transformers have the same network under
other names: such a dialect spells a :class:`Place`, and the bijection between the two sets of
names of tensors follows (:func:`tensor_names`). Which LeViT a set of tensors belongs to is told by
their shapes, for all of them (:func:`infer_config`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

import torch

from levit_export.core.errors import CheckpointError
from levit_export.core.values import Size
from levit_export.models.architectures.levit import attention_bias_index
from levit_export.models.checkpoints import positions
from levit_export.models.checkpoints.dialect import Found, Stored, Tensors
from levit_export.models.loading import ModelChoice
from levit_export.models.zoo import LevitConfig, grid_of, usual_activation

NAME = "fair"
STEMS = ("patch_embed.0.c.weight", "patch_embed.0.weight")
"""The first convolution's weight, with its BatchNorm beside it or inside."""
RGB = 3
MOST_CONVOLUTIONS = 5
"""One more than any stem has, so that a fifth is found and refused."""


def recognises(tensors: Tensors) -> bool:
    """Whether the tensors have this dialect's names."""
    has_stem = any(stem in tensors for stem in STEMS)
    return has_stem and any(name.startswith("blocks.0.m.qkv.") for name in tensors)


def understand(stored: Stored, source: str, choice: ModelChoice) -> Found:
    """Configuration and tensors, whose names are ours."""
    config, sizes = infer_config(stored.tensors, source)
    settled = positions.settle(config, sizes, choice, source)
    config = settled.value
    return Found(
        dialect=f"{NAME} (fused)" if config.fused else NAME,
        config=replace(config, activation=usual_activation(config)),
        tensors=stored.tensors,
        theirs={},
        remarks=settled.remarks,
        assumptions=settled.assumptions,
    )


@dataclass(frozen=True)
class _Stage:
    dim: int
    heads: int
    key_dim: int
    tokens: int
    depth: int


@dataclass(frozen=True)
class Library:
    """How to speak of files of one library: of those without a head, of channels, of the rest."""

    form: str
    headless: str
    remedy: str
    channels: str


AUTHORS = Library(
    "the authors' form",
    "the authors' code builds one without with num_classes=0",
    "Save the state dict of a model that was trained with its head.",
    "input channels",
)


def infer_config(
    tensors: Tensors,
    source: str,
    library: Library = AUTHORS,
    theirs: Mapping[str, str] = MappingProxyType({}),
) -> tuple[LevitConfig, tuple[Size, ...]]:
    """The configuration whose shapes are these, Hardswish assumed, and the sizes that fit.

    An attention block has as many bias rows as heads and an offset for each token; its ``qkv`` has
    ``4 * key_dim`` rows a head. The configuration has the first of the sizes. Raises
    ``CheckpointError`` where the shapes fit no LeViT, in the words of ``library`` and with the
    names ``theirs``.
    """
    try:
        _refuse_other_heads(tensors, source, library)
        _refuse_other_channels(tensors, source, library, theirs)
        return _config(tensors)
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        missing = error.args[0] if isinstance(error, KeyError) else ""
        reason = (
            f"{theirs.get(missing, missing)} is missing" if missing else f"its shapes: {error}"
        )
        raise CheckpointError(
            f"{source} looks like a LeViT of {library.form}, but {reason}",
            remedy="Save the whole model.state_dict().",
        ) from error


def _refuse_other_heads(tensors: Tensors, source: str, library: Library) -> None:
    """Raise for a network without a head, one that is not a single layer, and two that differ."""
    widths = {
        head: _weight(tensors, head, "l").shape[0]
        for head in ("head", "head_dist")
        if _has(tensors, head, "l")
    }
    if "head" not in widths:
        others = [
            name for name in tensors if name.startswith(("head.", "head_dist.", "classifier"))
        ]
        if not others:
            raise CheckpointError(
                f"{source} is a backbone, a LeViT of {library.form} without a classifier head "
                f"({library.headless}); it answers with features, and what is exported here are "
                "classifiers",
                remedy=library.remedy,
            )
        raise CheckpointError(
            f"the head of {source} is not one layer: it has {', '.join(others[:4])}"
            f"{' …' if len(others) > 4 else ''}, and no tensor tells what lies between them",
            remedy="A head is a linear layer, with the BatchNorm before it or without. Save the "
            "model with such a head: model.head = model.head[1] for Sequential(Dropout, Linear).",
        )
    if len(set(widths.values())) > 1:
        raise CheckpointError(
            f"the two heads of {source} have {widths['head']} and {widths['head_dist']} classes; "
            "the model's answer is their mean",
            remedy="Replace both heads, or build the model with one (distillation=False).",
        )


def _refuse_other_channels(
    tensors: Tensors, source: str, library: Library, theirs: Mapping[str, str]
) -> None:
    """Raise for a network that does not see RGB.

    Its recipe is missing: how grey or other channels are made of a picture, and their mean and
    deviation, no tensor tells and no library keeps. A wrong one would go through every check.
    """
    stem = next(name for name in (*STEMS, "") if not name or name in tensors)
    channels = tensors[stem].shape[1] if stem and tensors[stem].dim() == 4 else RGB
    if channels == RGB:
        return
    name = theirs.get(stem, stem)
    grey = (
        " A network of grey pictures becomes one of RGB, with the same answers to grey pictures: "
        f"w = weights[{name!r}]; weights[{name!r}] = w.repeat(1, 3, 1, 1) / 3; save it, and "
        "export it with --preprocessing FILE that has its mean and std three times."
    )
    raise CheckpointError(
        f"{source} does not take RGB images ({library.channels}={channels}), which is what can be "
        "exported: no file says how other channels are made of a picture",
        remedy=f"Export a model of RGB pictures.{grey if channels == 1 else ''}",
    )


def _config(tensors: Tensors) -> tuple[LevitConfig, tuple[Size, ...]]:
    stages = _stages(tensors)
    classes = _weight(tensors, "head", "l").shape[0]
    convolutions = sum(
        _has(tensors, f"patch_embed.{2 * index}", "c") for index in range(MOST_CONVOLUTIONS)
    )
    stride = 2**convolutions
    counts = [classes, *(n for s in stages for n in (s.dim, s.heads, s.key_dim, s.tokens))]
    if min(counts) < 1:
        raise ValueError("a tensor without elements")
    sizes = positions.fitting([s.tokens for s in stages], stride)
    stored = tensors.get("blocks.0.m.attention_bias_idxs")
    if stored is not None:
        # The index of offsets tells rows from columns. Where it is that of no size, all are kept,
        # and the comparison of every tensor says what is wrong with it.
        shown = [
            size
            for size in sizes
            for grid in [grid_of(size, stride)]
            if torch.equal(attention_bias_index(grid, grid, 1)[0], stored)
        ]
        sizes = tuple(shown) or sizes
    is_fused = STEMS[1] in tensors
    linear = tuple(head for head in ("head", "head_dist") if f"{head}.weight" in tensors)
    config = LevitConfig(
        dims=tuple(s.dim for s in stages),
        key_dim=stages[0].key_dim,
        heads=tuple(s.heads for s in stages),
        depths=tuple(s.depth for s in stages),
        image_size=sizes[0],
        classes=classes,
        two_heads=_has(tensors, "head_dist", "l"),
        stem_stride=stride,
        fused=is_fused,
        linear_heads=() if is_fused else linear,
    )
    return config, sizes


def _has(tensors: Tensors, layer: str, inner: str) -> bool:
    return f"{layer}.{inner}.weight" in tensors or f"{layer}.weight" in tensors


def _weight(tensors: Tensors, layer: str, inner: str) -> torch.Tensor:
    """A layer's weight, with its BatchNorm beside it or inside."""
    inside = tensors.get(f"{layer}.weight")
    return tensors[f"{layer}.{inner}.weight"] if inside is None else inside


def _stages(tensors: Tensors) -> list[_Stage]:
    stages: list[_Stage] = []
    index, fresh = 0, True
    indices = {int(n.split(".")[1]) for n in tensors if n.startswith("blocks.")}
    for index in sorted(indices):
        if _has(tensors, f"blocks.{index}.kv", "c"):  # a shrinking block begins a stage
            fresh = True
        if not _has(tensors, f"blocks.{index}.m.qkv", "c"):  # an MLP
            continue
        qkv = _weight(tensors, f"blocks.{index}.m.qkv", "c")
        heads, offsets = tensors[f"blocks.{index}.m.attention_biases"].shape
        if fresh:
            # For each head q and k have key_dim rows, and v has twice as many.
            stages.append(_Stage(qkv.shape[1], heads, qkv.shape[0] // (4 * heads), offsets, 0))
            fresh = False
        last = stages[-1]
        stages[-1] = _Stage(last.dim, last.heads, last.key_dim, last.tokens, last.depth + 1)
    return stages


# --- names ----------------------------------------------------------------------------------

Part = Literal["stem", "attention", "mlp", "shrink", "shrink_mlp", "head"]

LAYERS: Mapping[Part, Mapping[str, str]] = {
    "attention": {"qkv": "qkv", "proj": "proj.1"},
    "shrink": {"kv": "kv", "q": "q.1", "proj": "proj.1"},
    "mlp": {"up": "0", "down": "2"},
    "shrink_mlp": {"up": "0", "down": "2"},
}
"""The layers of each block, and what they are called here."""

NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True)
class Outline:
    """What decides which tensors a LeViT has: convolutions in the stem, blocks, heads.

    ``linear_heads`` are the numbers of those without a BatchNorm.
    """

    convolutions: int
    depths: tuple[int, ...]
    two_heads: bool
    linear_heads: tuple[int, ...] = ()


@dataclass(frozen=True)
class Place:
    """A block of a LeViT. A shrinking block belongs to the stage that it leads to.

    ``index`` counts convolutions, blocks of a stage, or heads from 0; ``below`` is the depth of
    the stage below a shrinking block.
    """

    part: Part
    stage: int
    index: int
    below: int = 0


@dataclass(frozen=True)
class Spelling:
    """What a dialect calls things: each block, its layers, and the halves of each layer."""

    block: Callable[[Place], str]
    layers: Mapping[str, str]
    conv: str
    linear: str
    norm: str


def tensor_names(outline: Outline, spelling: Spelling) -> dict[str, str]:
    """For each tensor of our module, what the dialect calls it."""
    names: dict[str, str] = {}
    for ours, place in _blocks(outline):
        theirs = spelling.block(place)
        if place.part == "head" and place.index in outline.linear_heads:
            names |= {f"{ours}.{leaf}": f"{theirs}.{leaf}" for leaf in ("weight", "bias")}
            continue
        if place.part in ("stem", "head"):
            inner, outer = ("c", spelling.conv) if place.part == "stem" else ("l", spelling.linear)
            names |= _pair(ours, theirs, inner, outer, spelling.norm)
            if place.part == "head":
                names[f"{ours}.l.bias"] = f"{theirs}.{spelling.linear}.bias"
            continue
        for layer, own in LAYERS[place.part].items():
            there = f"{theirs}.{spelling.layers[layer]}"
            names |= _pair(f"{ours}.{own}", there, "c", spelling.linear, spelling.norm)
        if place.part in ("attention", "shrink"):
            for table in ("attention_biases", "attention_bias_idxs"):
                names[f"{ours}.{table}"] = f"{theirs}.{table}"
    return names


def _pair(ours: str, theirs: str, inner: str, outer: str, norm: str) -> dict[str, str]:
    leaves = {f"{ours}.bn.{leaf}": f"{theirs}.{norm}.{leaf}" for leaf in NORM}
    return {f"{ours}.{inner}.weight": f"{theirs}.{outer}.weight", **leaves}


def _blocks(outline: Outline) -> Iterator[tuple[str, Place]]:
    """Our prefix and the place of every block, in the order of the network."""
    for index in range(outline.convolutions):
        yield f"patch_embed.{2 * index}", Place("stem", 0, index)
    number = 0
    for stage, depth in enumerate(outline.depths):
        if stage:
            below = outline.depths[stage - 1]
            yield f"blocks.{number}", Place("shrink", stage, 0, below)
            yield f"blocks.{number + 1}.m", Place("shrink_mlp", stage, 0, below)
            number += 2
        for index in range(depth):
            yield f"blocks.{number}.m", Place("attention", stage, index)
            yield f"blocks.{number + 1}.m", Place("mlp", stage, index)
            number += 2
    for index, head in enumerate(("head", "head_dist")[: 1 + outline.two_heads]):
        yield head, Place("head", 0, index)


def count(names: Mapping[str, object], template: str) -> int:
    """How many of ``template.format(0)``, ``template.format(1)``, … begin a name, without gaps."""
    number = 0
    while any(name.startswith(template.format(number)) for name in names):
        number += 1
    return number


def linear_heads(names: Mapping[str, object], heads: tuple[str, ...]) -> tuple[int, ...]:
    """The numbers of those ``heads`` that are a linear layer alone."""
    return tuple(index for index, head in enumerate(heads) if f"{head}.weight" in names)
