"""The OpenVINO target: what is in the two files, what runs them, and what is refused."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import onnx
import openvino
import pytest
import subjects
from mutations import openvino_places
from onnx import TensorProto, helper
from support import Cli

from levit_export.core.errors import (
    ArtifactError,
    ExportFailedError,
    NotRunError,
    RuntimeFailedError,
    UsageError,
)
from levit_export.core.packages import PRECISION_HINT as HINT
from levit_export.core.values import Artifact, ExportOptions, RunOptions
from levit_export.formats import answering
from levit_export.formats.openvino.target import OpenvinoTarget
from levit_export.models import checkpoints
from levit_export.storage.device_bundle.verifiers import verify

TARGET = OpenvinoTarget()
RUN = RunOptions(threads=1)
REFUSALS = (NotRunError, answering.UnableError, verify.NotStartedError)
SOFTMAX = "stage1_block0_attention_softmax"


@pytest.fixture(scope="session")
def plain() -> Artifact:
    """The bundled model; do not change its files."""
    return subjects.artifact("openvino", "fp32")


@pytest.fixture(scope="session")
def opened() -> Artifact:
    """The bundled model with an open batch; do not change its files."""
    return subjects.artifact("openvino", "fp32", None)


@pytest.fixture
def copied(plain: Artifact, tmp_path: Path) -> Artifact:
    """A copy of the bundled model's files that a test may damage."""
    return subjects.copy(plain, tmp_path)


@pytest.fixture(scope="session")
def others_weights() -> bytes:
    """The weights of a smaller model."""
    place = subjects.folder() / "openvino-tiny"
    made = subjects.export(subjects.tiny(), place, "openvino", ExportOptions())
    return made.path.with_suffix(".bin").read_bytes()


def image(batch: int = 1) -> dict[str, np.ndarray]:
    """Seeded inputs of the bundled model's size."""
    drawn = np.random.default_rng(0).standard_normal((batch, 3, 96, 96))
    return {"input": drawn.astype(np.float32)}


# --- what is in the files -------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, None])
def test_signature(batch: int | None) -> None:
    """The input is called input, the output logits, and only an open batch is left open."""
    made = subjects.artifact("openvino", "fp32", batch)
    found = TARGET.inspect(made.path)
    assert found.signature == made.signature
    (taken,), (given,) = found.signature.inputs, found.signature.outputs
    assert (taken.name, taken.shape) == ("input", (batch, 3, 96, 96))
    assert (given.name, given.shape) == ("logits", (batch, 10))
    assert (found.precision, found.format) == ("fp32", "openvino")


def test_two_files(plain: Artifact) -> None:
    """A graph and its weights are written, both part of the artifact, and nothing else."""
    assert sorted(p.name for p in plain.path.parent.iterdir()) == ["m.bin", "m.xml"]
    assert [p.name for p in plain.files] == ["m.xml", "m.bin"]


def test_constants_are_float32_on_disk(plain: Artifact) -> None:
    """Every floating-point constant is stored as float32, and no weight was converted."""
    kinds = {
        data.get("element_type", "")
        for layer in ET.parse(plain.path).iter("layer")
        if layer.get("type") == "Const"
        for data in layer.iter("data")
    }
    assert "f32" in kinds
    assert not {kind for kind in kinds if kind.startswith(("f", "bf"))} - {"f32"}
    stored = sum(place.read().size for place in openvino_places(plain.path))
    trained = [t for t in subjects.digits().program.state_dict.values() if t.is_floating_point()]
    assert stored >= sum(t.numel() for t in trained)
    read = {array.dtype for array in TARGET.constants(plain) if array.dtype.kind == "f"}
    assert read == {np.dtype(np.float32)}


def test_metadata(plain: Artifact) -> None:
    """The file says which model it is, how to feed it, and with what it was made."""
    section = ET.parse(plain.path).find("rt_info/levit_export")
    assert section is not None
    said = {entry.tag: entry.get("value", "") for entry in section}
    info = subjects.digits().info
    assert said["model"] == "levit_digits"
    assert said["checkpoint_sha256"] == info.checkpoint_sha256
    assert json.loads(said["labels"]) == [str(digit) for digit in range(10)]
    assert json.loads(said["preprocessing"])["resize"] == [96, 96]
    applied = ["fuse_batchnorm", "fold_attention_scale", "bake_attention_bias", "merge_heads"]
    assert json.loads(said["passes"]) == applied
    assert {"levit-export", "torch", "openvino"} == set(json.loads(said["versions"]))
    assert (said["precision"], said["licence"]) == ("fp32", "Apache-2.0")
    assert TARGET.inspect(plain.path).passes == tuple(applied)


def by_the_target(file: Path, image: np.ndarray) -> np.ndarray:
    """Logits by this package's own session."""
    with TARGET.open(TARGET.inspect(file), RUN) as session:
        return session.run({"input": image})["logits"]


def in_another_environment(file: Path, image: np.ndarray) -> np.ndarray:
    """Logits by the program that runs in environments with other versions."""
    return np.asarray(answering.OpenVino(str(file), threads=1).answer([image])[0])


def on_a_device(file: Path, image: np.ndarray) -> np.ndarray:
    """Logits by the bundle's verifier."""
    _, run = verify.openvino(file, None, "")
    return run(image)["logits"]


@pytest.mark.parametrize("answer", [by_the_target, in_another_environment, on_a_device])
@pytest.mark.parametrize("hint", ["bf16", "f16", "dynamic"])
def test_of_hints_only_bfloat16_is_followed(
    plain: Artifact,
    copied: Artifact,
    answer: Callable[[Path, np.ndarray], np.ndarray],
    hint: str,
) -> None:
    """Every program follows a hint of bf16, or says that this processor does not; and no other."""
    text = copied.path.read_text("utf-8")
    asks = f'<rt_info><runtime_options><{HINT} value="{hint}" /></runtime_options>'
    head, whole, rest = text.rpartition("<rt_info>")
    assert whole
    copied.path.write_text(head + asks + rest, "utf-8")
    image = np.random.default_rng(0).standard_normal((1, 3, 96, 96)).astype(np.float32)
    if hint == "bf16" and openvino.Core().get_property("CPU", HINT).get_type_name() != "bf16":
        with pytest.raises(REFUSALS, match="bf16"):
            answer(copied.path, image)
        return
    exact, found = answer(plain.path, image), answer(copied.path, image)
    error = np.abs(found - exact).max() / np.abs(exact).max()
    assert error > 2**-12 if hint == "bf16" else error == 0


def test_same_bytes_in_one_process(plain: Artifact, tmp_path: Path) -> None:
    """The same model exported twice gives the same two files."""
    again = subjects.export(subjects.digits(), tmp_path / "again", "openvino", ExportOptions())
    assert subjects.contents(again) == subjects.contents(plain)


def test_same_bytes_in_another_process(plain: Artifact) -> None:
    """Another process, with another hash seed, writes the same two files."""
    there = subjects.elsewhere("openvino", "fp32")
    assert subjects.contents(there) == subjects.contents(plain)


def test_no_place_and_no_clock(plain: Artifact) -> None:
    """Nothing in the files tells of the machine, the user or the time they were made."""
    content = b"".join(subjects.contents(plain).values())
    for place in (Path(checkpoints.__file__).parents[3], Path.home(), plain.path.parent):
        assert len(str(place)) == 1 or str(place).encode() + b"/" not in content
    assert b"site-packages" not in content
    assert b".py" not in content
    assert time.strftime("%Y-%m-%d").encode() not in content


# --- what runs them -------------------------------------------------------------------------


def test_open_batch(opened: Artifact) -> None:
    """An open batch passes on batches of mixed sizes and takes any."""
    assert opened.signature.batch is None
    report = subjects.judge(opened, subjects.digits_reference())
    assert (report.verdict, report.reason) == ("pass", "")
    with TARGET.open(opened, RUN) as session:
        for size in (1, 5, 17):
            assert session.run(image(size))["logits"].shape == (size, 10)


@pytest.mark.parametrize(
    "inputs",
    [
        image(2),
        {"image": image()["input"]},
        {"input": np.zeros((1, 3, 95, 96), np.float32)},
        {},
    ],
    ids=["batch", "name", "side", "none"],
)
def test_wrong_inputs(plain: Artifact, inputs: dict[str, np.ndarray]) -> None:
    """An input of another batch, name or shape is a RuntimeFailedError that names the file."""
    with TARGET.open(plain, RUN) as session:
        with pytest.raises(RuntimeFailedError, match=r"m\.xml") as raised:
            session.run(inputs)
        assert raised.value.remedy
        assert np.isfinite(session.run(image())["logits"]).all()


@pytest.mark.parametrize("threads", [1, 2])
def test_settings_reach_the_runtime(
    plain: Artifact, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Float32 is asked for in words, and the threads are those of the caller."""
    asked: list[dict[str, Any]] = []
    compiled: list[Any] = []
    compile_model = openvino.Core.compile_model

    def record(core: Any, graph: Any, device: str, settings: dict[str, Any]) -> Any:
        asked.append(settings)
        compiled.append(compile_model(core, graph, device, settings))
        return compiled[-1]

    monkeypatch.setattr(openvino.Core, "compile_model", record)
    with TARGET.open(plain, RunOptions(threads=threads)) as session:
        assert session.runtime.startswith("openvino 20")
        assert session.runtime.endswith("(CPU)")
    (settings,), (model,) = asked, compiled
    assert settings["INFERENCE_PRECISION_HINT"] == "f32"
    assert model.get_property("INFERENCE_PRECISION_HINT") == openvino.Type.f32
    assert model.get_property("INFERENCE_NUM_THREADS") == threads
    assert model.get_property("NUM_STREAMS") == 1


def test_taps(plain: Artifact) -> None:
    """Inner values can be had beside the outputs, without a change to files or signature."""
    before = subjects.contents(plain)
    with TARGET.open(plain, RUN, taps=(SOFTMAX,)) as session:
        found = session.run(image())
        assert session.signature == plain.signature
    with TARGET.open(plain, RUN) as session:
        alone = session.run(image())
    assert set(found) == {SOFTMAX, "logits"}
    assert found[SOFTMAX].shape == (1, 2, 36, 36)
    np.testing.assert_allclose(found[SOFTMAX].sum(axis=-1), 1, rtol=36 * 2.0**-24)
    tolerance = subjects.digits_reference().tolerances["fp32"]["logits"]
    distance = np.abs(found["logits"] - alone["logits"]).max(axis=1)
    assert (distance <= min(tolerance.rtol) * np.abs(alone["logits"]).max()).all()
    assert subjects.contents(plain) == before


def test_unknown_tap(plain: Artifact) -> None:
    """A tap that is not in the graph is refused by name."""
    with (
        pytest.raises(UsageError, match="'no_such_value'") as raised,
        TARGET.open(plain, RUN, ("no_such_value",)),
    ):
        pytest.fail("an unknown value was tapped")
    assert raised.value.remedy


def test_absent_device(plain: Artifact, cli: Cli) -> None:
    """A device that is not here is refused with those that are: status 2."""
    present = openvino.Core().available_devices
    absent = next(d for d in ("GPU", "NPU", "GPU.9") if d not in present)
    result = cli("check", plain.path, "--model", "levit_digits", "--device", absent.lower())
    assert result.exit_code == 2
    assert f"no device '{absent.lower()}'" in result.stderr
    assert f"Present: {', '.join(present)}." in result.stderr


# --- what is refused ------------------------------------------------------------------------


def half(file: Path) -> None:
    """Cut a file in half."""
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


def as_onnx(file: Path) -> None:
    """Put a valid ONNX model in the place of a file."""
    node = helper.make_node("Identity", ["input"], ["logits"])
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 10])
        for name in ("input", "logits")
    ]
    graph = helper.make_graph([node], "g", ports[:1], ports[1:])
    file.write_bytes(onnx.ModelProto.SerializeToString(helper.make_model(graph)))


def as_folder(file: Path) -> None:
    """Put a folder in the place of a file."""
    file.unlink()
    file.mkdir()


DAMAGE: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "no weights": (
        lambda xml: xml.with_suffix(".bin").unlink(),
        "m.bin is missing beside it",
        "Copy both files",
    ),
    "half the weights": (
        lambda xml: half(xml.with_suffix(".bin")),
        "OpenVINO cannot read",
        "must be of one export",
    ),
    "no byte of the weights": (
        lambda xml: xml.with_suffix(".bin").write_bytes(b""),
        "OpenVINO cannot read",
        "must be of one export",
    ),
    "half the graph": (half, "OpenVINO cannot read", "must be of one export"),
    "foreign XML": (
        lambda xml: xml.write_text("<html></html>"),
        "OpenVINO cannot read",
        "must be of one export",
    ),
    "an ONNX file": (as_onnx, "does not start as XML", "ONNX files must end in .onnx"),
    "text": (
        lambda xml: xml.write_text("no graph at all\n" * 9),
        "does not start as XML",
        "Give the .xml file",
    ),
    "nothing": (lambda xml: xml.write_bytes(b""), "does not start as XML", "Give the .xml file"),
    "a folder": (as_folder, "cannot be read", "Check the path"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_files(copied: Artifact, damage: str, cli: Cli) -> None:
    """A file that is no whole IR is an ArtifactError with path and remedy: status 2."""
    harm, what, remedy = DAMAGE[damage]
    harm(copied.path)
    with pytest.raises(ArtifactError) as raised, TARGET.open(copied, RUN):
        pytest.fail("a damaged file was opened")
    assert str(copied.path) in raised.value.what
    assert what in raised.value.what
    assert remedy in raised.value.remedy
    result = cli("check", copied.path, "--model", "levit_digits")
    assert result.exit_code == 2
    assert what in result.stderr
    assert remedy in result.stderr


def test_weights_of_a_smaller_model(copied: Artifact, others_weights: bytes, cli: Cli) -> None:
    """The weights of another architecture do not fit: status 2, and the remedy says why."""
    copied.path.with_suffix(".bin").write_bytes(others_weights)
    result = cli("check", copied.path, "--model", "levit_digits")
    assert result.exit_code == 2
    assert "must be of one export" in result.stderr


def test_weights_of_a_model_of_that_size(copied: Artifact) -> None:
    """Other weights of the same size can be read, and fail the check."""
    for place in openvino_places(copied.path):
        place.change(lambda values: values[::-1], place.shape)
    with TARGET.open(copied, RUN) as session:
        assert session.signature == copied.signature
    report = subjects.judge(copied, subjects.digits_reference())
    assert report.verdict == "fail"
    assert "exceeds the tolerance" in report.reason


def test_unknown_precision(copied: Artifact, cli: Cli) -> None:
    """A file that claims a precision that the format does not have contradicts its graph."""
    text = copied.path.read_text("utf-8")
    assert text.count('<precision value="fp32" />') == 1
    copied.path.write_text(
        text.replace('<precision value="fp32" />', '<precision value="int3" />')
    )
    found = TARGET.inspect(copied.path)
    assert found.precision == "fp32"
    result = cli("check", copied.path, "--model", "levit_digits")
    assert result.exit_code == 1
    assert "int3" in result.stdout


def test_a_conversion_that_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What OpenVINO raises becomes an ExportFailedError with its first line."""

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("no such op\nat line 1")

    monkeypatch.setattr(openvino, "save_model", refuse)
    with pytest.raises(ExportFailedError, match="levit_digits: no such op") as raised:
        TARGET.export(subjects.digits(), tmp_path / "m.xml", ExportOptions())
    assert "line 1" not in raised.value.what
    assert list(tmp_path.iterdir()) == []
