"""``levit-export drift``: the map of an export directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
from click.testing import CliRunner, Result
from onnx import numpy_helper
from support import Cli, Exported

from levit_export.cli.drift import drift

FILE = "onnx-fp32/levit_digits.onnx"
FEW = ("--samples", "2", "--threads", "1")


def run(*arguments: object) -> Result:
    """The verb on its own."""
    return CliRunner().invoke(drift, [str(argument) for argument in arguments])


def spoil(folder: Path) -> None:
    """Let the softmax of a block in the ONNX file run over the queries."""
    file = folder / FILE
    proto = onnx.load(file)
    name = "stage2_block0_attention_softmax"
    (node,) = (n for n in proto.graph.node if n.output[0] == name)
    node.attribute[0].i = -2
    onnx.save(proto, file)


def test_drift_of_a_directory(copied: Path) -> None:
    """A sound export exits 0: every file has a sentence, its page the map, and -v every tap."""
    before = (copied / "report.html").read_text("utf-8")
    result = run(copied, *FEW, "-v")
    assert result.exit_code == 0, result.output
    after = (copied / "report.html").read_text("utf-8")
    assert "drift-plot-0" not in before
    assert "levit-export drift" in before
    assert "drift-plot-0" in after
    assert f"the map is in {copied / 'report.html'}" in " ".join(result.stderr.split())
    lines = result.stdout.splitlines()
    assert any(line.startswith("stage1.block0.attention.softmax ") for line in lines)
    assert any(line.startswith("clean  every block of onnx-fp32 stays within") for line in lines)


def test_drift_names_the_block(copied: Path) -> None:
    """A spoilt file exits 1, its block and stage are named, and that it was altered is said."""
    spoil(copied)
    result = run(copied, *FEW)
    assert result.exit_code == 1, result.output
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("conversion ")]
    assert "stage2.block0.attention.softmax in onnx-fp32 introduces" in line
    assert "was altered after it was written" in " ".join(result.stdout.split())


def test_drift_looks_for_weights_where_a_pass_was_left_out(tmp_path: Path, cli: Cli) -> None:
    """A BatchNorm's tensor that is a little off, which float16 answers hide, is named."""
    place = tmp_path / "out"
    left_out = ("--skip-pass", "fuse_batchnorm", "--skip-pass", "merge_heads")
    result = cli(
        *("export", "-f", "onnx", "--precision", "fp16", *left_out),
        *("--no-check", "--no-bench", "-o", place),
    )
    assert result.exit_code == 0, result.output
    assert run(place, *FEW).exit_code == 0
    (file,) = place.rglob("*.onnx")
    proto = onnx.load(file)
    # A running variance: the only tensors of one axis without a negative number.
    arrays = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    name = next(n for n, a in arrays.items() if a.ndim == 1 and a.size > 20 and (a > 0).all())
    (tensor,) = (t for t in proto.graph.initializer if t.name == name)
    array = arrays[name]
    changed = (array * array.dtype.type(1.002)).astype(array.dtype)
    tensor.CopyFrom(numpy_helper.from_array(changed, name))
    onnx.save(proto, file)
    result = run(place, *FEW)
    assert result.exit_code == 1, result.output
    assert "the file does not hold" in result.stdout


def test_drift_as_json(copied: Path) -> None:
    """``--json -`` prints everything and nothing else; a page that cannot be drawn is no loss."""
    (copied / "report.json").unlink()
    before = (copied / "report.html").read_text("utf-8")
    result = run(copied, *FEW, "--json", "-")
    assert "the map is not in" in result.stderr
    assert (copied / "report.html").read_text("utf-8") == before
    content: dict[str, Any] = json.loads(result.stdout)
    assert content["verdict"] == "pass"
    kinds = [stage["kind"] for stage in content["stages"]]
    assert kinds[0] == "checkpoint"
    assert {"pass", "program", "artifact", "precision"} <= set(kinds)
    taps = [row["tap"] for row in content["stages"][-1]["rows"]]
    assert (taps[0], taps[-1]) == ("stem.0", "logits")


def test_a_bare_file_needs_its_checkpoint(exported: Exported, tmp_path: Path) -> None:
    """A file that does not say what it is of is bad input; with a model named it is looked at.

    Its page knows the map and the file.
    """
    file = exported.folder / FILE
    refused = run(file, *FEW)
    assert refused.exit_code == 2
    assert "--checkpoint" in refused.output
    page = tmp_path / "drift.html"
    assert run(file, *FEW, "--model", "levit_digits", "--html", page).exit_code == 0
    assert "drift-plot-0" in page.read_text("utf-8")


def test_another_checkpoint_is_refused(exported: Exported) -> None:
    """A directory is not held against weights that it was not made of."""
    result = run(exported.folder, *FEW, "--model", "levit_digits", "--random-weights", "0")
    assert result.exit_code == 2
    assert "was made of levit_digits.safetensors" in result.output


def test_a_wrong_tensor_is_named(copied: Path) -> None:
    """A tensor that is not the checkpoint's is named with its block."""
    file = copied / FILE
    proto = onnx.load(file)
    (tensor,) = (t for t in proto.graph.initializer if t.name == "blocks.0.m.baked_bias")
    table = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array(table * table.dtype.type(1.01), tensor.name))
    onnx.save(proto, file)
    result = run(copied, *FEW)
    assert result.exit_code == 1
    assert "weights  stage1.block0.attention in onnx-fp32" in result.stdout
    assert "the file does not hold blocks.0.m.baked_bias" in result.stdout
