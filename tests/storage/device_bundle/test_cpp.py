"""The C++ programs of a bundle, compiled against the runtimes' own headers and run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import openvino
import pytest
from cpp_programs import COMPILER
from tiny_exports import ONNX, OPENVINO, make_export

from levit_export.core.packages import PRECISION_HINT
from levit_export.storage import device_bundle
from levit_export.storage.device_bundle import results

pytestmark = [
    pytest.mark.skipif(COMPILER is None, reason="no C++ compiler (apt-get install g++)"),
    pytest.mark.skipif(sys.platform != "linux", reason="the libraries' names are Linux's"),
]


@pytest.fixture(params=["openvino", "onnxruntime"])
def program(request: pytest.FixtureRequest) -> tuple[Path, str]:
    """Each program, and the model that it is for."""
    path: Path = request.getfixturevalue(f"{request.param}_program")
    return path, OPENVINO if request.param == "openvino" else ONNX


def run(
    program: tuple[Path, str], folder: Path, model: str = "", **environment: str
) -> tuple[int, str]:
    """Status and words of a program on an unpacked bundle."""
    path, own = program
    done = subprocess.run(
        [path, folder, folder / (model or own)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )
    return done.returncode, done.stdout + done.stderr


def test_whole_bundle(program: tuple[Path, str], unpacked: Path) -> None:
    """Both outputs of a whole bundle pass, and its eight images give the golden input."""
    status, said = run(program, unpacked)
    assert status == 0, said
    assert "pass    pixels: 8 images" in said
    assert "pass    logits: 12 samples" in said
    assert "pass    distill: 12 samples" in said


def test_swapped_channels(program: tuple[Path, str], unpacked: Path) -> None:
    """A golden input whose channels are swapped fails by its pixels and by its outputs."""
    path = unpacked / "golden" / "input.npy"
    inputs = np.load(path)
    inputs[9] = inputs[9][::-1].copy()
    np.save(path, inputs)
    status, said = run(program, unpacked)
    assert status == 1
    assert "fail    normalisation: gradient differs" in said
    assert "fail    logits: error" in said
    assert "on gradient exceeds" in said


def test_nan(program: tuple[Path, str], unpacked: Path) -> None:
    """An answer that is NaN fails; it is not a small distance."""
    path = unpacked / "golden" / "input.npy"
    inputs = np.load(path)
    inputs[0, 0, 0, 0] = np.nan
    np.save(path, inputs)
    status, said = run(program, unpacked)
    assert (status, "fail    logits: error nan on normal-0" in said) == (1, True), said


def test_missing_output(program: tuple[Path, str], unpacked: Path) -> None:
    """An output that the bundle has a tolerance for and the model does not give is a failure."""
    allowed = unpacked / "golden" / "allowed" / "fp32"
    shutil.copy(allowed / "logits.npy", allowed / "other.npy")
    status, said = run(program, unpacked)
    assert (status, "fail    other: the output is missing" in said) == (1, True)


def test_model_that_normalises_by_itself(onnxruntime_program: Path, tmp_path: Path) -> None:
    """A model with a uint8 input is fed pixels, and pixels are what its images have to give."""
    export = make_export(tmp_path / "raw", raw=True)
    folder = tmp_path / "unpacked"
    shutil.unpack_archive(device_bundle.write(export, tmp_path / "raw.zip"), folder, "zip")
    status, said = run((onnxruntime_program, ONNX), folder)
    assert (status, "pass    pixels: 8 images" in said) == (0, True), said
    path = folder / "golden" / "input.npy"
    np.save(path, np.load(path)[:, ::-1])
    status, said = run((onnxruntime_program, ONNX), folder)
    assert (status, "fail    normalisation: gradient" in said) == (1, True)


def test_execution_providers(onnxruntime_program: Path, unpacked: Path, tmp_path: Path) -> None:
    """A provider is the results' unit; one that is absent or does not start does not pass."""
    model, file = unpacked / ONNX, tmp_path / "r.json"

    def under(provider: str) -> tuple[int, str]:
        command = [onnxruntime_program, unpacked, model, "--results", file, "--provider", provider]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr

    status, said = under("nowhere,device=x")
    assert (status, "no provider nowhere is here; known: " in said) == (2, True), said
    # Every build has this one, which sends nothing anywhere and executes no operator.
    status, said = under("AzureExecutionProvider")
    assert (status, "error: " in said, file.exists()) == (2, True, False), said
    # ONNX Runtime takes no option without a name: it refuses the provider that it has.
    status, said = under("azure,=x")
    assert (status, "azure cannot be chosen by name in C++ (" in said) == (2, True), said
    assert "use verify.py --provider azure,=x" in said
    status, said = under("cpu")
    assert status == 0, said
    assert [row.unit for row in results.read(file).rows] == ["cpu"]


def test_a_provider_of_another_runtime(openvino_program: Path, unpacked: Path) -> None:
    """OpenVINO has no execution providers: status 2."""
    command = [openvino_program, unpacked, unpacked / OPENVINO, "--provider", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, "is about ONNX Runtime" in done.stderr) == (2, True)


def test_a_file_that_asks_for_bfloat16(openvino_program: Path, unpacked: Path) -> None:
    """What a file is to be computed in is followed, or the program says that it cannot be."""
    core = openvino.Core()
    graph = core.read_model(unpacked / OPENVINO)
    graph.set_rt_info("bf16", ["runtime_options", PRECISION_HINT])
    model = Path(OPENVINO).with_name("hinted.xml")  # for the weights of the other one are mapped
    openvino.save_model(graph, unpacked / model, compress_to_fp16=False)
    older = {"OV_CPU_MAX_ISA": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"}  # instructions of such a one
    status, said = run((openvino_program, str(model)), unpacked, **older)
    words = "the file asks for bf16, and OpenVINO takes f32 on this processor"
    assert (status, words in said) == (2, True), said
    taken = core.compile_model(graph, "CPU", {PRECISION_HINT: "bf16"}).get_property(PRECISION_HINT)
    if taken.get_type_name() == "bf16":  # and bf16's answers are too far off for fp32
        status, said = run((openvino_program, str(model)), unpacked)
        assert (status, "fail    logits: error" in said) == (1, True), said


def test_what_cannot_be_read(program: tuple[Path, str], unpacked: Path) -> None:
    """Damaged arrays and models, and missing ones, are errors with a reason: status 2."""
    for model in ("labels.txt", "nowhere.xml"):
        status, said = run(program, unpacked, model)
        assert (status, "error: " in said) == (2, True)
    path = unpacked / "golden" / "input.npy"
    for content in (b"", path.read_bytes()[:-1], b"\x93NUMPY\x02\x00" + bytes(200)):
        path.write_bytes(content)
        status, said = run(program, unpacked)
        assert (status, "input.npy" in said) == (2, True)
