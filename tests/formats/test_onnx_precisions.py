"""The precisions of the ONNX target: what is stored, what is computed, and what is refused."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import cache, partial
from importlib import resources
from pathlib import Path

import numpy as np
import onnx
import pytest
import subjects
from onnx import TensorProto, numpy_helper
from subjects import IMAGES, options_for
from support import RUNNABLE

from levit_export.checks import weights
from levit_export.core import constants
from levit_export.core.errors import ExportFailedError, UsageError
from levit_export.core.network import Network, Op, Value, value_of_tap
from levit_export.core.values import Artifact, Calibration, ExportOptions, RunOptions
from levit_export.formats.metadata import PREFIX
from levit_export.formats.onnx import precisions as onnx_precisions
from levit_export.formats.onnx import providers
from levit_export.formats.onnx import write as onnx_write
from levit_export.formats.onnx.target import OnnxTarget
from levit_export.inputs import preprocessing, samples
from levit_export.models import checkpoints

TARGET = OnnxTarget()
tiny = partial(subjects.tiny_artifact, "onnx")
RUN = RunOptions(threads=1)
PRECISIONS = TARGET.precisions[1:]
KEPT = "stage2.block0.mlp"
KEPT_VALUE = "stage2_block0_mlp"
KEPT_PATH = next(path for path, block in subjects.tiny().blocks.items() if block == KEPT)


@cache
def digits(precision: str) -> Artifact:
    """The bundled model in a precision and batches of 16; do not change it."""
    with (resources.files("levit_export.inputs.data") / "digits.npz").open("rb") as file:
        pixels = np.load(file)["calibration_images"]
    recipe = checkpoints.bundled().describe().preprocessing
    images = np.stack([preprocessing.apply(recipe, image) for image in pixels])
    made = ExportOptions(precision=precision, batch=16, calibration=Calibration(images, "digits"))
    place = subjects.folder() / f"digits-16-{precision}"
    return subjects.export(subjects.digits(16), place, "onnx", made)


def graph(artifact: Artifact) -> onnx.GraphProto:
    """The graph of a file."""
    return onnx.load(artifact.path).graph


def logits(artifact: Artifact, images: np.ndarray = IMAGES) -> np.ndarray:
    """What ONNX Runtime computes, an image at a time."""
    with TARGET.open(artifact, RUN) as session:
        return np.concatenate([session.run({"input": i[None]})["logits"] for i in images])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_signature_and_metadata(precision: str) -> None:
    """Inputs and outputs stay float32 under their names; the file says its precision."""
    made = tiny(precision)
    assert made.signature == subjects.tiny().signature
    found = TARGET.inspect(made.path)
    assert (found.signature, found.precision) == (made.signature, precision)
    proto, plain = onnx.load(made.path), onnx.load(tiny("fp32").path)
    said = {p.key: p.value for p in proto.metadata_props}
    expected = {p.key: p.value for p in plain.metadata_props}
    assert said == {**expected, f"{PREFIX}precision": precision}
    assert proto.opset_import == plain.opset_import
    assert proto.producer_name == plain.producer_name
    with TARGET.open(made, RUN) as session:
        assert session.signature == made.signature


@pytest.mark.parametrize("precision", PRECISIONS)
def test_value_names_survive(precision: str) -> None:
    """Every value of the network can be tapped in every precision under its name."""
    made, network = tiny(precision), subjects.tiny().network
    named = {value.name for op in network.ops for value in op.outputs}
    if precision == "int8":
        # Where layers are matrix products, what only gets another shape has that shape at once.
        named -= {
            name
            for name, readers in network.readers.items()
            if {op.kind for op in readers} <= {"reshape", "linear"}
            and {op.kind for op in network.ops for v in op.outputs if v.name == name}
            <= {"reshape", "linear"}
        } - set(network.taps.values())
    assert len(named) > 40
    with TARGET.open(made, RUN, taps=sorted(named)) as session:
        assert named <= set(session.run({"input": IMAGES[:1]}))


def test_parts_of_operators_are_named_after_them() -> None:
    """What the exporter makes of one operator carries the block's name as well."""
    nodes = graph(tiny("fp32")).node
    products = [node.output[0] for node in nodes if node.op_type == "MatMul"]
    blocks = tuple(value_of_tap(b) + "_" for b in subjects.tiny().blocks.values())
    assert products
    assert all(name.startswith(blocks) for name in products), products


@pytest.mark.parametrize("precision", PRECISIONS)
def test_kept_block_is_float32(precision: str) -> None:
    """The weights of a kept block are in the file bit for bit; others are not."""
    tensors = {
        name: tensor.detach().numpy()
        for name, tensor in subjects.tiny().program.state_dict.items()
        if name.endswith(".weight")
    }
    inside = {n: t for n, t in tensors.items() if n.startswith(f"{KEPT_PATH}.")}
    assert len(inside) == 2
    prints = constants.fingerprints(tensors, "fp32")

    def missing(artifact: Artifact) -> set[str]:
        return set(weights.audit(prints, TARGET.constants(artifact)).missing)

    assert set(inside) <= missing(tiny(precision))
    assert missing(tiny(precision, KEPT)) == missing(tiny(precision)) - set(inside)


def test_kept_block_computes_in_float32() -> None:
    """Between the operators of a block kept from float16 nothing is rounded."""
    made = tiny("fp16", KEPT)
    inferred = onnx.shape_inference.infer_shapes(onnx.load(made.path)).graph
    types = {v.name: v.type.tensor_type.elem_type for v in inferred.value_info}
    inside = {name: kind for name, kind in types.items() if name.startswith(f"{KEPT_VALUE}_")}
    halves = {name for name, kind in inside.items() if kind == TensorProto.FLOAT16}
    assert len(inside) > 5
    assert halves == {f"{KEPT_VALUE}_out_as_float16"}
    assert types["stage1_block0_mlp_out"] == TensorProto.FLOAT16


def test_unknown_block_is_refused(tmp_path: Path) -> None:
    """A block that owns no operator is named, with those that there are."""
    with pytest.raises(UsageError, match=r"'stage9.*Known: .*stage1\.block0\.attention"):
        TARGET.export(
            subjects.tiny(),
            tmp_path / "m.onnx",
            options_for("w8", keep=("stage9.block0",)),
        )
    assert list(tmp_path.iterdir()) == []


def test_kept_block_of_blocks() -> None:
    """A block that has blocks within it is kept with them."""
    (stage,) = {block.partition(".")[0] for block in [KEPT]}
    inside = tiny("fp16", stage)
    kinds = {tensor.name: tensor.data_type for tensor in graph(inside).initializer}
    parts = [p for p, block in subjects.tiny().blocks.items() if block.startswith(f"{stage}.")]
    found = {name for name in kinds if any(name.startswith(f"{part}.") for part in parts)}
    assert len(found) > 8
    assert {kinds[name] for name in found} == {TensorProto.FLOAT}


def test_int8_needs_images() -> None:
    """Without images int8 is refused, and the option that gives them is named."""
    with pytest.raises(UsageError, match="--data DIR"):
        TARGET.refuse(ExportOptions(precision="int8"))
    for precision in ("fp32", "fp16", "w8"):
        TARGET.refuse(ExportOptions(precision=precision))


def test_int8_ends_at_opset_20() -> None:
    """int8 is refused at opset 21, where the other precisions are not."""
    with pytest.raises(UsageError, match="int8 at opset 21"):
        TARGET.refuse(options_for("int8", opset=21))
    for precision in ("fp32", "fp16", "w8"):
        TARGET.refuse(options_for(precision, opset=21))
    TARGET.refuse(options_for("int8", opset=20))


@pytest.mark.parametrize("precision", ["fp16", "w8"])
def test_newest_opset(precision: str, tmp_path: Path) -> None:
    """The newest opset holds the same constants as the oldest, and runs."""
    newest = subjects.export(
        subjects.tiny(),
        tmp_path / "x",
        "onnx",
        options_for(precision, opset=RUNNABLE[-1]),
    )
    oldest = map(constants.fingerprint, TARGET.constants(tiny(precision)))
    assert sorted(map(constants.fingerprint, TARGET.constants(newest))) == sorted(oldest)
    assert np.isfinite(logits(newest)).all()


def test_fp16_weights_are_rounded_once() -> None:
    """Every tensor is in the float16 file as numpy rounds it, and nothing else is."""
    model = subjects.tiny()
    found = weights.audit(model.fingerprints["fp16"], TARGET.constants(tiny("fp16")))
    assert (found.missing, found.strange) == ((), ())
    assert found.tensors > 20
    kinds = {t.data_type for t in graph(tiny("fp16")).initializer}
    assert kinds == {TensorProto.FLOAT16, TensorProto.INT64}


def small(value: float, weight: float) -> Network:
    """``logits = (a * w) / w`` as a network, ``a`` being the input times ``value``."""
    parts = [("multiply", "input", "value", "a"), ("multiply", "a", "w", "b")]
    parts += [("divide", "b", "w", "logits")]
    ops = [
        Op(kind, (one, other), (Value(made, (2,)),), {}, {"b": "stem.0"}.get(made, ""))
        for kind, one, other, made in parts
    ]
    tensors = {"value": [value], "w": [weight, 1]}
    return Network(
        (Value("input", (2,)),),
        ("logits",),
        tuple(ops),
        {name: np.array(tensor, np.float32) for name, tensor in tensors.items()},
    )


def half(network: Network, keep: tuple[str, ...] = ()) -> onnx.ModelProto:
    """A network written in float16."""
    return onnx_write.write(network, opset=18, name="small", half=True, keep=keep).model


@pytest.mark.parametrize(("weight", "stored"), [(1e-8, 0), (4e-8, 2.0**-24), (65519, 65504)])
def test_fp16_clips_no_weight(weight: float, stored: float) -> None:
    """The smallest and largest weights are rounded to nearest like all others."""
    proto = half(small(1, weight))
    found = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    assert found["w"].dtype == np.float16
    assert float(found["w"][0]) == stored


def test_fp16_overflow_of_a_weight() -> None:
    """A weight beyond float16 is an error that names the value and the block to keep."""
    with pytest.raises(ExportFailedError, match=r"w holds 7e\+04.*--keep stem\.0"):
        half(small(1, 70000))
    with pytest.raises(ExportFailedError, match="w holds inf"):
        half(small(1, np.inf))
    with pytest.raises(ExportFailedError, match=r"w holds 7e\+04.*Export with --precision fp32"):
        half(small(1, 70000), ("stem.0",))  # the division is of no block and reads it, too


def test_fp16_overflow_of_a_value() -> None:
    """A value beyond float16 is an error although ONNX Runtime's CPU kernels would hide it."""
    feeds = [{"input": np.array([1, 2], np.float32)}, {"input": np.array([9, 0], np.float32)}]
    plain = partial(onnx_write.write, small(10, 1000), opset=18, name="small")
    with pytest.raises(ExportFailedError, match=r"value b reaches 9e\+04.*--keep stem\.0"):
        onnx_precisions.refuse_overflow(plain(), feeds, ())
    onnx_precisions.refuse_overflow(plain(), feeds, ("stem.0",))
    onnx_precisions.refuse_overflow(plain(), feeds[:1], ())


def test_fp16_export_looks_for_overflow(tmp_path: Path) -> None:
    """The export itself tries the model, on the calibration images as well."""
    loud = options_for("fp16", calibration=Calibration(IMAGES * 1e6, "loud"))
    with pytest.raises(ExportFailedError, match="float16 ends at 65504"):
        TARGET.export(subjects.tiny(), tmp_path / "m.onnx", loud)
    assert list(tmp_path.iterdir()) == []


def steps(artifact: Artifact) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """For each quantised constant its integers, what it stands for, and its steps."""
    made = graph(artifact)
    arrays = {t.name: numpy_helper.to_array(t) for t in made.initializer}
    found = {}
    for node in made.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in arrays:
            axis = node.attribute[0].i
            q, s = arrays[node.input[0]], arrays[node.input[1]]
            shape = [-1 if a == axis else 1 for a in range(q.ndim)]
            found[node.input[0]] = (q, q * s.reshape(shape), s.reshape(shape))
    return found


def wanted() -> dict[str, np.ndarray]:
    """The float32 constants of the tiny model as the plain file has them."""
    tensors = graph(tiny("fp32")).initializer
    return {t.name: numpy_helper.to_array(t) for t in tensors}


@pytest.mark.parametrize(("precision", "largest"), [("int8", 64), ("w8", 127)])
def test_constants_are_within_half_a_step(precision: str, largest: int) -> None:
    """Dequantised weights are those of the model to half a step of their channel."""
    plain = wanted()
    given = list(TARGET.constants(tiny(precision)))
    found = steps(tiny(precision))
    layers = 0
    for name, (q, stored, step) in found.items():
        tensor = plain[name.removesuffix("_quantized")]
        distance = np.abs(stored.astype(np.float64) - tensor)
        assert (distance <= step / 2 * (1 + 1e-5)).all(), name
        assert any(np.array_equal(stored.astype(np.float32), array) for array in given), name
        if q.dtype == np.int8 and q.ndim == 2:
            layers += 1
            assert np.abs(q).max() == largest, name
            assert np.count_nonzero(np.array(step.shape) > 1) == 1, name
    assert layers >= 12
    floats = [a for a in given if np.issubdtype(a.dtype, np.floating) and a.ndim]
    assert sorted(a.shape for a in floats) == sorted(
        a.shape for a in plain.values() if a.dtype == np.float32
    )


def test_w8_stores_matrices_and_tables() -> None:
    """Matrices, kernels and attention-bias tables are int8; biases and small tensors float32."""
    kinds = {t.name: (t.data_type, tuple(t.dims)) for t in graph(tiny("w8")).initializer}
    large = {
        name: array.shape
        for name, array in wanted().items()
        if array.dtype == np.float32
        and array.ndim > 1
        and array.nbytes >= onnx_precisions.SMALLEST
    }
    assert any(name.endswith("baked_bias") for name in large)
    assert "head.weight" in large
    for name, shape in large.items():
        assert kinds[f"{name}_quantized"] == (TensorProto.INT8, shape)
        assert name not in kinds
    assert "head.bias" in kinds
    count = Counter(node.op_type for node in graph(tiny("w8")).node)
    assert count["DequantizeLinear"] == len(large)
    assert count["QuantizeLinear"] == 0


def test_rounding_of_a_channel_of_zeros() -> None:
    """A channel of zeros has a step that is not zero."""
    array = np.array([[0, 1], [0, -2]], np.float32)
    q, s = onnx_precisions.rounded(array, axis=1)
    np.testing.assert_array_equal(q, [[0, 64], [0, -127]])
    np.testing.assert_array_equal(s, np.array([1, 2 / 127], np.float32))


def test_int8_quantises_layers_only() -> None:
    """Layers of tokens are quantised; the first convolution, head and attention are not."""
    nodes = graph(tiny("int8")).node
    makers = {name: node.op_type for node in nodes for name in node.output}
    for node in nodes:
        is_quantised = [makers.get(name) for name in node.input[:2]] == ["DequantizeLinear"] * 2
        is_layer = node.op_type == "Gemm" or (node.op_type == "Conv" and "stem_0" not in node.name)
        assert is_quantised == (is_layer and node.output[0] != "logits"), node.name
    count = Counter(node.op_type for node in nodes)
    assert count["Gemm"] == 14
    assert count["Softmax"] == 3


def test_int8_bias_tables_are_stored_in_8_bits() -> None:
    """Attention-bias tables are int8 too, because they are large."""
    names = {t.name for t in graph(tiny("int8")).initializer}
    assert any(name.endswith("baked_bias_quantized") for name in names)


def test_int8_runs_in_integers(tmp_path: Path) -> None:
    """ONNX Runtime finds every quantised layer and computes it in integers."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4
    settings.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(tiny("int8").path, settings, providers=["CPUExecutionProvider"])
    count = Counter(n.op_type for n in onnx.load(settings.optimized_model_filepath).graph.node)
    assert count["QGemm"] == 13
    assert count["QLinearConv"] == 3
    assert count["Gemm"] + count["FusedGemm"] == 1


def test_rows_are_the_same_function(tmp_path: Path) -> None:
    """Layers of tokens written as products of matrices give what they give otherwise."""
    written = onnx_write.write(
        subjects.tiny().network, opset=18, name="rows", in_rows=True, keep=(KEPT,)
    )
    onnx.checker.check_model(written.model, full_check=True)
    onnx.save(written.model, tmp_path / "rows.onnx")
    made = replace(tiny("fp32"), path=tmp_path / "rows.onnx")
    expected = logits(tiny("fp32"))
    # A product of 96 terms at most, in another order: sqrt(n) u for each of some 40 operators.
    bound = 40 * 96**0.5 * 2.0**-24 * np.abs(expected).max()
    np.testing.assert_allclose(logits(made), expected, rtol=0, atol=bound)
    constants = {t.name for t in written.model.graph.initializer}
    products = [
        node.output[0]
        for node in written.model.graph.node
        if node.op_type == "MatMul" and node.input[1] in constants
    ]
    assert products == [f"{KEPT_VALUE}_linear_matmul", f"{KEPT_VALUE}_linear_1_matmul"]


def test_int8_with_an_open_batch(tmp_path: Path) -> None:
    """A file with an open batch takes two images at once and gives what it gives for each."""
    from levit_export.models.preparation import prepare

    model = prepare(subjects.tiny_checkpoint(), batch=None)
    made = subjects.export(model, tmp_path / "x", "onnx", options_for("int8", batch=None))
    with TARGET.open(made, RUN) as session:
        both = session.run({"input": IMAGES[:2]})["logits"]
    np.testing.assert_array_equal(both, logits(made, IMAGES[:2]))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_digits(precision: str) -> None:
    """Every precision reads the held-out digits as well as PyTorch, to half a point."""
    made = digits(precision)
    recipe = checkpoints.bundled().describe().preprocessing
    found = samples.from_images(recipe, *samples.held_out_digits())
    right = 0
    with TARGET.open(made, RUN) as session:
        for start in range(0, 360, 16):
            images = found.inputs[start : start + 16]
            rows = len(images)
            full = np.concatenate([images, np.repeat(images[-1:], 16 - rows, axis=0)])
            answers = session.run({"input": full})["logits"][:rows].argmax(axis=1)
            right += int((answers == found.labels[start : start + rows]).sum())
    assert right >= 355


@pytest.mark.parametrize("precision", PRECISIONS)
def test_foreign_files(precision: str, tmp_path: Path) -> None:
    """The precision of a file that does not say it is read off its graph."""
    proto = onnx.load(tiny(precision).path)
    del proto.metadata_props[:]
    onnx.save(proto, tmp_path / "m.onnx")
    assert TARGET.inspect(tmp_path / "m.onnx").precision == precision


def test_a_claimed_precision_decides_nothing(tmp_path: Path) -> None:
    """A file's precision is that of its graph, whatever its metadata says."""
    proto = onnx.load(tiny("fp32").path)
    (said,) = [p for p in proto.metadata_props if p.key == f"{PREFIX}precision"]
    said.value = "fp8"
    onnx.save(proto, tmp_path / "m.onnx")
    found = TARGET.inspect(tmp_path / "m.onnx")
    assert found.precision == "fp32"
    assert found.claims is not None
    assert found.claims["precision"] == "fp8"


def test_notes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The user is told what a precision does not give, and of the CPU's kernels where they ran."""
    assert "not faster" in " ".join(tiny("w8").notes)
    assert "slower" in " ".join(tiny("fp16").notes)
    assert tiny("int8").notes == tiny("fp32").notes == ()
    assert "float32" in " ".join(TARGET.remarks(tiny("fp16"), RUN))
    assert TARGET.remarks(tiny("fp32"), RUN) == ()
    monkeypatch.setattr(providers, "_plugins", lambda: {providers.OPENVINO: ""})
    monkeypatch.setattr(providers, "arithmetic", lambda _: "bf16")
    told = "openvino,INFERENCE_PRECISION_HINT=bf16"
    assert TARGET.remarks(tiny("fp16"), replace(RUN, providers=(told,))) == ()
    (untold,) = TARGET.remarks(tiny("fp32"), replace(RUN, providers=("openvino",)))
    assert untold == (
        "openvino computes float32 in bf16 here, unless you give INFERENCE_PRECISION_HINT=f32 "
        "behind the provider's name"
    )
