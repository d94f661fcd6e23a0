"""The main job: the bundled model in three formats, by the bare command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import subjects
from support import Cli, Exported

from levit_export.core.values import ExportOptions, RunOptions
from levit_export.formats import target
from levit_export.models import checkpoints
from levit_export.models.preparation import prepare

IDS = ("onnx-fp32", "openvino-fp32", "coreml-fp16")
WITHOUT = "import sys; sys.modules.update(dict.fromkeys({missing!r}))\n"
MAIN = "from levit_export.cli import main; main()"


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory, cli: Cli) -> Exported:
    """The default export: every format."""
    folder = tmp_path_factory.mktemp("everything") / "out"
    result = cli("export", "--warmup", 1, "--iters", 2, "--output", folder)
    return Exported(folder, result.stdout, result.stderr, result.exit_code)


@pytest.fixture(scope="module")
def artifacts(everything: Exported) -> dict[str, Any]:
    """The report's artifacts by format."""
    report = json.loads((everything.folder / "report.json").read_text(encoding="utf-8"))
    return {artifact["format"]: artifact for artifact in report["artifacts"]}


def test_one_command_gives_three_formats(everything: Exported) -> None:
    """Without a format, ONNX, OpenVINO and Core ML are exported and checked: status 0."""
    assert everything.status == 0, everything.stdout + everything.stderr
    rows = [ln for ln in everything.stdout.splitlines() if ln.startswith(IDS) and " pass " in ln]
    assert [row.split()[0] for row in rows] == list(IDS)
    for name in ("onnx-fp32/levit_digits.onnx", "openvino-fp32/levit_digits.xml"):
        assert (everything.folder / name).is_file()
    assert (everything.folder / "coreml-fp16" / "levit_digits.mlpackage").is_dir()


@pytest.mark.skipif(sys.platform == "darwin", reason="there all of them can be timed")
def test_bench_passes_where_some_can_be_timed(everything: Exported, cli: Cli) -> None:
    """What this system cannot time is named, and the run passes by what it can."""
    result = cli("bench", everything.folder, "--warmup", 0, "--iters", 2)
    assert result.exit_code == 0, result.output
    assert "coreml-fp16: not timed: Core ML runs on macOS only" in result.stdout
    alone = cli("bench", everything.folder / "coreml-fp16" / "levit_digits.mlpackage")
    assert alone.exit_code == 3


def test_accuracy_survives_in_every_format(artifacts: dict[str, Any]) -> None:
    """float32 files classify every held-out image as PyTorch does; float16 all but one at most."""
    for name in ("onnx", "openvino"):
        assert artifacts[name]["accuracy"]["agreement"] == 1.0
        assert artifacts[name]["accuracy"]["correct"] == 357
    assert artifacts["coreml"]["accuracy"]["agreement"] >= 359 / 360
    assert {a["accuracy"]["images"] for a in artifacts.values()} == {360}


def test_every_weight_is_in_every_format(artifacts: dict[str, Any]) -> None:
    """All 86 tensors of the fused model are found bit for bit in each file."""
    for artifact in artifacts.values():
        weights = artifact["parity"]["weights"]
        assert (weights["tensors"], weights["missing"], weights["unread"]) == (86, [], "")


@pytest.mark.skipif(sys.platform == "darwin", reason="on macOS Core ML itself checks and times")
def test_core_ml_says_who_checked_it(artifacts: dict[str, Any], everything: Exported) -> None:
    """Off macOS the evaluator is named with what it cannot show, the timing with its reason."""
    parity, timing = artifacts["coreml"]["parity"], artifacts["coreml"]["timing"]
    assert parity["runtime"] == "MIL reference evaluator"
    assert timing == {"verdict": "not-run", "reason": "Core ML runs on macOS only", "runtime": ""}
    assert "cannot show what the Neural Engine" in everything.stdout


@pytest.mark.parametrize("missing", [("torch", "onnxscript", "onnxsim"), ("torch", "onnx")])
def test_the_directory_is_checked_without_exporters(
    everything: Exported, missing: tuple[str, ...]
) -> None:
    """``check DIR`` needs the runtimes only; without the onnx package it cannot decide."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT.format(missing=missing) + MAIN, "check", everything.folder],
        capture_output=True,
        text=True,
        check=False,
    )
    is_blind = "onnx" in missing
    assert done.returncode == (3 if is_blind else 0), done.stderr
    assert all(line.startswith("stage ") for line in done.stderr.splitlines()), done.stderr
    ways = len(target("openvino").runs(RunOptions(also_by_default=True)))
    assert done.stdout.count(" pass ") == ways + (1 if is_blind else 2)
    assert done.stdout.count("weights not looked at") == is_blind


def test_a_bare_package_is_checked(everything: Exported, cli: Cli) -> None:
    """A Core ML package alone is held against a fresh build of the model that is named."""
    package = everything.folder / "coreml-fp16" / "levit_digits.mlpackage"
    result = cli("check", package, "--model", "levit_digits", "--json", "-")
    (artifact,) = json.loads(result.stdout)["artifacts"]
    assert (result.exit_code, artifact["parity"]["verdict"]) == (0, "pass")
    assert artifact["parity"]["weights"]["tensors"] == 86


def test_a_package_is_what_the_target_makes(everything: Exported, tmp_path: Path) -> None:
    """The command line writes the package that the target makes of the bundled model in maps."""
    model = prepare(checkpoints.bundled(), layout="maps")
    expected = subjects.export(model, tmp_path / "m", "coreml", ExportOptions(precision="fp16"))
    package = everything.folder / "coreml-fp16" / "levit_digits.mlpackage"
    written = {
        f"m.mlpackage/{file.relative_to(package).as_posix()}": file.read_bytes()
        for file in package.rglob("*")
        if file.is_file()
    }
    assert written == subjects.contents(expected)


def test_an_open_batch_is_refused_for_core_ml(cli: Cli, tmp_path: Path) -> None:
    """``--dynamic`` with every format names the format that cannot, why, and what to do."""
    result = cli("export", "--dynamic", "--output", tmp_path / "out")
    assert result.exit_code == 2
    for part in ("Core ML", "Neural Engine", "--format onnx,openvino"):
        assert part in result.stderr
    assert not (tmp_path / "out").exists()
