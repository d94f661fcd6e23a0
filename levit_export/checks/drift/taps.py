"""Read and replace what a PyTorch module computes at its taps, while it runs.

Eager modules are watched from outside: the output of a block's module is its ``out``, and of the
softmax inside a block the operand is ``scores`` and the result ``softmax``. So the checkpoint's
own network, a rewritten one and a rounded one are tapped by the same code and under the same names
as the exported network (``models.capture``).

Where ``given`` holds a value for a tap, that value goes on in place of the computed one. With all
taps of an artifact given, every segment between two taps is computed from what the artifact itself
had there, and the differences are what each segment adds: no error is passed on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from levit_export.core.network import Network
from levit_export.models.interpreter import evaluate

HEADS = ("head", "head_dist", "distill_head")
"""Blocks whose result is an output of the model, or is averaged into one."""

SOFTMAX = ("softmax", "_softmax")
POOL = "mean"
"""Functions of PyTorch by which taps are told."""

Values = dict[str, torch.Tensor]


class Tapping(TorchFunctionMode):
    """Collects the taps of one forward call in ``seen``, and puts ``given`` values in their place.

    A given value that is not of the computed one's size is not taken.
    """

    def __init__(self, given: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self.seen: Values = {}
        self._given = given
        self._open: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        block = self._open[-1] if self._open else ""
        if name in SOFTMAX and block:
            scores = self.tap(f"{block}.scores", args[0])
            result = func(scores, *args[1:], **(kwargs or {}))
            return self.tap(f"{block}.softmax", result)
        result = func(*args, **(kwargs or {}))
        return self.tap("pool", result) if name == POOL and not block else result

    def tap(self, name: str, value: torch.Tensor) -> torch.Tensor:
        """Note ``value``; the one to go on with."""
        self.seen.setdefault(name, value)
        other = self._given.get(name)
        if other is None or other.numel() != value.numel():
            return value
        return other.reshape(value.shape).to(value.dtype)

    def enter(self, block: str) -> None:
        """A block's module is called."""
        self._open.append(block)

    def leave(self, block: str, value: torch.Tensor) -> torch.Tensor:
        """The module has returned ``value``."""
        self._open.pop()
        if block in HEADS:  # its value is seen as an output of the model
            return value
        return self.tap(out_of(block), value)


def out_of(block: str) -> str:
    """The tap of a block's result: ``stem.0`` itself, ``….out`` of others."""
    return block if block.startswith("stem.") else f"{block}.out"


def block_of_tap(tap: str, blocks: Mapping[str, str]) -> str:
    """The block that computes a tap; an output of the model, and the pool, belong to the head."""
    found = tap if tap.startswith("stem.") else tap.rpartition(".")[0]
    names = tuple(blocks.values())
    return found if found in names else next((n for n in names if n in HEADS), "")


@contextmanager
def _watched(module: nn.Module, blocks: Mapping[str, str], tapping: Tapping) -> Iterator[None]:
    with ExitStack() as stack:
        for path, block in blocks.items():
            try:
                part = module.get_submodule(path)
            except AttributeError:  # merged into another head
                continue
            handles = (
                part.register_forward_pre_hook(lambda *_, block=block: tapping.enter(block)),
                part.register_forward_hook(
                    lambda _, __, value, block=block: tapping.leave(block, value)
                ),
            )
            for handle in handles:
                stack.callback(handle.remove)
        yield


@torch.no_grad()
def run(
    module: nn.Module,
    blocks: Mapping[str, str],
    image: torch.Tensor,
    outputs: tuple[str, ...],
    given: Mapping[str, torch.Tensor] | None = None,
) -> Values:
    """Every tap of ``module`` for ``image`` ``(B, 3, H, W)``, in order, and its ``outputs``."""
    tapping = Tapping(given or {})
    with _watched(module, blocks, tapping), tapping:
        result = module(image)
    values = result if isinstance(result, tuple | list) else (result,)
    return {**tapping.seen, **dict(zip(outputs, values, strict=True))}


@torch.no_grad()
def of_network(network: Network, image: np.ndarray) -> dict[str, np.ndarray]:
    """Every tap of a network for ``image``, in order, and its outputs, computed in float32."""
    (taken,) = network.inputs
    found = evaluate(network, {taken.name: image}, also=tuple(network.taps.values()))
    taps = {tap: found[value] for tap, value in network.taps.items()}
    return {**taps, **{name: found[name] for name in network.outputs}}


def in_tokens(value: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """A block's result ``(B, C, H, W)`` of a network laid out as maps, as tokens ``(B, N, C)``.

    ``shape`` is that of tokens; what has another form is given back as it is.
    """
    if value.ndim != 4 or len(shape) != 3:
        return value
    batch, channels, height, width = value.shape
    if (height * width, channels) != tuple(shape[1:]):
        return value
    return value.reshape(batch, channels, -1).swapaxes(1, 2)


def tensors(values: Mapping[str, np.ndarray], dtype: torch.dtype) -> Values:
    """Arrays as tensors of ``dtype``, those with a value that is not finite left out."""
    return {
        name: torch.from_numpy(np.ascontiguousarray(value, np.float64)).to(dtype)
        for name, value in values.items()
        if np.isfinite(value).all()
    }


def arrays(values: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Tensors as arrays."""
    return {name: value.detach().numpy() for name, value in values.items()}
