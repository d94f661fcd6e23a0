"""What each kind of operator computes, written once, in PyTorch.

A writer of a format is right when its file gives these numbers. In float64 they are the exact
answers, as far as anybody needs them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping

import numpy as np
import torch
from torch.nn import functional

from levit_export.core.network import Network, Op

Tensor = torch.Tensor


def evaluate(
    network: Network,
    inputs: Mapping[str, np.ndarray],
    *,
    dtype: torch.dtype = torch.float32,
    also: Collection[str] = (),
) -> dict[str, np.ndarray]:
    """The outputs of ``network``, and the values that ``also`` names, computed in ``dtype``."""
    wanted = {*network.outputs, *also}
    found: dict[str, np.ndarray] = {}
    for op, results in steps(network, inputs, dtype=dtype):
        for value, result in zip(op.outputs, results, strict=True):
            if value.name in wanted:
                found[value.name] = result.numpy()
    return {name: found[name] for name in (*network.outputs, *also)}


def steps(
    network: Network, inputs: Mapping[str, np.ndarray], *, dtype: torch.dtype = torch.float32
) -> Iterator[tuple[Op, tuple[Tensor, ...]]]:
    """Each operator in its turn with what it computes. A value is let go after its last reader."""
    known = {name: _given(array, dtype) for name, array in network.constants.items()}
    known |= {value.name: _given(inputs[value.name], dtype) for value in network.inputs}
    last = {name: op for op in network.ops for name in op.inputs}
    with torch.inference_mode():
        for op in network.ops:
            made = _FUNCTIONS[op.kind](*(known[name] for name in op.inputs), **op.attributes)
            results = made if isinstance(made, tuple) else (made,)
            known |= {v.name: r for v, r in zip(op.outputs, results, strict=True)}
            for name in set(op.inputs):
                if last[name] is op:
                    del known[name]
            yield op, results


def _given(array: np.ndarray, dtype: torch.dtype) -> Tensor:
    """Floating-point numbers in ``dtype``; whole ones (pixels, indices) as they are."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
) -> Tensor:
    return functional.conv2d(x, weight, bias, stride, padding, dilation, groups)


def _matmul(a: Tensor, b: Tensor, *, transpose_a: bool, transpose_b: bool) -> Tensor:
    left = a.transpose(-1, -2) if transpose_a else a
    right = b.transpose(-1, -2) if transpose_b else b
    return left @ right


def _batch_norm(
    x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, variance: Tensor, *, epsilon: float
) -> Tensor:
    return functional.batch_norm(x, mean, variance, scale, shift, eps=epsilon)


def _layer_norm(x: Tensor, scale: Tensor, shift: Tensor, *, epsilon: float) -> Tensor:
    return functional.layer_norm(x, x.shape[-1:], scale, shift, epsilon)


def _slice(
    x: Tensor,
    *,
    axes: tuple[int, ...],
    starts: tuple[int, ...],
    stops: tuple[int, ...],
    steps: tuple[int, ...],
) -> Tensor:
    places = [slice(None)] * x.dim()
    for axis, start, stop, step in zip(axes, starts, stops, steps, strict=True):
        places[axis] = slice(start, stop, step)
    return x[tuple(places)]


def _pad(x: Tensor, *, before: tuple[int, ...], after: tuple[int, ...]) -> Tensor:
    pairs = zip(reversed(before), reversed(after), strict=True)  # PyTorch starts at the last axis
    return functional.pad(x, [side for pair in pairs for side in pair])


def _gather(table: Tensor, index: Tensor, *, axis: int) -> Tensor:
    return table[(slice(None),) * axis + (index,)]


def _cast(x: Tensor, *, dtype: str) -> Tensor:
    # A float stands for the float that is computed in.
    wanted: torch.dtype = getattr(torch, dtype)
    return x.to(torch.float64 if x.dtype is torch.float64 and wanted.is_floating_point else wanted)


def _softmax(x: Tensor, *, axis: int) -> Tensor:
    return x.softmax(dim=axis)


def _mean(x: Tensor, *, axes: tuple[int, ...], keep: bool) -> Tensor:
    return x.mean(axes, keepdim=keep)


def _max_pool(
    x: Tensor, *, window: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]
) -> Tensor:
    return functional.max_pool2d(x, window, stride, padding)


def _average_pool(
    x: Tensor, *, window: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]
) -> Tensor:
    return functional.avg_pool2d(x, window, stride, padding, count_include_pad=False)


_FUNCTIONS: Mapping[str, Callable[..., Tensor | tuple[Tensor, ...]]] = {
    "convolution": _convolution,
    "linear": functional.linear,
    "matmul": _matmul,
    "add": torch.add,
    "subtract": torch.subtract,
    "multiply": torch.multiply,
    "divide": torch.divide,
    "relu": functional.relu,
    "hardswish": functional.hardswish,
    "silu": functional.silu,
    "sigmoid": torch.sigmoid,
    "gelu": lambda x, *, tanh: functional.gelu(x, approximate="tanh" if tanh else "none"),
    "softmax": _softmax,
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "mean": _mean,
    "max_pool": _max_pool,
    "average_pool": _average_pool,
    "reshape": lambda x, *, shape: x.reshape(shape),
    "transpose": lambda x, *, axes: x.permute(axes),
    "slice": _slice,
    "select": lambda x, *, axis, index: x.select(axis, index),
    "split": lambda x, *, axis, sizes: tuple(x.split(sizes, axis)),
    "concatenate": lambda *parts, axis: torch.cat(parts, axis),
    "pad": _pad,
    "gather": _gather,
    "cast": _cast,
}
