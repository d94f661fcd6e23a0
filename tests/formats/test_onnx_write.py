"""What the ONNX writer makes of each kind of operator, and of every architecture."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnxruntime
import pytest
import subjects
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kinds import DRAWS, assert_computes, network_of
from support import RUNNABLE

from levit_export.core.network import KINDS, Network
from levit_export.core.precisions import UNIT_ROUNDOFF
from levit_export.core.values import Embedded
from levit_export.formats.onnx.write import WRITERS, write
from levit_export.models.interpreter import evaluate
from levit_export.models.preparation import prepare


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


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=2, derandomize=True)
@given(data=st.data())
def test_each_kind(kind: str, data: st.DataObject) -> None:
    """Every kind of operator is what it means, at every opset, in float32 and float16."""
    cases = [DRAWS[kind](data) for _ in range(6)]
    network, inputs = network_of(kind, cases, data.draw(st.integers(0, 1000)), pixels=True)
    for opset in RUNNABLE:

        def computed(
            made: Network, given_: dict[str, np.ndarray], *, half: bool, opset: int = opset
        ) -> dict[str, np.ndarray]:
            written = write(made, opset=opset, name=kind, half=half).model
            names = {name for node in written.graph.node for name in node.output}
            assert {output.name for op in made.ops for output in op.outputs} <= names
            assert all(node.name == f"node_{node.output[0]}" for node in written.graph.node)
            return dict(zip(made.outputs, run(written, given_), strict=True))

        assert_computes(computed, network, inputs)


def test_every_kind_has_a_writer() -> None:
    """The table of writers is the table of kinds."""
    assert WRITERS.keys() == KINDS.keys()


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
