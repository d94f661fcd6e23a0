"""One tiny export and its bundle for all tests of this folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
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
