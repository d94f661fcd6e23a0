"""A network holds together, or says where it does not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from levit_export.core.errors import ExportFailedError
from levit_export.core.network import KINDS, Network, Op, Value, is_within
from levit_export.models import interpreter

X = Value("x", (None, 4))
WEIGHT = np.ones((2, 4), np.float32)
LINEAR = Op("linear", ("x", "w"), (Value("head_linear", (None, 2)),), block="head")
RELU = Op("relu", ("head_linear",), (Value("y", (None, 2)),), block="head")
SOUND = Network((X,), ("y",), (LINEAR, RELU), {"w": WEIGHT}, {"head.linear": "head_linear"})


def test_values_and_readers() -> None:
    """Every value, constant and reader is found by name."""
    assert list(SOUND.values) == ["x", "head_linear", "y"]
    assert SOUND.readers["head_linear"] == (RELU,)
    assert (SOUND.shape("w"), SOUND.shape("y")) == ((2, 4), (None, 2))
    assert list(SOUND.ops_of(["head"])) == [LINEAR, RELU]
    assert list(SOUND.ops_of(["hea"])) == []


def test_a_listing_for_people() -> None:
    """A line for each operator, with shapes, operands and attributes; an open batch is B."""
    softmax = Op("softmax", ("head_linear",), (Value("y", (None, 2)),), {"axis": 1})
    assert replace(SOUND, ops=(LINEAR, softmax)).listing().splitlines() == [
        "input x float32 (B, 4)",
        "head_linear float32 (B, 2) = linear(x, w)",
        "y float32 (B, 2) = softmax(head_linear) axis=1",
        "output y",
        "2 operators, 1 constants of 0.00 MB",
    ]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ops": (RELU, LINEAR)}, "y reads 'head_linear' before it is computed"),
        ({"ops": (LINEAR, replace(RELU, kind="rellu"))}, "is not a kind of operator"),
        ({"ops": (LINEAR, replace(RELU, inputs=("x", "x")))}, "has 2 inputs"),
        ({"ops": (LINEAR, replace(RELU, attributes={"axis": 1}))}, "has the attributes"),
        ({"ops": (LINEAR, replace(RELU, outputs=RELU.outputs * 2))}, "has 2 outputs"),
        ({"ops": (LINEAR, LINEAR, RELU)}, "two values are called 'head_linear'"),
        ({"constants": {"w": WEIGHT, "x": WEIGHT}}, "an input is called like a constant"),
        ({"constants": {"w": WEIGHT, "v": WEIGHT}}, "nothing reads the constant 'v'"),
        ({"outputs": ("head_linear",)}, "nothing reads 'y'"),
        ({"outputs": ("y", "z")}, "there is no value 'z'"),
        ({"taps": {"a": "b"}}, "there is no value 'b'"),
    ],
)
def test_what_does_not_hold_together(change: dict[str, object], words: str) -> None:
    """Whoever makes a broken network is told what is wrong with it."""
    with pytest.raises(ExportFailedError, match=words):
        replace(SOUND, **change)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("block", "blocks", "found"),
    [
        ("stage1.block0", ["stage1"], True),
        ("stage1", ["stage1"], True),
        ("stage10", ["stage1"], False),
        ("", ["stage1"], False),
        ("head", [], False),
    ],
)
def test_is_within(block: str, blocks: list[str], found: bool) -> None:  # noqa: FBT001
    """A block lies within itself and what its name begins with, at a dot."""
    assert is_within(block, blocks) is found


def test_every_kind_has_a_meaning() -> None:
    """What a network may hold can be computed, and nothing else is."""
    assert set(interpreter._FUNCTIONS) == set(KINDS)
