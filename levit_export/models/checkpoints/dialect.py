"""What passes between reading a file and understanding it, and what a dialect has to offer.

A *dialect* is a form in which checkpoints are published: the authors', timm's, transformers',
vit-pytorch's, and the grafted networks'. Each is a module of this package. It knows the names of
its tensors, finds the configuration in their shapes, and renames them to those of our module.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeVar

import torch

from levit_export.core.errors import CheckpointError
from levit_export.models.checkpoints.limits import sha256_of
from levit_export.models.loading import ModelChoice
from levit_export.models.zoo import Config

Tensors = Mapping[str, torch.Tensor]
Value = TypeVar("Value")


@dataclass(frozen=True)
class Stored:
    """What a checkpoint holds, as it was stored; only wrappers and their prefixes are gone.

    ``config`` and ``preprocessor`` are ``config.json`` and ``preprocessor_config.json`` of a
    folder. ``file`` is the weight file, ``files`` are all that hold weights: the index and its
    shards, where there are several. ``remarks`` are sentences on what was chosen among several.
    """

    tensors: dict[str, torch.Tensor]
    config: Mapping[str, Any] | None
    preprocessor: Mapping[str, Any] | None
    file: Path
    files: tuple[Path, ...]
    remarks: tuple[str, ...]

    @property
    def sha256(self) -> str:
        """Hex digest of the weight file; of the index and its shards one after the other."""
        return sha256_of(*self.files)


@dataclass(frozen=True)
class Settled(Generic[Value]):
    """What was decided, what was found on the way, and what was assumed, a sentence each."""

    value: Value
    remarks: tuple[str, ...] = ()
    assumptions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Found:
    """A file understood: the configuration, and its tensors under the names of our module.

    ``theirs`` is what the file calls, or would call, each tensor of the module; a tensor that no
    module of this dialect has keeps its own name. ``activation_said`` tells whether the file
    itself names the activation; ``recipe`` is whose preprocessing is assumed where no file says
    one.
    """

    dialect: str
    config: Config
    tensors: Tensors
    theirs: Mapping[str, str]
    remarks: tuple[str, ...] = ()
    assumptions: tuple[str, ...] = ()
    activation_said: bool = False
    recipe: Literal["fair", "timm", "transformers"] = "fair"


class Names(Protocol):
    """A form of checkpoint, known by the names of its layers."""

    @property
    def STEMS(self) -> tuple[str, ...]:  # noqa: N802 - modules have these as constants
        """Names of first layers; a network of this form has one of them."""

    def recognises(self, tensors: Tensors) -> bool:
        """Whether the tensors have these names."""


class Dialect(Names, Protocol):
    """A form in which checkpoints are published; a module of this package is one."""

    NAME: str

    def understand(self, stored: Stored, source: str, choice: ModelChoice) -> Found:
        """Find the configuration, and rename the tensors.

        Raises ``CheckpointError`` where the shapes fit nothing, and ``UsageError`` where they fit
        several image sizes and nothing decides.
        """


def renamed(tensors: Tensors, theirs: Mapping[str, str]) -> dict[str, torch.Tensor]:
    """The tensors under our names; those that ``theirs`` does not know keep their own."""
    ours = {name: own for own, name in theirs.items()}
    found: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        own = ours.get(name, name)
        if own in found:
            raise CheckpointError(
                f"{name} and another tensor of the file are the same part of the model",
                remedy="Save the state dict of one model.",
            )
        found[own] = tensor
    return found


def shape_of(tensors: Tensors, name: str, rank: int) -> tuple[int, ...]:
    """The shape of a tensor of ``rank`` dimensions.

    Raises ``KeyError`` where the file has no such tensor, and ``ValueError`` where it has other
    dimensions or no elements.
    """
    shape = tuple(tensors[name].shape)
    if len(shape) != rank or 0 in shape:
        raise ValueError(f"{name} is {list(shape)}, expected {rank} dimensions, none of them 0")
    return shape
