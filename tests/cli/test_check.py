"""``levit-export check`` and ``bench``: what is on disk, held against its reference."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import subjects
import torch
from onnx import numpy_helper
from support import Cli, Exported

from levit_export.checks import timing
from levit_export.cli.check import check
from levit_export.cli.options import same_again
from levit_export.core import hashing
from levit_export.core.errors import DataError
from levit_export.inputs import samples
from levit_export.reports.report import read_report

FILE = "onnx-fp32/levit_digits.onnx"
Edit = Callable[[dict[str, Any]], object]


def edit_manifest(folder: Path, edit: Edit) -> None:
    """Change the parsed manifest of an export directory in place."""
    path = folder / "manifest.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    edit(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def vouch(folder: Path, name: str) -> None:
    """Let the manifest say that a file is as it should be."""
    entry = hashing.file_entry(folder / name)
    edit_manifest(folder, lambda m: m["files"][name].update(vars(entry)))


def shift_a_bias(file: Path) -> None:
    """Add a little to the bias of the classifier: another model, and valid all the same."""
    proto = onnx.load(file)
    (head,) = [node for node in proto.graph.node if node.op_type == "Gemm"]
    (bias,) = [t for t in proto.graph.initializer if t.name == head.input[2]]
    values = numpy_helper.to_array(bias).copy()
    values[3] += 1e-3
    bias.CopyFrom(numpy_helper.from_array(values, bias.name))
    onnx.save(proto, file)


def test_check_of_a_directory(cli: Cli, exported: Exported) -> None:
    """An export directory passes against its own golden vectors: status 0."""
    result = cli("check", exported.folder)
    assert result.exit_code == 0, result.output
    (row,) = [line for line in result.stdout.splitlines() if line.startswith("onnx-fp32 ")]
    assert "pass" in row
    assert result.stderr.startswith("stage 1/1: checking levit_digits.onnx")
    assert len(result.stderr.splitlines()) == 1


def test_check_as_json(cli: Cli, exported: Exported) -> None:
    """``check DIR --json -`` prints the report of the run and nothing else."""
    report = json.loads(cli("check", exported.folder, "--json", "-").stdout)
    assert (report["verdict"], report["model"]["name"]) == ("pass", "levit_digits")
    assert report["artifacts"][0]["parity"]["samples"] == 26


def test_quiet_check(cli: Cli, exported: Exported) -> None:
    """``check -q`` says nothing where nothing is wrong."""
    result = cli("check", exported.folder, "-q")
    assert (result.exit_code, result.output) == (0, "")


@pytest.mark.parametrize(
    ("missing", "status", "word"),
    [(("torch", "onnxscript", "onnxsim"), 0, "pass"), (("torch", "onnx"), 3, "not looked at")],
)
def test_check_needs_no_exporter(
    exported: Exported, missing: tuple[str, ...], status: int, word: str
) -> None:
    """A directory is checked where torch and the ONNX exporters cannot be imported.

    Without the onnx package the weights cannot be looked at, which leaves nothing decided.
    """
    script = (
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({missing}))\n"
        "from levit_export.cli import main\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "check", str(exported.folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, len(done.stderr.splitlines())) == (status, 1), done.stderr
    assert word in done.stdout


def test_check_of_an_altered_file(cli: Cli, copied: Path) -> None:
    """One flipped bit in the artifact is found by its hash: status 1."""
    content = bytearray((copied / FILE).read_bytes())
    content[len(content) // 2] ^= 1
    (copied / FILE).write_bytes(content)
    result = cli("check", copied, "--no-drift")
    assert result.exit_code == 1
    assert "altered" in result.stdout
    assert FILE in result.stdout


@pytest.mark.parametrize("name", [FILE, "golden/logits.npy", "labels.txt"])
def test_check_of_a_missing_file(cli: Cli, copied: Path, name: str) -> None:
    """A directory that lost a file fails, even when no artifact is left: status 1, not 3."""
    (copied / name).unlink()
    result = cli("check", copied, "--allow-not-run")
    assert result.exit_code == 1
    assert f"{name} is missing" in result.stdout


def test_check_of_another_model(cli: Cli, copied: Path) -> None:
    """A valid but different model fails by parity though the manifest vouches for its bytes."""
    shift_a_bias(copied / FILE)
    vouch(copied, FILE)
    result = cli("check", copied, "--no-drift")
    assert result.exit_code == 1
    assert "exceeds the tolerance" in result.stdout
    assert "altered" not in result.stdout


def test_check_of_damaged_golden_vectors(cli: Cli, copied: Path) -> None:
    """Golden vectors that NumPy cannot read are bad input: status 2."""
    (copied / "golden" / "logits.npy").write_bytes(b"not an array")
    vouch(copied, "golden/logits.npy")
    result = cli("check", copied)
    assert result.exit_code == 2
    assert "golden vectors" in result.stderr
    assert "export anew" in result.stderr


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda m: m.update(schema=99), "schema 99"),
        (lambda m: m.pop("schema"), "schema None"),
        (lambda m: m.update(colour="red"), "colour"),
        (lambda m: m.pop("golden"), "golden"),
        (lambda m: m["files"].update({"../x": {"sha256": "", "bytes": 0}}), "'../x'"),
        (lambda m: m["artifacts"][0].update(path="/etc/passwd"), "'/etc/passwd'"),
        (lambda m: m["artifacts"][0].update(path="a\\..\\b"), "outside the directory"),
        (lambda m: m["artifacts"][0].update(precision="fp16"), "no tolerance"),
        (lambda m: m.update(artifacts=[]), "no artifacts"),
        (
            lambda m: m["golden"]["tolerances"]["fp32"]["logits"].update(rtol=[1.0, 1.0]),
            "2 tolerances",
        ),
    ],
)
def test_check_of_a_bad_manifest(cli: Cli, copied: Path, edit: Edit, message: str) -> None:
    """A manifest that is none of ours, or leads elsewhere, is refused: status 2, and why."""
    edit_manifest(copied, edit)
    result = cli("check", copied)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "bug" not in result.stderr
    assert result.stdout == ""


def test_check_of_a_manifest_that_is_not_json(cli: Cli, copied: Path) -> None:
    """A manifest that is no JSON is refused with its path: status 2."""
    (copied / "manifest.json").write_text("{", encoding="utf-8")
    result = cli("check", copied)
    assert result.exit_code == 2
    assert str(copied / "manifest.json") in result.stderr


@pytest.mark.parametrize("name", ["nowhere", "labels.txt", "golden"])
def test_check_of_something_else(cli: Cli, copied: Path, name: str) -> None:
    """A path that does not exist or is no artifact is refused with its name: status 2."""
    result = cli("check", copied / name)
    assert result.exit_code == 2
    assert str(copied / name) in result.stderr


def test_check_of_a_file_needs_a_model(cli: Cli, exported: Exported) -> None:
    """A bare file has no reference of its own; the remedy names the option: status 2."""
    result = cli("check", exported.folder / FILE)
    assert result.exit_code == 2
    assert FILE in result.stderr
    assert "--checkpoint" in result.stderr


def test_check_of_a_file(cli: Cli, exported: Exported) -> None:
    """A bare file with its model named is checked against PyTorch: status 0."""
    result = cli("check", exported.folder / FILE, "--model", "levit_digits")
    assert result.exit_code == 0, result.output
    assert "357/360" in result.stdout


def test_check_of_the_wrong_file(cli: Cli, copied: Path) -> None:
    """A bare file that is not the named model fails: status 1."""
    shift_a_bias(copied / FILE)
    result = cli("check", copied / FILE, "--model", "levit_digits", "--no-drift")
    assert result.exit_code == 1
    assert "exceeds the tolerance" in result.stdout


@pytest.mark.parametrize(
    ("given", "atol", "rtol"),
    [
        (("--atol", 0.5), 0.5, [0.0]),
        (("--rtol", 0.25), 0.0, [0.25]),
        (("--atol", 1, "--rtol", 0.125), 1.0, [0.125]),
    ],
)
def test_given_tolerance(
    cli: Cli, exported: Exported, given: tuple[object, ...], atol: float, rtol: list[float]
) -> None:
    """A tolerance that was given is used and recorded as given, not as derived."""
    report = json.loads(cli("check", exported.folder, *given, "--json", "-").stdout)
    tolerance = report["artifacts"][0]["parity"]["tolerance"]
    assert (tolerance["origin"], tolerance["atol"]) == ("given", atol)
    assert (tolerance["rtol"], tolerance["derivation"]) == (rtol, {})


def test_tolerance_that_decides_nothing(cli: Cli, exported: Exported) -> None:
    """A tolerance so wide that a constant would pass is inconclusive."""
    result = cli("check", exported.folder, "--atol", 1e6, "--no-drift")
    assert result.exit_code == 3
    assert "decides nothing" in result.stdout


def test_check_that_cannot_be_run(
    cli: Cli, exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the runtime the check is not run: status 3, or 0 with a notice when allowed."""
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    result = cli("check", exported.folder)
    assert result.exit_code == 3
    assert "onnxruntime" in result.stdout
    allowed = cli("check", exported.folder, "--allow-not-run")
    assert allowed.exit_code == 0
    assert "not run" in allowed.stderr


def test_a_checkpoint_without_torch(
    cli: Cli, exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A check against a checkpoint needs PyTorch, which is said with how to install it."""
    monkeypatch.setitem(sys.modules, "torch", None)
    result = cli("check", exported.folder, "--model", "levit_digits")
    assert (result.exit_code, "runs PyTorch: torch not installed" in result.stderr) == (2, True)


def test_bench_of_a_directory(cli: Cli, exported: Exported) -> None:
    """A directory is timed on its own: one row with a latency, no claim of parity."""
    result = cli("bench", exported.folder, "--iters", 2, "--warmup", 0)
    assert result.exit_code == 0, result.output
    (row,) = [line for line in result.stdout.splitlines() if line.startswith("onnx-fp32 ")]
    assert " ms" in row
    assert "pass" not in row
    assert "PyTorch" not in result.stdout


def test_bench_has_every_regime(cli: Cli, exported: Exported, tmp_path: Path) -> None:
    """Cold, first, warm and sustained calls each have figures, on the screen and in the report."""
    written = tmp_path / "report.json"
    quick = ("--iters", 2, "--warmup", 0, "--json", written)
    result = cli("bench", exported.folder, "--sustain", 0.2, *quick)
    assert result.exit_code == 0, result.output
    (artifact,) = json.loads(written.read_text())["artifacts"]
    timed, regimes = artifact["timing"], artifact["timing"]["regimes"]
    assert regimes["cold_ms"] == pytest.approx(timed["load_ms"] + regimes["first_ms"])
    assert sum(regimes["sustained_seconds"]) >= 0.2 - max(regimes["sustained_seconds"])
    words = " ".join(result.stdout.split())
    assert f"cold {regimes['cold_ms']:.1f} ms, first {regimes['first_ms']:.2f} ms" in words
    assert f"sustained for 0 s {regimes['sustained_median_ms']:.2f} ms" in words
    assert "median and its 95 % interval, timed interleaved" in words
    again = read_report(written).artifacts[0].timing
    assert again is not None
    assert again.regimes is not None
    assert list(again.regimes.sustained) == regimes["sustained_seconds"]
    short = cli("bench", exported.folder, *quick)
    assert "sustained" not in short.stdout


def test_bench_by_rules(
    cli: Cli, exported: Exported, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """``bench --rules mlperf-mobile`` quotes the p90 of the calls that the rules ask for.

    They are made fewer here.
    """
    quick = replace(timing.RULES["mlperf-mobile"], calls=12, seconds=0.0)
    monkeypatch.setitem(timing.RULES, "mlperf-mobile", quick)
    written = tmp_path / "report.json"
    result = cli("bench", exported.folder, "--rules", "mlperf-mobile", "--json", written)
    assert result.exit_code == 0, result.output
    (artifact,) = json.loads(written.read_text())["artifacts"]
    timed = artifact["timing"]
    assert (timed["rules"], len(timed["seconds"])) == ("mlperf-mobile", 12)
    assert f"p90 {timed['p90_ms']:.2f} ms" in result.stdout
    assert "90th percentile of calls in a row, at least 12 of them and 0 s" in result.stdout
    assert read_report(written).artifacts[0].timing.rules == "mlperf-mobile"  # type: ignore[union-attr]
    edited = written.read_text().replace('"mlperf-mobile"', '"no-such-rules"')
    written.write_text(edited)
    with pytest.raises(DataError, match="no-such-rules"):
        read_report(written)


def test_rules_that_contradict(cli: Cli, exported: Exported, tmp_path: Path) -> None:
    """Rules say how many calls are timed, and that each is of one image: else status 2."""
    given = ("--rules", "mlperf-mobile")
    result = cli("bench", exported.folder, *given, "--iters", 2000)
    assert result.exit_code == 2
    assert "--iters" in result.stderr
    pair = tmp_path / "pair"
    made = cli("export", "-f", "onnx", "--batch", 2, "--no-check", "--no-bench", "-o", pair)
    assert made.exit_code == 0, made.output
    result = cli("bench", pair, *given)
    assert result.exit_code == 2
    assert "takes 2 images at a time" in result.stderr


def test_bench_against_pytorch(cli: Cli, exported: Exported) -> None:
    """With a model named, eager PyTorch is timed in the same run."""
    options = ("--model", "levit_digits", "--iters", 2, "--warmup", 0, "--json", "-")
    result = cli("bench", exported.folder, *options)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert len(report["baselines"]["PyTorch eager"]["seconds"]) == 2
    assert len(report["artifacts"][0]["timing"]["seconds"]) == 2


def test_bench_that_cannot_be_run(
    cli: Cli, exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the runtime nothing is timed: status 3, and the row says why."""
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    result = cli("bench", exported.folder, "--iters", 1)
    assert result.exit_code == 3
    assert "not timed: onnxruntime" in result.stdout


def test_int8_of_a_checkpoint_needs_its_images(cli: Cli, tmp_path: Path) -> None:
    """Its tolerance follows from the images that calibrated it, which ``--data`` names again."""
    torch.save(dict(subjects.tiny_checkpoint().build().state_dict()), tmp_path / "own.pth")
    pixels, _ = samples.calibration_digits()
    np.savez(tmp_path / "images.npz", images=pixels[:24])
    model = ("--checkpoint", tmp_path / "own.pth")
    images = ("--data", tmp_path / "images.npz", "--num-samples", 16)
    asked = ("--format", "onnx", "--precision", "int8", "--no-bench", "-o", tmp_path / "made")
    made = cli("export", *model, *images, "--seed", 3, *asked)
    assert made.exit_code == 0, made.output
    (file,) = (tmp_path / "made" / "onnx-int8").glob("*.onnx")
    refused = cli("check", file, *model)
    assert refused.exit_code == 2
    assert "Give them with --data" in refused.stderr
    result = cli("check", file, *model, *images, "--seed", 3, "--json", "-", "--no-drift")
    assert result.exit_code == 0, result.output
    (row,) = json.loads(result.stdout)["artifacts"]
    (kept,) = json.loads((tmp_path / "made" / "report.json").read_text("utf-8"))["artifacts"]
    assert row["parity"]["tolerance"] == kept["parity"]["tolerance"]


def test_the_next_step_repeats_what_the_failure_rests_on() -> None:
    """The drift that is suggested reads the same images in the same order, and the same recipe."""
    given = ["x", "--checkpoint", "w.pth", "--data", "d", "--num-samples", "9", "--seed", "3"]
    params = check.make_context("check", [*given, "--preprocessing", "r.json"]).params
    words = same_again(params)
    assert words == [*given[1:3], "--preprocessing", "r.json", *given[3:]]
