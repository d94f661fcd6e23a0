"""What runtimes compute in by default is found out, judged, and said."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import openvino
import pytest
import subjects
from mutations import find_weights
from support import Cli, Exported

from levit_export.core.errors import NotRunError
from levit_export.core.packages import PRECISION_HINT as HINT
from levit_export.core.precisions import UNIT_ROUNDOFF
from levit_export.core.values import RunOptions
from levit_export.formats import elsewhere, target
from levit_export.formats.environments import Version
from levit_export.formats.onnx import providers
from levit_export.formats.onnx.providers import OPENVINO
from levit_export.formats.openvino import target as openvino_target
from levit_export.storage.export_directory import read_manifest
from levit_export.workflows import precision_search

PLUGIN = pytest.mark.skipif(
    providers.present().get(OPENVINO) != "",
    reason="onnxruntime-ep-openvino is not installed or does not start on this machine",
)
HAS_BFLOAT16 = openvino.Core().get_property("CPU", HINT).get_type_name() == "bf16"
BFLOAT16 = pytest.mark.skipif(
    not HAS_BFLOAT16, reason="OpenVINO computes in float32 on this processor"
)
WITHOUT_BFLOAT16 = {"OV_CPU_MAX_ISA": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
"""With these in its environment another process of OpenVINO has no bfloat16 on any processor."""


@pytest.fixture(scope="module")
def folder(cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model as OpenVINO; do not change its files."""
    output = tmp_path_factory.mktemp("arithmetic") / "openvino"
    result = cli("export", "--format", "openvino", "--no-bench", "-q", "-o", output)
    assert result.exit_code == 0, result.output
    return output


@pytest.fixture(scope="module")
def in_bfloat16(cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model as OpenVINO in bf16; do not change its files."""
    output = tmp_path_factory.mktemp("arithmetic") / "bf16"
    asked = ("--format", "openvino", "--precision", "bf16", "--no-bench", "-o", output)
    result = cli("export", *asked, "--json", "-")
    assert result.exit_code == (0 if HAS_BFLOAT16 else 3), result.output
    return output


@pytest.fixture
def as_with_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenVINO says what it says on a processor that has bfloat16; its answers stay as here."""
    monkeypatch.setattr(openvino_target, "_type_by_default", lambda _: "bf16")
    monkeypatch.setattr(openvino_target, "_type_of", lambda _: "bf16")


@pytest.fixture
def as_without_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenVINO says what it says on a processor that has no bfloat16."""
    monkeypatch.setattr(openvino_target, "_type_by_default", lambda _: "fp32")
    monkeypatch.setattr(openvino_target, "_type_of", lambda _: "f32")


def rows(result: Any) -> list[dict[str, Any]]:
    """The artifacts of a report on standard output."""
    return json.loads(result.stdout)["artifacts"]  # type: ignore[no-any-return]


@PLUGIN
@BFLOAT16
def test_a_provider_that_computes_in_less(cli: Cli, exported: Exported) -> None:
    """A float32 file in bfloat16 fails, with the cause and with what would make it exact."""
    file = exported.folder / "onnx-fp32" / "levit_digits.onnx"
    given = ("--model", "levit_digits", "--provider", "openvino", "--json", "-")
    result = cli("check", file, *given)
    assert result.exit_code == 1
    (row,) = rows(result)
    hint = next(f for f in row["parity"]["findings"] if f["kind"] == "coarser-arithmetic")
    assert hint["values"]["error"] < 1e-5 < row["parity"]["max_rel"]
    assert "right in float32" in row["parity"]["reason"]
    assert f"{HINT}=f32" in row["parity"]["reason"]
    assert (row["drift"]["cause"], row["drift"]["block"]) == ("precision", "")
    assert "no block of onnx-fp32 is at fault" in row["drift"]["sentence"]


@PLUGIN
@BFLOAT16
@pytest.mark.parametrize(("told", "status"), [("", 1), (f",{HINT}=bf16", 0)])
def test_drift_of_a_provider_that_computes_in_less(
    cli: Cli, exported: Exported, told: str, status: int
) -> None:
    """Its blocks are held against bfloat16, in which a sound file accuses none of them."""
    file = exported.folder / "onnx-fp32" / "levit_digits.onnx"
    asked = ("--provider", f"openvino{told}", "--samples", "2", "--json", "-")
    result = cli("drift", file, "--model", "levit_digits", *asked)
    assert result.exit_code == status, result.output
    drawn = json.loads(result.stdout)
    (stage,) = (each for each in drawn["stages"] if each["kind"] == "artifact")
    assert (stage["name"], stage["precision"]) == ("onnx-fp32", "bf16")
    assert {each["block"] for each in drawn["findings"]} == {""}


@BFLOAT16
def test_the_block_at_fault_in_bfloat16(cli: Cli, folder: Path, tmp_path: Path) -> None:
    """Of a file whose weight is wrong the default's row names the block that float32's names."""
    file = shutil.copytree(folder, tmp_path / "spoilt") / "openvino-fp32" / "levit_digits.xml"
    held = find_weights(target("openvino").inspect(file), subjects.digits().weights)
    held["blocks.11.m.2.weight"].change(lambda weight: 4 * weight)
    result = cli("check", file, "--model", "levit_digits", "--json", "-")
    assert result.exit_code == 1
    assert {row["drift"]["block"] for row in rows(result)} == {"shrink2.mlp"}
    assert len(rows(result)) == 2


def test_ways_to_run_a_file_are_told_apart(cli: Cli, copied: Path) -> None:
    """A file that is run in two ways has two stages in the map, each with a name of its own."""
    asked = ("--provider", "cpu", "--provider", "cpu,x=1", "--samples", "1", "--json", "-")
    drawn = json.loads(cli("drift", copied, *asked).stdout)
    names = [each["name"] for each in drawn["stages"] if each["kind"] == "artifact"]
    assert names == ["onnx-fp32 (CPU)", "onnx-fp32 (CPU x=1)"]
    assert [each["subject"] for each in drawn["findings"]] == ["model", *names]


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


@pytest.mark.parametrize("provider", ["openvino", f"openvino,{HINT}=f32", "openvino,device=npu"])
def test_a_provider_without_a_device(
    cli: Cli, exported: Exported, monkeypatch: pytest.MonkeyPatch, provider: str
) -> None:
    """OpenVINO's provider where it has no device is a row that was not run, beside those that do.

    That it takes the processor's fastest type on its device does not matter then.
    """
    monkeypatch.setattr(providers, "_plugins", lambda: {OPENVINO: "it finds no device"})
    monkeypatch.setattr(onnxruntime, "get_ep_devices", list, raising=False)
    file = exported.folder / "onnx-fp32" / "levit_digits.onnx"
    asked = ("--provider", provider, "--provider", "cpu")
    result = cli("check", file, "--model", "levit_digits", *asked, "--json", "-")
    assert result.exit_code == 3, result.output
    absent, cpu = rows(result)
    assert (absent["parity"]["verdict"], cpu["parity"]["verdict"]) == ("not-run", "pass")
    assert "OpenVINO" in absent["parity"]["reason"]
    assert "it finds no device" in absent["parity"]["reason"]


def test_an_unknown_provider(cli: Cli, exported: Exported) -> None:
    """A provider that nobody brings is a usage error with those that are here."""
    result = cli("check", exported.folder, "--provider", "tensorrt")
    assert result.exit_code == 2
    assert "tensorrt" in result.stderr
    assert "CPU" in result.stderr


def test_where_openvino_is_not_installed(
    cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without OpenVINO its files are not run, and what to install is said: no error of ours."""
    monkeypatch.setitem(sys.modules, "openvino", None)
    result = cli("check", folder)
    assert result.exit_code == 3, result.output
    assert "openvino not installed: pip install openvino" in result.stdout


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


@pytest.mark.usefixtures("as_with_bfloat16")
@pytest.mark.parametrize(
    "words",
    [("check",), ("bench", "--iters", "2"), ("evaluate", "--data", "digits", "--limit", "20")],
    ids=lambda words: words[0],
)
def test_the_default_is_a_row_of_each_verb(
    cli: Cli, folder: Path, tmp_path: Path, words: tuple[str, ...]
) -> None:
    """Where OpenVINO's default is coarser, check, bench and evaluate have a row for it."""
    verb, *options = words
    copied = shutil.copytree(folder, tmp_path / "copied")
    result = cli(verb, copied, *options, "--json", "-")
    assert result.exit_code == 0, result.output
    exact, default = rows(result)
    assert (exact["precision"], default["precision"]) == ("fp32", "fp32")
    found = {"check": "parity", "bench": "timing"}.get(verb, "")
    if found:
        assert default[found]["runtime"].endswith("(CPU, by default in bf16)")
        assert exact[found]["runtime"].endswith("(CPU)")
    assert any("OpenVINO computes float32 in bf16 here" in note for note in default["notes"])
    assert not any("in bf16 here" in note for note in exact["notes"])


def test_a_file_that_asks_for_bfloat16(in_bfloat16: Path) -> None:
    """It holds float32 numbers and the hint, and the manifest says what it is."""
    (entry,) = read_manifest(in_bfloat16).artifacts
    file = in_bfloat16 / entry.path
    assert (entry.precision, file.parent.name) == ("bf16", "openvino-bf16")
    assert any(HINT in note for note in entry.notes)
    graph = openvino.Core().read_model(file)
    assert graph.get_rt_info(["runtime_options", HINT]).value == "bf16"
    constants = [node for node in graph.get_ops() if node.get_type_name() == "Constant"]
    assert {n.get_element_type().get_type_name() for n in constants} == {"f32", "i64"}
    assert target("openvino").inspect(file).precision == "bf16"


@pytest.mark.usefixtures("as_without_bfloat16")
def test_what_a_processor_cannot_compute_in(cli: Cli, in_bfloat16: Path) -> None:
    """Where OpenVINO takes float32 in place of bfloat16 nothing passes: it is not run."""
    checked = cli("check", in_bfloat16, "--json", "-")
    assert checked.exit_code == 3
    (row,) = rows(checked)
    assert row["parity"]["verdict"] == "not-run"
    assert "OpenVINO takes f32 on this processor" in row["parity"]["reason"]
    timed = cli("bench", in_bfloat16, "--iters", "2", "--json", "-")
    assert timed.exit_code == 3
    assert "takes f32" in rows(timed)[0]["timing"]["reason"]
    few = ("--data", "digits", "--limit", "20", "--json", "-")
    evaluated = cli("evaluate", in_bfloat16, *few)
    (row,) = rows(evaluated)  # a report, in which other files would have their rows
    assert (evaluated.exit_code, row["accuracy"]) == (3, None)
    assert any("takes f32" in note for note in row["notes"])


@BFLOAT16
def test_what_a_processor_computes_in(cli: Cli, in_bfloat16: Path) -> None:
    """Where OpenVINO follows the hint the file passes with errors that float32 never has."""
    checked = cli("check", in_bfloat16, "--json", "-")
    assert checked.exit_code == 0, checked.output
    (row,) = rows(checked)
    assert row["parity"]["max_rel"] > UNIT_ROUNDOFF["bf16"] / 10
    timed = cli("bench", in_bfloat16, "--iters", "2", "--json", "-")
    assert (timed.exit_code, rows(timed)[0]["timing"]["verdict"]) == (0, "pass")
    few = ("--data", "digits", "--limit", "20", "--json", "-")
    evaluated = cli("evaluate", in_bfloat16, *few)
    assert (evaluated.exit_code, rows(evaluated)[0]["accuracy"]["images"]) == (0, 20)


@pytest.mark.usefixtures("as_with_bfloat16")
def test_it_is_judged_as_bfloat16(cli: Cli, in_bfloat16: Path) -> None:
    """Where the processor has bfloat16 it is one row, by that tolerance; its weights are found."""
    result = cli("check", in_bfloat16, "--json", "-")
    assert result.exit_code == 0, result.output
    (row,) = rows(result)
    assert row["parity"]["tolerance"]["derivation"]["precision"] == "bf16"
    assert row["parity"]["runtime"].endswith("(CPU, in bf16)")
    assert row["parity"]["weights"]["tensors"] > 0
    fresh = cli("check", in_bfloat16, "--model", "levit_digits", "--precision", "bf16")
    assert fresh.exit_code == 0, fresh.output


@pytest.mark.usefixtures("as_with_bfloat16")
def test_a_hint_that_is_gone(cli: Cli, in_bfloat16: Path, tmp_path: Path) -> None:
    """A file is what it says: without the hint it is one of float32, whatever its name is."""
    copied = shutil.copytree(in_bfloat16, tmp_path / "copied") / "openvino-bf16"
    file = copied / "levit_digits.xml"
    text = file.read_text("utf-8")
    assert f'<{HINT} value="bf16" />' in text
    file.write_text(text.replace(f'<{HINT} value="bf16" />', ""), "utf-8")
    result = cli("check", file, "--model", "levit_digits", "--no-drift")
    assert result.exit_code == 1, result.output
    assert "says bf16, its graph is in fp32" in " ".join(result.stdout.split())


def test_no_block_stays_out_of_a_hint(cli: Cli, tmp_path: Path) -> None:
    """``--keep`` is refused before anything is loaded: the hint is for the whole graph."""
    asked = ("--format", "openvino", "--precision", "bf16", "--keep", "stem", "-o", tmp_path / "x")
    result = cli("export", *asked)
    assert (result.exit_code, "no block can stay out" in result.stderr) == (2, True)


@pytest.mark.parametrize("fast", ["fp32", "bf16"])
def test_a_search_tries_what_the_processor_has(monkeypatch: pytest.MonkeyPatch, fast: str) -> None:
    """``--precision auto`` tries bf16 between int8 and fp32, where OpenVINO would follow it."""
    monkeypatch.setattr(openvino_target, "_type_by_default", lambda _: fast)
    known = precision_search.order("openvino", "latency")
    tried = precision_search.possible(target("openvino"), known, RunOptions())
    assert tried == (("int8", "bf16", "fp32") if fast == "bf16" else ("int8", "fp32"))


def test_another_version_cannot_either(in_bfloat16: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A release in an environment of its own does not answer where it cannot follow the hint."""
    for name, value in WITHOUT_BFLOAT16.items():
        monkeypatch.setenv(name, value)
    artifact = target("openvino").inspect(in_bfloat16 / "openvino-bf16" / "levit_digits.xml")
    version = Version("openvino", openvino.__version__.split("-")[0])
    with (
        pytest.raises(
            NotRunError,
            match=r"cannot compute in bf16 here: .*asks for bf16, this processor takes f32",
        ),
        elsewhere.opened(artifact, RunOptions(), version, Path(sys.executable)),
    ):
        pass


@BFLOAT16
def test_another_version_computes_in_it(in_bfloat16: Path) -> None:
    """A release in an environment of its own gives the answers that the installed one gives."""
    artifact = target("openvino").inspect(in_bfloat16 / "openvino-bf16" / "levit_digits.xml")
    version = Version("openvino", openvino.__version__.split("-")[0])
    options = RunOptions(threads=1)  # here and there, for the order of sums
    image = np.random.default_rng(0).standard_normal((1, 3, 96, 96)).astype(np.float32)
    with (
        elsewhere.opened(artifact, options, version, Path(sys.executable)) as there,
        target("openvino").open(artifact, options) as here,
        target("openvino").open(replace(artifact, precision="fp32"), options) as exact,
    ):
        told, own, other = (s.run({"input": image})["logits"] for s in (there, here, exact))
    np.testing.assert_array_equal(told, own)
    assert np.abs(other - own).max() > UNIT_ROUNDOFF["bf16"] / 10 * np.abs(other).max()


@pytest.mark.parametrize("can", [pytest.param(True, marks=BFLOAT16), False])
def test_the_verifier_of_a_bundle_follows_it(
    cli: Cli, in_bfloat16: Path, tmp_path: Path, *, can: bool
) -> None:
    """``verify.py`` follows the hint where it can, says where it cannot, and the card says so."""
    assert cli("bundle", in_bfloat16, "-o", tmp_path / "b.zip").exit_code == 0
    shutil.unpack_archive(tmp_path / "b.zip", tmp_path / "b", "zip")
    done = subprocess.run(
        [sys.executable, tmp_path / "b" / "verify.py"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **({} if can else WITHOUT_BFLOAT16)},
    )
    assert done.returncode == (0 if can else 3), done.stdout + done.stderr
    refused = "it asks for bf16, and OpenVINO takes f32 on this processor"
    passed = "pass    outputs of openvino-bf16/levit_digits.xml"
    assert (passed if can else refused) in done.stdout
    card = (tmp_path / "b" / "README.md").read_text("utf-8")
    assert "- `openvino-bf16/levit_digits.xml`: `bf16`" in card
    assert 'hint = {"INFERENCE_PRECISION_HINT": "bf16"}' in card
    assert "Without it, on such a processor" not in card


def test_the_card_names_the_setting(cli: Cli, folder: Path, tmp_path: Path) -> None:
    """Figures of a float32 file are those with f32; what the default may do is in the table."""
    assert cli("bundle", folder, "-o", tmp_path / "b.zip").exit_code == 0
    shutil.unpack_archive(tmp_path / "b.zip", tmp_path / "b", "zip")
    card = (tmp_path / "b" / "README.md").read_text("utf-8")
    assert "- `openvino-fp32/levit_digits.xml`: `f32`" in card
    assert "Without it, on such a processor" in card
    assert "| bf16 | `logits` |" in card
