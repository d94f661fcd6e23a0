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

_BLOCK = 1 << 15
"""Numbers of a channel block that are worked on at a time, so that they stay in the cache."""


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
    out as columns. Where every group has one channel there is nothing to sum but the kernel
    positions, and a matrix product would be the slower way.
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
    for image, out in zip(w.padded(x, 0.0), y, strict=True):
        if width == 1 and taps > 1:
            _depthwise(image, matrices, w, out.reshape(g, outputs // g, *w.counts))
            continue
        columns = _columns(image, w).reshape(g, width * taps, math.prod(w.counts))
        np.matmul(matrices, columns, out=out.reshape(g, outputs // g, -1))
    if bias is not None:
        y += bias.reshape(-1, *(1,) * len(w.counts))
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


def _depthwise(image: Array, weight: Array, w: Windows, out: Array) -> None:
    """``out[c, j, p] = sum_k weight[c, j, k] image[c, p * stride + k * dilation]``.

    NumPy is fast on long rows only, and a small image has short ones. So a channel is laid out as
    one row: with stride 1 the elements that kernel position ``k`` meets, for all ``p``, begin at a
    fixed distance from those for ``k = 0``, whatever lies between the ends of two rows of the
    image. (Those positions are computed too, and left out at the end.) A stride ``s`` is the same
    with the image split into the ``s`` images of every ``s``-th element.
    """
    reach = [(k - 1) * d // s for k, d, s in zip(w.kernel, w.dilations, w.strides, strict=True)]
    extents = tuple(n + r for n, r in zip(w.counts, reach, strict=True))
    pitch = [math.prod(extents[axis + 1 :]) for axis in range(len(extents))]
    length = sum((n - 1) * p for n, p in zip(w.counts, pitch, strict=True)) + 1
    multiple = weight.shape[1]
    block = max(1, _BLOCK // (multiple * math.prod(extents)))
    positions = list(itertools.product(*map(range, w.kernel)))
    steps = [
        [divmod(p * d, s) for p, d, s in zip(position, w.dilations, w.strides, strict=True)]
        for position in positions
    ]
    for first in range(0, len(image), block):
        channels = image[first : first + block]
        factors = weight[first : first + block]
        rows = {
            phase: _every(channels, phase, w.strides, extents)
            for phase in {tuple(rest for _, rest in step) for step in steps}
        }
        total = np.zeros((len(channels), multiple, w.counts[0] * pitch[0]), image.dtype)
        scratch = np.empty((len(channels), multiple, length), image.dtype)
        for tap, step in enumerate(steps):
            start = sum(whole * p for (whole, _), p in zip(step, pitch, strict=True))
            met = rows[tuple(rest for _, rest in step)][:, np.newaxis, start : start + length]
            np.multiply(met, factors[:, :, tap, np.newaxis], out=scratch)
            total[:, :, :length] += scratch
        grid = total.reshape(len(channels), multiple, w.counts[0], *extents[1:])
        out[first : first + block] = grid[last(map(slice, w.counts))]


def _every(
    image: Array, phase: tuple[int, ...], strides: tuple[int, ...], extents: tuple[int, ...]
) -> Array:
    """``image[c, phase :: stride]`` on every axis, cut or filled to ``extents``, as one row."""
    every = [slice(first, None, stride) for first, stride in zip(phase, strides, strict=True)]
    part = image[last(every)][last(map(slice, extents))]
    if part.shape[1:] != extents:
        full = np.zeros((len(part), *extents), image.dtype)
        full[last(map(slice, part.shape[1:]))] = part
        part = full
    return np.ascontiguousarray(part).reshape(len(image), -1)


def _check_bias(bias: Array | None, outputs: int) -> None:
    if bias is not None and bias.shape != (outputs,):
        raise ValueError(f"bias {list(bias.shape)} should hold {outputs} numbers")
