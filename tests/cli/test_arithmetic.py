"""What runtimes compute in by default is found out, judged, and said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import openvino
import pytest
from support import Cli, Exported

from levit_export.core.packages import PRECISION_HINT as HINT
from levit_export.core.values import RunOptions
from levit_export.formats import target
from levit_export.formats.onnx import providers
from levit_export.formats.onnx.providers import OPENVINO

PLUGIN = pytest.mark.skipif(
    providers.present().get(OPENVINO) != "",
    reason="onnxruntime-ep-openvino is not installed or does not start on this machine",
)
BFLOAT16 = pytest.mark.skipif(
    openvino.Core().get_property("CPU", HINT).get_type_name() != "bf16",
    reason="OpenVINO computes in float32 on this processor, which has no AMX",
)


@pytest.fixture(scope="module")
def folder(cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model as OpenVINO; do not change its files."""
    output = tmp_path_factory.mktemp("arithmetic") / "openvino"
    result = cli("export", "--format", "openvino", "--no-bench", "-q", "-o", output)
    assert result.exit_code == 0, result.output
    return output


def rows(result: Any) -> list[dict[str, Any]]:
    """The artifacts of a report on standard output."""
    return json.loads(result.stdout)["artifacts"]  # type: ignore[no-any-return]


@PLUGIN
@BFLOAT16
def test_a_provider_that_computes_in_less(cli: Cli, exported: Exported) -> None:
    """A float32 file in bfloat16 fails, with the cause and with what would make it exact."""
    file = exported.folder / "onnx-fp32" / "levit_digits.onnx"
    given = ("--model", "levit_digits", "--provider", "openvino", "--json", "-", "--no-drift")
    result = cli("check", file, *given)
    assert result.exit_code == 1
    (row,) = rows(result)
    hint = next(f for f in row["parity"]["findings"] if f["kind"] == "coarser-arithmetic")
    assert hint["values"]["error"] < 1e-5 < row["parity"]["max_rel"]
    assert "right in float32" in row["parity"]["reason"]
    assert f"{HINT}=f32" in row["parity"]["reason"]


@PLUGIN
def test_each_provider_is_a_row(cli: Cli, exported: Exported) -> None:
    """A file passes under each provider that computes in float32, each named in its row."""
    file = exported.folder / "onnx-fp32" / "levit_digits.onnx"
    asked = ("--provider", "cpu", "--provider", f"openvino,{HINT}=f32")
    result = cli("check", file, "--model", "levit_digits", *asked, "--json", "-")
    assert result.exit_code == 0
    assert [row["parity"]["runtime"].partition(" (")[2] for row in rows(result)] == [
        "CPU)",
        f"OpenVINO {HINT}=f32)",
    ]


def test_a_provider_that_does_not_start(
    cli: Cli, exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A provider that does not start is not run, status 3, and no other one answers for it."""
    monkeypatch.setattr(providers, "_plugins", lambda: {"WebGpuExecutionProvider": "no Vulkan"})
    result = cli("check", exported.folder, "--provider", "webgpu", "--json", "-")
    assert result.exit_code == 3
    row = next(row for row in rows(result) if row["format"] == "onnx")
    assert row["parity"]["verdict"] == "not-run"
    assert "WebGpu did not start: no Vulkan" in row["parity"]["reason"]


def test_an_unknown_provider(cli: Cli, exported: Exported) -> None:
    """A provider that nobody brings is a usage error with those that are here."""
    result = cli("check", exported.folder, "--provider", "tensorrt")
    assert result.exit_code == 2
    assert "tensorrt" in result.stderr
    assert "CPU" in result.stderr


@BFLOAT16
def test_what_openvino_does_by_default(cli: Cli, folder: Path) -> None:
    """OpenVINO's default is a row of its own, judged as bfloat16, beside the exact one."""
    result = cli("check", folder, "--json", "-")
    assert result.exit_code == 0
    exact, default = rows(result)
    assert exact["parity"]["max_rel"] < 1e-5 < default["parity"]["max_rel"]
    assert default["parity"]["tolerance"]["derivation"]["precision"] == "bf16"
    assert default["parity"]["runtime"].endswith("by default in bf16)")
    assert any(f"{HINT} f32" in note for note in default["notes"])


def test_the_default_is_a_row_only_where_it_differs() -> None:
    """Where OpenVINO computes in float32 anyway, a file is checked once."""
    kind = target("openvino")
    ways = kind.runs(RunOptions(also_by_default=True))
    kinds = {kind.arithmetic(way).type for way in ways}
    assert len(ways) == len(kinds)
    assert "fp32" in kinds


def test_a_directory_without_that_tolerance(cli: Cli, folder: Path, tmp_path: Path) -> None:
    """A directory that knows no tolerance for bfloat16 is checked in float32 alone."""
    older = tmp_path / "older"
    shutil.copytree(folder, older)
    manifest = json.loads((older / "manifest.json").read_text("utf-8"))
    del manifest["golden"]["tolerances"]["bf16"]
    (older / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    result = cli("check", older, "--json", "-")
    assert result.exit_code == 0
    assert len(rows(result)) == 1
