"""The search for the cheapest precision: which candidates it measures, and which one it takes."""

from __future__ import annotations

import pytest

from levit_export.core.errors import UnknownNameError
from levit_export.reports.report import Candidate, SearchPoint
from levit_export.workflows.precision_search import find, order

BLOCKS = tuple(f"block{index}" for index in range(8))
RANKED = {"int8": BLOCKS, "w4": BLOCKS}


class Scale:
    """Measures as a network would whose blocks each lose as much as they are told to."""

    def __init__(self, losses: dict[str, list[float]]) -> None:
        self.losses = losses
        self.asked: list[Candidate] = []

    def __call__(self, candidate: Candidate) -> SearchPoint:
        self.asked.append(candidate)
        losses = self.losses.get(candidate.precision, [0.0] * len(BLOCKS))
        left = [
            loss for name, loss in zip(BLOCKS, losses, strict=True) if name not in candidate.keep
        ]
        size = {"w4": 40, "int8": 50, "fp16": 60, "fp32": 100}[candidate.precision]
        return SearchPoint(candidate, sum(left), size + 5 * len(candidate.keep))


def test_the_cheapest_that_keeps_the_promise() -> None:
    """A precision that loses nothing is taken whole, and nothing else is measured."""
    scale = Scale({})
    found = find(("int8", "fp32"), RANKED, scale, max_drop=0.5)
    assert found.chosen.candidate == Candidate("int8")
    assert scale.asked == [Candidate("int8")]


@pytest.mark.parametrize("needed", [1, 2, 3, 4])
def test_the_fewest_sensitive_blocks_stay_in_float(needed: int) -> None:
    """As many of the most sensitive blocks are left out as it takes, and not one more."""
    scale = Scale({"int8": [1.0] * needed + [0.0] * (8 - needed)})
    found = find(("int8", "fp32"), RANKED, scale, max_drop=0.5)
    assert found.chosen.candidate == Candidate("int8", BLOCKS[:needed])
    assert found.chosen.drop == 0


def test_too_many_blocks_is_the_next_precision() -> None:
    """Where more than half of the blocks would stay in float, the next precision is taken."""
    found = find(("int8", "fp32"), RANKED, Scale({"int8": [1.0] * 5 + [0.0] * 3}), max_drop=0.5)
    assert found.chosen.candidate == Candidate("fp32")


def test_forced_blocks_stay_in_float_first() -> None:
    """A block that leaves the range of float16 is kept, whatever its sensitivity."""
    forced = {"int8": ("block7",)}
    scale = Scale({"int8": [1.0] + [0.0] * 7})
    found = find(("int8", "fp32"), RANKED, scale, max_drop=0.5, forced=forced)
    assert found.chosen.candidate == Candidate("int8", ("block7", "block0"))


def test_size_takes_the_smallest_of_all_that_keep_the_promise() -> None:
    """By size, a coarser precision with many blocks in float may lose to a finer one."""
    scale = Scale({"w4": [1.0] * 4 + [0.0] * 4})
    found = find(("w4", "int8", "fp32"), RANKED, scale, max_drop=0.5, prefer="size")
    assert found.chosen.candidate == Candidate("int8")
    assert {point.candidate.precision for point in found.points} == {"w4", "int8", "fp32"}


def test_nothing_keeps_the_promise() -> None:
    """Where even the network itself loses more, it is what is taken, and its loss is shown."""
    scale = Scale({"int8": [9.0] * 8, "fp32": [1.0] * 8})
    found = find(("int8", "fp32"), {"int8": BLOCKS}, scale, max_drop=0.5)
    assert found.chosen.candidate == Candidate("fp32")
    assert found.chosen.drop == 8


def test_no_candidate_is_measured_twice() -> None:
    """Exports are expensive; each candidate is measured once."""
    scale = Scale({"int8": [1.0] * 3 + [0.0] * 5})
    find(("int8", "fp32"), RANKED, scale, max_drop=0.5)
    assert len(scale.asked) == len(set(scale.asked))


def test_unknown_format() -> None:
    """A format of another package has no table of precisions."""
    with pytest.raises(UnknownNameError, match="'tflite'"):
        order("tflite", "size")
