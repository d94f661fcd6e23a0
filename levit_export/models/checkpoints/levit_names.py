"""Where each layer of a LeViT stands, so that a dialect only has to say what it calls it.

Our names are those of the authors' checkpoints. A dialect spells a :class:`Place`; the bijection
between the two sets of tensor names follows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

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
