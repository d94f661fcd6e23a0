"""Find the cheapest precision of a format that keeps a promise on accuracy.

Precisions are tried from the cheapest. Where one loses too much, the blocks that suffer most are
left in float, most sensitive first, until the promise is kept; how many it takes is bisected. A
block's sensitivity is the error of the outputs when that block alone is in the low precision.
Pure: what a candidate does is measured by the caller, and the same measurements give the same
choice. Latencies are shown and never decide, because they would not repeat.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from levit_export.core.errors import UnknownNameError
from levit_export.reports.report import Candidate, SearchPoint, SearchResult

Preference = Literal["latency", "size"]

ORDER: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "latency": {
        "onnx": ("int8", "fp32"),
        "openvino": ("int8", "fp32"),
        "coreml": ("int8", "fp16", "fp32"),
    },
    "size": {
        "onnx": ("int8", "w8", "fp16", "fp32"),
        "openvino": ("w4", "int8", "w8", "fp16", "fp32"),
        "coreml": ("w4", "w6", "int8", "w8", "fp16", "fp32"),
    },
}
"""Precisions by what they save, the most first. The last is the network itself."""

MOST_KEPT = 0.5
"""Share of blocks left in float beyond which the next precision is the better answer."""


@dataclass(frozen=True)
class Promise:
    """At most so many points of top-1 lost on the images, or of agreement where none is labelled.

    ``prefer`` says what is saved for it.
    """

    max_drop: float = 0.5
    prefer: Preference = "latency"


def order(kind: str, prefer: Preference) -> tuple[str, ...]:
    """The precisions to try for a format."""
    known = ORDER[prefer]
    if kind not in known:
        raise UnknownNameError("format to search a precision for", kind, known)
    return known[kind]


def find(
    precisions: Sequence[str],
    ranked: Mapping[str, Sequence[str]],
    measure: Callable[[Candidate], SearchPoint],
    *,
    max_drop: float,
    forced: Mapping[str, Sequence[str]] | None = None,
    prefer: Preference = "latency",
) -> SearchResult:
    """The first of ``precisions`` that loses at most ``max_drop`` points, or the smallest.

    ``ranked`` are the blocks by sensitivity for each precision, the most sensitive first;
    ``forced`` are those that have to stay in float because they leave its range.
    """
    seen: dict[Candidate, SearchPoint] = {}

    def measured(precision: str, count: int) -> SearchPoint:
        must = tuple((forced or {}).get(precision, ()))
        rest = [block for block in ranked.get(precision, ()) if block not in must]
        candidate = Candidate(precision, (*must, *rest[:count]))
        if candidate not in seen:
            seen[candidate] = measure(candidate)
        return seen[candidate]

    kept: list[SearchPoint] = []
    for precision in precisions:
        most = int(MOST_KEPT * len(ranked.get(precision, ())))
        best = _fewest(lambda count, p=precision: measured(p, count), most, max_drop)  # type: ignore[misc]
        if best is not None:
            kept.append(best)
            if prefer == "latency":
                break
    if not kept:  # not even the network itself: then it is what there is
        kept.append(measured(precisions[-1], 0))
    chosen = kept[0] if prefer == "latency" else min(kept, key=lambda point: point.bytes)
    return SearchResult(chosen, tuple(seen.values()))


def _fewest(
    measured: Callable[[int], SearchPoint], most: int, max_drop: float
) -> SearchPoint | None:
    """The point with the fewest blocks kept that loses little enough; None up to ``most``.

    Doubles the count until the promise is kept, then bisects between the last two.
    """
    below, count = -1, 0
    while measured(count).drop > max_drop:
        if count >= most:
            return None
        below, count = count, min(most, max(1, 2 * count))
    while count - below > 1:
        middle = (below + count) // 2
        if measured(middle).drop > max_drop:
            below = middle
        else:
            count = middle
    return measured(count)
