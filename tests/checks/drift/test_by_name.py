"""Where two files diverge, by the values that both name."""

from __future__ import annotations

import math

import numpy as np

from levit_export.checks.drift.by_name import by_key, first_difference, is_comparable, share
from levit_export.core.values import Tolerance

GOOD, BAD = (0.0, 0.1), (1.0, 0.1)


def test_the_first_value_that_differs_is_named() -> None:
    """Of two files' values the first that differs is named, and the last before it that agrees."""
    users = {"a": ("b",), "b": ("c",), "c": ()}
    found = first_difference(users, {"a": GOOD, "b": BAD, "c": BAD}, "normal-0", "onnx-fp32")
    assert (found.tap, found.cause, found.stage) == ("b", "conversion", "onnx-fp32")
    assert found.sentence == (
        "of 3 inner values that both name, b is the first that differs: by 1.0e+00 of its largest "
        "number on normal-0, where 1.0e-01 is rounding; before it, a agrees"
    )


def test_a_value_is_not_accused_while_something_made_of_it_agrees() -> None:
    """Two files may give one name to two values: ``a`` is another's, the fault is at ``c``."""
    users = {"a": ("hidden",), "hidden": ("b",), "b": ("c",), "c": ()}
    found = first_difference(users, {"a": BAD, "b": GOOD, "c": BAD}, "normal-0", "onnx-fp32")
    assert found.tap == "c"


def test_a_fault_of_the_outputs_is_said_to_be_there() -> None:
    """No inner value is named when all agree."""
    found = first_difference({"a": ()}, {"a": GOOD}, "normal-0", "onnx-fp32")
    assert (found.tap, found.cause) == ("", "")
    assert found.sentence.endswith("none is at fault: look at the outputs, behind a")


def test_openvinos_names_are_those_of_the_captured_program() -> None:
    """The last of several values that begin with one name; a plain name goes before."""
    values = ["linear/aten/MatMul", "linear/aten/Add", "relu", "relu/inner", "/model/Add"]
    keyed = by_key(values)
    assert (keyed["linear"], keyed["relu"]) == ("linear/aten/Add", "relu")
    assert "" not in keyed


def test_what_can_be_compared() -> None:
    """Floating-point values of one shape; axes of length one do not count."""
    values = np.ones((1, 3, 1), np.float32)
    assert is_comparable(values, np.ones((1, 3), np.float16))
    assert not is_comparable(values, np.ones((3, 3), np.float32))
    assert not is_comparable(values, np.ones((1, 3), np.int64))


def test_nan_is_infinitely_far_off() -> None:
    """It must never count as agreement."""
    ours = np.array([[1.0, 2.0]])
    error, limit = share(ours, np.array([[1.0, np.nan]]), Tolerance(0.0, (0.5,), "given"))
    assert (error, limit) == (math.inf, 0.5)
