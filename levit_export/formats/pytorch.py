"""PyTorch itself as a session: the reference that every artifact is held against."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from levit_export.core.errors import RuntimeFailedError
from levit_export.core.values import Signature, Tensors

FloatType = Literal["fp64", "fp32", "fp16", "bf16"]
_DTYPES = {
    "fp64": torch.float64,
    "fp32": torch.float32,
    "fp16": torch.float32,
    "bf16": torch.float32,
}


class RoundedOperators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Rounds what every operator returns by ``rounded``; it stays stored as float32.

    This is how a program of 16-bit numbers behaves that accumulates in float32 and rounds each
    op's result. ``resting`` counts the parts of the network in progress that stay in float32.
    """

    def __init__(self, rounded: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.rounded = rounded
        self.resting = 0

    def enter(self, *_: Any) -> None:
        """A part that stays in float32 begins."""
        self.resting += 1

    def leave(self, *_: Any) -> None:
        """A part that stays in float32 ends."""
        self.resting -= 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        is_float = isinstance(result, torch.Tensor) and result.dtype is torch.float32
        if is_float and not self.resting:
            return self.rounded(result)
        return result


def to_half(x: torch.Tensor) -> torch.Tensor:
    """``x`` rounded as float16 rounds, but without an end to the range.

    What overflows in float16 is not rounding: a tolerance that follows from this stays finite, and
    an artifact that does overflow fails it.
    """
    rounded = x.to(torch.float16).to(torch.float32)
    if math.isfinite(rounded.sum()):  # just where all are: float32 holds 1e33 times 65504
        return rounded
    mantissa, exponent = torch.frexp(x)
    wide = torch.ldexp(torch.round(mantissa * 2.0**11) / 2.0**11, exponent)
    return torch.where(torch.isfinite(rounded), rounded, wide)


def to_bfloat16(x: torch.Tensor) -> torch.Tensor:
    """``x`` rounded as bfloat16 rounds, whose range is float32's."""
    return x.to(torch.bfloat16).to(torch.float32)


_ROUNDED = {"fp16": to_half, "bf16": to_bfloat16}


def round_(
    module: nn.Module, rounded: Callable[[torch.Tensor], torch.Tensor], keep: Collection[str] = ()
) -> RoundedOperators:
    """Round the weights of ``module`` in place, but for the parts at the paths ``keep``.

    Under the mode that is returned its operators are rounded too, again but for those parts.
    """
    rounding = RoundedOperators(rounded)
    kept = tuple(f"{path}." for path in keep)
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_floating_point() and not name.startswith(kept):
            tensor.data = rounded(tensor.data)
    for path, part in module.named_modules():
        if path in keep:
            part.register_forward_pre_hook(rounding.enter)
            part.register_forward_hook(rounding.leave)
    return rounding


class EagerSession:
    """A module, run in float64, in float32, or rounded to 16 bits at every operator.

    ``module`` becomes the session's own: it is converted in place. ``fp16`` and ``bf16`` round the
    weights as well, and leave the parts at the paths ``keep`` in float32. Any batch is accepted.
    """

    def __init__(
        self,
        module: nn.Module,
        signature: Signature,
        *,
        arithmetic: FloatType = "fp32",
        threads: int | None = None,
        keep: Collection[str] = (),
    ) -> None:
        self._module = module.eval().to(_DTYPES[arithmetic])
        self._rounding: RoundedOperators | None = None
        if arithmetic in _ROUNDED:
            self._rounding = round_(self._module, _ROUNDED[arithmetic], keep)
        self._arithmetic = arithmetic
        self._threads = threads
        self._signature = signature

    @property
    def signature(self) -> Signature:
        """What :meth:`run` takes and gives."""
        return self._signature

    @property
    def runtime(self) -> str:
        """``PyTorch 2.13.0 eager (CPU, fp32)``."""
        return f"PyTorch {torch.__version__} eager (CPU, {self._arithmetic})"

    def run(self, inputs: Tensors) -> dict[str, np.ndarray]:
        """One forward call; outputs are float64 for ``fp64``, else float32."""
        tensor = torch.from_numpy(np.ascontiguousarray(inputs["input"]))
        try:
            with torch.inference_mode(), cpu_threads(self._threads):
                value = tensor.to(_DTYPES[self._arithmetic])
                if self._rounding is None:
                    outputs = self._module(value)
                else:
                    with self._rounding:
                        outputs = self._module(self._rounding.rounded(value))
        except RuntimeError as error:
            raise RuntimeFailedError(
                f"PyTorch could not run the model on shape {tuple(tensor.shape)}: {error}",
                remedy=f"Give an input of shape {self._signature.inputs[0].shape}.",
            ) from error
        if isinstance(outputs, torch.Tensor):
            outputs = (outputs,)
        names = (spec.name for spec in self._signature.outputs)
        return {name: out.numpy() for name, out in zip(names, outputs, strict=True)}


@contextmanager
def cpu_threads(count: int | None) -> Iterator[None]:
    """PyTorch's thread count is the process's, so it is set for one call and put back."""
    before = torch.get_num_threads()
    if count is None or count == before:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
