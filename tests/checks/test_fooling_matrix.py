"""Some of the matrix of carriers and tricks; ``scripts/fool-the-check`` tries all of it.

``test_fooling`` tries every trick on bare files that lie.
"""

from __future__ import annotations

import fooling_matrix
import pytest
from fooling_matrix import FEW, FORMATS, Outcome

EVERY = 5
"""Each format takes every fifth try, beginning at another one."""


def told(outcomes: list[Outcome]) -> list[tuple[str, str, str]]:
    """What a reader of a failed test needs to see."""
    return [(str(each.tried), each.verdict, each.reason) for each in outcomes]


@pytest.mark.parametrize("kind", FORMATS)
def test_honest_carriers_pass(kind: str) -> None:
    """A file, a directory and a bundle as they were made pass, whatever they are held against."""
    honest = [each for each in fooling_matrix.honest(kind, 1, FEW) if each.layout == "auto"]
    for against in (fooling_matrix.CHECKPOINT, fooling_matrix.OWN):
        found = fooling_matrix.judged([each for each in honest if each.against == against])
        assert found
        assert not told([each for each in found if each.verdict != "pass"])


@pytest.mark.parametrize("kind", FORMATS)
def test_no_spoilt_carrier_passes(kind: str) -> None:
    """What is wrong in a carrier, and lies about it wherever it can, never passes."""
    tries = list(fooling_matrix.tries(kind, [0], FEW))[FORMATS.index(kind) :: EVERY]
    for against in (fooling_matrix.CHECKPOINT, fooling_matrix.OWN):
        found = fooling_matrix.judged([each for each in tries if each.against == against])
        assert found
        assert not told([each for each in found if each.verdict == "pass"])


@pytest.mark.parametrize("seed", range(len(fooling_matrix.HOLLOW)))
def test_no_hollow_report_passes(seed: int) -> None:
    """A saved report of a failure that says pass, and lacks what was found, is not believed."""
    assert fooling_matrix.hollow("onnx", seed, FEW).verdict != "pass"


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_no_swapped_cell_is_believed(seed: int) -> None:
    """A sweep's cell whose artifact was replaced is done again."""
    assert fooling_matrix.swapped("onnx", seed, FEW).verdict != "pass"
