"""Every kind of operator in OpenVINO computes what it means; whole files are the converter's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import openvino
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kinds import DRAWS, assert_computes, network_of
from subjects import CONFIGS
from subjects import small as small_network

from levit_export.core.network import KINDS, Network, Op, Value
from levit_export.formats.openvino.precisions import as_convolutions
from levit_export.formats.openvino.write import write
from levit_export.models.interpreter import evaluate
from levit_export.models.preparation import prepare

UNIT = 2.0**-24
"""The unit roundoff of float32."""


def numbers(*shape: int) -> np.ndarray:
    """Seeded numbers of size one."""
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def run(graph: openvino.Model, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What OpenVINO computes in float32."""
    wanted = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = openvino.Core().compile_model(graph, "CPU", wanted)
    results = compiled(dict(inputs))
    return {port.any_name: results[port] for port in compiled.outputs}


def computed(
    network: Network, inputs: dict[str, np.ndarray], *, half: bool
) -> dict[str, np.ndarray]:
    """What the graph of a network gives."""
    return run(write(network, "one", half=half), inputs)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=3, derandomize=True)
@given(data=st.data())
def test_each_kind(kind: str, data: st.DataObject) -> None:
    """OpenVINO computes what the kind means, with float32 constants and with float16 ones."""
    cases = [DRAWS[kind](data) for _ in range(6)]
    made, inputs = network_of(kind, cases, data.draw(st.integers(0, 1000)), pixels=True)
    assert_computes(computed, made, inputs, half="fp32")


def images(made: Network) -> np.ndarray:
    """Seeded inputs; three for an open batch."""
    (taken,) = made.inputs
    return numbers(*(side or 3 for side in taken.shape))


def operators(graph: openvino.Model) -> Counter[str]:
    """How many there are of each kind beside constants."""
    kinds = Counter(node.get_type_name() for node in graph.get_ops())
    del kinds["Constant"]
    return kinds


MATHEMATICS = ("Convolution", "MatMul", "HSwish", "Gelu", "Swish", "MVN", "MaxPool", "AvgPool")


def converted(name: str, layout: Any, skip: Sequence[str]) -> tuple[Network, openvino.Model]:
    """A network, and what OpenVINO's own converter makes of the program that it was read from."""
    model = prepare(small_network(name), layout=layout, skip=skip)
    return model.network, openvino.convert_model(model.program.run_decompositions({}))


FORMS = [
    *((name, "tokens", ()) for name in CONFIGS),
    ("levit", "maps", ()),
    ("levit", "tokens", ("fuse_batchnorm", "merge_heads", "bake_attention_bias")),
]


@pytest.mark.parametrize(("name", "layout", "skip"), FORMS, ids=str)
def test_the_converters_file(name: str, layout: str, skip: Sequence[str]) -> None:
    """Ours gives the converter's answers, has its mathematics, and has no more operators."""
    made, theirs = converted(name, layout, skip)
    ours = write(made, name)
    x = images(made)
    theirs.reshape(list(x.shape))
    found = list(run(ours, {made.inputs[0].name: x}).values())
    results = openvino.Core().compile_model(theirs, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(
        [x]
    )
    exact = list(evaluate(made, {made.inputs[0].name: x}, dtype=torch.float64).values())
    for number, answer in enumerate(exact):
        size = np.abs(answer).max()
        error = np.abs(results[number] - answer).max() / size
        # Both round each of some hundred operators; neither may be much worse than the other.
        assert np.abs(found[number] - answer).max() / size <= 8 * max(error, 4 * UNIT)
    mine, other = operators(ours), operators(theirs)
    assert mine.total() <= other.total()
    assert {kind: mine[kind] for kind in MATHEMATICS} == {
        kind: other[kind] for kind in MATHEMATICS
    }


@pytest.mark.parametrize("batch", [2, None])
def test_linear_layers_as_convolutions(batch: int | None) -> None:
    """The same answers in float64 and the same taps; no layer over tokens is left."""
    plain = prepare(small_network("levit"), batch=batch).network
    made = as_convolutions(plain)
    x = {plain.inputs[0].name: images(plain)}
    names = [*plain.taps.values()]
    before = evaluate(plain, x, dtype=torch.float64, also=names)
    after = evaluate(made, x, dtype=torch.float64, also=names)
    for name, answer in before.items():
        assert after[name].shape == answer.shape
        assert np.abs(after[name] - answer).max() <= 1e-13 * np.abs(answer).max()
    left = [op.output.name for op in made.ops if op.kind == "linear"]
    assert left == [plain.outputs[0]]
    found = run(write(made, "m"), x)
    for name, result in found.items():
        assert np.abs(result - before[name]).max() <= 1e-5 * np.abs(before[name]).max()


def test_values_and_constants_keep_their_names() -> None:
    """Values and weights are called as in the network, and no name is OpenVINO's own."""
    made = prepare(small_network("levit")).network
    graph = write(made, "m")
    nodes = {node.get_friendly_name(): node.get_type_name() for node in graph.get_ops()}
    assert set(made.constants) <= {name for name, kind in nodes.items() if kind == "Constant"}
    assert {op.outputs[0].name for op in made.ops} <= set(nodes)
    assert not [name for name, kind in nodes.items() if name.startswith(f"{kind}_")]
    assert len(nodes) == len(graph.get_ops())


def test_kept_blocks_stay_float32() -> None:
    """Float16 is for the constants of all other blocks."""
    made = prepare(small_network("levit")).network
    kept = "stage1.block0.attention"
    graph = write(made, "m", half=True, keep=[kept])
    whole = {name for op in made.ops_of([kept]) for name in op.inputs if name in made.constants}
    assert whole
    stored = {
        node.get_friendly_name(): node.get_element_type().to_dtype()
        for node in graph.get_ops()
        if node.get_type_name() == "Constant"
    }
    for name in made.constants:
        expected = name if name in whole else f"{name}/float16"
        assert stored[expected] == (np.float32 if name in whole else np.float16)


def test_numbers_that_float16_cannot_hold() -> None:
    """A constant beyond float16's range, or mostly below it, stays float32."""
    x = {"x": numbers(2, 3)}
    for size in (1e6, 1e-9):
        op = Op("multiply", ("x", "size"), (Value("y", (2, 3)),))
        held = {"size": np.full(3, size, np.float32)}
        made = Network((Value("x", (2, 3)),), ("y",), (op,), held)
        found = run(write(made, "m", half=True), x)["y"]
        np.testing.assert_allclose(found, x["x"] * size, rtol=1e-6)
