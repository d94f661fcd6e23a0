"""Convolution and its transpose.

Source: coremltools, MIL ops ``conv`` (a cross-correlation, as in PyTorch) and ``conv_transpose``.
"""

from __future__ import annotations

import itertools
import math

import numpy as np

from levit_export.formats.mil.elements import Array
from levit_export.formats.mil.ops.bounds import bounded, integer, integers, same_length
from levit_export.formats.mil.ops.windows import Windows, last, windows

_BLOCK = 1 << 18
"""Numbers that a depthwise convolution lays out at a time, so that they stay in the cache."""


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
    out as columns. Where every group has one channel they take more room than the image by far,
    and are laid out for some channels at a time.
    """
    g = 1 if groups is None else integer(groups)
    if not 3 <= x.ndim <= 5 or weight.ndim != x.ndim:
        raise ValueError(f"x {list(x.shape)} and weight {list(weight.shape)} need rank 3, 4 or 5")
    outputs, width = weight.shape[:2]
    if g < 1 or width * g != x.shape[1] or outputs % g:
        raise ValueError(
            f"{x.shape[1]} channels do not split into {g} groups for weight {list(weight.shape)}"
        )
    _check_bias(bias, outputs)
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
    added = (np.zeros(outputs, x.dtype) if bias is None else bias).reshape(g, -1)
    if width == 1 and taps > 1:
        for image, out in zip(x, y.reshape(x.shape[0], g, -1, *w.counts), strict=True):
            _depthwise(image, matrices, added, w, out)
        return y
    for image, out in zip(w.padded(x, 0.0), y, strict=True):
        columns = _columns(image, w).reshape(g, width * taps, math.prod(w.counts))
        product = out.reshape(g, outputs // g, -1)
        np.matmul(matrices, columns, out=product)
        if bias is not None:
            product += bias.reshape(g, -1, 1)
    return y


def conv_transpose(
    x: Array,
    weight: Array,
    *,
    bias: Array | None = None,
    pad: Array | None = None,
    output_shape: Array | None = None,
    pad_type: str = "valid",
    strides: Array | None = None,
    dilations: Array | None = None,
    groups: Array | None = None,
) -> Array:
    """``z[n, o, p * stride + k * dilation] += weight[c, o, k] x[n, c, p]``, cut at the ends.

    ``y = z[before : before + size] + bias``, zeros where that reaches beyond ``z``; on every axis
    with ``e = (kernel - 1) * dilation + 1`` and ``m = (n - 1) * stride + e``, the size of ``z``:

    - ``valid``: ``before = 0``, ``size = m``; ``custom``: ``before`` and after as ``pad`` says;
    - ``same``: ``size = n * stride``, ``before = floor((m - size) / 2)``, not below 0.

    ``output_shape`` gives ``size`` instead. With ``groups`` ``G``, input ``c`` reaches the outputs
    of its group ``floor(c / (C/G))`` only.
    """
    g = 1 if groups is None else integer(groups)
    if not 3 <= x.ndim <= 5 or weight.ndim != x.ndim:
        raise ValueError(f"x {list(x.shape)} and weight {list(weight.shape)} need rank 3, 4 or 5")
    channels, width = weight.shape[:2]
    if g < 1 or channels != x.shape[1] or channels % g:
        raise ValueError(
            f"{x.shape[1]} channels do not split into {g} groups for weight {list(weight.shape)}"
        )
    _check_bias(bias, width * g)
    spatial, kernel = x.shape[2:], weight.shape[2:]
    s = (1,) * len(spatial) if strides is None else integers(strides)
    d = (1,) * len(spatial) if dilations is None else integers(dilations)
    same_length(len(spatial), strides=s, dilations=d)
    if min((*s, *d, *kernel, 1)) < 1:
        raise ValueError(f"kernel {kernel}, strides {s} and dilations {d} must be positive")
    full = bounded(
        (n - 1) * a + (k - 1) * b + 1 for n, k, a, b in zip(spatial, kernel, s, d, strict=True)
    )
    before, sizes = _kept(spatial, s, full, pad_type=pad_type, pad=pad)
    if output_shape is not None:
        given = integers(output_shape)
        if given[:2] != (x.shape[0], width * g) or len(given) != x.ndim:
            raise ValueError(f"output_shape {list(given)} does not fit x {list(x.shape)}")
        sizes = given[2:]
        if pad_type in ("same", "same_lower"):
            before = tuple(max(0, m - n) // 2 for m, n in zip(full, sizes, strict=True))
    bounded((width * math.prod(kernel), math.prod(spatial)))
    matrices = weight.reshape(g, channels // g, width * math.prod(kernel)).swapaxes(1, 2)
    y = np.zeros(bounded((x.shape[0], width * g, *sizes)), dtype=x.dtype)
    z = np.empty(bounded((width * g, *full)), dtype=x.dtype)
    for image, out in zip(x, y, strict=True):
        columns = (matrices @ image.reshape(g, channels // g, -1)).reshape(
            width * g, math.prod(kernel), *spatial
        )
        z[...] = 0
        for tap, position in enumerate(itertools.product(*map(range, kernel))):
            where = [
                slice(p * b, p * b + (n - 1) * a + 1, a)
                for p, a, b, n in zip(position, s, d, spatial, strict=True)
            ]
            z[last(where)] += columns[:, tap]
        kept = z[last(slice(b, b + n) for b, n in zip(before, sizes, strict=True))]
        out[last(map(slice, kept.shape[1:]))] = kept
    if bias is not None:
        y += bias.reshape(-1, *(1,) * len(spatial))
    return y


def _kept(
    spatial: tuple[int, ...],
    strides: tuple[int, ...],
    full: tuple[int, ...],
    *,
    pad_type: str,
    pad: Array | None,
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What :func:`conv_transpose` keeps of each axis: where it begins, and how much."""
    if pad_type == "same":
        sizes = tuple(n * s for n, s in zip(spatial, strides, strict=True))
        return tuple(max(0, m - n) // 2 for m, n in zip(full, sizes, strict=True)), sizes
    if pad_type == "valid":
        return (0,) * len(full), full
    if pad_type != "custom":
        raise NotImplementedError(f"pad_type {pad_type!r}")
    given = () if pad is None else integers(pad)
    same_length(2 * len(full), pad=given)
    sizes = tuple(m - b - a for m, b, a in zip(full, given[0::2], given[1::2], strict=True))
    if min((*given, *sizes)) < 0:
        raise ValueError(f"pad {list(given)} leaves nothing of {list(full)}")
    return given[0::2], sizes


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


def _depthwise(image: Array, weight: Array, bias: Array, w: Windows, out: Array) -> None:
    """``out[c, m, p] = sum_k weight[c, m, k] image[c, p * stride + k * dilation] + bias[c, m]``.

    ``image`` is without its padding. NumPy copies long rows fast, and a small image has short
    ones. Seen flat, though, what a kernel position meets is one piece of a channel's numbers, rows
    and the padding between them together, and another position meets a piece that begins
    elsewhere: what the pieces have between two rows of windows is computed in vain and left out
    at the end. A stride ``s`` is the same with an image for every ``s``-th position.
    """
    sizes = tuple(
        -(-max(b + n, span) // s)
        for b, n, span, s in zip(w.before, w.sizes, w.spans, w.strides, strict=True)
    )
    steps = tuple(math.prod(sizes[axis + 1 :]) for axis in range(len(sizes)))
    length = sum((n - 1) * step for n, step in zip(w.counts, steps, strict=True)) + 1
    taps = []
    for position in itertools.product(*map(range, w.kernel)):
        offsets = [k * d for k, d in zip(position, w.dilations, strict=True)]
        phase = tuple(o % s for o, s in zip(offsets, w.strides, strict=True))
        start = sum(o // s * n for o, s, n in zip(offsets, w.strides, steps, strict=True))
        taps.append((phase, start))
    channels, multiple = weight.shape[:2]
    many = min(channels, max(1, _BLOCK // (len(taps) * length)))
    padded = np.zeros(
        bounded((many, *(n * s for n, s in zip(sizes, w.strides, strict=True)))), image.dtype
    )
    inside = last(slice(b, b + n) for b, n in zip(w.before, w.sizes, strict=True))
    columns = np.empty(bounded((many, len(taps), length)), image.dtype)
    rows = np.empty((many, multiple, w.counts[0] * steps[0]), image.dtype)
    windows_of_rows = rows.reshape(many, multiple, w.counts[0], *sizes[1:])[
        last(map(slice, w.counts))
    ]
    for first in range(0, channels, many):
        part = slice(first, first + many)
        n = len(image[part])
        padded[:n][inside] = image[part]
        phases = {
            phase: np.ascontiguousarray(
                padded[:n][last(slice(p, None, s) for p, s in zip(phase, w.strides, strict=True))]
            ).reshape(n, -1)
            for phase in {phase for phase, _ in taps}
        }
        for tap, (phase, start) in enumerate(taps):
            columns[:n, tap] = phases[phase][:, start : start + length]
        np.matmul(weight[part], columns[:n], out=rows[:n, :, :length])
        np.add(windows_of_rows[:n], bias[part].reshape(n, multiple, *(1,) * len(sizes)), out[part])


def _check_bias(bias: Array | None, outputs: int) -> None:
    if bias is not None and bias.shape != (outputs,):
        raise ValueError(f"bias {list(bias.shape)} should hold {outputs} numbers")
