"""What a pass is: a function over a module that keeps the function the module computes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from levit_export.errors import PassError


@dataclass(frozen=True)
class Matched:
    """The pass rewrote ``count`` places and made the weights larger by ``bytes_added``.

    Bytes are those of float32 storage; negative when the pass made the model smaller.
    """

    count: int
    bytes_added: int = 0


@dataclass(frozen=True)
class NotApplicable:
    """The model positively has nothing for this pass, such as one head for ``merge_heads``."""

    reason: str


Outcome = Matched | NotApplicable


@dataclass(frozen=True)
class Pass:
    """A named rewrite. ``apply`` edits a module in place; the framework copies, checks, proves.

    It returns what it matched, or why there is positively nothing to match. Zero matches are an
    error: a pass that silently finds nothing has usually met a model it does not understand.
    """

    name: str
    apply: Callable[[nn.Module], Outcome]


def refuse_shared_weights(module: nn.Module) -> None:
    """Raise when one parameter serves two places: rewriting one would change the other."""
    owners: dict[int, str] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        first = owners.setdefault(id(parameter), name)
        if first != name:
            raise PassError(
                f"{first} and {name} are the same parameter",
                remedy="Untie the two (clone one of them) before exporting.",
            )


def refuse_training(module: nn.Module) -> None:
    """Raise when a part of the module is in train mode, where BatchNorm is another function."""
    for name, part in module.named_modules():
        if part.training:
            raise PassError(
                f"{name or 'the model'} is in train mode",
                remedy="Call model.eval() before preparing it.",
            )
