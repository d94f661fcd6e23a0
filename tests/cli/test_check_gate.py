"""``levit-export check`` as the gate of a build: statuses, baselines, bundles, what it writes."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import gate_reports
import numpy as np
import pytest
import subjects
from mutations import EDITS, find_weights, with_nan
from support import Cli, Exported

from levit_export.checks.timing import TimingReport
from levit_export.core.values import Artifact
from levit_export.reports.gate import PARITY_SLACK, SIZE_SLACK
from levit_export.reports.report import Report, read_report
from levit_export.storage import device_bundle, export_directory
from levit_export.workflows import check as check_workflow

FILE = "onnx-fp32/levit_digits.onnx"
ROUNDS = 20
Edit = Callable[[dict[str, Any]], object]


@pytest.fixture(autouse=True)
def outside_of_github(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a developer's machine, also when these tests run in a workflow."""
    for name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def baseline(exported: Exported, cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a check of the default export found; do not change it."""
    path = tmp_path_factory.mktemp("baseline") / "report.json"
    assert cli("check", exported.folder, "--json", path).exit_code == 0
    return path


@pytest.fixture(scope="session")
def zipped(exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default export as a bundle; do not change it."""
    return device_bundle.write(exported.folder, tmp_path_factory.mktemp("bundle") / "digits.zip")


def edited(path: Path, place: Path, edit: Edit) -> Path:
    """A copy of a report in the folder ``place``, changed by ``edit``."""
    content = json.loads(path.read_text("utf-8"))
    edit(content)
    copy = place / "edited.json"
    copy.write_text(json.dumps(content), encoding="utf-8")
    return copy


def spoil(folder: Path, edit: Callable[[Artifact], None]) -> None:
    """Change the artifact of an export directory and let its manifest vouch for the result."""
    manifest = export_directory.read_manifest(folder)
    (artifact,) = export_directory.artifacts(folder, manifest)
    edit(artifact)
    (folder / "manifest.json").unlink()
    export_directory.write_manifest(
        folder, replace(manifest, files=export_directory.list_files(folder))
    )


# --- exit statuses ----------------------------------------------------------------------------


def not_a_number(artifact: Artifact) -> None:
    """NaN in a bias of the head."""
    weights = find_weights(artifact, subjects.digits().weights)
    weights["head.bias"].change(with_nan)


@pytest.mark.parametrize("edit", [EDITS["onnx"].forgotten, EDITS["onnx"].renamed, not_a_number])
def test_a_spoilt_model_is_red(
    cli: Cli, copied: Path, baseline: Path, tmp_path: Path, edit: Callable[[Artifact], None]
) -> None:
    """A spoilt model ends with status 1 and its reason in every form that was asked for."""
    spoil(copied, edit)
    files = {name: tmp_path / f"out.{name}" for name in ("junit", "markdown", "json")}
    given = [part for name, path in files.items() for part in (f"--{name}", path)]
    result = cli("check", copied, "--baseline", baseline, "--no-drift", *given)
    assert result.exit_code == 1, result.output
    report = json.loads(files["json"].read_text("utf-8"))
    (reason,) = [
        c["reason"] for c in report["checks"] if (c["name"], c["verdict"]) == ("parity", "fail")
    ]
    assert report["verdict"] == "fail"
    failures = ET.parse(files["junit"]).iter("failure")
    assert reason in [failure.get("message") for failure in failures]
    assert files["markdown"].read_text("utf-8").startswith("## ❌ fail")


def test_a_pass_is_green(cli: Cli, exported: Exported, baseline: Path, tmp_path: Path) -> None:
    """An unspoilt export passes its own baseline with status 0, one JUnit case for each check."""
    junit = tmp_path / "junit.xml"
    result = cli("check", exported.folder, "--baseline", baseline, "--junit", junit)
    assert result.exit_code == 0, result.output
    assert "2 of 2 checks against the baseline pass" in result.stdout
    cases = list(ET.parse(junit).iter("testcase"))
    assert [case.get("name") for case in cases] == [
        "parity",
        "weights",
        "parity against baseline",
        "size against baseline",
    ]
    assert all(len(case) == 0 for case in cases)


def test_what_was_not_run(
    cli: Cli, exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the runtime the status is 3 and the case is skipped; allowed, it is 0."""
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    junit = tmp_path / "junit.xml"
    assert cli("check", exported.folder, "--junit", junit).exit_code == 3
    (case,) = [c for c in ET.parse(junit).iter("testcase") if c.get("name") == "parity"]
    assert [child.tag for child in case] == ["skipped"]
    assert cli("check", exported.folder, "--allow-not-run").exit_code == 0


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ((), "nothing to check"),
        (("x", "--size-slack", 1), "--baseline"),
        (("x", "--baseline", "nowhere.json"), "nowhere.json"),
        (("x", "--baseline", "nowhere.json", "--size-slack", "inf"), "accepts anything"),
        (("x", "--baseline", "nowhere.json", "--latency-slack", "nan"), "accepts anything"),
        (("x", "--baseline", "nowhere.json", "--parity-slack", 0.5), "0.5"),
        (("x", "--junit", "no/such/folder.xml"), "--junit no/such/folder.xml"),
        (("x", "--markdown", "."), "--markdown ."),
        (("x", "--junit", "-", "--json", "-"), "standard output"),
        (("--recheck", "nowhere.json"), "--rtol"),
        (("--recheck", "nowhere.json", "--rtol", 1), "nowhere.json"),
        (("--recheck", "nowhere.json", "--rtol", "inf"), "accepts anything"),
        (("x", "--recheck", "nowhere.json", "--rtol", 1), "runs nothing"),
        (("--recheck", "nowhere.json", "--rtol", 1, "-m", "levit_256"), "runs nothing"),
    ],
)
def test_bad_usage(cli: Cli, given: tuple[object, ...], words: str) -> None:
    """Options that contradict each other or lead nowhere end with status 2 and say which."""
    result = cli("check", *given)
    assert result.exit_code == 2, result.output
    assert words in result.stderr
    assert "bug" not in result.stderr


# --- baselines --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("edit", "given", "name"),
    [
        (lambda r: r["artifacts"][0].update(bytes=2_000_000), (), "size against baseline"),
        (
            lambda r: r["artifacts"][0]["parity"]["outputs"][0].update(worst_ratio=0.05),
            (),
            "parity against baseline",
        ),
        (
            lambda r: r["artifacts"].append({**r["artifacts"][0], "format": "coreml"}),
            (),
            "presence",
        ),
    ],
)
def test_a_regression(
    *,
    cli: Cli,
    exported: Exported,
    baseline: Path,
    tmp_path: Path,
    edit: Edit,
    given: tuple[object, ...],
    name: str,
) -> None:
    """What got worse than the baseline allows ends with status 1 and is named with its check."""
    before = edited(baseline, tmp_path, edit)
    result = cli("check", exported.folder, "--baseline", before, *given)
    assert result.exit_code == 1, result.output
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("✗ ")]
    assert name in line
    assert "-fp32" in line


def test_slack_is_heard(cli: Cli, exported: Exported, baseline: Path, tmp_path: Path) -> None:
    """A wider slack accepts what the default refuses."""
    before = edited(baseline, tmp_path, lambda r: r["artifacts"][0].update(bytes=2_000_000))
    given = ("--baseline", before, "--size-slack", 60)
    assert cli("check", exported.folder, *given).exit_code == 0


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda r: r["model"].update(name="levit_256"), "levit_256"),
        (lambda r: r.update(schema=7), "schema 7"),
        (lambda r: r.pop("artifacts"), "artifacts"),
    ],
)
def test_a_baseline_that_cannot_be_used(
    *, cli: Cli, exported: Exported, baseline: Path, tmp_path: Path, edit: Edit, words: str
) -> None:
    """A baseline of another model or schema is bad input: status 2, and what it is of."""
    result = cli("check", exported.folder, "--baseline", edited(baseline, tmp_path, edit))
    assert result.exit_code == 2
    assert words in result.stderr


def test_a_baseline_that_was_not_timed(cli: Cli, exported: Exported, baseline: Path) -> None:
    """A slack for a latency that the baseline does not have is refused before anything is run."""
    result = cli("check", exported.folder, "--baseline", baseline, "--latency-slack", 10)
    assert result.exit_code == 2
    assert "no latency" in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("artifact_s", "eager_s", "status", "timings"),
    [(0.010, 0.020, 0, 1), (0.013, 0.026, 0, 1), (0.013, 0.020, 1, 3)],
    ids=["as before", "slower machine", "slower artifact"],
)
def test_latency(
    *,
    cli: Cli,
    exported: Exported,
    baseline: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    artifact_s: float,
    eager_s: float,
    status: int,
    timings: int,
) -> None:
    """A slower artifact fails after it was timed again; a slower machine does not."""
    generator = np.random.default_rng(0)
    calls: list[object] = []

    def measured(seconds: float) -> TimingReport:
        return gate_reports.timed(seconds * (1 + generator.gamma(4, 0.01, ROUNDS)))

    def timed(report: Report, artifact_s: float, eager_s: float) -> Report:
        (row,) = report.artifacts
        return replace(
            report,
            artifacts=(replace(row, timing=measured(artifact_s)),),
            baselines={"PyTorch eager": measured(eager_s)},
        )

    saved = read_report(baseline)

    def bench(*_: object) -> Report:
        calls.append(None)
        return timed(saved, artifact_s, eager_s)

    monkeypatch.setattr(check_workflow, "bench", bench)
    before = gate_reports.write(timed(saved, 0.010, 0.020), tmp_path / "before.json")
    junit = tmp_path / "junit.xml"
    given = ("--baseline", before, "--latency-slack", 15, "--junit", junit)
    result = cli("check", exported.folder, *given)
    assert result.exit_code == status, result.output
    assert len(calls) == timings
    (case,) = [c for c in ET.parse(junit).iter("testcase") if "latency" in (c.get("name") or "")]
    assert [child.tag for child in case] == ["failure"] * status


def test_what_failed_is_not_timed(
    cli: Cli, copied: Path, baseline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An export that is damaged is not timed: its latency is not run, the verdict is fail."""
    monkeypatch.setattr(check_workflow, "bench", lambda *_: pytest.fail("timed"))
    saved = read_report(baseline)
    rows = tuple(
        replace(a, timing=gate_reports.timed(np.full(ROUNDS, 0.01))) for a in saved.artifacts
    )
    before = gate_reports.write(replace(saved, artifacts=rows), tmp_path / "before.json")
    (copied / FILE).unlink()
    result = cli("check", copied, "--baseline", before, "--latency-slack", 10)
    assert result.exit_code == 1, result.output
    assert "latency against baseline not run: not timed" in result.stdout


def test_defaults_in_the_help(cli: Cli) -> None:
    """The defaults that the help names are those that are used."""
    text = " ".join(cli("check", "--help").stdout.split())
    for option, default in (("parity", PARITY_SLACK), ("size", SIZE_SLACK)):
        said = re.search(rf"--{option}-slack .*?\[default: ([\d.]+)\]", text)
        assert said is not None
        assert float(said[1]) == default


# --- bundles ----------------------------------------------------------------------------------


def test_a_bundle(cli: Cli, zipped: Path, baseline: Path) -> None:
    """A bundle is checked as the directory it was made of, against its baseline too."""
    result = cli("check", zipped, "--baseline", baseline)
    assert result.exit_code == 0, result.output
    assert "levit-bundle-" not in result.output


def test_bundles_go_by_their_own_names(
    cli: Cli, zipped: Path, exported: Exported, tmp_path: Path
) -> None:
    """Among several paths, and where it fails, a bundle is called by its file's name."""
    report = tmp_path / "report.json"
    paths = (zipped, exported.folder)
    result = cli("check", *paths, "--atol", 0, "--no-drift", "--json", report)
    assert result.exit_code == 1, result.output
    assert "levit-bundle-" not in result.output + report.read_text("utf-8")
    shown = [artifact["path"] for artifact in json.loads(report.read_text("utf-8"))["artifacts"]]
    assert shown == [f"{zipped}/{FILE}", f"{exported.folder}/{FILE}"]


def test_a_damaged_bundle(cli: Cli, zipped: Path, tmp_path: Path) -> None:
    """A bundle with one flipped bit is bad input: status 2, with its name."""
    content = bytearray(zipped.read_bytes())
    content[len(content) // 2] ^= 1
    damaged = tmp_path / "damaged.ZIP"
    damaged.write_bytes(content)
    result = cli("check", damaged)
    assert result.exit_code == 2
    assert "damaged.ZIP" in result.stderr


def test_an_error_inside_a_bundle(cli: Cli, zipped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error about a file of a bundle names the bundle, not the folder it was unpacked into."""

    def check(request: check_workflow.CheckRequest, *_: object) -> Report:
        from levit_export.core.errors import DataError

        raise DataError(f"{request.paths[0]}/x is bad", remedy=f"Look at {request.paths[0]}.")

    monkeypatch.setattr(check_workflow, "check", check)
    result = cli("check", zipped)
    assert result.exit_code == 2
    assert f"{zipped}/x is bad" in result.stderr
    assert "levit-bundle-" not in result.stderr


# --- rechecks ---------------------------------------------------------------------------------


def test_recheck(
    cli: Cli, baseline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A saved report is judged anew without running anything, as a check would have been."""
    monkeypatch.setattr(check_workflow, "check", lambda *_: pytest.fail("run"))
    report = tmp_path / "report.json"
    result = cli("check", "--recheck", baseline, "--rtol", 1e-8, "--json", report)
    assert result.exit_code == 1, result.output
    assert "exceeds the tolerance" in result.stdout
    parity = json.loads(report.read_text("utf-8"))["artifacts"][0]["parity"]
    assert (parity["tolerance"]["origin"], parity["tolerance"]["rtol"]) == ("given", [1e-8])
    assert parity["worst_ratio"] > 1
    again = cli("check", "--recheck", report, "--rtol", 1e-4)
    assert again.exit_code == 0, again.output


# --- GitHub -----------------------------------------------------------------------------------


def test_annotations(cli: Cli, exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    """On GitHub a failure is annotated at its file, on standard error; elsewhere nothing is."""
    given = ("check", exported.folder, "--atol", 0, "--no-drift", "--json", "-")
    assert "::" not in cli(*given).stderr
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    result = cli(*given)
    assert result.exit_code == 1
    json.loads(result.stdout)
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("::")]
    assert line.startswith(f"::error file={exported.folder}/{FILE},title=onnx-fp32%3A parity::")
    assert "exceeds the tolerance" in line


def test_errors_are_annotated(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """On GitHub bad input is annotated as well."""
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    result = cli("check", "nowhere.zip")
    assert result.exit_code == 2
    assert result.stderr.startswith("::error title=levit-export::nowhere.zip")


def test_the_summary_of_a_job_is_appended_to(
    cli: Cli, exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A summary joins what earlier steps wrote; any other file is replaced."""
    summary, other = tmp_path / "summary", tmp_path / "other.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    for path in (summary, other):
        path.write_text("before\n", encoding="utf-8")
        assert cli("check", exported.folder, "--markdown", path, "-q").exit_code == 0
    assert summary.read_text("utf-8").startswith("before\n## ✅ pass")
    assert other.read_text("utf-8").startswith("## ✅ pass")
