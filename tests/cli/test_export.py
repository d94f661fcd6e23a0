"""``levit-export export``: what is written, said and returned when everything is right."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from support import Cli, Exported

from levit_export.core import hashing
from levit_export.inputs.preprocessing import RECIPES, apply
from levit_export.storage import export_directory

Tree = Callable[[Path], dict[str, object]]
HELD_OUT = 360


def strict(text: str) -> Any:
    """Parsed JSON, with the NaN and infinity that Python would let through refused."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.fixture(scope="module")
def report(exported: Exported) -> Any:
    """The default export's report."""
    return strict((exported.folder / "report.json").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Again:
    """A second export of the same model by the installed command, and its two streams."""

    folder: Path
    done: subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def again(tmp_path_factory: pytest.TempPathFactory) -> Again:
    """The bundled model exported by bare flags in another process, folder and hash seed."""
    folder = tmp_path_factory.mktemp("again") / "deep" / "out"
    command = [sys.executable, "-m", "levit_export", "--format", "ONNX", "--no-bench"]
    done = subprocess.run(
        [*command, "--json", "-", "--output", str(folder)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONHASHSEED": "7"},
        cwd=folder.parents[1],
        check=False,
    )
    return Again(folder, done)


def test_default_export_passes(exported: Exported) -> None:
    """Without any option the bundled model is exported and found equal: status 0."""
    assert exported.status == 0, exported.stderr
    assert exported.folder.is_dir()


def test_default_export_says_what_it_took(exported: Exported) -> None:
    """A notice on standard error says that the bundled model was taken, and how to give one."""
    assert "bundled digits model" in exported.stderr
    assert "--checkpoint" in exported.stderr
    assert "bundled" not in exported.stdout


def test_table_on_standard_output(exported: Exported) -> None:
    """The table names the artifact, its verdict, error, accuracy, size and both latencies."""
    lines = exported.stdout.splitlines()
    row = " ".join(line for line in lines if line.startswith("onnx-fp32 "))
    assert "pass" in row
    assert " % " in row
    assert "357/360" in row
    assert "86/86" in row
    (file,) = (exported.folder / "onnx-fp32").iterdir()
    assert f"{file.stat().st_size / 1e6:.2f} MB" in row
    assert " ms" in row
    eager = " ".join(line for line in lines if line.startswith("PyTorch eager"))
    assert " ms" in eager
    for name in ("fuse_batchnorm", "fold_attention_scale", "bake_attention_bias", "merge_heads"):
        assert any(line.startswith(name) for line in lines)
    folder = Path("exported", "levit_digits")
    assert lines[-4:] == [
        f"pass  {folder}",
        f"report: {folder / 'report.html'}",
        f"next: levit-export evaluate {folder} --data digits",
        f"      levit-export bundle {folder} --with web",
    ]


def test_directory_contents(exported: Exported) -> None:
    """The directory holds the artifact, golden vectors, labels, manifest and reports, no more."""
    found = {
        path.relative_to(exported.folder).as_posix()
        for path in exported.folder.rglob("*")
        if path.is_file() and path.parent.name != "pixels"
    }
    assert found == {
        "manifest.json",
        "report.json",
        "report.html",
        "labels.txt",
        "onnx-fp32/levit_digits.onnx",
        "golden/input.npy",
        "golden/logits.npy",
    }
    manifest = export_directory.read_manifest(exported.folder)
    pixels = {path.stem for path in (exported.folder / "golden" / "pixels").iterdir()}
    assert pixels == set(manifest.golden.pixels)
    labels = (exported.folder / "labels.txt").read_text(encoding="utf-8")
    assert labels.splitlines() == [str(digit) for digit in range(10)]


def test_nothing_else_is_left_behind(exported: Exported) -> None:
    """Beside the export there is no partial directory and no other file."""
    assert [path.name for path in exported.folder.parent.iterdir()] == ["levit_digits"]
    assert [path.name for path in exported.folder.parents[1].iterdir()] == ["exported"]


def test_directory_is_as_open_as_others(exported: Exported, tmp_path: Path) -> None:
    """The directory has the permissions that any new directory has."""
    (tmp_path / "usual").mkdir()
    assert exported.folder.stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_report_follows_the_contract(report: Any) -> None:
    """The report has every section, under the names that CI reads."""
    assert {
        "schema",
        "verdict",
        "model",
        "passes",
        "artifacts",
        "machine",
        "toolchain",
    } <= set(report)
    assert (report["schema"], report["verdict"]) == (1, "pass")
    assert report["model"]["name"] == "levit_digits"
    assert [record["status"] for record in report["passes"]] == ["applied"] * 5
    assert report["passes"][-1]["name"] == "lay_out_maps"
    assert report["machine"]["cores"] >= 1
    assert {"levit-export", "torch", "onnx", "onnxruntime"} <= set(report["toolchain"])


def test_report_of_the_artifact(report: Any, exported: Exported) -> None:
    """The artifact's entry has the size and hash of the file at its path."""
    (artifact,) = report["artifacts"]
    file = exported.folder / artifact["path"]
    entry = hashing.file_entry(file)
    assert (artifact["format"], artifact["precision"]) == ("onnx", "fp32")
    assert (artifact["bytes"], artifact["sha256"]) == (entry.bytes, entry.sha256)


def test_report_of_parity(report: Any) -> None:
    """The parity section holds the figures, and they are those of a pass."""
    parity = report["artifacts"][0]["parity"]
    assert (parity["verdict"], parity["reason"]) == ("pass", "")
    assert parity["runtime"].startswith("onnxruntime ")
    assert parity["samples"] == 26
    assert 0 < parity["max_abs"] < 1e-3
    assert 0 < parity["max_rel"] < min(parity["tolerance"]["rtol"])
    assert 1 - 1e-6 < parity["cosine"] <= 1 + 1e-12
    assert parity["snr_db"] > 80
    assert (parity["top1_agreement"], parity["decided_flips"]) == (1.0, 0)
    assert parity["tolerance"]["origin"] == "derived"


def test_report_of_timing(report: Any) -> None:
    """The timing section holds the plan's number of raw seconds and statistics in their order."""
    timing = report["artifacts"][0]["timing"]
    assert (timing["verdict"], timing["reason"], timing["batch"]) == ("pass", "", 1)
    assert timing["runtime"].startswith("onnxruntime ")
    assert timing["threads"] == report["machine"]["cores"]
    assert len(timing["seconds"]) == 4
    assert 0 < timing["p10_ms"] <= timing["median_ms"] <= timing["p90_ms"]
    assert timing["noisy"] in (True, False)
    assert timing["efficiency"] > 0
    assert report["baselines"]["PyTorch eager"]["median_ms"] > 0


def test_accuracy_is_recomputed(report: Any, exported: Exported) -> None:
    """ONNX Runtime's predictions on the held-out digits, made here, are those of the report.

    PyTorch predicts the same class for each single image.
    """
    from levit_export.models import checkpoints

    with (resources.files("levit_export.inputs.data") / "digits.npz").open("rb") as file:
        digits = dict(np.load(file))
    images = np.stack([apply(RECIPES["digits"], image) for image in digits["heldout_images"]])
    session = onnxruntime.InferenceSession(
        exported.folder / "onnx-fp32" / "levit_digits.onnx", providers=["CPUExecutionProvider"]
    )
    found = np.array([session.run(None, {"input": x[None]})[0].argmax() for x in images])
    module = checkpoints.bundled().build()
    expected = module(module.head.l.weight.new_tensor(images)).argmax(1).numpy()
    accuracy = report["artifacts"][0]["accuracy"]
    np.testing.assert_array_equal(found, expected)
    assert accuracy["images"] == len(images) == HELD_OUT
    assert accuracy["correct"] == int((found == digits["heldout_labels"]).sum())
    assert accuracy["reference_correct"] == accuracy["correct"]
    assert accuracy["agreement"] == 1.0


def test_json_alone_on_standard_output(again: Again) -> None:
    """With ``--json -`` standard output is one JSON document; the notice is on the other."""
    assert again.done.returncode == 0, again.done.stderr
    report = strict(again.done.stdout)
    assert report["verdict"] == "pass"
    assert report["artifacts"][0]["timing"] is None
    assert "bundled digits model" in again.done.stderr
    assert report["output"] == str(again.folder)


@pytest.mark.parametrize("name", ["onnx-fp32/levit_digits.onnx", "manifest.json"])
def test_another_export_gives_the_same_bytes(again: Again, exported: Exported, name: str) -> None:
    """Another process, folder and time of day leave no trace in the artifact and manifest."""
    assert (again.folder / name).read_bytes() == (exported.folder / name).read_bytes()


def test_dry_run(cli: Cli, tmp_path: Path, tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dry run says what would be done, to standard output, and writes nothing."""
    monkeypatch.chdir(tmp_path)
    result = cli("export", "--dry-run", "--format", "onnx", "--dynamic", "--no-bench", "-o", "out")
    assert result.exit_code == 0
    for part in ("bundled digits model", "any batch", "onnx as fp32", "check parity", "out"):
        assert part in result.stdout
    assert "latency" not in result.stdout
    assert not tree(tmp_path)
    named = cli("export", "--dry-run", "--format", "onnx")
    assert named.stdout.splitlines()[-1] == f"write {Path('exported', 'levit_digits')}"
    assert not tree(tmp_path)


def test_unchecked_export(cli: Cli, tmp_path: Path) -> None:
    """``--no-check`` returns 0, and neither says nor records that anything passed."""
    out, file = tmp_path / "out", tmp_path / "report.json"
    what = ("--format", "onnx", "--no-check", "--no-bench", "--no-simplify")
    result = cli("export", *what, "-o", out, "--json", file)
    assert result.exit_code == 0
    assert "not checked" in result.stderr
    assert strict(file.read_text(encoding="utf-8"))["verdict"] == "not-run"
    assert export_directory.read_manifest(out).verdict == "not-run"
    (row,) = [ln for ln in result.stdout.splitlines() if ln.startswith("onnx-") and "MB" in ln]
    assert "not-run" in row
    assert "pass" not in row
    assert "latency" not in result.stdout


def test_open_batch(cli: Cli, tmp_path: Path) -> None:
    """``--dynamic`` leaves the batch open in the file, which passes with batches of 1, 2 and 3."""
    quick = ("--iters", 1, "--warmup", 0)
    result = cli("-f", "onnx,ov", "--dynamic", *quick, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.stdout + result.stderr
    proto = onnx.load(tmp_path / "out" / "onnx-fp32" / "levit_digits.onnx")
    for value in (*proto.graph.input, *proto.graph.output):
        assert value.type.tensor_type.shape.dim[0].dim_param == "batch"
    assert export_directory.read_manifest(tmp_path / "out").signature.batch is None


def test_fixed_batch_quietly_without_a_pass(cli: Cli, tmp_path: Path) -> None:
    """``--batch 3 --skip-pass … -q`` fixes the batch, records the skipped pass, says nothing."""
    out = tmp_path / "out"
    options = ("--batch", 3, "--skip-pass", "merge_heads", "--no-bench", "-q", "-o", out)
    result = cli("export", *options)
    assert (result.exit_code, result.output) == (0, "")
    proto = onnx.load(out / "onnx-fp32" / "levit_digits.onnx")
    assert proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 3
    assert [node.op_type for node in proto.graph.node].count("Gemm") == 2
    manifest = export_directory.read_manifest(out)
    status = {record.name: record.status for record in manifest.passes}
    assert status.pop("merge_heads") == "skipped"
    assert set(status.values()) == {"applied"}
    assert manifest.verdict == "pass"


def test_random_weights_of_a_published_variant(cli: Cli, tmp_path: Path) -> None:
    """A published architecture with seeded weights passes, and no accuracy is claimed for it."""
    out = tmp_path / "out"
    result = cli("export", "--model", "LeViT-128S", "--random-weights", 0, "--no-bench", "-o", out)
    assert result.exit_code == 0, result.stdout + result.stderr
    assert "bundled" not in result.stderr
    report = strict((out / "report.json").read_text(encoding="utf-8"))
    assert report["model"]["name"] == "levit_128s"
    assert report["artifacts"][0]["accuracy"] is None
    assert (out / "onnx-fp32" / "levit_128s.onnx").is_file()


def test_failed_check_keeps_the_earlier_export(cli: Cli, copied: Path, tree: Tree) -> None:
    """A check that fails returns 1 and writes beside the earlier export, which stays as it was."""
    before = tree(copied)
    result = cli("export", "--atol", 0, "--no-bench", "--no-simplify", "-o", copied)
    assert result.exit_code == 1
    assert "exceeds the tolerance" in result.stdout
    failed = copied.with_name("copied.failed")
    assert f"fail  {failed}" in result.stdout
    assert tree(copied) == before
    assert export_directory.read_manifest(failed).verdict == "fail"
    assert sorted(path.name for path in copied.parent.iterdir()) == ["copied", "copied.failed"]


def test_an_untrained_network_is_inconclusive(cli: Cli, tmp_path: Path) -> None:
    """The network everybody tries first fails nothing: status 3, its files kept, what to do."""
    import torch

    from levit_export.models.architectures.levit import Levit
    from levit_export.models.zoo import variant

    torch.manual_seed(0)
    weights, out = tmp_path / "untrained.pth", tmp_path / "out"
    torch.save(Levit(variant("levit_digits").config).state_dict(), weights)
    given = ("--checkpoint", weights, "--format", "onnx", "--no-bench", "--output", out)
    result = cli("export", *given)
    assert result.exit_code == 3, result.output
    assert "residual branches contribute exactly zero (untrained); check trained" in result.stdout
    found = strict((out / "report.json").read_text(encoding="utf-8"))
    assert found["verdict"] == found["artifacts"][0]["parity"]["verdict"] == "inconclusive"
    assert export_directory.read_manifest(out).verdict == "inconclusive"
    again = cli("check", out, "--junit", tmp_path / "junit.xml", "--markdown", "-")
    assert again.exit_code == 3
    assert "inconclusive" in again.stdout
    assert "skipped" in (tmp_path / "junit.xml").read_text(encoding="utf-8")
    assert cli("check", out, "--allow-not-run").exit_code == 0
