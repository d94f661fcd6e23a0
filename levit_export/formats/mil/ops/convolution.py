"""Convolution.

Source: coremltools, MIL op ``conv`` (a cross-correlation, as in PyTorch).
"""

from __future__ import annotations

import math

import numpy as np

from levit_export.formats.mil.elements import Array
from levit_export.formats.mil.ops.bounds import bounded, integer
from levit_export.formats.mil.ops.windows import Windows, windows


def conv(
    x: Array,
    weight: Array,
    *,
    bias: Array | None = None,
    strides: Array | None = None,
    pad_type: str = "valid",
    pad: Array | None = None,
    dilations: Array | None = None,
    groups: Array | None = None,
) -> Array:
    """``y[n, o, p] = sum_(c, k) weight[o, c, k] x[n, d, p * stride + k * dilation] + bias[o]``.

    ``p`` and ``k`` run over one to three spatial axes. With ``groups`` ``G``, output ``o`` sees
    the channels ``d = c + C/G * floor(o / (O/G))`` only.

    Done as a matrix product: for every image the elements that the kernel positions meet are laid
    out as columns.
    """
    g = 1 if groups is None else integer(groups)
    outputs, width = _check(x, weight, bias, g)
    w = windows(
        x.shape[2:],
        weight.shape[2:],
        strides=strides,
        dilations=dilations,
        pad_type=pad_type,
        pad=pad,
    )
    y = np.empty(bounded((x.shape[0], outputs, *w.counts)), dtype=x.dtype)
    taps = math.prod(w.kernel)
    matrices = weight.reshape(g, outputs // g, width * taps)
    padded = w.padded(x, 0.0)
    for image, out in zip(padded, y, strict=True):
        columns = _columns(image, w).reshape(g, width * taps, math.prod(w.counts))
        np.matmul(matrices, columns, out=out.reshape(g, outputs // g, -1))
    if bias is not None:
        y += bias.reshape(-1, *(1,) * len(w.counts))
    return y


def _columns(image: Array, w: Windows) -> Array:
    """``image[c, ...]`` as ``[c, kernel positions, windows]``."""
    if math.prod(w.kernel) == 1:
        return np.ascontiguousarray(next(w.taps(image)))
    columns = np.empty(
        bounded((image.shape[0], math.prod(w.kernel), *w.counts)), dtype=image.dtype
    )
    for tap, elements in enumerate(w.taps(image)):
        columns[:, tap] = elements
    return columns


def _check(x: Array, weight: Array, bias: Array | None, groups: int) -> tuple[int, int]:
    """Output channels, and input channels that each of them sees."""
    if not 3 <= x.ndim <= 5 or weight.ndim != x.ndim:
        raise ValueError(f"x {list(x.shape)} and weight {list(weight.shape)} need rank 3, 4 or 5")
    outputs, width = weight.shape[:2]
    if groups < 1 or width * groups != x.shape[1] or outputs % groups:
        raise ValueError(
            f"{x.shape[1]} channels do not split into {groups} groups for weight "
            f"{list(weight.shape)}"
        )
    if bias is not None and bias.shape != (outputs,):
        raise ValueError(f"bias {list(bias.shape)} should hold {outputs} numbers")
    return outputs, width
