"""From a file, the bundled model or a seed to a :class:`Checkpoint` that can build its module."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

import torch

from levit_export import preprocessing
from levit_export.architectures.census import count_macs, count_parameters, dead_branches
from levit_export.architectures.levit import Levit
from levit_export.architectures.random_weights import randomize_
from levit_export.checkpoints import fair
from levit_export.checkpoints.reading import read_tensors, refuse_unusable, sha256_of
from levit_export.core import ModelInfo, Preprocessing
from levit_export.errors import CheckpointError, UsageError
from levit_export.zoo import VARIANTS, LevitConfig, Variant

__all__ = ["Checkpoint", "bundled", "load", "randomised"]

LISTED = 10
DERIVED = ("attention_bias_idxs", "num_batches_tracked")
"""Buffers that follow from the shapes or play no part at inference; they may be absent."""


@dataclass(frozen=True)
class Checkpoint:
    """Tensors as they were stored, and everything needed to rebuild their model from them."""

    name: str
    dialect: str
    source: str
    sha256: str
    config: LevitConfig
    tensors: Mapping[str, torch.Tensor]
    labels: tuple[str, ...]
    preprocessing: Preprocessing
    licence: str

    def build(self) -> Levit:
        """A fresh float32 module in eval mode that holds exactly these tensors.

        Built anew on every call: a module that was used before may carry stale state.
        """
        with torch.device("meta"):  # weights that are about to be replaced need no values
            module = Levit(self.config)
        own = {
            name: torch.zeros_like(t, device="cpu") if t.is_meta else t
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
        side = self.config.image_size
        dead, branches = dead_branches(module)
        return ModelInfo(
            name=self.name,
            dialect=self.dialect,
            checkpoint=self.source,
            checkpoint_sha256=self.sha256,
            parameters=count_parameters(module),
            macs=count_macs(module.to("meta"), (3, side, side)),
            heads=1 + self.config.two_heads,
            config=vars(self.config),
            labels=self.labels,
            preprocessing=self.preprocessing,
            licence=self.licence,
            doubt=f"{dead} of {branches} residual branches contribute exactly zero (untrained)"
            if dead
            else "",
        )


def load(
    path: Path,
    *,
    model: Variant | None = None,
    image_size: int | None = None,
    labels: tuple[str, ...] = (),
) -> Checkpoint:
    """Read a checkpoint, find out which model it is, and hold it against ``model`` if given."""
    tensors = read_tensors(path)
    if not fair.recognises(tensors):
        shown = ", ".join(list(tensors)[:3])
        raise CheckpointError(
            f"{path} is no LeViT checkpoint of a known form ({len(tensors)} tensors: {shown}, …)",
            remedy="Known forms: the authors' (patch_embed.…, blocks.…, head.…).",
        )
    refuse_unusable(tensors, str(path))
    found = fair.infer_config(tensors, str(path))
    config = found if model is None else _as_asked(model, found)
    _refuse_misfit(tensors, config, str(path))
    if image_size not in (None, config.image_size):
        raise UsageError(
            f"--imgsz {image_size} does not fit {path}, trained at {config.image_size}: "
            "its attention-bias tables hold one entry for each offset of that grid",
            remedy=f"Export at {config.image_size}, or fine-tune at {image_size}.",
        )
    named = model or _variant_of(config)
    recipe = preprocessing.RECIPES["digits" if config == VARIANTS[0].config else "fair"]
    return Checkpoint(
        name=named.name if named else "levit_custom",
        dialect=fair.NAME,
        source=path.name,
        sha256=sha256_of(path),
        config=config,
        tensors=tensors,
        labels=_labels(labels, config.classes),
        preprocessing=preprocessing.for_image_size(recipe, config.image_size),
        licence=named.licence if named else "",
    )


def bundled(*, image_size: int | None = None, labels: tuple[str, ...] = ()) -> Checkpoint:
    """The digits model that travels with the package."""
    file = resources.files("levit_export.data") / "levit_digits.safetensors"
    with resources.as_file(file) as path:
        return load(path, model=VARIANTS[0], image_size=image_size, labels=labels)


def randomised(
    model: Variant, seed: int, *, image_size: int | None = None, labels: tuple[str, ...] = ()
) -> Checkpoint:
    """``model`` with seeded weights that exercise every branch; for dry runs and tests."""
    config = replace(model.config, image_size=image_size or model.config.image_size)
    tensors = randomize_(Levit(config), seed).state_dict()
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(name.encode() + tensor.numpy().tobytes())
    recipe = preprocessing.RECIPES["digits" if config == VARIANTS[0].config else "fair"]
    return Checkpoint(
        name=model.name,
        dialect="random",
        source=f"random weights, seed {seed}",
        sha256=digest.hexdigest(),
        config=config,
        tensors=tensors,
        labels=_labels(labels, config.classes),
        preprocessing=preprocessing.for_image_size(recipe, config.image_size),
        licence=model.licence,
    )


def _labels(given: tuple[str, ...], classes: int) -> tuple[str, ...]:
    if given and len(given) != classes:
        raise UsageError(
            f"{len(given)} labels for {classes} classes",
            remedy="Give one label on each line, in the order of the classes.",
        )
    return given or tuple(str(index) for index in range(classes))


def _variant_of(config: LevitConfig) -> Variant | None:
    """The named variant with these dimensions; classes, heads and image size may differ."""
    for known in VARIANTS:
        if _same_body(known.config, config):
            return known
    return None


def _same_body(one: LevitConfig, other: LevitConfig) -> bool:
    return (one.dims, one.key_dim, one.heads, one.depths) == (
        other.dims,
        other.key_dim,
        other.heads,
        other.depths,
    )


def _as_asked(model: Variant, found: LevitConfig) -> LevitConfig:
    """``model`` with the classes, heads and image size found in the file."""
    return replace(
        model.config,
        classes=found.classes,
        two_heads=found.two_heads,
        image_size=found.image_size,
    )


def _refuse_misfit(tensors: Mapping[str, torch.Tensor], config: LevitConfig, source: str) -> None:
    """Raise unless the tensors are exactly those that ``config`` has, derived buffers aside."""
    with torch.device("meta"):
        expected = Levit(config).state_dict()
    lines = [
        f"{name}: expected {list(expected[name].shape)}, found {list(tensor.shape)}"
        for name, tensor in tensors.items()
        if name in expected and tensor.shape != expected[name].shape
    ]
    lines += [f"{name}: unexpected" for name in tensors if name not in expected]
    lines += [
        f"{name}: not the table that the grid gives"
        for name, tensor in tensors.items()
        if name.endswith("attention_bias_idxs")
        and name in expected
        and tensor.shape == expected[name].shape
        and not torch.equal(tensor, expected[name])
    ]
    lines += [
        f"{name}: missing"
        for name in expected
        if name not in tensors and not name.endswith(DERIVED)
    ]
    if lines:
        shown = "; ".join(lines[:LISTED])
        rest = f"; and {len(lines) - LISTED} more" if len(lines) > LISTED else ""
        raise CheckpointError(
            f"{source} does not fit a LeViT of dims {list(config.dims)}, depths "
            f"{list(config.depths)}, heads {list(config.heads)}, {config.classes} classes: "
            f"{shown}{rest}",
            remedy="Leave out --model to let the shapes decide, or give the checkpoint's own.",
        )
