"""The digests of weights: what counts as the same tensor, and what is found missing."""

from __future__ import annotations

from functools import cache

import gate_reports
import numpy as np
import pytest
import subjects
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from levit_export.checks import parity, weights
from levit_export.checks.findings import Finding
from levit_export.checks.parity import ParityReport
from levit_export.checks.weights import WeightAudit, audit
from levit_export.core import constants
from levit_export.core.constants import Constant, fingerprint, fingerprints
from levit_export.core.precisions import FLOATS
from levit_export.core.values import ExportOptions, Fingerprints, Prepared
from levit_export.formats import target
from levit_export.models.preparation import prepare

FINITE = st.floats(-1e4, 1e4, width=32)
SIDES = st.integers(2, 5)
OUTPUT = gate_reports.output()
PASSED = ParityReport("eager", 3, (OUTPUT,))

Drawn = dict[str, np.ndarray]


def arrays(*sides: int) -> st.SearchStrategy[np.ndarray]:
    """Float32 arrays of one shape."""
    return hnp.arrays(np.float32, sides, elements=FINITE)


any_shape = hnp.arrays(np.float32, hnp.array_shapes(max_dims=4, max_side=5), elements=FINITE)
matrices = st.tuples(SIDES, SIDES).flatmap(lambda sides: arrays(*sides))
not_zero = any_shape.filter(lambda array: array.astype(np.float16).any())
tensor_sets = st.dictionaries(st.text(min_size=1, max_size=5), not_zero, min_size=1, max_size=6)


@given(matrices.filter(lambda matrix: matrix.astype(np.float16).any()))
def test_a_matrix_may_be_stored_transposed(matrix: np.ndarray) -> None:
    """Writers store a matrix either way round, with axes of length one; both are found."""
    for precision in ("fp32", "fp16"):
        expected = fingerprints({"w": matrix}, precision)
        turned = matrix.T.astype(FLOATS[precision])
        for stored in (turned, np.ascontiguousarray(turned)[None, :, None]):
            assert audit(expected, [stored], precision) == WeightAudit(1)


@given(any_shape, st.integers(0, 4))
def test_axes_of_length_one_do_not_count(array: np.ndarray, axis: int) -> None:
    """A bias may be stored with further axes of length one."""
    assert fingerprint(np.expand_dims(array, min(axis, array.ndim))) == fingerprint(array)
    assert fingerprint(array[None, ..., None]) == fingerprint(array)


@given(hnp.arrays(np.float16, hnp.array_shapes(max_dims=3), elements=st.floats(-9, 9, width=16)))
def test_the_type_does_not_count(half: np.ndarray) -> None:
    """A number that float16 can represent has one digest whatever type holds it."""
    assert fingerprint(half) == fingerprint(half.astype(np.float32))
    assert fingerprint(half) == fingerprint(half.astype(np.float64))
    assert fingerprint(half) == fingerprint(half.astype(">f4"))


@given(any_shape, st.data())
def test_one_unit_in_the_last_place_counts(array: np.ndarray, data: st.DataObject) -> None:
    """The least change of any one number gives another digest."""
    place = data.draw(st.integers(0, array.size - 1))
    changed = array.copy()
    changed.flat[place] = np.nextafter(changed.flat[place], np.float32(np.inf))
    assert fingerprint(changed) != fingerprint(array)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_permuted_rows_count(dtype: type[np.floating]) -> None:
    """A matrix whose rows or columns are in another order is another matrix."""
    matrix = np.arange(12, dtype=dtype).reshape(3, 4)
    digests = {fingerprint(m) for m in (matrix, np.roll(matrix, 1, 0), np.roll(matrix, 1, 1))}
    assert len(digests) == 3


@pytest.mark.parametrize("axes", [(0, 2, 1), (1, 0, 2), (2, 1, 0), (1, 2, 0), (2, 0, 1)])
def test_transposing_more_than_a_matrix_counts(axes: tuple[int, int, int]) -> None:
    """Attention biases and convolutions keep their axes; another order is another tensor."""
    tensor = np.arange(60, dtype=np.float32).reshape(3, 4, 5)
    assert fingerprint(tensor.transpose(axes)) != fingerprint(tensor)


def test_the_sign_of_zero_counts() -> None:
    """Digests are of bits: an exporter copies a negative zero as it is."""
    assert fingerprint(np.float32([0.0, 1.0])) != fingerprint(np.float32([-0.0, 1.0]))


@given(tensor_sets, st.sampled_from(["fp32", "fp16"]))
def test_a_file_with_everything_lacks_nothing(tensors: Drawn, precision: str) -> None:
    """A file that holds each tensor rounded once, in any order, lacks none.

    Single numbers that a sound graph may hold change nothing.
    """
    expected = fingerprints(tensors, precision)
    stored = [t.astype(FLOATS[precision]) for t in tensors.values()]
    others = [np.array(2), np.array(True), np.float32(0.5), np.float16(1 / 6), np.float32([-3.0])]
    assert audit(expected, [*others, *reversed(stored)]) == WeightAudit(len(tensors))


@given(tensor_sets, st.data())
def test_what_is_missing_is_named(tensors: Drawn, data: st.DataObject) -> None:
    """Exactly the tensors whose numbers are nowhere in the file are missing, in order."""
    expected = fingerprints(tensors, "fp32")
    kept = data.draw(st.sets(st.sampled_from(sorted(tensors))))
    present = {expected[name] for name in kept}
    found = audit(expected, [tensors[name] for name in kept])
    absent = tuple(name for name in tensors if expected[name] not in present)
    assert found == WeightAudit(len(tensors), absent)


@given(tensor_sets)
def test_what_is_no_weight_is_strange(tensors: Drawn) -> None:
    """A constant that is none of the weights is reported by its shape, a single one as it is."""
    expected = fingerprints(tensors, "fp32")
    other = np.full((7, 7), 1e6, np.float32)  # larger and more than any that is drawn
    single = np.float32([2e6])
    found = audit(expected, [*tensors.values(), other, single])
    assert found == WeightAudit(len(tensors), strange=("2000000", "[7, 7]"))


@pytest.mark.parametrize(
    ("number", "is_strange"),
    [
        (np.float32(1.01), True),
        (np.float32(0.99), True),
        (np.float16(1.01), True),
        (np.float32(1 / 6 + 1e-4), True),
        (np.array(101), True),
        (np.float32([[1.0001]]), True),
        (np.float32(1 / 6), False),
        (np.float16(1 / 6), False),
        (np.float32(np.float16(1 / 6)), False),
        (np.float32(-3), False),
        (np.float32(16**-0.5), False),
    ],
)
def test_a_single_number_may_be_strange(number: np.ndarray, *, is_strange: bool) -> None:
    """A factor hidden in a graph is found; those of activations and attention are no news."""
    assert bool(audit({}, [np.asarray(number)]).strange) == is_strange


def drawn(size: int, bits: float, *, weight: bool = True, grid: bool = False) -> Constant:
    """A constant of that many numbers."""
    return Constant(np.ones((size, 1), np.float32), bits, weight, grid)


@pytest.mark.parametrize(
    ("held", "precision"),
    [
        ([drawn(9, 32)], "fp32"),
        ([drawn(9, 16)], "fp16"),
        ([drawn(9, 8.5)], "w8"),
        ([drawn(9, 6.4)], "w6"),
        ([drawn(9, 4.3)], "w4"),
        ([drawn(9, 8.5, grid=True)], "int8"),
        ([drawn(9, 8.5), drawn(11, 32)], "fp32"),
        ([drawn(11, 8.5), drawn(9, 32)], "w8"),
        ([drawn(11, 4.5), drawn(9, 16)], "w4"),
        ([drawn(6, 4.5), drawn(5, 8.5), drawn(9, 32)], "w8"),
        ([drawn(6, 8.5, grid=True), drawn(5, 8.5), drawn(9, 32)], "w8"),
        ([drawn(9, 16), drawn(99, 32, weight=False)], "fp16"),
        ([drawn(9, 32), drawn(99, 8, weight=False)], "fp32"),
        ([drawn(9, 40.0, grid=True)], "fp32"),
        ([], "fp32"),
    ],
)
def test_precision_is_that_of_most_weights(held: list[Constant], precision: str) -> None:
    """A file is as coarse as half of its weights' numbers are; biases and tables do not count."""
    assert constants.precision_of(constants.shares_of(held)) == precision


def test_a_weight_of_one_number() -> None:
    """A tensor of a single number, as the bias of one class is, is found like any other."""
    expected = fingerprints({"head.bias": np.float32([0.25])}, "fp32")
    assert audit(expected, [np.float32([0.25])]) == WeightAudit(1)
    assert audit(expected, [np.float32([0.5])]).missing == ("head.bias",)


@given(tensor_sets)
def test_an_empty_file_lacks_everything(tensors: Drawn) -> None:
    """Without constants every tensor is missing; without tensors none is."""
    assert audit(fingerprints(tensors, "fp32"), []).missing == tuple(tensors)
    assert audit({}, []) == WeightAudit(0)


def test_integers_are_no_weights() -> None:
    """An integer constant is never taken for a weight of the same numbers; it is strange."""
    expected = fingerprints({"w": np.float32([1, 2, 3])}, "fp32")
    found = audit(expected, [np.array([1, 2, 3], np.int32)])
    assert found == WeightAudit(1, ("w",), ("[3]",))


@pytest.mark.parametrize("precision", ["int8", "int4", "fp64", ""])
def test_other_precisions_expect_nothing(precision: str) -> None:
    """Where a file stores other numbers than the tensors', no digest is asked for."""
    assert fingerprints({"w": np.ones(3, np.float32)}, precision) == {}


def test_rounding_to_half() -> None:
    """Digests for float16 are of the rounded numbers; one that overflows warns of nothing."""
    tensor = np.float32([1 + 2**-12, 1e6, -1e6, 2**-26])
    found = fingerprints({"w": tensor}, "fp16")
    assert found == {"w": fingerprint(np.float32([1, np.inf, -np.inf, 0]))}
    assert found != fingerprints({"w": tensor}, "fp32")


def test_every_trained_tensor_is_expected() -> None:
    """A prepared model asks for each of its tensors, in each float precision, under its name.

    A file in bf16 holds the tensors of float32: it only asks to be computed otherwise.
    """
    model = subjects.digits()
    found: Fingerprints = model.fingerprints
    trained = [n for n, t in model.network.constants.items() if t.dtype == np.float32]
    assert set(found) == {"fp32", "fp16", "bf16"}
    assert found["bf16"] == found["fp32"]
    assert set(found["fp32"]) == set(found["fp16"]) == set(trained)
    assert len(set(found["fp16"].values())) == len(trained)


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        (1, "1 of 9 weight tensors are not in the file as the checkpoint has them: t0"),
        (5, "has them: t0, t1, t2, t3, t4"),
        (6, "has them: t0, t1, t2, t3, t4 and 1 more"),
        (9, "has them: t0, t1, t2, t3, t4 and 4 more"),
    ],
)
def test_missing_weights_fail(missing: int, words: str) -> None:
    """Missing weights fail a check that passed; five are named and the rest counted."""
    found = WeightAudit(9, tuple(f"t{index}" for index in range(missing)))
    report = parity.with_weights(PASSED, found)
    assert (report.verdict, report.weights) == ("fail", found)
    assert report.reason.endswith(words)


def test_no_missing_weights_change_nothing() -> None:
    """A clean audit is noted and leaves verdict and reason as they were."""
    clean = WeightAudit(9)
    report = parity.with_weights(PASSED, clean)
    assert (report.verdict, report.reason, report.weights) == ("pass", "", clean)
    failed = ParityReport("eager", 3, findings=(Finding("run-failed", {"text": "off"}),))
    assert parity.with_weights(failed, clean).reason == "off"


def test_missing_weights_join_another_failure() -> None:
    """What was wrong before is said first."""
    failed = ParityReport("eager", 3, findings=(Finding("run-failed", {"text": "off"}),))
    report = parity.with_weights(failed, WeightAudit(2, ("w",)))
    assert report.reason.startswith("off; 1 of 2 weight tensors")


def test_zeros_need_not_be_there() -> None:
    """A bias of zeros that a simplifier left out is no fault; one that is there is no stranger."""
    tensors = {"w": np.ones((2, 3), np.float32), "zeros": np.zeros(7, np.float32)}
    expected = fingerprints(tensors, "fp32")
    for stored in ([tensors["w"]], [tensors["w"], tensors["zeros"]]):
        assert audit(expected, stored) == WeightAudit(1)
    assert audit(expected, [tensors["zeros"]]).missing == ("w",)


def test_settled_takes_what_lies_within_a_step() -> None:
    """A quantised tensor is found by nearness, transposed or with axes of length one."""
    generator = np.random.default_rng(0)
    tensors = {
        "a": generator.standard_normal((6, 8)).astype(np.float32),
        "b": generator.standard_normal((6, 8)).astype(np.float32),
        "bias": generator.standard_normal(8).astype(np.float32),
    }
    step = np.abs(tensors["a"]).max() / 127
    stored = [
        (np.round(tensors["a"] / step) * step).T[None],
        tensors["b"],
        tensors["bias"].reshape(1, 8),
    ]
    digests = weights.settled(tensors, stored, 8)
    assert weights.audit(digests, stored).missing == ()
    assert digests["a"] == fingerprint(np.squeeze(stored[0]).T)


def test_settled_refuses_what_lies_further() -> None:
    """A tensor that is further off than a step is not taken; the audit then names it."""
    tensors = {"a": np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)}
    for stored in ([tensors["a"] * 1.01], [tensors["a"][::-1].copy()], [], [np.zeros((4, 4))]):
        digests = weights.settled(tensors, stored, 8)
        assert weights.audit(digests, stored).missing == ("a",)


LEFT_OUT = (
    ("levit", ("fuse_batchnorm", "merge_heads")),
    ("levit", ("bake_attention_bias",)),
    ("vit-pytorch", ("fuse_batchnorm", "bake_attention_bias")),
)


@cache
def without(name: str, skip: tuple[str, ...]) -> Prepared:
    """A small network of which passes were left out."""
    return prepare(subjects.small(name), skip=skip)


@pytest.mark.parametrize(
    ("kind", "precision"),
    [("onnx", "fp32"), ("onnx", "fp16"), ("openvino", "fp32"), ("coreml", "fp16")],
)
@pytest.mark.parametrize(("name", "skip"), LEFT_OUT)
def test_files_without_a_pass_hold_what_their_network_reads(
    name: str, skip: tuple[str, ...], kind: str, precision: str
) -> None:
    """Where BatchNorm or tables were left in, each constant of the network is in the file."""
    model = without(name, skip)
    place = subjects.folder() / "-".join((name, *skip, kind, precision))
    made = subjects.export(model, place, kind, ExportOptions(precision=precision))
    stored = target(kind).constants(made)
    found = audit(model.fingerprints[precision], stored, precision)
    assert found.tensors > 30
    assert (found.missing, found.strange) == ((), ())


def test_a_float16_file_may_hold_a_tensor_in_float32() -> None:
    """What a converter left in float32 counts as its float16 rounding."""
    tensor = np.linspace(-1, 1, 12, dtype=np.float32)
    digests = constants.fingerprints({"a": tensor}, "fp16")
    assert weights.audit(digests, [tensor], "fp16").missing == ()
    assert weights.audit(digests, [tensor], "fp32").missing == ("a",)
