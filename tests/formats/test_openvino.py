"""The OpenVINO target: what is in the two files, what runs them, and what is refused."""

from __future__ import annotations

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
)
from levit_export.core.packages import PRECISION_HINT as HINT
from levit_export.core.values import Artifact, ExportOptions, RunOptions
from levit_export.formats import answering
from levit_export.formats.openvino.target import OpenvinoTarget
from levit_export.storage.device_bundle.verifiers import verify

TARGET = OpenvinoTarget()
RUN = RunOptions(threads=1)
REFUSALS = (NotRunError, answering.UnableError, verify.NotStartedError)


@pytest.fixture(scope="session")
def plain() -> Artifact:
    """The bundled model; do not change its files."""
    return subjects.artifact("openvino", "fp32")


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


# --- what is in the files -------------------------------------------------------------------


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


# --- what runs them -------------------------------------------------------------------------


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
