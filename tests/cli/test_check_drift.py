"""``check`` and ``export`` that fail: the block at fault, wherever the failure is told."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import onnx
import pytest
from support import Cli

from levit_export.core import hashing
from levit_export.workflows import explain

FILE = "onnx-fp32/levit_digits.onnx"
TAP = "stage2.block0.attention.softmax"


@pytest.fixture
def spoilt(copied: Path) -> Path:
    """An export whose ONNX file lets a softmax run over the queries, and whose manifest agrees."""
    file = copied / FILE
    proto = onnx.load(file)
    (node,) = (n for n in proto.graph.node if n.output[0] == TAP.replace(".", "_"))
    node.attribute[0].i = -2
    onnx.save(proto, file)
    edit(copied, lambda m: m["files"][FILE].update(vars(hashing.file_entry(file))))
    return copied


def edit(folder: Path, change: Any) -> None:
    """Change the manifest."""
    path = folder / "manifest.json"
    content = json.loads(path.read_text("utf-8"))
    change(content)
    path.write_text(json.dumps(content), "utf-8")


def drift_of(cli: Cli, folder: Path, *options: object) -> dict[str, Any] | None:
    """What a failed check says of drift in JSON."""
    result = cli("check", folder, "--json", "-", *options)
    assert result.exit_code == 1, result.output
    found: dict[str, Any] | None = json.loads(result.stdout)["artifacts"][0]["drift"]
    return found


def test_the_block_is_named_wherever_a_failure_is_told(
    cli: Cli, spoilt: Path, tmp_path: Path
) -> None:
    """Screen, JSON, JUnit and Markdown say which block, which stage and what to do."""
    files = {name: tmp_path / f"out.{name}" for name in ("junit", "markdown", "json")}
    given = [part for name, path in files.items() for part in (f"--{name}", path)]
    result = cli("check", spoilt, *given)
    assert result.exit_code == 1, result.output
    content = json.loads(files["json"].read_text("utf-8"))
    drift = content["artifacts"][0]["drift"]
    assert (drift["cause"], drift["stage"]) == ("conversion", "onnx-fp32")
    assert (drift["block"], drift["tap"]) == ("stage2.block0.attention", TAP)
    sentence = drift["sentence"]
    assert sentence.startswith(f"{TAP} in onnx-fp32 introduces ")
    assert "Look at stage2.block0.attention in the file" in sentence
    assert TAP in result.stdout
    (failure,) = ET.parse(files["junit"]).iter("failure")
    assert sentence in str(failure.get("message"))
    assert f"Drift: {TAP} in onnx-fp32" in files["markdown"].read_text("utf-8")
    parity = content["artifacts"][0]["parity"]
    assert (parity["verdict"], "Drift" in parity["reason"]) == ("fail", False)


def test_no_drift(cli: Cli, spoilt: Path) -> None:
    """``--no-drift`` leaves the explanation out."""
    assert drift_of(cli, spoilt, "--no-drift") is None


def test_without_torch_it_is_said_why_no_block_is_named(
    cli: Cli, spoilt: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine without PyTorch gives the same verdict, and says what keeps it from more."""
    monkeypatch.setitem(sys.modules, "torch", None)
    found = drift_of(cli, spoilt)
    assert found is not None
    assert found["sentence"].startswith("which block is at fault was not looked for: ")
    assert "torch" in found["sentence"]
    assert found["block"] == ""


def test_without_the_checkpoint_it_is_said_what_to_add(cli: Cli, spoilt: Path) -> None:
    """A directory of other weights than the bundled ones needs them to be given."""
    edit(spoilt, lambda m: m["model"].update(checkpoint_sha256="ab" * 32, checkpoint="my.pth"))
    found = drift_of(cli, spoilt)
    assert found is not None
    assert "was made of my.pth with SHA-256 " + "ab" * 32 in found["sentence"]
    assert "--checkpoint" in found["sentence"]


def test_a_bug_in_drift_costs_no_verdict(
    cli: Cli, spoilt: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What goes wrong while the block is looked for is a remark on the failure, not the end."""

    def broken(*_: object) -> None:
        raise ZeroDivisionError("by accident")

    monkeypatch.setattr(explain, "_drawn", broken)
    found = drift_of(cli, spoilt)
    assert found is not None
    assert "unexpected ZeroDivisionError: by accident" in found["sentence"]


def test_only_altered_files_are_followed(
    cli: Cli, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a directory that was altered elsewhere, nothing is looked for in sound files."""
    monkeypatch.setattr(explain, "_drawn", lambda *_: pytest.fail("looked at"))
    (copied / "labels.txt").write_text("others\n", "utf-8")
    assert drift_of(cli, copied) is None


def test_a_failed_export_has_the_map_in_its_page(cli: Cli, tmp_path: Path) -> None:
    """The ``.failed`` directory explains itself: JSON has the sentence, the page the map."""
    place = tmp_path / "out"
    options = ("--format", "onnx", "--rtol", 1e-12, "--no-bench", "--no-simplify")
    result = cli("export", *options, "--output", place)
    assert result.exit_code == 1, result.output
    failed = tmp_path / "out.failed"
    report = json.loads((failed / "report.json").read_text("utf-8"))
    drift = report["artifacts"][0]["drift"]
    assert drift["cause"] == "accumulation"
    assert drift["sentence"].startswith("no block of onnx-fp32 leaves its tolerance")
    page = (failed / "report.html").read_text("utf-8")
    assert "stage3.block1.mlp.out" in page
    assert "drift-plot-0" in page
