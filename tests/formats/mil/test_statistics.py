"""Reductions, normalisation and pooling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from mil_programs import UNIT, Saved, assert_close, dot_error, mb

from levit_export.core.errors import PackageError

Save = Callable[..., Saved]
Array = npt.NDArray[Any]
U = UNIT[np.dtype(np.float32)]
FLOATS = ["float32", "float16"]


def _random(seed: int, *shape: int, dtype: str = "float32") -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("axes", [[0], [1, -1], None])
@pytest.mark.parametrize("keep", [False, True])
def test_reductions(saved: Save, *, dtype: str, axes: list[int] | None, keep: bool) -> None:
    """Reductions over some or all axes agree with float64; half floats are summed in float32."""
    x = _random(1, 5, 6, 7, dtype=dtype)
    options = {"keep_dims": keep, **({} if axes is None else {"axes": axes})}

    def build(x: Any) -> list[Any]:
        return [
            mb.identity(x=getattr(mb, f"reduce_{name}")(x=x, **options), name=name)
            for name in ("mean", "sum", "max", "min")
        ]

    found = saved(build, x=x).run()
    over = None if axes is None else tuple(axes)
    z = x.astype(np.float64)
    count = z.size // z.sum(axis=over).size
    magnitude = np.abs(z).sum(axis=over, keepdims=keep)
    for name in ("mean", "sum", "max", "min"):
        # Core ML gives an output without axes as one of a single element.
        exact = np.atleast_1d(getattr(np, name)(z, axis=over, keepdims=keep))
        scale = {"sum": 1.0, "mean": 1.0 / count}.get(name, 0.0)
        assert_close(found[name], exact, error=dot_error(count, magnitude) * scale)


def test_integer_sums_stay_int32(saved: Save) -> None:
    """A sum of int32 is int32."""
    x = np.arange(6, dtype=np.int32).reshape(2, 3)
    found = saved(lambda x: mb.reduce_sum(x=x, axes=[1], keep_dims=False), x=x).output()
    assert found.dtype == np.int32
    assert found.tolist() == [3, 12]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("rank", [3, 4])
@pytest.mark.parametrize("affine", [False, True])
def test_batch_norm(saved: Save, *, dtype: str, rank: int, affine: bool) -> None:
    """``batch_norm`` standardises every channel by the statistics that it is given."""
    x = _random(1, 2, 3, *(5, 4)[: rank - 2], dtype=dtype)
    mean, gamma, beta = (_random(i, 3, dtype=dtype) for i in (2, 3, 4))
    variance = (np.abs(_random(5, 3)) + 0.5).astype(dtype)
    extra = {"gamma": gamma, "beta": beta} if affine else {}
    epsilon = np.dtype(dtype).type(1e-3)

    def build(x: Any) -> Any:
        return mb.batch_norm(x=x, mean=mean, variance=variance, epsilon=epsilon, **extra)

    z, m, v, g, b = (torch.from_numpy(t).double() for t in (x, mean, variance, gamma, beta))
    if not affine:
        g, b = torch.ones_like(g), torch.zeros_like(b)
    exact = torch.nn.functional.batch_norm(z, m, v, g, b, eps=float(epsilon)).numpy()
    reach = np.abs(exact) + np.abs(beta.astype(np.float64)).max() * affine
    # Subtraction, scale (variance + epsilon, square root, quotient, gamma), product, addition.
    assert_close(saved(build, x=x).output(), exact, error=8 * U * (2 * reach + 1))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("op", ["layer_norm", "layer_norm_2", "instance_norm"])
def test_norms_with_their_own_statistics(saved: Save, dtype: str, op: str) -> None:
    """Layer and instance norm agree with PyTorch in float64."""
    x = _random(1, 2, 3, 4, 5, dtype=dtype)
    epsilon = np.dtype(dtype).type(1e-3)
    shape = {"layer_norm": (5,), "layer_norm_2": (4, 5), "instance_norm": (3,)}[op]
    gamma, beta = (_random(i, *shape, dtype=dtype) for i in (2, 3))
    options = {"gamma": gamma, "beta": beta, "epsilon": epsilon}

    def build(x: Any) -> Any:
        if op == "instance_norm":
            return mb.instance_norm(x=x, **options)
        return mb.layer_norm(x=x, axes=list(range(4 - len(shape), 4)), **options)

    z, g, b = (torch.from_numpy(t).double() for t in (x, gamma, beta))
    if op == "instance_norm":
        exact = torch.nn.functional.instance_norm(z, weight=g, bias=b, eps=float(epsilon))
    else:
        exact = torch.nn.functional.layer_norm(z, shape, g, b, eps=float(epsilon))
    count = 20 if op != "layer_norm" else 5
    # Mean and variance are sums of `count` numbers; |standardised| <= sqrt(count).
    error = 2 * (count + 8) * U * np.sqrt(count) * (np.abs(gamma).max() + np.abs(beta).max())
    assert_close(saved(build, x=x).output(), exact.numpy(), error=float(error))


def _torch_pool(kind: str, x: Array, kernel: int, stride: int, pad: int, **options: Any) -> Array:
    function = getattr(torch.nn.functional, f"{kind}_pool{x.ndim - 2}d")
    return np.asarray(
        function(torch.from_numpy(x).double(), kernel, stride, padding=pad, **options)
    )


@settings(max_examples=25, derandomize=True)
@given(
    kind=st.sampled_from(["avg", "max"]),
    kernel=st.integers(1, 4),
    stride=st.integers(1, 3),
    pad=st.integers(0, 2),
    ceil=st.booleans(),
    exclude=st.booleans(),
    spatial=st.integers(1, 2),
    dtype=st.sampled_from(FLOATS),
)
@example(
    # The fourth window of the axis of 8 would start in the padding after it.
    kind="max",
    kernel=2,
    stride=3,
    pad=1,
    ceil=True,
    exclude=False,
    spatial=2,
    dtype="float32",
)
def test_pooling_with_symmetric_padding(
    saved: Save,
    *,
    kind: str,
    kernel: int,
    stride: int,
    pad: int,
    ceil: bool,
    exclude: bool,
    spatial: int,
    dtype: str,
) -> None:
    """Pooling agrees with PyTorch, whose rules Core ML adopts, ceil_mode included."""
    assume(pad <= kernel // 2)
    # Without padding coremltools keeps a window that starts behind the input; it has no value.
    assume(not (ceil and pad == 0 and stride > kernel))
    x = _random(1, 2, 3, *(9, 8)[:spatial], dtype=dtype)
    options: dict[str, Any] = {"exclude_padding_from_average": exclude} if kind == "avg" else {}

    def build(x: Any) -> Any:
        return getattr(mb, f"{kind}_pool")(
            x=x,
            kernel_sizes=[kernel] * spatial,
            strides=[stride] * spatial,
            pad_type="custom",
            pad=[pad] * (2 * spatial),
            ceil_mode=ceil,
            **options,
        )

    extra: dict[str, Any] = {"ceil_mode": ceil}
    if kind == "avg":
        extra["count_include_pad"] = not exclude
    exact = _torch_pool(kind, x, kernel, stride, pad, **extra)
    count = kernel**spatial
    error = dot_error(count, np.abs(x).astype(np.float64).max()) if kind == "avg" else 0.0
    assert_close(saved(build, x=x).output(), exact, error=error)


@pytest.mark.parametrize("kind", ["avg", "max"])
@pytest.mark.parametrize("pad_type", ["valid", "same", "same_lower"])
def test_pooling_with_named_padding(saved: Save, kind: str, pad_type: str) -> None:
    """Named padding puts the odd element after (same) or before (same_lower)."""
    x = _random(1, 1, 2, 8, 8)
    # Kernel 3 with stride 2 on 8 elements needs one padded element.
    b, a = {"valid": (0, 0), "same": (0, 1), "same_lower": (1, 0)}[pad_type]
    filler = 0.0 if kind == "avg" else -np.inf
    padded = np.pad(x, [(0, 0), (0, 0), (b, a), (b, a)], constant_values=filler)
    exact = _torch_pool(kind, padded, 3, 2, 0)

    def build(x: Any) -> Any:
        pool = getattr(mb, f"{kind}_pool")
        return pool(x=x, kernel_sizes=[3, 3], strides=[2, 2], pad_type=pad_type)

    assert_close(saved(build, x=x).output(), exact, error=dot_error(9, np.abs(x).max()))


def test_a_window_without_elements_is_refused(saved: Save) -> None:
    """A mean over padding alone has no value; the evaluator says so."""
    x = _random(1, 1, 1, 4)

    def build(x: Any) -> Any:
        return mb.avg_pool(
            x=x,
            kernel_sizes=[2],
            strides=[1],
            pad_type="custom",
            pad=[2, 2],
            exclude_padding_from_average=True,
        )

    with pytest.raises(PackageError, match="in the padding entirely"):
        saved(build, x=x).output()
