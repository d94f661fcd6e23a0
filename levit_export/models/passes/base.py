"""What a pass is: a function over a module that keeps the function the module computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast
from zlib import crc32

import torch
from torch import nn

from levit_export.core.errors import PassError
from levit_export.models.architectures.layers import BNLinear, ConvBN, LinearBN

Probe = Callable[[nn.Module], torch.Tensor]
"""What one place of a network computes, of an input of its own; given the whole network.

A pass leaves it as it is: the same probe is asked before and after.
"""


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


def stored_numbers(module: nn.Module) -> int:
    """How many floating-point numbers the module stores; counters and indices do not count."""
    tensors = (*module.parameters(), *module.buffers())
    return sum(tensor.numel() for tensor in tensors if tensor.is_floating_point())


def no_probes(_: nn.Module) -> Mapping[str, Probe]:
    """No probes, for a pass that is proven on the whole network only."""
    return {}


@dataclass(frozen=True)
class Pass:
    """A named rewrite. ``apply`` edits a module in place; the framework copies, checks, proves.

    ``probes`` are asked of a module that the pass is about to rewrite: for the path of each place
    that it changes, what must stay the same there.
    It returns what it matched, or why there is positively nothing to match. Zero matches are an
    error: a pass that silently finds nothing has usually met a model it does not understand.
    """

    name: str
    apply: Callable[[nn.Module], Outcome]
    probes: Callable[[nn.Module], Mapping[str, Probe]] = no_probes


def example(layer: nn.Module, place: str) -> torch.Tensor:
    """A few random float64 inputs for ``layer``, the same ones whenever ``place`` is asked.

    Tokens ``(2, 3, C)`` for linear layers, maps of its kernel's size for convolutions, ``(4, C)``
    for a BatchNorm in front of a linear layer. Raises ``PassError`` for another layer.
    """
    first = next(layer.children(), layer) if isinstance(layer, ConvBN | LinearBN) else layer
    if isinstance(first, nn.Conv2d):
        shape: tuple[int, ...] = (2, first.in_channels, *first.kernel_size)
    elif isinstance(first, nn.Linear):
        shape = (2, 3, first.in_features)
    elif isinstance(first, BNLinear):
        shape = (4, cast("nn.Linear", first.l).in_features)
    else:
        raise PassError(
            f"{place} is a {type(layer).__name__}, for which no pass has inputs to try",
            remedy="Report the architecture.",
        )
    # Not hash(), which differs from process to process.
    generator = torch.Generator().manual_seed(crc32(place.encode()))
    return torch.randn(shape, dtype=torch.float64, generator=generator)


def of_layer(place: str, layer: nn.Module) -> Probe:
    """What the layer at the path ``place`` makes of an example; it may become another layer."""
    x = example(layer, place)
    return lambda network: network.get_submodule(place)(x)


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
