"""What can read a file is written beside it, and what measures it does not swamp the machine."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import onnx
import pytest
import subjects
from support import Cli, Exported

from levit_export.checks import peak_memory
from levit_export.core.values import Artifact, RunOptions, Signature
from levit_export.formats.onnx.target import OLDEST_RUNTIME, OPSETS


@pytest.mark.parametrize(
    ("kind", "precision", "expected"),
    [
        ("onnx", "fp32", "ONNX Runtime 1.14 and later"),
        ("openvino", "fp32", "OpenVINO 2023.2 and later"),
        ("coreml", "fp16", "iOS 16, macOS 13 and later"),
    ],
)
def test_the_oldest_runtime_is_known(kind: str, precision: str, expected: str) -> None:
    """Whoever exports learns from which version on a runtime can read the file."""
    assert subjects.artifact(kind, precision).runs_on == expected


def test_the_manifest_names_it(exported: Exported) -> None:
    """Each artifact's line says it."""
    (entry,) = json.loads((exported.folder / "manifest.json").read_text())["artifacts"]
    assert entry["runs_on"] == "ONNX Runtime 1.14 and later"


def test_the_ir_version_follows_the_opset(exported: Exported) -> None:
    """The file's IR version is the oldest that has its opset, not the library's newest."""
    model = onnx.load(exported.folder / "onnx-fp32/levit_digits.onnx")
    assert (model.opset_import[0].version, model.ir_version) == (18, 8)
    assert sorted(OLDEST_RUNTIME) == list(OPSETS)


def test_the_card_names_it_as_well(cli: Cli, exported: Exported, tmp_path: Path) -> None:
    """Whoever unpacks the bundle on a device reads it in the README."""
    assert cli("bundle", exported.folder, "-o", tmp_path / "b.zip").exit_code == 0
    with zipfile.ZipFile(tmp_path / "b.zip") as archive:
        (name,) = (n for n in archive.namelist() if n.rpartition("/")[2] == "README.md")
        card = archive.read(name).decode()
    assert "ONNX Runtime 1.14 and later" in card


@pytest.mark.parametrize(("cores", "threads", "expected"), [(2, 1, 2), (8, 2, 4), (2, 4, 1)])
def test_memory_is_measured_for_a_few_at_a_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cores: int, threads: int, expected: int
) -> None:
    """Twelve files do not start twelve processes: as many run as the cores have threads for."""
    asked: list[tuple[int, int]] = []
    run = RunOptions(threads, device="GPU", providers=("openvino",))

    def each_alone(
        _: object, calls: list[tuple[str, Path, RunOptions]], *, at_a_time: int
    ) -> list[int]:
        asked.append((len(calls), at_a_time))
        assert all(options == run for _, _, options in calls)  # as the row is executed
        return [7] * len(calls)

    monkeypatch.setattr(peak_memory, "each_alone", each_alone)
    monkeypatch.setattr(peak_memory, "usable_cores", lambda: cores)
    files = [
        Artifact("onnx", "fp32", tmp_path / f"{i}.onnx", Signature((), ())) for i in range(12)
    ]
    assert peak_memory.peaks([(file, run) for file in files], threads) == [7] * 12
    assert asked == [(12, expected)]
