"""What a dialect makes of a file, and what it has to offer to be one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import torch

from levit_export.core.errors import CheckpointError
from levit_export.core.values import Preprocessing, Size, Task
from levit_export.models.checkpoints.reading import Stored
from levit_export.models.checkpoints.unwrapping import Names
from levit_export.models.zoo import Config, Variant

__all__ = ["Choices", "Dialect", "Found", "Stored", "Tensors", "renamed"]

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Choices:
    """What a user may settle that a file leaves open.

    ``image_size`` (height, width) other than the trained one is refused unless ``resize_bias``
    allows interpolation. ``activation`` overrides what the size of the model suggests, ``task``
    what the folder says.
    """

    model: Variant | None = None
    image_size: Size | None = None
    resize_bias: bool = False
    activation: str | None = None
    labels: tuple[str, ...] = ()
    task: Task | None = None
    preprocessing: Preprocessing | None = None


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


class Dialect(Names, Protocol):
    """A form in which checkpoints are published; a module of this package is one."""

    NAME: str

    def understand(self, stored: Stored, source: str, choices: Choices) -> Found:
        """Configuration and tensors.

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
