"""What the ONNX writer makes of each kind of operator, and of every architecture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import subjects
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import RUNNABLE

from levit_export.core.network import KINDS, Network, Op, Value
from levit_export.core.precisions import UNIT_ROUNDOFF
from levit_export.core.values import Embedded
from levit_export.formats.onnx.write import WRITERS, write
from levit_export.models.interpreter import evaluate
from levit_export.models.preparation import prepare

SIDES = st.integers(1, 4)
Drawn = tuple[list[tuple[int, ...]], dict[str, Any]]
"""The shapes of an operator's inputs, and its attributes."""


def run(model: onnx.ModelProto, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """What ONNX Runtime computes, after the model was checked."""
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    found: list[np.ndarray] = session.run(None, dict(inputs))
    return found


def shapes(rank: int) -> st.SearchStrategy[tuple[int, ...]]:
    """Any shape of a rank."""
    return st.tuples(*[SIDES] * rank)


@st.composite
def convolution(draw: st.DrawFn) -> Drawn:
    """Groups, strides, paddings, dilations, with a bias or without."""
    groups, inside, outside = draw(st.integers(1, 2)), draw(SIDES), draw(SIDES)
    window = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    attributes = {
        "stride": draw(st.tuples(st.integers(1, 3), st.integers(1, 3))),
        "padding": draw(st.tuples(st.integers(0, 2), st.integers(0, 2))),
        "dilation": draw(st.tuples(st.integers(1, 2), st.integers(1, 2))),
        "groups": groups,
    }
    image = (draw(SIDES), groups * inside, draw(st.integers(5, 9)), draw(st.integers(5, 9)))
    weight = (groups * outside, inside, *window)
    return [image, weight, *draw(st.sampled_from([[], [weight[:1]]]))], attributes


@st.composite
def linear(draw: st.DrawFn) -> Drawn:
    """Rows and more than rows, with a bias or without."""
    outer, weight = draw(shapes(draw(st.integers(1, 3)))), draw(shapes(2))
    return [(*outer, weight[1]), weight, *draw(st.sampled_from([[], [weight[:1]]]))], {}


@st.composite
def matmul(draw: st.DrawFn) -> Drawn:
    """Factors of a rank with axes that broadcast, each transposed or not."""
    outer, (rows, inner, columns) = draw(shapes(draw(st.integers(1, 2)))), draw(shapes(3))
    one, other = draw(st.tuples(st.booleans(), st.booleans()))
    thin = tuple(draw(st.sampled_from([side, 1])) for side in outer)
    a = (*outer, *((inner, rows) if one else (rows, inner)))
    b = (*thin, *((columns, inner) if other else (inner, columns)))
    return [a, b], {"transpose_a": one, "transpose_b": other}


@st.composite
def elementwise(draw: st.DrawFn) -> Drawn:
    """Two operands that broadcast, of the same rank or of another."""
    shape = draw(shapes(draw(st.integers(1, 4))))
    thin = tuple(draw(st.sampled_from([side, 1])) for side in shape)
    return [shape, thin[draw(st.integers(0, len(shape))) :]], {}


@st.composite
def alone(draw: st.DrawFn, **attributes: st.SearchStrategy[Any]) -> Drawn:
    """One operand of any shape."""
    shape = draw(shapes(draw(st.integers(1, 4))))
    return [shape], {name: draw(values) for name, values in attributes.items()}


@st.composite
def along(draw: st.DrawFn, kind: str) -> Drawn:
    """What is done along one axis or several."""
    shape = draw(shapes(draw(st.integers(2, 4))))
    axis = draw(st.integers(0, len(shape) - 1))
    axes = tuple(sorted(draw(st.sets(st.integers(0, len(shape) - 1), min_size=1))))
    before, after = shape[:axis], shape[axis + 1 :]
    given_shapes, attributes = [shape], {"axis": axis}
    if kind == "mean":
        attributes = {"axes": axes, "keep": draw(st.booleans())}
    elif kind == "transpose":
        attributes = {"axes": tuple(draw(st.permutations(range(len(shape)))))}
    elif kind == "slice":
        starts = tuple(draw(st.integers(0, shape[each] - 1)) for each in axes)
        pairs = zip(axes, starts, strict=True)
        stops = tuple(draw(st.integers(start + 1, shape[each])) for each, start in pairs)
        steps = tuple(draw(st.integers(1, 3)) for _ in axes)
        attributes = {"axes": axes, "starts": starts, "stops": stops, "steps": steps}
    elif kind == "select":
        attributes = {"axis": axis, "index": draw(st.integers(0, shape[axis] - 1))}
    elif kind == "concatenate":
        given_shapes = [shape, (*before, draw(SIDES), *after), shape][: draw(st.integers(2, 3))]
    elif kind == "split":
        sizes = tuple(draw(st.lists(SIDES, min_size=2, max_size=3)))
        given_shapes, attributes = [(*before, sum(sizes), *after)], {"axis": axis, "sizes": sizes}
    elif kind == "pad":
        sides = st.tuples(*[st.integers(0, 2)] * len(shape))
        attributes = {"before": draw(sides), "after": draw(sides)}
    elif kind == "reshape":
        attributes = {"shape": (shape[0], int(np.prod(shape[1:])), 1)}
    return given_shapes, attributes


@st.composite
def norm(draw: st.DrawFn, kind: str) -> Drawn:
    """BatchNorm over axis 1 of rows and maps, LayerNorm over the last axis."""
    shape = (*draw(shapes(draw(st.sampled_from([1, 3])))), draw(st.integers(3, 6)))
    if kind == "layer_norm":
        return [shape, shape[-1:], shape[-1:]], {"epsilon": draw(st.sampled_from([1e-5, 1e-1]))}
    return [shape, *[shape[1:2]] * 4], {"epsilon": draw(st.sampled_from([1e-5, 1e-1]))}


@st.composite
def pool(draw: st.DrawFn) -> Drawn:
    """Windows, strides and paddings of at most half a window."""
    window = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    padding = tuple(draw(st.integers(0, side // 2)) for side in window)
    stride = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    image = (draw(SIDES), draw(SIDES), draw(st.integers(3, 7)), draw(st.integers(3, 7)))
    return [image], {"window": window, "stride": stride, "padding": padding}


DRAWN: Mapping[str, st.SearchStrategy[Drawn]] = {
    "convolution": convolution(),
    "linear": linear(),
    "matmul": matmul(),
    **dict.fromkeys(("add", "subtract", "multiply", "divide"), elementwise()),
    **dict.fromkeys(("relu", "hardswish", "silu", "sigmoid"), alone()),
    "gelu": alone(tanh=st.booleans()),
    "batch_norm": norm("batch_norm"),
    "layer_norm": norm("layer_norm"),
    "max_pool": pool(),
    "average_pool": pool(),
    "cast": alone(dtype=st.just("float32")),
    **{
        kind: along(kind)
        for kind in KINDS
        if KINDS[kind].attributes & {"axis", "axes", "shape", "before"}
    },
}
MIXING = ("convolution", "linear", "matmul", "mean", "average_pool", "layer_norm", "softmax")
"""Kinds whose values depend on many."""


def single(kind: str, drawn: Drawn, rng: np.random.Generator) -> tuple[Network, dict[str, Any]]:
    """A network of one operator, and its inputs. Parameters of layers are constants."""
    given_shapes, attributes = drawn
    names = [f"x{number}" for number in range(len(given_shapes))]
    arrays = {}
    for name, shape in zip(names, given_shapes, strict=True):
        arrays[name] = rng.uniform(-1, 1, shape).astype(np.float32)
    if kind in ("divide", "batch_norm"):
        arrays[names[-1]] = np.asarray(np.abs(arrays[names[-1]]) + np.float32(0.5))
    if kind == "gather":
        arrays["index"] = rng.integers(0, given_shapes[0][attributes["axis"]], (2, 3))
        names.append("index")
    if kind == "cast":
        arrays["x0"] = rng.integers(0, 256, given_shapes[0]).astype(np.uint8)
    layers = ("convolution", "linear", "batch_norm", "layer_norm", "gather")
    constants = {n: arrays.pop(n) for n in names[1:] if kind in layers}
    inputs = tuple(Value(n, a.shape, str(a.dtype)) for n, a in arrays.items())
    count = len(attributes["sizes"]) if kind == "split" else 1
    outputs = tuple(Value(f"y{number}", ()) for number in range(count))
    made = tuple(value.name for value in outputs)
    network = Network(inputs, made, (Op(kind, tuple(names), outputs, attributes),), constants)
    found = evaluate(network, arrays)
    outputs = tuple(replace(value, shape=found[value.name].shape) for value in outputs)
    return replace(network, ops=(replace(network.ops[0], outputs=outputs),)), arrays


@pytest.mark.parametrize("kind", KINDS)
@settings(
    max_examples=12,
    derandomize=True,
)
@given(data=st.data())
def test_kinds(kind: str, data: st.DataObject) -> None:
    """Every kind of operator is what it means, at every opset, in float32 and float16."""
    drawn = data.draw(DRAWN[kind])
    network, inputs = single(kind, drawn, np.random.default_rng(data.draw(st.integers(0, 99))))
    opset, half = data.draw(st.sampled_from(RUNNABLE)), data.draw(st.booleans())
    expected = evaluate(network, inputs, dtype=torch.float64)
    written = write(network, opset=opset, name=kind, half=half).model
    # Operands are rounded, at most so many terms are summed, and the sum is rounded.
    terms = max(int(np.prod(shape)) for shape in drawn[0]) if kind in MIXING else 1
    bound = 8 * (terms + 1) * UNIT_ROUNDOFF["fp16" if half else "fp32"]
    for found, exact in zip(run(written, inputs), expected.values(), strict=True):
        assert found.dtype == np.float32
        assert found.shape == exact.shape
        np.testing.assert_allclose(found, exact, rtol=bound, atol=bound)
    assert set(expected) <= {name for node in written.graph.node for name in node.output}
    for node in written.graph.node:
        assert node.name == f"node_{node.output[0]}"


def test_every_kind_has_a_writer() -> None:
    """The table of writers is the table of kinds, and so is that of these tests."""
    assert WRITERS.keys() == KINDS.keys() == DRAWN.keys()


@pytest.mark.parametrize(
    ("name", "layout"), [*((name, "tokens") for name in subjects.CONFIGS), ("levit", "maps")]
)
def test_against_the_exporter_of_torch(name: str, layout: str) -> None:
    """What torch.onnx makes of the same program gives the same answers, and has no fewer nodes."""
    model = prepare(subjects.small(name), layout=layout)  # type: ignore[arg-type]
    ours = write(model.network, opset=18, name=name).model
    theirs = torch.onnx.export(model.program, opset_version=18, verbose=False)
    (taken,) = model.signature.inputs
    shape = [side or 1 for side in taken.shape]
    image = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    assert theirs is not None
    proto = theirs.model_proto
    expected = run(proto, {proto.graph.input[0].name: image})
    for one, other in zip(run(ours, {"input": image}), expected, strict=True):
        bound = 4096**0.5 * UNIT_ROUNDOFF["fp32"] * np.abs(other).max()
        np.testing.assert_allclose(one, other, rtol=0, atol=bound)
    assert len(ours.graph.node) <= len(proto.graph.node)


@pytest.mark.parametrize("batch", [2, None])
@pytest.mark.parametrize(
    ("embedded", "skip"),
    [
        (Embedded(preprocessing=True, softmax=True), ()),
        (Embedded(), ("fuse_batchnorm", "merge_heads")),
        (Embedded(), ("bake_attention_bias",)),
    ],
)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_whole_networks(
    batch: int | None, embedded: Embedded, skip: tuple[str, ...], precision: str
) -> None:
    """Embedded parts, passes left out and open batches are the network's function."""
    network = prepare(subjects.small("levit"), batch=batch, embedded=embedded, skip=skip).network
    (taken,) = network.inputs
    shape = [side or 3 for side in taken.shape]
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, shape) if embedded.preprocessing else rng.standard_normal(shape)
    inputs = {taken.name: image.astype(taken.dtype)}
    expected = evaluate(network, inputs, dtype=torch.float64)
    written = write(network, opset=18, name="levit", half=precision == "fp16")
    bound = 4096**0.5 * UNIT_ROUNDOFF[precision]
    for found, exact in zip(run(written.model, inputs), expected.values(), strict=True):
        assert np.abs(found - exact).max() <= bound * np.abs(exact).max()
    assert set(written.ops) == {node.name for node in written.model.graph.node}
    assert set(network.taps.values()) <= {
        name for node in written.model.graph.node for name in node.output
    }
