"""The ONNX target: what is in the file, what runs it, and what happens when something is wrong."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import subjects
from onnx import TensorProto, helper, numpy_helper
from support import RUNNABLE, Exported

from levit_export.core import hashing
from levit_export.core.errors import ArtifactError, UsageError
from levit_export.core.values import (
    Artifact,
    Calibration,
    ExportOptions,
    Layout,
    RunOptions,
    Signature,
)
from levit_export.formats.metadata import PREFIX
from levit_export.formats.onnx import simplify as onnx_simplify
from levit_export.formats.onnx import target as onnx_target
from levit_export.formats.onnx.target import OnnxTarget
from levit_export.models.preparation import prepare

TARGET = OnnxTarget()
RUN = RunOptions(threads=1)
PLAIN = ExportOptions(simplify=False)
UNWANTED = {"BatchNormalization", "Gather", "Identity", "Dropout", "Loop", "If"}


def operators(path: Path) -> Counter[str]:
    """How many of each operator a file has."""
    return operators_of(onnx.load(path))


def operators_of(model: onnx.ModelProto) -> Counter[str]:
    """How many of each operator a graph has."""
    return Counter(node.op_type for node in model.graph.node)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The bundled model, not simplified; do not change it."""
    return TARGET.export(subjects.digits(), tmp_path_factory.mktemp("plain") / "m.onnx", PLAIN)


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The bundled model with an open batch, not simplified; do not change it."""
    place = tmp_path_factory.mktemp("opened") / "m.onnx"
    return TARGET.export(subjects.digits(None), place, PLAIN)


def test_graph(exported: Exported) -> None:
    """The default export has one Gemm, nothing that inference does not need, and no tracing."""
    proto = onnx.load(exported.folder / "onnx-fp32" / "levit_digits.onnx")
    count = Counter(node.op_type for node in proto.graph.node)
    assert not UNWANTED & set(count)
    assert count["Gemm"] == 1
    assert count["Conv"] == 4 + 34  # the stem's, and every layer of maps
    assert count["Softmax"] == 8
    assert [value.name for value in proto.graph.input] == ["input"]
    assert [value.name for value in proto.graph.output] == ["logits"]
    assert [(o.domain, o.version) for o in proto.opset_import] == [("", 18)]
    assert proto.graph.name == "levit_digits"
    assert not any(node.doc_string or node.metadata_props for node in proto.graph.node)
    assert all(said.key.startswith(PREFIX) for said in proto.metadata_props)


def test_one_file(exported: Exported) -> None:
    """The weights are in the file itself."""
    folder = exported.folder / "onnx-fp32"
    assert [path.name for path in folder.iterdir()] == ["levit_digits.onnx"]
    proto = onnx.load(folder / "levit_digits.onnx", load_external_data=False)
    locations = {tensor.data_location for tensor in proto.graph.initializer}
    assert locations == {TensorProto.DEFAULT}


@pytest.mark.parametrize("opset", RUNNABLE)
def test_opsets(opset: int, tmp_path: Path) -> None:
    """Each opset that may be asked for is what the file has, and what it has is right."""
    path = tmp_path / "m.onnx"
    artifact = TARGET.export(subjects.digits(), path, replace(PLAIN, opset=opset))
    versions = {o.domain: o.version for o in onnx.load(path).opset_import}
    assert versions == {"": opset}
    found = subjects.judge(artifact, subjects.digits_reference())
    assert found.verdict == "pass", found.reason


@pytest.mark.parametrize("opset", [min(onnx_target.OPSETS) - 1, max(onnx_target.OPSETS) + 1])
def test_other_opsets(opset: int) -> None:
    """Other opsets are refused with those that are supported."""
    with pytest.raises(UsageError, match=f"opset {opset}") as raised:
        TARGET.refuse(ExportOptions(opset=opset))
    assert f"{min(onnx_target.OPSETS)} to {max(onnx_target.OPSETS)}" in raised.value.remedy


def test_open_batch_that_is_secretly_fixed(opened: Artifact, tmp_path: Path) -> None:
    """A file that claims an open batch, but works only for batches of one, fails its check."""
    proto = onnx.load(opened.path)
    for value in (*proto.graph.input, *proto.graph.output):
        assert value.type.tensor_type.shape.dim[0].dim_param == "batch"
    (gemm,) = [node for node in proto.graph.node if node.op_type == "Gemm"]
    shape = numpy_helper.from_array(np.array([1, 128], np.int64), "fixed_shape")
    proto.graph.initializer.append(shape)
    node = helper.make_node("Reshape", [gemm.input[0], "fixed_shape"], ["fixed_tokens"])
    proto.graph.node.insert(list(proto.graph.node).index(gemm), node)
    gemm.input[0] = "fixed_tokens"
    path = tmp_path / "fixed.onnx"
    onnx.save(proto, path)
    found = subjects.judge(replace(opened, path=path), subjects.digits_reference())
    assert found.verdict == "fail"
    assert "ONNX Runtime failed" in found.reason


@pytest.mark.parametrize(
    "content", [b"", b"no protobuf at all\n" * 9, b"\x08\x08"], ids=["empty", "text", "no graph"]
)
def test_damaged_files(plain: Artifact, tmp_path: Path, content: bytes) -> None:
    """A file that is no ONNX is an ArtifactError with its path, both read and loaded."""
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"m\.onnx"):
        TARGET.inspect(path)
    with (
        pytest.raises(ArtifactError, match=r"m\.onnx"),
        TARGET.open(replace(plain, path=path), RUN),
    ):
        pytest.fail("a damaged file was opened")


def test_session_says_what_runs(plain: Artifact) -> None:
    """The session tells its runtime and version, and the signature that is in the file."""
    import onnxruntime

    with TARGET.open(plain, RUN) as session:
        assert session.runtime == f"onnxruntime {onnxruntime.__version__} (CPU)"
        assert session.signature == plain.signature
        assert isinstance(session.signature, Signature)


def crash(content: bytes) -> bytes | None:
    """End as onnxsim has ended."""
    os.kill(os.getpid(), signal.SIGSEGV)
    return content


def fail(content: bytes) -> bytes | None:
    """Raise as onnxsim does."""
    raise RuntimeError(f"bad graph of {len(content)} bytes")


def junk(content: bytes) -> bytes | None:
    """Give something that is no graph."""
    return content[: len(content) // 2]


def hang(content: bytes) -> bytes | None:
    """Do not end."""
    time.sleep(60)
    return content


def alter(content: bytes) -> bytes | None:
    """Give another function."""
    model = onnx.load_from_string(content)
    (head,) = [node for node in model.graph.node if node.op_type == "Gemm"]
    (bias,) = [t for t in model.graph.initializer if t.name == head.input[2]]
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + 0.01, bias.name))
    return bytes(model.SerializeToString())


def verdict(
    model: onnx.ModelProto, simplify: Callable[[bytes], bytes | None] = onnx_simplify.simplified
) -> onnx_simplify.Judged:
    """What the judge says of a graph of the bundled model."""
    inputs = {"input": np.random.default_rng(0).standard_normal((1, 3, 96, 96), np.float32)}
    with onnx_simplify.judged(model, inputs, 2.0**-24, simplify=simplify) as ask:
        return ask()


@pytest.mark.parametrize(
    ("simplify", "note"),
    [
        (crash, f"status {-signal.SIGSEGV}"),
        (fail, "RuntimeError: bad graph of"),
        (junk, "result is unusable"),
        (alter, "graph differs by"),
    ],
)
def test_judge_that_fails(
    plain: Artifact, simplify: Callable[[bytes], bytes | None], note: str
) -> None:
    """When onnxsim crashes or its graph is another, there is no other graph, and a note why."""
    found = verdict(onnx.load(plain.path), simplify)
    assert found.leaner is None
    assert found.note.startswith("not simplified: ")
    assert note in found.note


def test_judge_that_hangs(plain: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    """When onnxsim does not end, a note says so."""
    monkeypatch.setattr(onnx_simplify, "TIMEOUT_S", 0.2)
    found = verdict(onnx.load(plain.path), hang)
    assert found.leaner is None
    assert "longer than 0.2 s" in found.note


def test_judge_finds_what_is_not_lean(plain: Artifact) -> None:
    """An operator that does nothing is found, and the graph without it has all weights again."""
    model = onnx.load(plain.path)
    (head,) = [node for node in model.graph.node if node.op_type == "Gemm"]
    idle = helper.make_node("Identity", [head.input[0]], ["idle"], "node_idle")
    model.graph.node.insert(list(model.graph.node).index(head), idle)
    head.input[0] = "idle"
    found = verdict(model)
    assert found.note == "simplified: onnxsim replaced 1 Identity by nothing"
    assert found.leaner is not None
    assert operators_of(found.leaner) == operators_of(onnx.load(plain.path))
    stored = {tensor.name for tensor in found.leaner.graph.initializer}
    assert stored == {tensor.name for tensor in model.graph.initializer}
    assert [value.name for value in found.leaner.graph.input] == ["input"]


def test_judge_folds_constants(plain: Artifact) -> None:
    """An operator that reads constants alone is found although large weights are not shown."""
    model = onnx.load(plain.path)
    (head,) = [node for node in model.graph.node if node.op_type == "Gemm"]
    model.graph.initializer.append(numpy_helper.from_array(np.array(2, np.float32), "two"))
    twice = helper.make_node("Mul", [head.input[1], "two"], ["twice"], "node_twice")
    model.graph.node.insert(0, twice)
    head.input[1] = "twice"
    assert verdict(model).note == "simplified: onnxsim replaced 1 Mul by nothing"


@pytest.mark.parametrize("layout", ["tokens", "maps"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "w8"])
def test_what_is_written_is_lean(layout: Layout, precision: str, tmp_path: Path) -> None:
    """The file holds nothing for onnxsim to remove, and is the same without it."""
    model = prepare(subjects.tiny_checkpoint(), layout=layout)
    images = np.random.default_rng(1).standard_normal((3, 3, 64, 64)).astype(np.float32)
    options = ExportOptions(precision=precision, calibration=Calibration(images, "noise"))
    judged = TARGET.export(model, tmp_path / "j.onnx", options)
    alone = TARGET.export(model, tmp_path / "a.onnx", replace(options, simplify=False))
    assert judged.notes == alone.notes
    assert judged.path.read_bytes() == alone.path.read_bytes()


def test_what_was_left_out_is_not_judged(tmp_path: Path) -> None:
    """What onnxsim would fold in spite of --skip-pass is kept from it, and a note says so."""
    model = prepare(subjects.tiny_checkpoint(), skip=["fuse_batchnorm", "merge_heads"])
    made = TARGET.export(model, tmp_path / "m.onnx", ExportOptions())
    plain = TARGET.export(model, tmp_path / "p.onnx", PLAIN)
    (note,) = made.notes
    assert "not given to onnxsim" in note
    assert made.path.read_bytes() == plain.path.read_bytes()


def test_external_data(plain: Artifact, tmp_path: Path) -> None:
    """Tensors in a file beside the model are read, counted, and named when they are missing."""
    path, data = tmp_path / "model.onnx", tmp_path / "model.onnx.data"
    onnx.save_model(onnx.load(plain.path), path, save_as_external_data=True, location=data.name)
    found = OnnxTarget().inspect(path)
    assert found.files == (path, data)
    size = path.stat().st_size + data.stat().st_size
    assert hashing.digest(found.files).bytes == size > plain.path.stat().st_size - 1024
    data.unlink()
    with pytest.raises(ArtifactError, match=r"model\.onnx\.data") as caught:
        OnnxTarget().inspect(path)
    assert "Put the file with its external data beside it" in caught.value.remedy
