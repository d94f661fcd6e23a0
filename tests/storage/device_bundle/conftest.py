"""One tiny export and its bundle for all tests of this folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from cpp_programs import COMPILER, HEADERS, build, package
from tiny_exports import make_export

from levit_export.storage import device_bundle


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny export as ONNX, OpenVINO and a stand-in for Core ML; do not change its files."""
    return make_export(tmp_path_factory.mktemp("tiny") / "tiny", openvino=True)


@pytest.fixture(scope="session")
def zipped(tiny: Path) -> Path:
    """Its bundle; do not change it."""
    return device_bundle.write(tiny, tiny.with_name("tiny.zip"))


@pytest.fixture
def export(tiny: Path, tmp_path: Path) -> Path:
    """A copy of the tiny export that a test may damage."""
    return shutil.copytree(tiny, tmp_path / "export" / "tiny")


@pytest.fixture
def unpacked(zipped: Path, tmp_path: Path) -> Path:
    """The bundle unpacked by another program, to be damaged."""
    folder = tmp_path / "unpacked"
    shutil.unpack_archive(zipped, folder, "zip")
    return folder


@pytest.fixture(scope="session")
def openvino_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``verify_openvino``, built with what the wheel carries."""
    if COMPILER is None:
        pytest.skip("no C++ compiler (apt-get install g++)")
    folder = package("openvino")
    if not (folder / "include" / "openvino" / "openvino.hpp").is_file():
        pytest.skip("this openvino wheel carries no headers")
    (library,) = (folder / "libs").glob("libopenvino.so.*")
    program = tmp_path_factory.mktemp("cpp") / "verify_openvino"
    return build(program, "-isystem", folder / "include", library, f"-Wl,-rpath,{folder / 'libs'}")


@pytest.fixture(scope="session")
def onnxruntime_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``verify_onnxruntime``, built with headers of the system and the wheel's library."""
    found = [h for h in HEADERS if h and (Path(h) / "onnxruntime_cxx_api.h").is_file()]
    if not found:
        pytest.skip(
            "no onnxruntime_cxx_api.h: install libonnxruntime-dev (Debian 13 or later), or unpack "
            "a release of ONNX Runtime and set ONNXRUNTIME_INCLUDE to its include folder"
        )
    folder = tmp_path_factory.mktemp("cpp")
    (library,) = (package("onnxruntime") / "capi").glob("libonnxruntime.so.*")
    (folder / "libonnxruntime.so.1").symlink_to(library)
    (folder / "libonnxruntime.so").symlink_to(library)
    options = ("-L", folder, "-lonnxruntime", f"-Wl,-rpath,{folder}")
    return build(folder / "verify_onnxruntime", "-isystem", found[0], *options)
