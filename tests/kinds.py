"""One operator of each kind with inputs that are drawn, and how far its answers may be off."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

from levit_export.core.network import Network, Op, Value
from levit_export.core.precisions import UNIT_ROUNDOFF
from levit_export.models.interpreter import evaluate

Drawn = tuple[list[tuple[int, ...]], dict[str, Any]]
"""The shapes of the inputs of one operator, and its attributes."""
Draw = Callable[[st.DataObject], Drawn]

SIDE = st.integers(1, 6)
POSITIVE = {"divide": (1,), "batch_norm": (4,)}
"""Inputs that are positive numbers."""
CONSTANT = {
    "convolution": (1, 2),
    "linear": (1, 2),
    "batch_norm": (1, 2, 3, 4),
    "layer_norm": (1, 2),
}
"""Inputs that are constants in every network."""
SOMETIMES = {"add", "subtract", "multiply", "divide", "matmul", "concatenate"}
"""Kinds of which one input or the other is a constant in some networks."""


def _shape(data: st.DataObject, least: int = 1, most: int = 5) -> tuple[int, ...]:
    return tuple(data.draw(st.lists(SIDE, min_size=least, max_size=most)))


def _unary(**attributes: Any) -> Draw:
    return lambda data: ([_shape(data)], {k: data.draw(v) for k, v in attributes.items()})


def _binary(data: st.DataObject) -> Drawn:
    """Two shapes that broadcast; the second may have fewer axes."""
    whole = _shape(data)
    first = tuple(data.draw(st.sampled_from((side, 1))) for side in whole)
    second = tuple(
        side if one == 1 or data.draw(st.booleans()) else 1
        for side, one in zip(whole, first, strict=True)
    )
    return [first, second[data.draw(st.integers(0, len(whole) - 1)) :]], {}


def _convolution(data: st.DataObject) -> Drawn:
    groups, wide, out = (data.draw(st.integers(1, 3)) for _ in range(3))
    window = data.draw(st.tuples(SIDE, SIDE))
    dilation = data.draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    padding = data.draw(st.tuples(st.integers(0, 2), st.integers(0, 2)))
    reach = [d * (w - 1) + 1 for d, w in zip(dilation, window, strict=True)]
    sides = [r + data.draw(st.integers(0, 5)) for r in reach]
    shapes = [(data.draw(st.integers(1, 2)), groups * wide, *sides)]
    shapes += [(groups * out, wide, *window)]
    shapes += [(groups * out,)] if data.draw(st.booleans()) else []
    stride = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    attributes = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return shapes, attributes


def _pool(data: st.DataObject) -> Drawn:
    window = data.draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    padding = tuple(data.draw(st.integers(0, w // 2)) for w in window)
    sides = [w + data.draw(st.integers(0, 5)) for w in window]
    stride = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    shape = (*data.draw(st.tuples(SIDE, SIDE)), *sides)
    return [shape], {"window": window, "stride": stride, "padding": padding}


def _linear(data: st.DataObject) -> Drawn:
    shape, width = _shape(data, 2, 4), data.draw(SIDE)
    bias = [(width,)] if data.draw(st.booleans()) else []
    return [shape, (width, shape[-1]), *bias], {}


def _matmul(data: st.DataObject) -> Drawn:
    rows, inner, columns = (data.draw(SIDE) for _ in range(3))
    outer = _shape(data, 0, 3)
    a, b = [*outer, rows, inner], [*outer, inner, columns]
    turned = {key: data.draw(st.booleans()) for key in ("transpose_a", "transpose_b")}
    for shape, is_turned in zip((a, b), turned.values(), strict=True):
        shape[-2:] = reversed(shape[-2:]) if is_turned else shape[-2:]
    if outer and data.draw(st.booleans()):
        b[0] = 1
    return [tuple(a), tuple(b)], turned


def _batch_norm(data: st.DataObject) -> Drawn:
    shape = data.draw(st.sampled_from([_shape(data, 2, 2), _shape(data, 4, 4)]))
    return [shape, *[(shape[1],)] * 4], {"epsilon": data.draw(st.sampled_from([1e-5, 1e-3]))}


def _layer_norm(data: st.DataObject) -> Drawn:
    shape = (*_shape(data, 1, 3), data.draw(st.integers(4, 9)))
    return [shape, *[shape[-1:]] * 2], {"epsilon": data.draw(st.sampled_from([1e-12, 1e-3]))}


def _softmax(data: st.DataObject) -> Drawn:
    shape = _shape(data)
    return [shape], {"axis": data.draw(st.integers(0, len(shape) - 1))}


def _mean(data: st.DataObject) -> Drawn:
    shape = _shape(data, 2)
    axes = st.sets(st.integers(0, len(shape) - 1), min_size=1, max_size=len(shape) - 1)
    return [shape], {"axes": tuple(sorted(data.draw(axes))), "keep": data.draw(st.booleans())}


def _reshape(data: st.DataObject) -> Drawn:
    shape = _shape(data, 1, 4)
    flat = data.draw(st.integers(0, len(shape) - 1))
    other = (*shape[:flat], int(np.prod(shape[flat:])))
    if data.draw(st.booleans()):  # the first side is left to be worked out
        return [shape], {"shape": (-1, *other[1:])}
    return ([shape], {"shape": other}) if data.draw(st.booleans()) else ([other], {"shape": shape})


def _transpose(data: st.DataObject) -> Drawn:
    shape = _shape(data, 2)
    return [shape], {"axes": tuple(data.draw(st.permutations(range(len(shape)))))}


def _slice(data: st.DataObject) -> Drawn:
    shape = _shape(data)
    axes = data.draw(st.sets(st.integers(0, len(shape) - 1), min_size=1))
    starts = [data.draw(st.integers(0, shape[axis] - 1)) for axis in axes]
    stops = [data.draw(st.integers(a + 1, shape[x])) for a, x in zip(starts, axes, strict=True)]
    steps = [data.draw(st.integers(1, 3)) for _ in axes]
    named = {"axes": axes, "starts": starts, "stops": stops, "steps": steps}
    return [shape], {key: tuple(value) for key, value in named.items()}


def _select(data: st.DataObject) -> Drawn:
    shape = _shape(data, 2)
    axis = data.draw(st.integers(0, len(shape) - 1))
    return [shape], {"axis": axis, "index": data.draw(st.integers(0, shape[axis] - 1))}


def _split(data: st.DataObject) -> Drawn:
    sizes = tuple(data.draw(st.lists(SIDE, min_size=2, max_size=4)))
    shape = list(_shape(data))
    axis = data.draw(st.integers(0, len(shape) - 1))
    shape[axis] = sum(sizes)
    return [tuple(shape)], {"axis": axis, "sizes": sizes}


def _concatenate(data: st.DataObject) -> Drawn:
    shape = list(_shape(data))
    axis = data.draw(st.integers(0, len(shape) - 1))
    sides = data.draw(st.lists(SIDE, min_size=2, max_size=4))
    return [(*shape[:axis], side, *shape[axis + 1 :]) for side in sides], {"axis": axis}


def _pad(data: st.DataObject) -> Drawn:
    shape = _shape(data, 2)
    before, after = (tuple(data.draw(st.integers(0, 2)) for _ in shape) for _ in range(2))
    return [shape], {"before": before, "after": after}


def _gather(data: st.DataObject) -> Drawn:
    shape = _shape(data, 1, 3)
    return [shape, _shape(data, 1, 2)], {"axis": data.draw(st.integers(0, len(shape) - 1))}


MOVES = {"reshape", "transpose", "slice", "select", "split", "concatenate", "pad", "gather"}
MOVES |= {"max_pool", "relu", "cast"}
"""Kinds that change no number: what they give is exact."""
DRAWS: dict[str, Draw] = {
    "convolution": _convolution,
    "linear": _linear,
    "matmul": _matmul,
    **dict.fromkeys(("add", "subtract", "multiply", "divide"), _binary),
    **dict.fromkeys(("relu", "hardswish", "silu", "sigmoid"), _unary()),
    "gelu": _unary(tanh=st.booleans()),
    "softmax": _softmax,
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "mean": _mean,
    "max_pool": _pool,
    "average_pool": _pool,
    "reshape": _reshape,
    "transpose": _transpose,
    "slice": _slice,
    "select": _select,
    "split": _split,
    "concatenate": _concatenate,
    "pad": _pad,
    "gather": _gather,
    "cast": _unary(dtype=st.just("float32")),
}


def _numbers(kind: str, place: int, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Multiples of 1/8 that float16 holds exactly: no error is that of rounding the inputs."""
    drawn = np.random.default_rng(seed).integers(-32, 33, shape)
    drawn = np.abs(drawn) + 8 if place in POSITIVE.get(kind, ()) else drawn
    return (drawn / 8).astype(np.float32)


def network_of(
    kind: str, cases: list[Drawn], seed: int, *, pixels: bool = False
) -> tuple[Network, dict[str, np.ndarray]]:
    """A network of several operators of a kind beside one another, and inputs for it.

    With ``pixels`` what is cast are bytes.
    """
    ops, constants, inputs = [], {}, {}
    for number, (shapes, attributes) in enumerate(cases):
        names = []
        for place, shape in enumerate(shapes):
            name = f"case{number}.x{place}"
            array = _numbers(kind, place, shape, seed + 10 * number + place)
            if kind == "gather" and place == 1:
                length = shapes[0][attributes["axis"]]
                array = np.random.default_rng(seed).integers(0, length, shape)
            if kind == "cast" and pixels:
                array = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
            is_constant = place in CONSTANT.get(kind, ()) or array.dtype.kind == "i"
            # Of every four cases one has a constant as its second input, and one as its first.
            is_constant |= kind in SOMETIMES and (number % 4, place) in {(1, 1), (3, 0)}
            (constants if is_constant else inputs)[name.replace(".", "_")] = array
            names.append(name.replace(".", "_"))
        count = len(attributes["sizes"]) if kind == "split" else 1
        outputs = tuple(Value(f"y{number}_{part}", ()) for part in range(count))
        ops.append(Op(kind, tuple(names), outputs, attributes, f"case{number}"))
    every = tuple(value.name for op in ops for value in op.outputs)
    taken = tuple(Value(name, array.shape, str(array.dtype)) for name, array in inputs.items())
    network = Network(taken, every, tuple(ops), constants)
    found = evaluate(network, inputs)
    shaped = tuple(
        replace(op, outputs=tuple(Value(v.name, found[v.name].shape) for v in op.outputs))
        for op in ops
    )
    return replace(network, ops=shaped), inputs


def bound(network: Network, inputs: dict[str, np.ndarray], u: float) -> dict[str, float]:
    """How far each output may lie from the exact one in arithmetic of unit roundoff ``u``.

    A sum of n terms errs by n roundoffs of the sum of their sizes (Higham 2002, section 3.1), and
    n is at most the size of the largest input. 16 more are for elementary functions and what a
    normalisation computes on the way. Sizes are those that the inputs' own absolutes give, where
    an operator adds, and at least those of inputs and results.
    """
    absolute = replace(network, constants={k: np.abs(v) for k, v in network.constants.items()})
    sizes = evaluate(absolute, {k: np.abs(v) for k, v in inputs.items()}, dtype=torch.float64)
    exact = evaluate(network, inputs, dtype=torch.float64)
    known = {**network.constants, **inputs}
    found = {}
    for op in network.ops:
        arrays = [known[name] for name in op.inputs]
        given = sum(float(np.abs(array).max()) for array in arrays)
        terms = max(array.size for array in arrays) + 16
        for name in (value.name for value in op.outputs):
            size = max(np.abs(sizes[name]).max(), np.abs(exact[name]).max(), given)
            found[name] = 0.0 if op.kind in MOVES else terms * u * float(size)
    return found


def assert_computes(
    run: Callable[..., dict[str, np.ndarray]],
    network: Network,
    inputs: dict[str, np.ndarray],
    half: str = "fp16",
) -> None:
    """``run(network, inputs, half=...)`` gives what the operators mean, in both precisions.

    ``half`` is the type that a float16 file is computed in.
    """
    exact = evaluate(network, inputs, dtype=torch.float64)
    for is_half, computed in ((False, "fp32"), (True, half)):
        found = run(network, inputs, half=is_half)
        allowed = bound(network, inputs, UNIT_ROUNDOFF[computed])
        for name, expected in exact.items():
            assert found[name].shape == expected.shape, name
            assert found[name].dtype == np.float32, name
            assert np.abs(found[name] - expected).max() <= allowed[name], (name, is_half)
