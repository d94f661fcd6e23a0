"""How large values inside a network become, block by block, and which leave float16."""

from __future__ import annotations

import numpy as np
import pytest
import subjects

from levit_export.checks import float16_overflow
from levit_export.inputs.samples import make
from levit_export.models.interpreter import evaluate
from levit_export.models.preparation import prepare


def test_peaks_of_every_block() -> None:
    """Every block has a peak, that of the head is the largest logit."""
    model = subjects.tiny()
    inputs = make(model.info.preprocessing).inputs
    peaks = float16_overflow.peaks(model, inputs)
    names = set(model.blocks.values()) - {"head_dist"}
    assert names <= set(peaks)
    logits = evaluate(model.network, {"input": inputs[:1]})["logits"]
    assert float16_overflow.peaks(model, inputs[:1])["head"] == float(np.abs(logits).max())


@pytest.mark.parametrize(("factor", "found"), [(1.0, []), (1e6, [subjects.SWOLLEN])])
def test_overflows_are_named(factor: float, found: list[str]) -> None:
    """A block whose values pass 65504 is found, with the value; a sound network has none."""
    model = prepare(subjects.swollen(factor))
    overflows = float16_overflow.overflows(model, make(model.info.preprocessing).inputs)
    assert list(overflows) == found
    assert all(peak > float16_overflow.FLOAT16_MAX for peak in overflows.values())


def test_the_block_of_these_tests() -> None:
    """The names that these tests use belong together."""
    assert subjects.tiny().blocks["blocks.5"] == subjects.SWOLLEN
