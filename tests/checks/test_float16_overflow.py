"""How large values inside a network become, block by block, and which leave float16."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import subjects

from levit_export.checks import float16_overflow
from levit_export.inputs.samples import make
from levit_export.models import checkpoints
from levit_export.models.checkpoints import Checkpoint
from levit_export.models.evaluate import evaluate
from levit_export.models.preparation import prepare

BLOCK = "stage2.block0.mlp"
MLP = "blocks.5.m"


def swollen(factor: float) -> Checkpoint:
    """The small model with one MLP whose inner values are ``factor`` times as large.

    Its second layer divides by the factor again, but Hardswish between them is linear only for
    large values, so the answers differ; what matters is the range.
    """
    known = subjects.tiny_checkpoint()
    tensors = dict(known.tensors)
    for leaf in ("weight", "bias"):
        tensors[f"{MLP}.0.bn.{leaf}"] = tensors[f"{MLP}.0.bn.{leaf}"] * factor
    tensors[f"{MLP}.2.c.weight"] = tensors[f"{MLP}.2.c.weight"] / factor
    return replace(known, tensors=tensors)


def test_peaks_of_every_block() -> None:
    """Every block has a peak, that of the head is the largest logit."""
    model = subjects.tiny()
    inputs = make(model.info.preprocessing).inputs
    peaks = float16_overflow.peaks(model, inputs)
    names = set(model.blocks.values()) - {"head_dist"}
    assert names <= set(peaks)
    logits = evaluate(model.network, {"input": inputs[:1]})["logits"]
    assert float16_overflow.peaks(model, inputs[:1])["head"] == float(np.abs(logits).max())


@pytest.mark.parametrize(("factor", "found"), [(1.0, []), (1e6, [BLOCK])])
def test_overflows_are_named(factor: float, found: list[str]) -> None:
    """A block whose values pass 65504 is found, with the value; a sound network has none."""
    model = prepare(swollen(factor))
    overflows = float16_overflow.overflows(model, make(model.info.preprocessing).inputs)
    assert list(overflows) == found
    assert all(peak > float16_overflow.FLOAT16_MAX for peak in overflows.values())


def test_the_block_of_these_tests() -> None:
    """The names that these tests use belong together."""
    assert subjects.tiny().blocks["blocks.5"] == BLOCK
    assert isinstance(checkpoints.Choices(), checkpoints.Choices)
