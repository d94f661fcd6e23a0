"""What a bundle's verifiers write with ``--results``, and what ``check --results`` makes of it."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from support import Cli
from tiny_exports import ONNX

from levit_export.core.errors import DataError
from levit_export.formats.onnx import providers
from levit_export.storage import device_bundle
from levit_export.storage.device_bundle import results
from levit_export.workflows.check import CheckRequest, check

NODE = shutil.which("node")
Edit = Callable[[dict[str, Any]], object]


def verify(folder: Path, file: Path, *arguments: str) -> tuple[int, str]:
    """Run a bundle's ``verify.py`` with ``--results file``."""
    command = [sys.executable, str(folder / "verify.py"), "--results", str(file), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def written(content: dict[str, Any], file: Path) -> Path:
    """``content`` as a verifier writes it, with the checksum that belongs to it."""
    body = json.dumps(content, indent=1).removesuffix("\n}")
    file.write_bytes(f'{body},\n"crc32": "{zlib.crc32(body.encode()):08x}"\n}}\n'.encode())
    return file


def content_of(file: Path) -> dict[str, Any]:
    """What a results file says, without its checksum."""
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    del content["crc32"]
    return content


@pytest.fixture(scope="session")
def digits(cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model's bundle, unpacked beside its zip; do not change its files."""
    folder = tmp_path_factory.mktemp("digits")
    export = folder / "export"
    made = cli("export", "--format", "onnx,openvino", "--no-bench", "-o", export)
    assert made.exit_code == 0, made.output
    shutil.unpack_archive(
        device_bundle.write(export, folder / "b.zip"), folder / "unpacked", "zip"
    )
    return folder / "unpacked"


@pytest.fixture(scope="session")
def python_results(digits: Path) -> Path:
    """What ``verify.py`` measured of the bundled model's ONNX file; do not change it."""
    file = digits.with_name("python.json")
    device = ("--device", "iPhone 17 Pro", "--sustain", "0.2")
    status, said = verify(digits, file, "--format", "onnx", *device)
    assert status == 0, said
    return file


@pytest.fixture(scope="session")
def tiny_results(zipped: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The tiny bundle, unpacked, and what ``verify.py`` measured of its ONNX file."""
    folder = tmp_path_factory.mktemp("results")
    shutil.unpack_archive(zipped, folder / "unpacked", "zip")
    status, said = verify(folder / "unpacked", folder / "r.json", "--format", "onnx")
    assert status == 0, said
    return folder / "unpacked", folder / "r.json"


def test_results_of_verify_py_are_rows(cli: Cli, digits: Path, python_results: Path) -> None:
    """A device's answers and latencies are a row of the report: on the screen and as JSON."""
    result = cli("check", digits.with_name("b.zip"), "--results", python_results)
    assert result.exit_code == 0, result.output
    assert "onnx-fp32 (iPhone 17 Pro, CPU)" in result.stdout
    report = json.loads(
        cli("check", digits, "--results", python_results, "--json", "-", "--no-drift").stdout
    )
    (row,) = [each for each in report["artifacts"] if each["device"]]
    raw = content_of(python_results)["rows"][0]
    assert (row["device"], row["parity"]["verdict"]) == ("iPhone 17 Pro, CPU", "pass")
    assert row["parity"]["samples"] == 26
    assert row["timing"]["seconds"] == raw["latency"]["warm_s"]
    assert row["timing"]["p90_ms"] == pytest.approx(
        1e3 * float(np.quantile(raw["latency"]["warm_s"], 0.9))
    )
    assert row["timing"]["regimes"]["cold_ms"] == pytest.approx(1e3 * raw["latency"]["cold_s"])
    assert row["timing"]["regimes"]["sustained_seconds"] == raw["latency"]["sustained_s"]
    assert any("sustained for 0 s" in note for note in row["notes"])


def test_results_in_the_files_for_ci(
    cli: Cli, digits: Path, python_results: Path, tmp_path: Path
) -> None:
    """JUnit has a case for a device's row, Markdown a line with its verdict and latency, and the
    page its regimes.
    """
    junit, markdown = tmp_path / "j.xml", tmp_path / "m.md"
    saved, page = tmp_path / "report.json", tmp_path / "page.html"
    given = ("--junit", junit, "--markdown", markdown, "--json", saved, "--html", page)
    assert cli("check", digits, "--results", python_results, *given).exit_code == 0
    cases = ET.fromstring(junit.read_text(encoding="utf-8")).iter("testcase")
    names = {(case.get("classname"), case.get("name")) for case in cases}
    assert ("levit_digits.onnx-fp32 (iPhone 17 Pro, CPU)", "parity") in names
    (line,) = [
        each for each in markdown.read_text(encoding="utf-8").splitlines() if "iPhone" in each
    ]
    assert "pass" in line
    assert line.endswith(" ms |")
    shown = page.read_text(encoding="utf-8")
    assert "onnx-fp32 (iPhone 17 Pro, CPU)" in shown
    assert "What devices report they measured by themselves" in shown
    assert "interleaved" not in shown
    again = cli("check", "--recheck", saved, "--rtol", "1e-12")
    assert (again.exit_code, "onnx-fp32 (iPhone 17 Pro, CPU)" in again.stdout) == (1, True)


def test_results_of_the_cpp_verifier(
    cli: Cli, digits: Path, openvino_program: Path, tmp_path: Path
) -> None:
    """What the C++ program measured of the bundled model is judged like any other."""
    (model,) = (digits / "openvino-fp32").glob("*.xml")
    file = tmp_path / "cpp.json"
    options = ["--results", file, "--device", 'a "board"', "--sustain", "0.1"]
    done = subprocess.run([openvino_program, digits, model, *options], check=False)
    assert done.returncode == 0
    content = content_of(file)
    values = np.load(digits / "golden" / "logits.npy")
    raw = base64.b64decode(content["rows"][0]["outputs"]["logits"]["float32"])
    np.testing.assert_allclose(np.frombuffer(raw, "<f4").reshape(values.shape), values, atol=1e-4)
    assert len(content["rows"][0]["latency"]["warm_s"]) >= 50
    result = cli("check", digits, "--results", file)
    assert result.exit_code == 0, result.output
    assert 'openvino-fp32 (a "board", CPU)' in result.stdout


PAGE = """
import { readFileSync, writeFileSync } from "node:fs";
import { measure } from "./results.mjs";
globalThis.navigator ??= { userAgent: "Node.js" };
const { golden, answers, hash, artifact } = JSON.parse(readFileSync("given.json"));
const rows = golden.map((row) => Float32Array.from(row));
const model = {
  batch: 1,
  run: async ([row]) => {
    const start = performance.now();
    while (performance.now() - start < 0.1); // a model takes some time
    const data = Float32Array.from(answers[rows.indexOf(row)]);
    return { logits: { width: data.length, data, type: "float32" } };
  },
};
const bundle = { hash: async () => hash };
writeFileSync("found.json", await measure({ bundle, model, artifact: { path: artifact },
  runtime: "onnxruntime-web 0", golden: rows, coldMs: 20, firstMs: 5, sustainS: 0.05 }));
"""


@pytest.mark.skipif(NODE is None, reason="Node.js is not installed")
def test_results_of_the_page(cli: Cli, digits: Path, tmp_path: Path) -> None:
    """The page's file is judged like any other; here Node runs it with recorded answers."""
    script = resources.files("levit_export.storage.device_bundle.web") / "results.js"
    (tmp_path / "results.mjs").write_bytes(script.read_bytes())
    (tmp_path / "run.mjs").write_text(PAGE, encoding="utf-8")
    answers = np.load(digits / "golden" / "logits.npy")
    given = {
        "golden": [[float(row)] for row in range(len(answers))],
        "answers": answers.tolist(),
        "hash": results.bundle_hash(digits),
        "artifact": "onnx-fp32/levit_digits.onnx",
    }
    (tmp_path / "given.json").write_text(json.dumps(given), encoding="utf-8")
    subprocess.run([str(NODE), "run.mjs"], cwd=tmp_path, check=True)
    result = cli("check", digits, "--results", tmp_path / "found.json")
    assert result.exit_code == 0, result.output
    assert "onnx-fp32 (browser, wasm)" in result.stdout


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda v: v + np.float32(0.01), "exceeds the tolerance"),
        (lambda v: np.where(v == v.max(), np.float32("nan"), v), "NaN or infinity on 1 of"),
        (lambda v: v[:, :-1], "expected"),
        (lambda v: v[:-1], "expected"),
    ],
    ids=["shifted", "nan", "narrow", "few rows"],
)
def test_wrong_answers_fail(
    digits: Path,
    python_results: Path,
    tmp_path: Path,
    change: Callable[[np.ndarray], np.ndarray],
    words: str,
) -> None:
    """Answers that are off, NaN or of another shape fail, with the reason."""
    content = content_of(python_results)
    held = results.read(python_results).rows[0].arrays()["logits"]
    values = np.ascontiguousarray(change(held), "<f4")
    content["rows"][0]["outputs"]["logits"] = {
        "shape": list(values.shape),
        "float32": base64.b64encode(values.tobytes()).decode(),
    }
    file = written(content, tmp_path / "r.json")
    report = check(CheckRequest(paths=(digits,), results=(file,), drift=False))
    (row,) = [each for each in report.artifacts if each.device]
    assert (report.verdict, row.parity.verdict) == ("fail", "fail")
    assert words in row.parity.reason


def test_what_did_not_run_on_the_device_fails(
    cli: Cli, digits: Path, python_results: Path, tmp_path: Path
) -> None:
    """A row with an error in place of outputs fails with the device's own words."""
    content = content_of(python_results)
    content["rows"][0] |= {"outputs": {}, "latency": None, "error": "out of memory on the NPU"}
    result = cli("check", digits, "--results", written(content, tmp_path / "r.json"))
    assert (result.exit_code, "out of memory on the NPU" in result.stdout) == (1, True)


def test_results_of_another_bundle(
    cli: Cli, digits: Path, python_results: Path, tmp_path: Path
) -> None:
    """Results are refused beside another bundle, an altered one, and an export: status 2."""
    content = content_of(python_results)
    content["bundle"] = "0" * 64
    other = cli("check", digits, "--results", written(content, tmp_path / "r.json"))
    assert (other.exit_code, f"is about the bundle {'0' * 64}," in other.stderr) == (2, True)
    folder = shutil.copytree(digits, tmp_path / "altered")
    np.save(folder / "golden" / "allowed" / "fp32" / "logits.npy", np.full(26, 1e9))
    altered = cli("check", folder, "--results", python_results)
    assert (altered.exit_code, "is not as bundle.json says" in altered.stderr) == (2, True)
    (folder / "bundle.json").unlink()
    export = cli("check", folder, "--results", python_results)
    assert (export.exit_code, "what is checked is no bundle" in export.stderr) == (2, True)


def test_results_of_one_device_twice(
    cli: Cli, digits: Path, python_results: Path, tmp_path: Path
) -> None:
    """Two files that tell of one artifact on one unit of one device are refused: status 2."""
    copy = shutil.copy(python_results, tmp_path / "copy.json")
    result = cli("check", digits, "--results", python_results, "--results", copy)
    assert (result.exit_code, "both tell of" in result.stderr) == (2, True)


def test_results_are_not_timed_against_pytorch(
    cli: Cli, digits: Path, python_results: Path
) -> None:
    """A latency slack is refused beside results: a device timed no reference."""
    given = ("--baseline", python_results, "--latency-slack", "20")
    result = cli("check", digits, "--results", python_results, *given)
    assert (result.exit_code, "Leave out --results" in result.stderr) == (2, True)


def of_row(**change: Any) -> Edit:
    """An edit of the first row."""
    return lambda content: content["rows"][0].update(change)


def of_latency(**change: Any) -> Edit:
    """An edit of the first row's latency."""
    return lambda content: content["rows"][0]["latency"].update(change)


def of_output(**change: Any) -> Edit:
    """An edit of the first row's logits."""
    return lambda content: content["rows"][0]["outputs"]["logits"].update(change)


IMPOSSIBLE: list[tuple[Edit, str]] = [
    (lambda content: content.update(schema=2), "schema 2"),
    (lambda content: content.update(schema=True), "schema True"),
    (lambda content: content.update(format="other"), "format"),
    (lambda content: content.update(bundle="../.."), "SHA-256"),
    (lambda content: content.update(rows=[]), "0 rows"),
    (lambda content: content.update(rows={}), "rows"),
    (lambda content: content.update(further=1), "further"),
    (lambda content: content.pop("device"), "device"),
    (lambda content: content.update(device="\x1b[2J"), "not printable"),
    (lambda content: content.update(device=["a"]), "expected str"),
    (lambda content: content.update(rows=content["rows"] * 2), "two rows on one unit"),
    (of_row(outputs={}), "either outputs or an error"),
    (of_row(error="both"), "either outputs or an error"),
    (of_output(shape=[12, 5]), "in 192 bytes"),
    (of_output(shape=[12, -4]), "impossible shape"),
    (of_output(shape=[]), "impossible shape"),
    (of_output(shape=[1] * 60), "impossible shape"),
    (of_output(shape=[10**300, 10**300]), "in 192 bytes"),
    (of_output(shape=[12.0, 4]), "expected int"),
    (of_output(float32="?"), "base64"),
    (of_output(float32="é"), "base64"),
    (of_latency(warm_s=[]), "without warm calls"),
    (of_latency(warm_s=[0.1, float("nan")]), "not a positive number"),
    (of_latency(warm_s=[0.1, float("inf")]), "not a positive number"),
    (of_latency(warm_s=[0.1, -1.0]), "not a positive number"),
    (of_latency(warm_s=[10**400]), "too large"),
    (of_latency(warm_s=[None]), "expected float"),
    (of_latency(warm_s=[True]), "expected float"),
    (of_latency(warm_s="0123"), "warm_s"),
    (of_latency(batch=0), "batch 0"),
    (of_latency(cold_s=1e-9), "longer than cold_s"),
]


@pytest.mark.parametrize(("edit", "words"), IMPOSSIBLE, ids=range(len(IMPOSSIBLE)))
def test_what_no_verifier_can_have_measured(
    tiny_results: tuple[Path, Path], tmp_path: Path, edit: Edit, words: str
) -> None:
    """Results with a right checksum and impossible content are a ``DataError`` that says why."""
    content = content_of(tiny_results[1])
    edit(content)
    with pytest.raises(DataError, match="cannot be taken for results") as raised:
        results.read(written(content, tmp_path / "r.json"))
    assert words in raised.value.what


def test_altered_bytes(tiny_results: tuple[Path, Path], tmp_path: Path) -> None:
    """No single byte of a results file can be changed or cut off without it being refused."""
    raw = tiny_results[1].read_bytes()
    file = tmp_path / "r.json"
    generator = np.random.default_rng(0)
    for place in generator.integers(0, len(raw), 60).tolist():
        altered = bytearray(raw)
        altered[place] ^= int(generator.integers(1, 256))
        for content in (bytes(altered), raw[:place]):
            file.write_bytes(content)
            with pytest.raises(DataError, match="cannot be taken for results"):
                results.read(file)
    file.write_bytes(raw)
    assert results.read(file).rows[0].artifact == ONNX


@pytest.mark.parametrize(
    "raw",
    [b"", b"\xff\xfe", b"[" * 100_000, b"null", b"9" * 10_000, b'{"schema": 1}'],
    ids=["empty", "bytes", "deep", "null", "number", "bare"],
)
def test_hostile_json(tmp_path: Path, raw: bytes) -> None:
    """What is not a results file at all is a ``DataError``, and so is a folder."""
    file = tmp_path / "r.json"
    file.write_bytes(raw)
    for path in (file, tmp_path):
        with pytest.raises(DataError, match="cannot be taken for results"):
            results.read(path)


def test_rows_of_another_artifact(
    cli: Cli, digits: Path, python_results: Path, tmp_path: Path
) -> None:
    """A row of a file that the bundle does not hold is refused with those it holds: status 2."""
    content = content_of(python_results)
    content["rows"][0]["artifact"] = "../../etc/passwd"
    file = written(content, tmp_path / "r.json")
    result = cli("check", digits, "--results", file)
    assert (result.exit_code, "does not hold" in result.stderr) == (2, True), result.output
    assert "onnx-fp32/levit_digits.onnx" in result.stderr


# --- execution providers of verify.py --------------------------------------------------------


def test_a_provider_that_is_not_here(unpacked: Path, tmp_path: Path) -> None:
    """A provider that is absent is not run: status 3, and there is nothing to report."""
    file = tmp_path / "r.json"
    status, said = verify(unpacked, file, "--format", "onnx", "--provider", "nowhere")
    assert (status, file.exists()) == (3, False), said
    assert "no provider 'nowhere' is here" in said
    assert "no results were written" in said


@pytest.mark.skipif(
    providers.present().get(providers.OPENVINO, "absent") != "",
    reason="the OpenVINO provider (onnxruntime-ep-openvino) does not start here",
)
def test_providers_are_rows(cli: Cli, digits: Path, tmp_path: Path) -> None:
    """Each provider is a row of the results, judged under the name it was asked for by."""
    file = tmp_path / "r.json"
    exact = "openvino,INFERENCE_PRECISION_HINT=f32"
    given = ("--format", "onnx", "--provider", "cpu", "--provider", exact, "--device", "pc")
    status, said = verify(digits, file, *given)
    assert status == 0, said
    assert [row.unit for row in results.read(file).rows] == ["cpu", exact]
    result = cli("check", digits, "--results", file)
    assert (result.exit_code, f"(pc, {exact})" in result.stdout) == (0, True), result.output


def test_what_a_provider_was_told_decides_the_tolerance(
    cli: Cli, digits: Path, python_results: Path, tmp_path: Path
) -> None:
    """Answers of a provider that was told to compute in bfloat16 are judged by its tolerance."""
    content = content_of(python_results)
    (row,) = (row for row in content["rows"] if row["artifact"].startswith("onnx-fp32"))
    logits = row["outputs"]["logits"]
    right = np.frombuffer(base64.b64decode(logits["float32"]), "<f4")
    moved = (right * np.float32(1 + 2.0**-9)).astype("<f4")
    logits["float32"] = base64.b64encode(moved.tobytes()).decode()
    content["rows"] = [row]

    def check(unit: str) -> int:
        row["unit"] = unit
        file = written(content, tmp_path / "r.json")
        return int(cli("check", digits, "--results", file).exit_code)

    told = "openvino,INFERENCE_PRECISION_HINT"
    units = ("CPU", f"{told}=f32", f"{told}=f64", f"{told}=bf16")
    assert [check(unit) for unit in units] == [1, 1, 1, 0]
