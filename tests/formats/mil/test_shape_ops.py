"""Ops that move values: exactly what coremltools' value inference says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mil_programs import Saved, mb

from levit_export.core.errors import PackageError, UnsupportedOpError

Save = Callable[..., Saved]
Array = npt.NDArray[Any]
X = np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 3, 4)

MOVES: dict[str, Callable[[Any], Any]] = {
    "reshape": lambda x: mb.reshape(x=x, shape=[4, 6]),
    "reshape_deduced": lambda x: mb.reshape(x=x, shape=[2, -1]),
    "reshape_inherited": lambda x: mb.reshape(x=x, shape=[0, 4, 3]),
    "transpose": lambda x: mb.transpose(x=x, perm=[2, 0, 1]),
    "transpose_negative": lambda x: mb.transpose(x=x, perm=[-1, 0, -2]),
    "expand_dims": lambda x: mb.expand_dims(x=x, axes=[0, -1]),
    "squeeze": lambda x: mb.squeeze(x=mb.expand_dims(x=x, axes=[0, 2]), axes=[2]),
    "squeeze_all": lambda x: mb.squeeze(x=mb.expand_dims(x=x, axes=[0, 2])),
    "slice_masks": lambda x: mb.slice_by_index(
        x=x,
        begin=[1, 1, 0],
        end=[2, 0, 3],
        begin_mask=[True, False, True],
        end_mask=[False, True, False],
    ),
    "slice_strides": lambda x: mb.slice_by_index(
        x=x, begin=[0, 0, 0], end=[2, 3, 4], stride=[1, 2, 2]
    ),
    "slice_backwards": lambda x: mb.slice_by_index(
        x=x, begin=[0, 0, -1], end=[2, 3, 0], stride=[1, 1, -2]
    ),
    "slice_squeezed": lambda x: mb.slice_by_index(
        x=x, begin=[0, 1, 0], end=[2, 0, 4], squeeze_mask=[False, True, False]
    ),
    "slice_by_size": lambda x: mb.slice_by_size(x=x, begin=[0, 1, 1], size=[1, -1, 2]),
    "concat": lambda x: mb.concat(values=[x, x], axis=-1),
    "stack": lambda x: mb.stack(values=[x, x], axis=1),
    "gather": lambda x: mb.gather(x=x, indices=[[2, 0], [1, 1]], axis=1),
    "gather_scalar": lambda x: mb.gather(x=x, indices=2, axis=-1),
    "gather_batch": lambda x: mb.gather(x=x, indices=[[2, 0], [1, 1]], axis=1, batch_dims=1),
    "gather_along_axis": lambda x: mb.gather_along_axis(
        x=x, indices=np.array([[[0, 2, 1, 1]], [[2, 2, 0, 1]]], np.int32), axis=1
    ),
    "tile": lambda x: mb.tile(x=x, reps=[2, 1, 3]),
    "pad_constant": lambda x: mb.pad(x=x, pad=[1, 2, 0, 3], mode="constant", constant_val=7.0),
    "pad_reflect": lambda x: mb.pad(x=x, pad=[1, 2, 2, 3], mode="reflect"),
    "pad_replicate": lambda x: mb.pad(x=x, pad=[0, 1, 2, 2, 3, 0], mode="replicate"),
}


def test_moves_equal_value_inference(saved: Save) -> None:
    """Each op gives exactly what coremltools computes for a constant of the same value."""
    expected: dict[str, Array] = {}

    def build(x: Any) -> list[Any]:
        for name, make in MOVES.items():
            expected[name] = np.asarray(make(mb.const(val=X)).val)
        return [mb.identity(x=make(x), name=name) for name, make in MOVES.items()]

    found = saved(build, x=X).run()
    for name, exact in expected.items():
        assert found[name].dtype == np.float32, name
        assert np.array_equal(found[name], exact), name


def test_split(saved: Save) -> None:
    """``split`` cuts into equal or given sizes."""

    def build(x: Any) -> list[Any]:
        return [
            *mb.split(x=x, num_splits=2, axis=-1, name="equal"),
            *mb.split(x=x, split_sizes=[1, 2], axis=1, name="given"),
        ]

    found = list(saved(build, x=X).run().values())
    expected = [X[..., :2], X[..., 2:], X[:, :1], X[:, 1:]]
    assert all(np.array_equal(f, e) for f, e in zip(found, expected, strict=True))


def test_interleaved_concat(saved: Save) -> None:
    """Interleaving takes slices in turn, as the op's documentation shows."""
    a, b = np.array([[1, 2], [3, 4], [5, 6]]), np.array([[7, 8], [9, 10], [11, 12]])
    package = saved(
        lambda a, b: mb.concat(values=[a, b], axis=0, interleave=True),
        a=a.astype(np.float32),
        b=b.astype(np.float32),
    )
    assert package.output().tolist() == [[1, 2], [7, 8], [3, 4], [9, 10], [5, 6], [11, 12]]


def test_shape_and_fill(saved: Save) -> None:
    """``shape`` gives int32 sizes; fill repeats its value."""

    def build(x: Any) -> list[Any]:
        filled = mb.fill(shape=[2, 3], value=np.float32(2.5))
        return [mb.shape(x=x, name="shape"), mb.add(x=filled, y=mb.reduce_sum(x=x), name="sum")]

    found = saved(build, x=X * 0).run()
    assert found["shape"].dtype == np.int32
    assert found["shape"].tolist() == [2, 3, 4]
    assert np.array_equal(found["sum"], np.full((2, 3), 2.5))


def test_zero_in_a_shape_matches_from_the_right_since_ios17(saved: Save) -> None:
    """A 0 without a counterpart becomes 1 in iOS 17 (the documentation's own example)."""
    x = np.arange(100, dtype=np.float32).reshape(2, 50)
    package = saved(lambda x: mb.reshape(x=x, shape=[1, 0, -1, 0]), specification=8, x=x)
    assert package.output().shape == (1, 1, 2, 50)


def test_an_index_outside_the_axis_is_refused(saved: Save) -> None:
    """What gather gives for an index outside the axis is undefined; the package is sound."""
    package = saved(
        lambda x, i: mb.gather(x=x, indices=i, axis=0), x=X, i=np.array([0, 5], np.int32)
    )
    with pytest.raises(UnsupportedOpError, match=r"op 'gather'.*outside \[-2, 2\)"):
        package.output()


@settings(max_examples=20, derandomize=True)
@given(data=st.data())
def test_slices_of_any_bounds(saved: Save, data: st.DataObject) -> None:
    """``slice_by_index`` gives what coremltools computes, whatever bounds, strides and masks."""
    begin, end, stride, masks = [], [], [], []
    for n in X.shape:
        b, e = sorted(data.draw(st.lists(st.integers(0, n), min_size=2, max_size=2, unique=True)))
        begin.append(b)
        end.append(e)
        stride.append(data.draw(st.integers(1, 3)))
        masks.append((data.draw(st.booleans()), data.draw(st.booleans())))
    options = {
        "begin": begin,
        "end": end,
        "stride": stride,
        "begin_mask": [m[0] for m in masks],
        "end_mask": [m[1] for m in masks],
    }
    expected: list[Array] = []

    def build(x: Any) -> Any:
        expected.append(mb.slice_by_index(x=mb.const(val=X), **options).val)
        return mb.slice_by_index(x=x, **options)

    assert np.array_equal(saved(build, x=X).output(), expected[0])


def test_an_input_that_makes_no_shape(saved: Save) -> None:
    """Where an op depends on inputs, the remedy names them: they may be what is wrong."""
    package = saved(lambda x: mb.fill(shape=x, value=np.float32(1)), x=np.array([2, -1], np.int32))
    with pytest.raises(PackageError, match=r"negative size .* Give it other inputs, or export"):
        package.output()
