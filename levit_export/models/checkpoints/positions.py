"""Which image size the tables of a checkpoint belong to, and how they are brought to another.

A model learns something for each position of its token grid: an attention-bias table of LeViT has
an entry for each offset between two positions, which are as many as the keys' grid has tokens, and
DeiT has an embedding for each token. The length of such a table gives rows times
columns, and neither number alone: 256 entries fit 16x16 tokens and 8x32 as well.

What a file leaves open follows from what else it says:

- The grids of later stages follow from the first (every other row and column), and each stage has
  tables. A size *fits* when every stage has the tables that it would have. 224 px is the only size
  that fits a LeViT of stride 16 with 196, 49 and 16 entries; 256, 64 and 16 entries fit 256x256,
  128x512, 64x1024 and their transposes.
- The authors' files and vit-pytorch's also hold the index of each pair of positions, which shows
  the columns. transformers and vit-pytorch build squares only. timm's files, and DeiT's, show
  nothing more.
- ``model_args.img_size`` in timm's config.json is what the model was built with: it decides, and
  it is refused where it does not fit.
- ``--imgsz`` is the user's word, and decides among the sizes that fit. With ``--resize-bias`` it
  is the size to change *to*, and says nothing of the trained one.
- ``input_size`` in timm's config.json is left at the architecture's default where the model was
  built with ``img_size``. It decides where it fits, and says nothing where it does not.
- A known model was published at one size. Where that fits it is assumed, and the report says so.

Where several sizes are left after that, the file is refused and they are listed. A wrong guess
would go through every check: the reference is built from the same guess as the artifacts.

Another size is an approximation: the model was never trained at it. An attention-bias table
``(heads, rows * columns)`` is a map over the offsets ``(|dy|, |dx|)``; it is interpolated
bicubically with its corners kept, so that offset 0 keeps its bias. Position embeddings are
interpolated as DeiT does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import TypeVar, cast

import torch
from torch import nn
from torch.nn.functional import interpolate

from levit_export.core.errors import CheckpointError, UsageError
from levit_export.core.values import Size
from levit_export.models.architectures import build
from levit_export.models.architectures.grafted import Transformer
from levit_export.models.architectures.levit import AttentionBias
from levit_export.models.checkpoints.dialect import Found, Settled
from levit_export.models.loading import ModelChoice
from levit_export.models.zoo import (
    LARGEST_GRID,
    GraftedConfig,
    LevitConfig,
    halving,
    size_in_words,
    variant_of,
)

BIASES = "attention_biases"
BIAS_INDEX = "attention_bias_idxs"
"""Which entry of the biases belongs to each pair of positions; it follows from the grid."""
EMBEDDINGS = "pos_embed"

ConfigT = TypeVar("ConfigT", LevitConfig, GraftedConfig)


def fitting(tables: Sequence[int], stride: int) -> tuple[Size, ...]:
    """The image sizes whose grids have as many tokens as these, stage by stage.

    The squarest come first, and the upright one of two transposes. Raises ``ValueError`` where
    there is none.
    """
    first = tables[0]
    if not 1 <= first <= LARGEST_GRID:
        raise ValueError(f"a table for {first} tokens, expected 1 to {LARGEST_GRID}")
    grids = [(rows, first // rows) for rows in range(1, first + 1) if first % rows == 0]
    found = [
        (stride * rows, stride * columns)
        for rows, columns in grids
        if [prod(grid) for grid in halving((rows, columns), len(tables))] == list(tables)
    ]
    if not found:
        said = ", ".join(map(str, tables))
        raise ValueError(f"no grid of tokens has tables of {said} entries in its stages")
    return tuple(sorted(found, key=lambda size: (abs(size[0] - size[1]), -size[0])))


def settle(
    config: ConfigT,
    sizes: Sequence[Size],
    choice: ModelChoice,
    source: str,
    *,
    built_with: Size | None = None,
    usual: Size | None = None,
) -> Settled[ConfigT]:
    """``config`` at the one of ``sizes`` that it was trained at, and what decided.

    ``built_with`` is what the file's own description says that the model was built with, ``usual``
    what it calls the usual size. Raises ``CheckpointError`` where the description contradicts the
    tables, and ``UsageError`` where several sizes are left; see the module's docstring.
    """
    *others, last = map(size_in_words, sizes)
    fit = f"{', '.join(others)} and {last}" if others else last
    if built_with is not None:
        if built_with not in sizes:
            raise CheckpointError(
                f"the config.json of {source} says image size {size_in_words(built_with)}, its "
                f"tables of positions fit {fit}",
                remedy="Mend the image size there, or give the weight file alone.",
            )
        return Settled(replace(config, image_size=built_with))
    if len(sizes) == 1:  # the tables alone tell it
        return Settled(replace(config, image_size=sizes[0]))
    asked = None if choice.resize_bias else choice.image_size
    known = variant_of(config)
    published = None if known is None else known.config.image_size
    reasons = (
        (asked, "taken, as --imgsz says"),
        (usual, "taken, the input_size of its config.json"),
        (published, f"assumed, the size of {known.name if known else ''}"),
    )
    for size, reason in reasons:
        if size is not None and size in sizes:
            chosen = replace(config, image_size=size)
            sentence = f"the tables of positions fit {fit}: {size_in_words(size)} is {reason}"
            # Nobody said the size at which the known model was published.
            if size not in (asked, usual):
                return Settled(chosen, assumptions=(sentence,))
            return Settled(chosen, remarks=(sentence,))
    misses = "" if asked is None else f", none of which is {size_in_words(asked)}"
    options = " or ".join(f"--imgsz {size_in_words(size)}" for size in sizes[:3])
    remedy = f"Say which one it was trained at: {options}{' …' if len(sizes) > 3 else ''}."
    if choice.resize_bias:  # --imgsz is then the size to change to
        remedy = (
            "--resize-bias has to know the size that the model was trained at: put a config.json "
            f'with {{"model_args": {{"img_size": {list(sizes[0])}}}}} or another of these beside '
            "the weights, and give the folder as --checkpoint."
        )
    raise UsageError(
        f"{source} leaves its image size open: its tables of positions fit {fit} "
        f"(height x width){misses}",
        remedy=remedy,
    )


# --- another size ---------------------------------------------------------------------------


def resized(found: Found, image_size: Size) -> Found:
    """``found`` for inputs of ``image_size``; a remark says what was approximated."""
    before, config = found.config.image_size, replace(found.config, image_size=image_size)
    with torch.device("meta"):
        old, new = build(found.config), build(config)
    tensors = {n: t for n, t in found.tensors.items() if not n.endswith(BIAS_INDEX)}
    grids = {name: (_grid(old, name), _grid(new, name)) for name in tensors}
    changed = [name for name, (own, other) in grids.items() if own != other]
    tensors |= {name: _resized(name, tensors[name], *grids[name]) for name in changed}
    remark = (
        f"an approximation: trained at {size_in_words(before)} px, {len(changed)} tables of "
        f"positions were interpolated for {size_in_words(image_size)} px (--resize-bias); "
        "evaluate it on real images"
    )
    return replace(
        found, config=config, tensors=tensors, remarks=(*found.remarks, *[remark] * bool(changed))
    )


def _grid(module: nn.Module, name: str) -> Size:
    """Rows and columns of the tokens that a table of positions has entries for; else (0, 0)."""
    if name.endswith(BIASES):
        return cast("AttentionBias", module.get_submodule(name.rpartition(".")[0])).keys
    if name.endswith(EMBEDDINGS):
        return cast("Transformer", module.get_submodule(name.rpartition(".")[0])).grid
    return (0, 0)


def _resized(name: str, tensor: torch.Tensor, old: Size, new: Size) -> torch.Tensor:
    if name.endswith(BIASES):
        table = tensor.double().reshape(1, -1, *old)
        table = interpolate(table, size=new, mode="bicubic", align_corners=True)
        return table.flatten(2)[0].to(tensor.dtype)
    own, rest = tensor[:, :1], tensor[:, 1:]  # the class token has no position
    maps = rest.double().reshape(1, *old, -1).permute(0, 3, 1, 2)
    maps = interpolate(maps, size=new, mode="bicubic", align_corners=False)
    rows = maps.permute(0, 2, 3, 1).flatten(1, 2).to(tensor.dtype)
    return torch.cat([own, rows], dim=1)
