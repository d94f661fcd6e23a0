"""What lies around a run: the user's folder, pipes, encodings, destinations, signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import Cli, Exported

COMMAND = [sys.executable, "-c", "from levit_export.cli import main; main()"]
QUICK = ("--no-bench", "--no-simplify")


def test_a_closed_pipe_is_no_failed_check(exported: Exported) -> None:
    """A reader that leaves early gives the status of a closed pipe, never that of a failure."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as stream:
        done = subprocess.run(
            [*COMMAND, "check", exported.folder],
            stdout=stream,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert done.returncode == 141
    assert done.stderr == b""


def test_a_stream_without_arrows(exported: Exported) -> None:
    """Where the output's encoding lacks a character, another one stands for it."""
    done = subprocess.run(
        [*COMMAND, "check", exported.folder],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"573 ? 430" in done.stdout


def test_modules_of_the_users_folder_are_not_imported(tmp_path: Path) -> None:
    """A ``random.py`` in the current folder is neither run nor in the way of any process."""
    (tmp_path / "random.py").write_text("open('was-run', 'w'); raise SystemExit(9)")
    done = subprocess.run(
        [
            Path(sys.executable).with_name("levit-export"),
            "-f",
            "onnx,ov",
            "-o",
            "out",
            "--iters=1",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "MiB" in done.stdout
    assert not (tmp_path / "was-run").exists()


def test_the_current_folder_is_no_output(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An output that is the current folder, or holds it, is refused before anything is done."""
    (tmp_path / "inner").mkdir()
    monkeypatch.chdir(tmp_path / "inner")
    for output in (".", ".."):
        result = cli("export", *QUICK, "-o", output)
        assert result.exit_code == 2
        assert "current folder" in result.stderr


def test_a_stranger_where_a_failure_would_go(cli: Cli, tmp_path: Path) -> None:
    """Files in ``<output>.failed`` that no export put there are found before the work."""
    (tmp_path / "out.failed").mkdir()
    (tmp_path / "out.failed" / "mine.txt").touch()
    result = cli("export", "--dry-run", "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert "mine.txt" in result.stderr


@pytest.mark.parametrize("place", [".", "nowhere/report.json"])
def test_a_report_that_has_no_place(cli: Cli, exported: Exported, place: str) -> None:
    """A report that could not be written is refused before the check, with nothing printed."""
    result = cli("check", exported.folder, "--json", place)
    assert (result.exit_code, result.stdout) == (2, "")
    assert place in result.stderr


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_tolerance_that_accepts_anything(cli: Cli, exported: Exported, value: str) -> None:
    """NaN and infinity are no tolerances: status 2."""
    result = cli("check", exported.folder, "--rtol", value)
    assert result.exit_code == 2
    assert f"--rtol {value}" in result.stderr


def test_a_given_tolerance_is_said(cli: Cli, exported: Exported) -> None:
    """The table says when the tolerance was not the derived one."""
    assert "tolerance that was given" in cli("check", exported.folder, "--rtol", 0.3).stdout
    assert "tolerance that was given" not in cli("check", exported.folder).stdout


def test_a_classifier_needs_core_ml(cli: Cli, tmp_path: Path) -> None:
    """``--classifier`` without Core ML is refused rather than ignored."""
    result = cli("export", "--dry-run", "--classifier", "-f", "onnx", "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert "--format coreml" in result.stderr


def test_aliases_of_one_format_are_one(cli: Cli, tmp_path: Path) -> None:
    """A format that is named twice, by whatever names, is exported once."""
    result = cli("export", "--dry-run", "-f", "coreml,mlpackage,COREML,", "-o", tmp_path / "out")
    assert result.exit_code == 0
    assert result.stdout.count("export coreml") == 1


def test_termination_leaves_nothing(tmp_path: Path) -> None:
    """SIGTERM, which ends jobs in CI, leaves neither a partial directory nor a process."""
    process = subprocess.Popen(
        [*COMMAND, *QUICK, "-f", "onnx,openvino", "-o", tmp_path / "out"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".out.partial-*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
