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
from levit_export.core.errors import UsageError
from levit_export.core.values import Artifact, RunOptions, Signature
from levit_export.formats.onnx.target import OLDEST_RUNTIME, OPSETS, newest_opset


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


@pytest.mark.parametrize(
    ("runtime", "opset"),
    [("1.14", 18), ("1.15.1", 18), ("1.16", 19), ("1.19.2", 21), ("1.22", 22), ("9.0", 26)],
)
def test_the_newest_opset_of_a_runtime(runtime: str, opset: int) -> None:
    """The opset for a runtime is the newest that it reads; versions are compared as numbers."""
    assert newest_opset(runtime) == opset


@pytest.mark.parametrize(
    ("runtime", "words"),
    [("1.13.1", "needs 1.14"), ("1.9", "needs 1.14"), ("", "version"), ("new", "version")],
)
def test_a_runtime_that_reads_nothing(runtime: str, words: str) -> None:
    """A runtime older than every opset that is written is refused, and what is no version."""
    with pytest.raises(UsageError, match=words):
        newest_opset(runtime)


@pytest.mark.parametrize(("precision", "opset"), [("fp32", 21), ("int8", 20)])
def test_a_file_for_an_older_runtime(cli: Cli, tmp_path: Path, precision: str, opset: int) -> None:
    """``--ort-min`` chooses the opset, for int8 one that is quantised; the manifest says which."""
    made = tmp_path / "made"
    asked = ("--ort-min", "1.18", "--precision", precision)
    result = cli("export", "-f", "onnx", *asked, "--no-bench", "-o", made)
    assert result.exit_code == 0, result.output
    model = onnx.load(made / f"onnx-{precision}" / "levit_digits.onnx")
    assert {o.domain: o.version for o in model.opset_import}[""] == opset
    (entry,) = json.loads((made / "manifest.json").read_text())["artifacts"]
    assert entry["runs_on"] == f"ONNX Runtime {OLDEST_RUNTIME[opset]} and later"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("-f", "onnx", "--ort-min", "1.12"), "can read none of the opsets"),
        (("-f", "onnx", "--ort-min", "1.16", "--opset", "18"), "and so does --opset 18"),
        (("-f", "openvino", "--ort-min", "1.16"), "none is exported"),
    ],
)
def test_what_ort_min_cannot_do(cli: Cli, options: tuple[str, ...], words: str) -> None:
    """Runtimes before the first opset, a second word on the opset, and other formats: status 2."""
    result = cli("export", *options, "--dry-run")
    assert result.exit_code == 2
    assert words in result.stderr


def test_the_plan_names_the_opset(cli: Cli) -> None:
    """A dry run says which opset would be written."""
    result = cli("export", "-f", "onnx", "--ort-min", "1.16", "--dry-run")
    assert "in opset 19, for ONNX Runtime 1.16 and later" in result.stdout


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
