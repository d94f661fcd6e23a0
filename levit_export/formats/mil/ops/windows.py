"""Sliding windows over the spatial axes: padding, output sizes, and the view of one tap.

Shared by convolution and pooling. Source: coremltools, MIL ops ``conv``, ``avg_pool`` and
``max_pool``.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from levit_export.formats.mil.elements import Array
from levit_export.formats.mil.ops.bounds import bounded, integers, same_length


@dataclass(frozen=True)
class Windows:
    """Where a ``kernel`` lands on inputs of spatial shape ``sizes``; one entry per axis."""

    sizes: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    counts: tuple[int, ...]
    """Number of windows: the output's spatial shape."""

    @property
    def spans(self) -> tuple[int, ...]:
        """Input positions from the first to the last that the windows touch."""
        return tuple(
            (n - 1) * s + (k - 1) * d + 1
            for n, s, k, d in zip(
                self.counts, self.strides, self.kernel, self.dilations, strict=True
            )
        )

    def padded(self, x: Array, filler: float) -> Array:
        """``x`` with ``filler`` around its spatial axes, just as far as windows reach."""
        extents = tuple(
            max(b + n, span)
            for b, n, span in zip(self.before, self.sizes, self.spans, strict=True)
        )
        if extents == self.sizes:
            return x
        y = np.full(bounded((*x.shape[: -len(extents)], *extents)), filler, dtype=x.dtype)
        inside = [slice(b, b + n) for b, n in zip(self.before, self.sizes, strict=True)]
        y[last(inside)] = x
        return y

    def taps(self, padded: Array) -> Iterator[Array]:
        """For every kernel position, the elements it meets: ``padded.shape[:-k] + counts``."""
        for position in itertools.product(*map(range, self.kernel)):
            met = [
                slice(p * d, p * d + (n - 1) * s + 1, s)
                for p, d, n, s in zip(
                    position, self.dilations, self.counts, self.strides, strict=True
                )
            ]
            yield padded[last(met)]


def last(slices: Iterable[slice]) -> Any:
    """An index that applies ``slices`` to the last axes."""
    return (..., *slices)


def windows(
    sizes: tuple[int, ...],
    kernel: tuple[int, ...],
    *,
    strides: Array | None,
    dilations: Array | None,
    pad_type: str,
    pad: Array | None,
    ceil_mode: bool = False,
) -> Windows:
    """Place a kernel by the rules of ``pad_type``.

    With ``e = (kernel - 1) * dilation + 1`` and total padding ``p``, an axis of size ``n`` has
    ``floor((n + p - e) / stride) + 1`` windows (``ceil`` in ``ceil_mode``).

    - ``valid``: no padding; ``custom``: ``pad`` holds before and after for every axis.
    - ``same``: ``ceil(n / stride)`` windows; the padding this needs is split evenly and an odd
      element goes after (``same_lower``: before).
    """
    rank = len(sizes)
    s = (1,) * rank if strides is None else integers(strides)
    d = (1,) * rank if dilations is None else integers(dilations)
    same_length(rank, kernel=kernel, strides=s, dilations=d)
    if min((*s, *d, *kernel, 1)) < 1:
        raise ValueError(f"kernel {kernel}, strides {s} and dilations {d} must be positive")
    reach = tuple((k - 1) * dilation + 1 for k, dilation in zip(kernel, d, strict=True))
    before, after = _padding(sizes, reach, s, pad_type, pad)
    if ceil_mode and (before != after or pad_type not in ("valid", "custom")):
        raise ValueError(f"ceil_mode needs symmetric padding, got {pad_type} {before}, {after}")
    counts = tuple(
        _count(n, e, stride, before=b, after=a, ceil_mode=ceil_mode)
        for n, e, stride, b, a in zip(sizes, reach, s, before, after, strict=True)
    )
    if ceil_mode:
        # What a single window covers beyond the end never counts (and may be thousands wide).
        kernel = tuple(
            min(k, n + b + a) if count == 1 else k
            for k, n, b, a, count in zip(kernel, sizes, before, after, counts, strict=True)
        )
    return Windows(sizes, kernel, s, d, before, after, bounded(counts))


def _count(n: int, reach: int, stride: int, *, before: int, after: int, ceil_mode: bool) -> int:
    total = n + before + after
    if ceil_mode and n > 0 and total < reach <= total + stride - 1:
        # PyTorch and Core ML give the one window that begins inside and reaches beyond the end.
        return 1
    count = (total - reach + (stride - 1 if ceil_mode else 0)) // stride + 1
    # A window that starts in the padding after the input is dropped, as PyTorch does.
    if ceil_mode and before + after > 0 and (count - 1) * stride >= n + before:
        count -= 1
    # In ceil_mode a window may begin inside and reach beyond the end, even the only one.
    if (total < reach and not ceil_mode) or count < 1 or (count - 1) * stride >= total:
        raise ValueError(f"no window of {reach} with stride {stride} fits {total} positions")
    return count


def _padding(
    sizes: tuple[int, ...],
    reach: tuple[int, ...],
    strides: tuple[int, ...],
    pad_type: str,
    pad: Array | None,
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    given = () if pad is None else integers(pad)
    if pad_type == "custom":
        same_length(2 * len(sizes), pad=given)
        if min((*given, 0)) < 0:
            raise ValueError(f"pad {list(given)} must not be negative")
        return given[0::2], given[1::2]
    if any(given):
        raise ValueError(f"pad {list(given)} is given although pad_type is {pad_type!r}")
    if pad_type == "valid":
        return (0,) * len(sizes), (0,) * len(sizes)
    if pad_type not in ("same", "same_lower"):
        raise ValueError(f"unknown pad_type {pad_type!r}")
    totals = [
        max(0, (-(-n // s) - 1) * s + e - n) for n, e, s in zip(sizes, reach, strides, strict=True)
    ]
    less, more = tuple(p // 2 for p in totals), tuple(p - p // 2 for p in totals)
    return (less, more) if pad_type == "same" else (more, less)
