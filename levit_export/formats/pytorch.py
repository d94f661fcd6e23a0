"""PyTorch itself as a session: the reference that every artifact is held against."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from levit_export.core import files
from levit_export.core.errors import ArtifactError, RuntimeFailedError, UsageError
from levit_export.core.packages import told
from levit_export.core.quiet import first_line
from levit_export.core.values import Signature, Tensors, TensorSpec
from levit_export.models.capture import ONE_AT_A_TIME

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
        self.signature = signature
        self.runtime = f"PyTorch {torch.__version__} eager (CPU, {arithmetic})"

    def run(self, inputs: Tensors) -> dict[str, np.ndarray]:
        """One forward call; outputs are float64 for ``fp64``, else float32."""
        tensor = torch.from_numpy(np.ascontiguousarray(inputs["input"]))
        try:
            with ONE_AT_A_TIME, torch.inference_mode(), cpu_threads(self._threads):
                value = tensor.to(_DTYPES[self._arithmetic])
                if self._rounding is None:
                    outputs = self._module(value)
                else:
                    with self._rounding:
                        outputs = self._module(self._rounding.rounded(value))
        except RuntimeError as error:
            raise RuntimeFailedError(
                f"PyTorch could not run the model on shape {tuple(tensor.shape)}: {error}",
                remedy=f"Give an input of shape {self.signature.inputs[0].shape}.",
            ) from error
        if isinstance(outputs, torch.Tensor):
            outputs = (outputs,)
        names = (spec.name for spec in self.signature.outputs)
        return {name: out.numpy() for name, out in zip(names, outputs, strict=True)}


SUFFIXES = (".pt2", ".pt")
"""Of programs that PyTorch itself wrote: ``torch.export`` and TorchScript."""


class DoubleOperators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Has every operator compute in float64 where the program says float32.

    A captured program names float32 in its operators and holds constants of that type, which
    ``module.double()`` leaves alone. What a program says of its own types is not asserted.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._assert_tensor_metadata.default:  # noqa: SLF001 - its name
            return None

        def widened(value: Any) -> Any:
            if value is torch.float32:
                return torch.float64
            if isinstance(value, torch.Tensor) and value.dtype is torch.float32:
                return value.double()
            if isinstance(value, list | tuple):
                return type(value)(widened(each) for each in value)
            return value

        return func(*widened(args), **{k: widened(v) for k, v in (kwargs or {}).items()})


class TorchFile:
    """A ``torch.export`` (``.pt2``) or TorchScript (``.pt``) file, read to be a reference.

    Both are programs, and reading one trusts whoever wrote it. ``inputs`` and ``outputs`` are what
    the file says: TorchScript keeps the names of inputs and nothing else, so its shapes are empty
    and it has no outputs. ``values`` are the names of inner values in order, each with those that
    are made of it; TorchScript gives out none.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.inputs: tuple[TensorSpec, ...] = ()
        self.outputs: tuple[TensorSpec, ...] = ()
        self.values: Mapping[str, tuple[str, ...]] = {}
        try:
            files.require_regular(path)
            if path.suffix == ".pt2":
                self.module: Any = self._exported()
            else:
                self.module = torch.jit.load(path, map_location="cpu")  # type: ignore[no-untyped-call]
                schema: Any = self.module.forward.schema
                names = [each.name for each in schema.arguments[1:]]
                self.inputs = tuple(TensorSpec(name, ()) for name in names)
        except Exception as error:
            kind = "torch.export" if path.suffix == ".pt2" else "TorchScript"
            raise ArtifactError(
                f"{path} cannot be read as a {kind} program: {first_line(error)}",
                remedy="Write it with torch.export.save (.pt2) or torch.jit.save (.pt); a "
                "checkpoint of tensors alone holds no network.",
            ) from error

    def _exported(self) -> torch.fx.GraphModule:
        # No pickle inside may hold anything but tensors. ``torch.export.load`` reads them without
        # that limit where it fails with it
        # (https://docs.pytorch.org/docs/stable/notes/serialization.html names this variable).
        with told("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1"):
            program = torch.export.load(self.path)
        # Converters decompose a program before they name its values; without in-place operators
        # and with their names, more values are found under one name.
        program = program.run_decompositions({})
        nodes = {node.name: node for node in program.graph.nodes}
        names = program.graph_signature.user_outputs
        self.inputs = tuple(_spec(nodes[str(n)]) for n in program.graph_signature.user_inputs)
        self.outputs = tuple(_spec(nodes[name]) for name in names if name in nodes)
        self.values = {
            node.name: tuple(user.name for user in node.users)
            for node in program.graph.nodes
            if node.op == "call_function" and isinstance(node.meta.get("val"), torch.Tensor)
        }
        module = program.module(check_guards=False)
        if not isinstance(module, torch.fx.GraphModule):
            raise TypeError("it holds no graph")
        return module


class TorchFileSession:
    """A program of PyTorch as :class:`levit_export.core.values.Session`.

    It takes and gives what ``signature`` says.
    """

    def __init__(
        self,
        file: TorchFile,
        signature: Signature,
        arithmetic: Literal["fp64", "fp32"],
        *,
        threads: int | None = None,
        taps: Sequence[str] = (),
    ) -> None:
        self._file = file
        self._arithmetic = arithmetic
        self._threads = threads
        self._taps = tuple(taps)
        self.signature = signature
        self.runtime = f"PyTorch {torch.__version__} (CPU, {arithmetic})"

    def run(self, inputs: Tensors) -> dict[str, np.ndarray]:
        """One forward call; outputs and taps are float64 for ``fp64``."""
        given = [torch.from_numpy(np.ascontiguousarray(inputs[s.name])) for s in self._file.inputs]
        try:
            with torch.no_grad(), cpu_threads(self._threads):
                if self._arithmetic == "fp64":
                    with DoubleOperators():  # type: ignore[no-untyped-call]
                        found = self._called(given)
                else:
                    found = self._called(given)
        except (RuntimeError, TypeError, ValueError, AssertionError) as error:
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in given)
            raise RuntimeFailedError(
                f"PyTorch could not run {self._file.path.name} on shapes {shapes}: "
                f"{first_line(error)}",
                remedy="Give inputs of the shapes and types that it was captured with.",
            ) from error
        return {name: value.detach().numpy() for name, value in found.items()}

    def _called(self, given: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        module = self._file.module
        if not isinstance(module, torch.fx.GraphModule):
            found = module(*given)
            if isinstance(found, Mapping):
                return {str(name): value for name, value in found.items()}
            return {f"output{at}": value for at, value in enumerate(_flat(found))}
        recorder = _Recorder(module, self._taps)
        outputs = _flat(recorder.run(*given))
        named = zip((spec.name for spec in self._file.outputs), outputs, strict=True)
        return {**recorder.found, **dict(named)}


class _Recorder(torch.fx.Interpreter):
    """Runs a graph and keeps the values that ``taps`` names."""

    def __init__(self, module: torch.fx.GraphModule, taps: Sequence[str]) -> None:
        super().__init__(module)
        self._wanted = set(taps)
        self.found: dict[str, torch.Tensor] = {}

    def run_node(self, n: torch.fx.Node) -> Any:
        """Compute one value."""
        value = super().run_node(n)
        if n.name in self._wanted and isinstance(value, torch.Tensor):
            self.found[n.name] = value
        return value


def _flat(outputs: Any) -> list[torch.Tensor]:
    """The tensors of what a program gives, however they are nested."""
    if isinstance(outputs, torch.Tensor):
        return [outputs]
    if isinstance(outputs, Mapping):
        outputs = outputs.values()
    elif not isinstance(outputs, list | tuple):
        return []
    return [tensor for each in outputs for tensor in _flat(each)]


def _spec(node: torch.fx.Node) -> TensorSpec:
    """Name, shape and type of a value of a captured program; None for an open dimension."""
    value = node.meta["val"]
    if not isinstance(value, torch.Tensor):
        raise UsageError(
            f"{node.name} is a {type(value).__name__}, not a tensor",
            remedy="Export a program that takes and gives tensors alone.",
        )
    shape = tuple(side if isinstance(side, int) else None for side in value.shape)
    return TensorSpec(node.name, shape, str(value.dtype).removeprefix("torch."))


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
