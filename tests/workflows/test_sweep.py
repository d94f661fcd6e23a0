"""A sweep: every cell once, whatever happens to the others, and one report."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import clusters
import gate_reports
import pytest
from click.testing import CliRunner, Result
from support import Exported

from levit_export.checks.results import Accuracy
from levit_export.checks.timing import TimingReport
from levit_export.cli.sweep import sweep as verb
from levit_export.core import files, processes
from levit_export.core.errors import (
    ExportFailedError,
    LevitExportError,
    PassProofError,
    UsageError,
)
from levit_export.core.progress import Silent
from levit_export.workflows import sweep as sweeping
from levit_export.workflows.export_plan import ExportRequest
from levit_export.workflows.sweep import SweepRequest, sweep
from levit_export.workflows.sweep import cell as cell_module

TWO = """
bench = false
formats = ["onnx", "openvino"]
[[models]]
model = "levit_digits"
"""
REAL = """
bench = false
formats = ["onnx"]
data = "digits"
limit = 60
[[models]]
model = "levit_digits"
"""
ARTIFACT = replace(
    gate_reports.artifact(size=2_000_000),
    path="onnx-fp32/a.onnx",
    sha256=sha256(b"model").hexdigest(),
)
MODEL = replace(gate_reports.MODEL, config={})
TIMING = TimingReport("pass", seconds=(0.0015,) * 9)
Act = Callable[[cell_module.Cell], cell_module.Result]


def good(_: cell_module.Cell) -> cell_module.Result:
    """A result without any work."""
    return cell_module.Result("pass", "", ARTIFACT, MODEL, "export")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A sweep of two cells."""
    (tmp_path / "s.toml").write_text(TWO)
    return tmp_path / "s.toml"


class Work:
    """Stands for the processes: what is to be done, and what was."""

    def __init__(self) -> None:
        self.act: Act = good
        self.done: list[str] = []

    def __call__(self, _: object, cell: cell_module.Cell, folder: Path) -> cell_module.Result:
        self.done.append(cell.id)
        result = self.act(cell)
        file = folder / (result.folder or "export") / ARTIFACT.path
        file.parent.mkdir(parents=True)
        file.write_bytes(b"model")
        return result


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Work:
    """No process is started; the test says what each would have found."""
    found = Work()
    monkeypatch.setattr(sweeping, "_performed", found)
    return found


def test_done_once(work: Work, file: Path) -> None:
    """A second run does nothing and reports the same; a cell that is new is the only one done."""
    first = sweep(SweepRequest(file))
    assert sorted(work.done) == ["onnx-fp32", "openvino-fp32"]
    second = sweep(SweepRequest(file))
    assert len(work.done) == 2
    assert [row.result for row in first.rows] == [row.result for row in second.rows]
    assert [row.fresh for row in second.rows] == [False, False]
    file.write_text(TWO.replace('"openvino"', '"openvino", "coreml"'))
    assert [row.fresh for row in sweep(SweepRequest(file)).rows] == [False, False, True]
    assert work.done[2:] == ["coreml-fp16"]


def test_a_stored_verdict_holds_for_the_stored_bytes(work: Work, file: Path) -> None:
    """A cell whose artifact was replaced since, or is gone, is done again and replaced."""
    sweep(SweepRequest(file))
    root = file.parent / "s-sweep" / "store"
    first, second = sorted(root.glob(f"*/export/{ARTIFACT.path}"))
    first.write_bytes(b"another")
    found = sweep(SweepRequest(file))
    assert sorted(row.fresh for row in found.rows) == [False, True]
    assert first.read_bytes() == b"model"
    second.unlink()
    assert sorted(row.fresh for row in sweep(SweepRequest(file)).rows) == [False, True]
    assert not any(row.fresh for row in sweep(SweepRequest(file)).rows)
    assert len(work.done) == 4


def test_interrupted(work: Work, file: Path) -> None:
    """What was finished before Ctrl-C is kept, nothing half-done is, and the rest is done."""

    def interrupt(cell: cell_module.Cell) -> cell_module.Result:
        if cell.format == "openvino":
            raise KeyboardInterrupt
        return good(cell)

    work.act = interrupt
    with pytest.raises(KeyboardInterrupt):
        sweep(SweepRequest(file))
    kept = list((file.parent / "s-sweep" / "store").iterdir())
    assert len(kept) == 1
    work.act = good
    assert sweep(SweepRequest(file)).verdict == "pass"
    assert work.done == ["onnx-fp32", "openvino-fp32", "openvino-fp32"]


def test_what_a_killed_run_left(work: Work, file: Path) -> None:
    """Folders of processes that are gone are removed, those of running ones are not."""
    root = file.parent / "s-sweep" / "store"
    root.mkdir(parents=True)
    gone = 2**22 + 1  # above the largest process number
    for owner in (gone, os.getpid()):
        (root / f"{files.PARTIAL}{owner}-x").mkdir()
    sweep(SweepRequest(file))
    assert [path.name for path in root.glob(f"{files.PARTIAL}*")] == [
        f"{files.PARTIAL}{os.getpid()}-x"
    ]
    assert len(work.done) == 2


@pytest.mark.parametrize(
    ("error", "verdict"),
    [(UsageError("no images", remedy="give some"), "not-run"), (PassProofError("off"), "fail")],
)
def test_a_cell_that_fails(work: Work, file: Path, error: LevitExportError, verdict: str) -> None:
    """It is a row with its reason, the others are done, and it is tried again next time."""
    work.act = lambda cell: cell_module.failure(error) if cell.format == "onnx" else good(cell)
    found = sweep(SweepRequest(file))
    assert [row.result.verdict for row in found.rows] == [verdict, "pass"]
    assert found.rows[0].result.reason == str(error)
    assert found.verdict == verdict
    work.act = good
    assert sweep(SweepRequest(file)).verdict == "pass"
    assert work.done.count("onnx-fp32") == 2
    assert work.done.count("openvino-fp32") == 1


def test_a_failed_check_is_a_result(work: Work, file: Path) -> None:
    """What failed its check fails again without being done again."""
    work.act = lambda _: cell_module.Result("fail", "too far", ARTIFACT, MODEL, "export.failed")
    assert sweep(SweepRequest(file)).verdict == "fail"
    assert sweep(SweepRequest(file)).verdict == "fail"
    assert len(work.done) == 2


@pytest.mark.parametrize("text", ["", "{", '{"schema": 9}', "[]"])
def test_a_damaged_result(work: Work, file: Path, text: str) -> None:
    """A result that cannot be read counts as not there."""
    sweep(SweepRequest(file))
    for path in (file.parent / "s-sweep" / "store").glob("*/result.json"):
        path.write_text(text)
    assert all(row.fresh for row in sweep(SweepRequest(file)).rows)
    assert not any(row.fresh for row in sweep(SweepRequest(file)).rows)
    assert len(work.done) == 4


def test_a_timed_result_is_good_enough(work: Work, file: Path) -> None:
    """Side by side nothing is timed: timed results are taken, but their latency is not shown."""
    file.write_text(TWO.replace("bench = false", ""))
    artifact = replace(ARTIFACT, timing=TIMING)
    work.act = lambda _: cell_module.Result("pass", "", artifact, MODEL, "export")
    alone = sweep(SweepRequest(file))
    assert [row.artifact for row in alone.rows] == [artifact, artifact]
    together = sweep(SweepRequest(file, workers=2))
    assert [row.artifact for row in together.rows] == [ARTIFACT, ARTIFACT]
    assert any("2 cells ran at a time" in note for note in together.notes)
    assert len(work.done) == 2


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import sys; sys.exit('no memory')", "status 1: no memory"),
        ("import os; os.kill(os.getpid(), 11)", "status -11"),
    ],
)
def test_a_process_that_crashes(
    monkeypatch: pytest.MonkeyPatch, file: Path, code: str, reason: str
) -> None:
    """A converter that takes its process with it is a row like any other failure."""
    monkeypatch.setattr(processes, "SERVE", code)
    found = sweep(SweepRequest(file, workers=2))
    assert [row.result.verdict for row in found.rows] == ["not-run", "not-run"]
    assert reason in found.rows[0].result.reason


def test_interrupted_while_others_run(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    """Processes that are still at work are ended, not waited for."""
    codes = ["import time; time.sleep(600)", "pass"]
    monkeypatch.setattr(processes, "command", lambda _: [sys.executable, "-c", codes.pop()])

    class Impatient(Silent):
        """Interrupts when the first cell is done."""

        def advance(self) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep(SweepRequest(file, workers=2), Impatient())
    assert list((file.parent / "s-sweep" / "store").iterdir()) == []


def test_images_that_changed(tmp_path: Path) -> None:
    """A worker that finds other images under the path refuses them."""
    (tmp_path / "1.png").write_bytes(b"x")
    images = cell_module.Images(str(tmp_path), "other")
    cell = cell_module.Cell("a", cell_module.ModelChoice(), "bundled", "onnx", "fp32", data=images)
    with pytest.raises(LevitExportError, match="other files here"):
        cell_module.perform(cell, tmp_path)


@pytest.mark.parametrize("path", [None, cell_module.DIGITS])
def test_images_are_answered_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str | None
) -> None:
    """Where the cell has images, its check leaves the model's own to ``evaluate``."""
    asked: list[ExportRequest] = []

    def stop(request: ExportRequest, **_: object) -> None:
        asked.append(request)
        raise ExportFailedError("enough", remedy="")

    monkeypatch.setattr("levit_export.workflows.export.export", stop)
    images = None if path is None else cell_module.images_at(path)
    cell = cell_module.Cell("a", cell_module.ModelChoice(), "bundled", "onnx", "fp32", data=images)
    with pytest.raises(ExportFailedError, match="enough"):
        cell_module.perform(cell, tmp_path)
    assert [request.accuracy for request in asked] == [path is None]


def test_workers_and_scheduler(file: Path) -> None:
    """Processes here and a cluster contradict each other."""
    with pytest.raises(UsageError, match="--workers 2"):
        sweep(SweepRequest(file, workers=2, scheduler="tcp://x:1"))


Run = Callable[..., Result]


@pytest.fixture
def run() -> Run:
    """Run the verb in this process."""

    def invoke(*arguments: object) -> Result:
        return CliRunner().invoke(verb, [str(a) for a in arguments], prog_name="levit-export")

    return invoke


def test_report(work: Work, run: Run, file: Path, tmp_path: Path) -> None:
    """Screen, Markdown and JSON have a row for each cell, with size, verdict and latency."""
    file.write_text(TWO.replace("bench = false", ""))
    accuracy = Accuracy("mine", 10, correct=9, reference_correct=None, agreement=None, drop=0.5)
    artifact = replace(ARTIFACT, timing=TIMING, accuracy=accuracy)
    work.act = lambda _: cell_module.Result("pass", "", artifact, MODEL, "export")
    result = run(file, "-o", tmp_path / "out", "--json", tmp_path / "r.json")
    assert result.exit_code == 0, result.output
    parts = ("levit_digits", "pass", "2.00 MB", "25 %", "9/10", "+0.50", "1.50 ms (1.50–1.50)")
    line = " ".join(line for line in result.stdout.splitlines() if "openvino-fp32" in line)
    assert all(part in line for part in parts)
    written = json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert written == json.loads((tmp_path / "r.json").read_text())
    row = written["rows"][0]
    assert (row["model"], row["format"], row["precision"]) == ("levit_digits", "onnx", "fp32")
    assert row["path"] == f"store/{row['key']}/export/onnx-fp32/a.onnx"
    assert "| 9/10 | \\+0.50 |" in (tmp_path / "out" / "sweep.md").read_text()
    page = (tmp_path / "out" / "sweep.html").read_text()
    assert "<title>s.toml: pass</title>" in page
    assert f'<a href="{row["path"]}">levit_digits onnx-fp32</a>' in page
    assert f"report: {tmp_path / 'out' / 'sweep.html'}" in result.stdout


@pytest.mark.parametrize(
    ("result", "status"),
    [
        (cell_module.Result("pass", "", ARTIFACT, MODEL, "export"), 0),
        (cell_module.Result("fail", "too far", ARTIFACT, MODEL, "export.failed"), 1),
        (cell_module.Result("not-run", "no images"), 3),
    ],
)
def test_exit_status(
    work: Work, run: Run, file: Path, result: cell_module.Result, status: int
) -> None:
    """0 for a pass, 1 for a failed check, 3 for a cell that could not be done, with the reason."""
    work.act = lambda _: result
    found = run(file)
    assert found.exit_code == status
    assert result.reason in found.stdout
    assert run(file, "-q").output == ""
    assert run(file, "-q", "--allow-not-run").exit_code == (0 if status == 3 else status)


def test_bad_file(run: Run, file: Path) -> None:
    """A file that is wrong ends with status 2, and nothing is written."""
    file.write_text("formts = []\n" + TWO)
    result = run(file)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Did you mean 'formats'?" in result.stderr
    assert [path.name for path in file.parent.iterdir()] == ["s.toml"]


def test_dry_run(run: Run, file: Path) -> None:
    """The cells are listed, and nothing is written."""
    result = run(file, "--dry-run")
    assert result.stdout == "levit_digits onnx-fp32\nlevit_digits openvino-fp32\n"
    assert [path.name for path in file.parent.iterdir()] == ["s.toml"]


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a real sweep of one cell, done by a process here."""
    folder = tmp_path_factory.mktemp("real")
    (folder / "s.toml").write_text(REAL)
    assert sweep(SweepRequest(folder / "s.toml")).verdict == "pass"
    return folder


def test_a_real_cell(real: Path, exported: Exported) -> None:
    """It is the export that the verb ``export`` makes, byte for byte, and was evaluated."""
    (row,) = json.loads((real / "s-sweep" / "sweep.json").read_text())["rows"]
    assert (row["verdict"], row["accuracy"]["images"]) == ("pass", 60)
    assert row["accuracy"]["agreement"] == 1.0
    assert row["timing"] is None
    made = (real / "s-sweep" / row["path"]).read_bytes()
    assert made == (exported.folder / "onnx-fp32" / "levit_digits.onnx").read_bytes()


@pytest.fixture
def scheduler(tmp_path: Path) -> Iterator[str]:
    """The address of a cluster of two workers."""
    pytest.importorskip("distributed", reason="Dask is not installed")
    with clusters.cluster(tmp_path) as found:
        yield found.address


def test_on_a_cluster(
    real: Path, scheduler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cell done on a cluster has the row of one done here; what is kept is not done again."""
    file = shutil.copy(real / "s.toml", tmp_path / "s.toml")
    there = sweep(SweepRequest(Path(file), scheduler=scheduler))
    (here,) = json.loads((real / "s-sweep" / "sweep.json").read_text())["rows"]
    (row,) = json.loads((tmp_path / "s-sweep" / "sweep.json").read_text())["rows"]
    assert row == here
    made = tmp_path / "s-sweep" / row["path"]
    assert made.read_bytes() == (real / "s-sweep" / here["path"]).read_bytes()
    assert any("on a cluster" in note for note in there.notes)
    monkeypatch.setattr(sweeping, "connected", None)
    assert not sweep(SweepRequest(Path(file), scheduler="tcp://nobody:1")).rows[0].fresh
