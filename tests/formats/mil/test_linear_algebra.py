"""Convolution, matrix products, attention and softmax."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mil_programs import FUNCTION, UNIT, Saved, assert_close, dot_error, mb

from levit_export.formats.mil.ops.linear import matmul

Save = Callable[..., Saved]
Array = npt.NDArray[Any]
U = UNIT[np.dtype(np.float32)]
FLOATS = ["float32", "float16"]


def _random(seed: int, *shape: int, dtype: str = "float32") -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def _torch_conv(x: Array, w: Array, pad: list[int], **options: Any) -> Array:
    """Convolution in float64; ``pad`` has before and after for every axis."""
    spatial = x.ndim - 2
    backwards = [pad[2 * a + side] for a in reversed(range(spatial)) for side in (0, 1)]
    padded = torch.nn.functional.pad(torch.from_numpy(x.astype(np.float64)), backwards)
    function = [torch.nn.functional.conv1d, torch.nn.functional.conv2d][spatial - 1]
    return np.asarray(function(padded, torch.from_numpy(w.astype(np.float64)), **options))


@settings(max_examples=25, derandomize=True)
@given(
    groups=st.sampled_from([1, 2, 4]),
    kernel=st.lists(st.integers(1, 4), min_size=1, max_size=2),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 2),
    pads=st.lists(st.integers(0, 3), min_size=4, max_size=4),
    dtype=st.sampled_from(FLOATS),
    bias=st.booleans(),
    images=st.integers(1, 2),
)
def test_conv_with_custom_padding(
    saved: Save,
    *,
    groups: int,
    kernel: list[int],
    stride: int,
    dilation: int,
    pads: list[int],
    dtype: str,
    bias: bool,
    images: int,
) -> None:
    """``conv`` agrees with PyTorch in float64 over strides, groups, padding and ranks."""
    spatial = len(kernel)
    x = _random(1, images, 4, *(9, 8)[:spatial], dtype=dtype)
    w = _random(2, 8, 4 // groups, *kernel, dtype=dtype)
    b = _random(3, 8, dtype=dtype)
    pad = pads[: 2 * spatial]

    def build(x: Any) -> Any:
        return mb.conv(
            x=x,
            weight=w,
            pad_type="custom",
            pad=pad,
            strides=[stride] * spatial,
            dilations=[dilation] * spatial,
            groups=groups,
            **({"bias": b} if bias else {}),
        )

    options = {"stride": stride, "dilation": dilation, "groups": groups}
    shift = (b if bias else np.zeros_like(b)).reshape(-1, *(1,) * spatial).astype(np.float64)
    exact = _torch_conv(x, w, pad, **options) + shift
    magnitude = _torch_conv(np.abs(x), np.abs(w), pad, **options) + np.abs(shift)
    error = dot_error(w[0].size + 1, magnitude)
    assert_close(saved(build, x=x).output(), exact, error=error)


@pytest.mark.parametrize("pad_type", ["valid", "same", "same_lower"])
@pytest.mark.parametrize(
    ("size", "kernel", "stride"), [(8, 3, 2), (7, 3, 2), (9, 2, 1), (5, 4, 3)]
)
def test_conv_with_named_padding(
    saved: Save, pad_type: str, size: int, kernel: int, stride: int
) -> None:
    """``same`` gives ceil(n / stride) windows; the odd element goes after (before for lower)."""
    x, w = _random(1, 1, 2, size, size), _random(2, 3, 2, kernel, kernel)
    total = max(0, (-(-size // stride) - 1) * stride + kernel - size)
    before = {"valid": 0, "same": total // 2, "same_lower": -(-total // 2)}[pad_type]
    pad = [before, 0 if pad_type == "valid" else total - before] * 2
    package = saved(
        lambda x: mb.conv(x=x, weight=w, pad_type=pad_type, strides=[stride, stride]), x=x
    )
    exact = _torch_conv(x, w, pad, stride=stride)
    magnitude = _torch_conv(np.abs(x), np.abs(w), pad, stride=stride)
    assert_close(package.output(), exact, error=dot_error(w[0].size, magnitude))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("lead", [(), (1,), (2, 3)])
def test_linear(saved: Save, dtype: str, lead: tuple[int, ...]) -> None:
    """``linear`` multiplies the last axis by the transposed weight and adds the bias."""
    x, w = _random(1, *lead, 40, dtype=dtype), _random(2, 6, 40, dtype=dtype)
    b = _random(3, 6, dtype=dtype)
    found = saved(lambda x: mb.linear(x=x, weight=w, bias=b), x=x).output()
    z, m = x.astype(np.float64), w.astype(np.float64)
    magnitude = np.abs(z) @ np.abs(m).T + np.abs(b).astype(np.float64)
    assert_close(found, z @ m.T + b.astype(np.float64), error=dot_error(41, magnitude))


PRODUCTS = [((3, 4), (4, 5)), ((2, 1, 3, 4), (6, 4, 5)), ((1, 3, 4), (2, 4, 1))]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shapes", PRODUCTS)
def test_matmul_broadcasts(saved: Save, dtype: str, shapes: tuple[Any, Any]) -> None:
    """``matmul`` broadcasts leading axes."""
    x, y = (_random(i, *s, dtype=dtype) for i, s in enumerate(shapes))
    found = saved(lambda x, y: mb.matmul(x=x, y=y), x=x, y=y).output()
    a, b = x.astype(np.float64), y.astype(np.float64)
    assert_close(found, a @ b, error=dot_error(4, np.abs(a) @ np.abs(b)))


@pytest.mark.parametrize("shapes", [((4,), (2, 4, 5)), ((2, 3, 4), (4,)), ((4,), (4,))])
def test_matmul_takes_vectors(shapes: tuple[Any, Any]) -> None:
    """A vector is a row or column that is dropped again (coremltools itself builds none)."""
    x, y = (_random(i, *s) for i, s in enumerate(shapes))
    found = matmul(x, y, transpose_x=np.array(x.ndim == 1), transpose_y=np.array(y.ndim == 1))
    a, b = x.astype(np.float64), y.astype(np.float64)
    assert_close(found, a @ b, error=dot_error(4, np.abs(a) @ np.abs(b)))


@pytest.mark.parametrize("transposed", list(itertools.product([False, True], repeat=2)))
def test_matmul_transposes(saved: Save, transposed: tuple[bool, bool]) -> None:
    """transpose_x and transpose_y swap the last two axes of their operand."""
    a, b = _random(1, 2, 3, 4), _random(2, 2, 4, 5)
    x, y = (m.swapaxes(-1, -2).copy() if t else m for m, t in zip((a, b), transposed, strict=True))

    def build(x: Any, y: Any) -> Any:
        return mb.matmul(x=x, y=y, transpose_x=transposed[0], transpose_y=transposed[1])

    exact = a.astype(np.float64) @ b
    magnitude = np.abs(a).astype(np.float64) @ np.abs(b)
    assert_close(saved(build, x=x, y=y).output(), exact, error=dot_error(4, magnitude))


@pytest.mark.parametrize("mask", ["none", "bool", "float"])
def test_attention(saved: Save, mask: str) -> None:
    """Attention agrees with PyTorch, without and with either kind of mask."""
    q, k, v = _random(1, 2, 3, 5, 8), _random(2, 2, 3, 7, 8), _random(3, 2, 3, 7, 4)
    rng = np.random.default_rng(0)
    admitted = rng.random((5, 7)) < 0.7
    admitted[:, 0] = True
    attn_mask = {"none": None, "bool": admitted, "float": _random(4, 5, 7)}[mask]
    options = {} if attn_mask is None else {"attn_mask": attn_mask}

    def build(q: Any, k: Any, v: Any) -> Any:
        return mb.scaled_dot_product_attention(query=q, key=k, value=v, **options)

    found = saved(build, specification=9, q=q, k=k, v=v).output()
    a, b, c = (torch.from_numpy(t).double() for t in (q, k, v))
    given_mask = None if attn_mask is None else torch.from_numpy(attn_mask)
    if given_mask is not None and given_mask.dtype != torch.bool:
        given_mask = given_mask.double()
    exact = torch.nn.functional.scaled_dot_product_attention(a, b, c, attn_mask=given_mask)
    # Scores of E products, off by d each, move every probability by a factor of e**(2 d).
    scores = np.abs(q).astype(np.float64) @ np.abs(k).swapaxes(-1, -2)
    d = np.max(dot_error(8 + 3, scores / np.sqrt(8) + 4))
    growth = 2 * d + (FUNCTION + 2 * 7 + 4) * U
    assert_close(found, exact.numpy(), error=growth * np.abs(v).max())


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("axis", [-1, 0, 1])
def test_softmax(saved: Save, dtype: str, axis: int) -> None:
    """``softmax`` sums to one along its axis, also for numbers whose exponentials overflow."""
    x = (_random(1, 3, 4, 6, dtype=dtype) * 200).astype(dtype)
    found = saved(lambda x: mb.softmax(x=x, axis=axis), x=x).output()
    z = x.astype(np.float64)
    e = np.exp(z - z.max(axis=axis, keepdims=True))
    exact = e / e.sum(axis=axis, keepdims=True)
    # The rounded difference x - max moves its exponential by U |x - max|, which e**-t bounds.
    spread = np.abs(z - z.max(axis=axis, keepdims=True))
    error = (FUNCTION + x.shape[axis] + 2 + 2 * spread) * U * exact + 2.0**-149
    assert_close(found, exact, error=error)
