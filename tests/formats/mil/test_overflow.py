"""Ops on integers: exact numbers, or a refusal where the type does not hold them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from mil_programs import Saved, mb

from levit_export.core.errors import UnsupportedOpError
from levit_export.formats.mil.ops import elementwise, indexing, linear, overflow, reduce
from levit_export.formats.mil.table import OPS

Array = npt.NDArray[Any]
Save = Callable[..., Saved]

LARGE = 2**31 - 1
LEAST = -(2**31)
SMALL = np.array([2, 3], np.int32)
PLACES = np.array([0, 0], np.int32)

# op: (how it is built, numbers whose result the type just holds, that result, numbers that it
# does not hold the result of, that result)
EDGES: dict[str, tuple[Callable[[Any], Any], list[int], list[int], list[int], int]] = {
    "add": (lambda x: mb.add(x=x, y=SMALL), [LARGE - 2, 0], [LARGE, 3], [LARGE, 0], LARGE + 2),
    "sub": (lambda x: mb.sub(x=x, y=SMALL), [LEAST + 2, 3], [LEAST, 0], [0, LEAST], LEAST - 3),
    "mul": (lambda x: mb.mul(x=x, y=SMALL), [-(2**30), 0], [LEAST, 0], [2**30, 0], 2**31),
    "real_div": (
        lambda x: mb.real_div(x=x, y=-SMALL // 2),
        [-LARGE, 4],
        [LARGE, -2],
        [LEAST, 0],
        2**31,
    ),
    "floor_div": (
        lambda x: mb.floor_div(x=x, y=-SMALL // 2),
        [-LARGE, 3],
        [LARGE, -2],
        [LEAST, 0],
        2**31,
    ),
    "pow": (
        lambda x: mb.pow(x=x, y=SMALL),
        [46340, -1290],
        [46340**2, -(1290**3)],
        [0, 1291],
        1291**3,
    ),
    "square": (lambda x: mb.square(x=x), [46340, -3], [46340**2, 9], [0, -46341], 46341**2),
    "abs": (lambda x: mb.abs(x=x), [-LARGE, 7], [LARGE, 7], [0, LEAST], 2**31),
    "matmul": (
        lambda x: mb.matmul(x=x, y=np.array([[2, -1], [-2, 0]], np.int32)),
        [LARGE, LARGE],
        [0, -LARGE],
        [2, LEAST],
        4 + 2**32,
    ),
    "reduce_sum": (
        lambda x: mb.reduce_sum(x=x, axes=[0]),
        [LARGE, -5],
        [LARGE - 5],
        [LARGE, 1],
        LARGE + 1,
    ),
    "reduce_prod": (
        lambda x: mb.reduce_prod(x=x, axes=[0]),
        [LEAST, 1],
        [LEAST],
        [LEAST, -1],
        2**31,
    ),
    "reduce_sum_square": (
        lambda x: mb.reduce_sum_square(x=x, axes=[0]),
        [46340, 2],
        [46340**2 + 4],
        [46340, 1000],
        46340**2 + 10**6,
    ),
    "reduce_l1_norm": (
        lambda x: mb.reduce_l1_norm(x=x, axes=[0]),
        [1 - LARGE, 1],
        [LARGE],
        [LEAST, 0],
        2**31,
    ),
    "cumsum": (lambda x: mb.cumsum(x=x), [LARGE, -1], [LARGE, LARGE - 1], [LARGE, 1], LARGE + 1),
    "scatter": (
        lambda x: mb.scatter(data=x, indices=PLACES, updates=SMALL, mode="add"),
        [LARGE - 5, 9],
        [LARGE, 9],
        [LARGE, 0],
        LARGE + 5,
    ),
    "scatter_along_axis": (
        lambda x: mb.scatter_along_axis(data=x, indices=PLACES, updates=SMALL, mode="mul"),
        [-(2**28), 9],
        [6 * -(2**28), 9],
        [2**30, 0],
        6 * 2**30,
    ),
    "scatter_nd": (
        lambda x: mb.scatter_nd(data=x, indices=[[0], [0]], updates=SMALL, mode="sub"),
        [LEAST + 5, 9],
        [LEAST, 9],
        [LEAST, 0],
        LEAST - 5,
    ),
}

WITHIN = {
    "mod": "lies between 0 and the divisor",
    "cast": "has a test of its own",
    "equal": "gives booleans",
    "not_equal": "gives booleans",
    "greater": "gives booleans",
    "greater_equal": "gives booleans",
    "less": "gives booleans",
    "less_equal": "gives booleans",
    "reduce_argmax": "has a test of its own",
    "reduce_argmin": "has a test of its own",
    "argsort": "gives places on an axis, which int32 holds",
    "resize": "takes integers for nearest neighbours, which move",
    "range_1d": "lies between its bounds",
    "shape": "gives sizes, which int32 holds",
    "non_zero": "gives places, which int32 holds",
    "constexpr_lut_to_sparse": "looks numbers up",
}
"""Ops on integers whose results the type holds, and why."""


def test_every_op_that_computes_with_integers_is_tested() -> None:
    """An op that takes integers and computes is known not to overflow, or is tested to refuse."""
    computing = {name for name, op in OPS.items() if "i" in op.kinds and not op.exact}
    assert computing | {"abs"} == EDGES.keys() | WITHIN.keys()


@pytest.mark.parametrize("name", EDGES)
def test_integers_that_the_type_just_holds(saved: Save, name: str) -> None:
    """The result is exact at the end of the type's range, and has the type of the operands."""
    build, x, exact, _, _ = EDGES[name]
    found = saved(build, x=np.array(x, np.int32)).output()
    assert found.dtype == np.int32
    assert found.tolist() == exact


@pytest.mark.parametrize("name", EDGES)
def test_integers_that_the_type_does_not_hold(saved: Save, name: str) -> None:
    """The error names the op and the number: what Core ML gives there is not documented."""
    build, _, _, x, beyond = EDGES[name]
    package = saved(build, x=np.array(x, np.int32))
    message = f"op '{name}' .*: the number {beyond}, which int32 does not hold, is not evaluated"
    with pytest.raises(UnsupportedOpError, match=message):
        package.output()


def _cumsum(x: Array, _: Array) -> Array:
    return reduce.cumsum(x, exclusive=np.array(True), reverse=np.array(True))


def _scattered(mode: str) -> Callable[[Array, Array], Array]:
    at = np.array([0, 2, 0], np.int32)
    return lambda x, y: indexing.scatter(x, at, y, mode=mode, specification=8)


def _at(ufunc: Any) -> Callable[[Array, Array], Array]:
    def exact(x: Array, y: Array) -> Array:
        z: Array = x.copy()
        ufunc.at(z, [0, 2, 0], y)
        return z

    return exact


# Op, and the same on Python's integers, which have no end.
EXACT: dict[str, tuple[Callable[[Array, Array], Array], Callable[[Array, Array], Any]]] = {
    "add": (elementwise.add, np.add),
    "sub": (elementwise.sub, np.subtract),
    "mul": (elementwise.mul, np.multiply),
    "square": (lambda x, _: elementwise.square(x), lambda x, _: x * x),
    "abs": (lambda x, _: elementwise.absolute(x), lambda x, _: abs(x)),
    "matmul": (linear.matmul, lambda x, y: sum(x * y)),
    "sum": (lambda x, _: reduce.reduce_sum(x), lambda x, _: sum(x)),
    "prod": (lambda x, _: reduce.reduce_prod(x), lambda x, _: x[0] * x[1] * x[2]),
    "sum_square": (lambda x, _: reduce.reduce_sum_square(x), lambda x, _: sum(x * x)),
    "l1_norm": (lambda x, _: reduce.reduce_l1_norm(x), lambda x, _: sum(abs(x))),
    "cumsum": (_cumsum, lambda x, _: np.array([x[1] + x[2], x[2], 0], object)),
    "scatter add": (_scattered("add"), _at(np.add)),
    "scatter sub": (_scattered("sub"), _at(np.subtract)),
    "scatter mul": (_scattered("mul"), _at(np.multiply)),
}


@pytest.mark.parametrize("name", EXACT)
def test_integers_against_python(name: str) -> None:
    """Whatever the integers and their type, a result is Python's own, or there is none."""
    op, on_python = EXACT[name]
    rng = np.random.default_rng(0)
    held_by_type = set()
    for dtype in ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64"):
        limits = np.iinfo(dtype)
        edges = [limits.min, limits.min + 1, limits.max - 1, limits.max, limits.max // 3]
        roots = [-1, 0, 1, 2, 5, 11, 181, 46341, 2**16, 2**31, 2**32]
        numbers = edges + [n for n in roots if limits.min <= n <= limits.max]
        for _ in range(60):
            chosen = rng.integers(len(numbers), size=(2, 3))
            x, y = (np.array([numbers[k] for k in row], dtype) for row in chosen)
            exact = np.asarray(on_python(x.astype(object), y.astype(object)), object)
            held = all(limits.min <= n <= limits.max for n in exact.flat)
            held_by_type.add((dtype, held))
            with np.errstate(over="ignore"):
                if held:
                    found = op(x, y)
                    assert found.dtype == dtype
                    assert found.tolist() == exact.tolist()
                else:
                    with pytest.raises(NotImplementedError, match=f"{dtype} does not hold"):
                        op(x, y)
    assert len(held_by_type) >= 2 * 7 - 3  # |x| of an unsigned type is always held


@pytest.mark.parametrize("base", [-46341, -1290, -11, -2, -1, 0, 1, 2, 3, 1291, LARGE, LEAST])
def test_powers_of_integers_against_python(base: int) -> None:
    """``pow`` of int32 is Python's own where int32 holds it, and refused where it does not."""
    x = np.array([base], np.int32)
    for power in (*range(70), LARGE):
        y = np.array([power], np.int32)
        held = abs(base) < 2 or (power < 70 and LEAST <= base**power <= LARGE)
        with np.errstate(over="ignore"):
            if held:
                assert elementwise.power(x, y) == base**power
            else:
                with pytest.raises(NotImplementedError, match="int32 does not hold"):
                    elementwise.power(x, y)


def test_a_negative_power_of_an_integer_is_refused(saved: Save) -> None:
    """1 / 8 is no integer, and no page says what Core ML makes of it."""
    package = saved(lambda x: mb.pow(x=np.int32(2), y=x), x=np.array([3, -3], np.int32))
    with pytest.raises(UnsupportedOpError, match="a negative power of an integer is not"):
        package.output()


def test_zero_times_numbers_that_no_float_holds_is_zero() -> None:
    """A product of integers that leaves even float64 on the way to 0 is 0."""
    x = np.array([2**31 - 1] * 40 + [0], np.int32)
    with np.errstate(over="ignore", invalid="ignore"):
        assert reduce.reduce_prod(x) == 0
        with pytest.raises(NotImplementedError, match="the number inf, which int32"):
            reduce.reduce_prod(x[:-1])


def test_floats_are_computed_once_and_as_they_are() -> None:
    """Overflow is looked for in integers alone: floats go into the formula themselves."""
    x, y = np.ones(3, np.float32), np.ones(3, np.float32)
    given: list[tuple[Array, Array]] = []

    def formula(x: Array, y: Array) -> Array:
        given.append((x, y))
        return x

    assert overflow.checked(formula, x, y) is x
    assert len(given) == 1
    assert given[0][0] is x
    assert given[0][1] is y


@pytest.mark.parametrize(("op", "sought"), [(mb.reduce_argmax, 1), (mb.reduce_argmin, -1)])
def test_a_place_that_uint16_does_not_hold_is_refused(saved: Save, op: Any, sought: int) -> None:
    """65535 is the last place that ``output_dtype`` uint16 can name."""
    x = np.zeros(2**16 + 1, np.float32)

    def build(x: Any) -> Any:
        y = op(x=x, axis=0, keep_dims=True, output_dtype="uint16")
        return mb.cast(x=y, dtype="int32")

    x[2**16 - 1] = sought
    assert saved(build, specification=8, x=x).output().tolist() == [2**16 - 1]
    x[2**16] = 2 * sought
    with pytest.raises(UnsupportedOpError, match="the number 65536, which uint16 does not hold"):
        saved(build, specification=8, x=x).output()


def test_a_place_among_the_largest_that_uint16_does_not_hold_is_refused(saved: Save) -> None:
    """``topk`` names places in the same types."""
    x = np.arange(2**16 + 1, dtype=np.float32)

    def build(x: Any) -> Any:
        _, places = mb.topk(x=x, k=1, axis=0, output_indices_dtype="uint16")
        return mb.cast(x=places, dtype="int32")

    assert saved(build, specification=8, x=x[:-1]).output().tolist() == [2**16 - 1]
    with pytest.raises(UnsupportedOpError, match="the number 65536, which uint16 does not hold"):
        saved(build, specification=8, x=x).output()


@pytest.mark.parametrize(
    ("x", "dtype", "number"),
    [
        (np.float32(1e20), "int32", "1.0000000200408773e\\+20"),
        (np.float32(2.0**31), "int32", "2147483648.0"),
        (np.float32(np.nan), "int32", "nan"),
        (np.float32(-np.inf), "int32", "-inf"),
        (np.int32(128), "int8", "128"),
        (np.int32(-1), "uint8", "-1"),
        (np.int32(2**15), "int16", "32768"),
        (np.float32(-1), "uint16", "-1.0"),
    ],
)
def test_a_cast_of_a_number_that_the_type_does_not_hold_is_refused(
    saved: Save, x: np.generic, dtype: str, number: str
) -> None:
    """No page says what becomes of it, and the package is sound: it is not called damaged."""

    def build(x: Any) -> Any:
        return mb.cast(x=mb.cast(x=x, dtype=dtype), dtype="int32")

    package = saved(build, specification=8, x=np.array([0, x], x.dtype))
    with pytest.raises(UnsupportedOpError, match=f"'cast'.*the number {number}, which {dtype}"):
        package.output()


@pytest.mark.parametrize("divide", [mb.real_div, mb.floor_div, mb.mod])
def test_a_division_of_integers_by_zero_is_refused(saved: Save, divide: Any) -> None:
    """Integers have no infinity, and the package that meets a zero is sound."""
    package = saved(lambda x: divide(x=np.int32(6), y=x), x=np.array([2, 0], np.int32))
    with pytest.raises(UnsupportedOpError, match="a division of integers by zero is not"):
        package.output()
