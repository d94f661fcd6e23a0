"""Matrix products and attention.

Source: coremltools, MIL op sets ``linear`` and (iOS 18) ``transformers``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from levit_export.formats.mil.elements import Array
from levit_export.formats.mil.ops.bounds import bounded, flag
from levit_export.formats.mil.ops.overflow import checked
from levit_export.formats.mil.ops.reduce import softmax_along

_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def linear(x: Array, weight: Array, *, bias: Array | None = None) -> Array:
    """``y[..., o] = sum_i x[..., i] weight[o, i] + bias[o]``.

    The leading axes are merged, so that BLAS sees one product of two matrices.
    """
    if weight.ndim != 2 or x.ndim < 1 or x.shape[-1] != weight.shape[1]:
        raise ValueError(f"x {list(x.shape)} does not fit weight {list(weight.shape)}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias {list(bias.shape)} does not fit weight {list(weight.shape)}")
    shape = bounded((*x.shape[:-1], weight.shape[0]))
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    y = rows @ weight.T
    if bias is not None:
        y += bias
    return np.reshape(y, shape)


def matmul(
    x: Array, y: Array, *, transpose_x: Array | None = None, transpose_y: Array | None = None
) -> Array:
    """``z[..., i, j] = sum_k x[..., i, k] y[..., k, j]``; leading axes broadcast.

    ``transpose_x`` and ``transpose_y`` swap the last two axes first (of operands of rank 2 or
    more: a vector has nothing to swap).
    """
    left = x.swapaxes(-1, -2) if flag(transpose_x) and x.ndim > 1 else x
    right = y.swapaxes(-1, -2) if flag(transpose_y) and y.ndim > 1 else y
    if left.ndim < 1 or right.ndim < 1:
        raise ValueError("a scalar has no matrix product")
    batch = np.broadcast_shapes(left.shape[:-2], right.shape[:-2])
    bounded((*batch, *left.shape[-2:-1], *(right.shape[-1:] if right.ndim > 1 else ())))
    return checked(np.matmul, left, right)


def einsum(values: Sequence[Array], equation: str) -> Array:
    """``z[b, c, h, v] = sum_w x[b, c, h, w] y[b, w, h, v]``, with or without ``b``.

    The only equation that MIL knows, whatever letters it is written in; ``b`` and ``h`` broadcast.
    """
    letters = "".join(equation.split())
    names = dict.fromkeys(c for c in letters if c.isalpha())
    plain = letters.translate(str.maketrans("".join(names), _LETTERS[: len(names)]))
    if plain not in ("abcd,adce->abce", "abc,cbd->abd"):
        raise NotImplementedError(f"einsum of {equation!r}")
    x, y = values
    if x.ndim != y.ndim or x.ndim != plain.index(","):
        raise ValueError(f"{list(x.shape)} and {list(y.shape)} do not fit {equation!r}")
    return np.ascontiguousarray(matmul(x.swapaxes(-3, -2), y.swapaxes(-3, -2)).swapaxes(-3, -2))


def scaled_dot_product_attention(
    query: Array, key: Array, value: Array, *, attn_mask: Array | None = None
) -> Array:
    """``softmax(query key^T / sqrt(E) + mask) value``, ``E`` the last size of ``query``.

    A boolean mask admits an element where it is True; a float mask is added.
    """
    scores = matmul(query, key.swapaxes(-1, -2))
    scores /= np.float32(math.sqrt(query.shape[-1]))
    if attn_mask is not None:
        refused = np.float32(-np.inf)
        mask = (
            np.where(attn_mask, np.float32(0), refused) if attn_mask.dtype == bool else attn_mask
        )
        scores += mask
    return matmul(softmax_along(scores, -1), value)
