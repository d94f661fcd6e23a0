"""What lies around a run: the user's folder, pipes, encodings, destinations, signals."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support import Cli, Exported

from levit_export import cli as command_line

Tree = Callable[[Path], dict[str, object]]
COMMAND = [sys.executable, "-c", "from levit_export.cli import main; main()"]
QUICK = ("--no-bench", "--no-simplify")


VERBS = {
    "export": ("--dry-run", "-f", "onnx"),
    "check": ("{}",),
    "compare": (
        "{0}/onnx-fp32/levit_digits.onnx",
        "{0}/onnx-fp32/levit_digits.onnx",
        "--samples=2",
    ),
    "bench": ("{}", "--warmup=0", "--iters=1"),
    "drift": ("{}", "--samples=1"),
    "evaluate": ("{}", "--data=digits", "--limit=2", "--workers=1"),
    "sweep": ("{}/../sweep.toml", "--dry-run"),
    "bundle": ("{}", "-o", "bundle.zip"),
    "models": (),
    "doctor": (),
}
SWEEP = """
formats = ["onnx"]

[[models]]
model = "levit_digits"
"""


def shell(folder: Path, script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run ``script`` in which ``"$@"`` is the command line with ``arguments``."""
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {script}", "bash", *COMMAND, *map(str, arguments)],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def test_every_verb_is_tried_with_streams_that_fail() -> None:
    """A new verb is added to the table above."""
    assert list(VERBS) == list(command_line.VERBS)


@pytest.mark.parametrize(
    ("verb", "script"),
    [
        *((verb, '"$@" >&- 2>&- <&-') for verb in VERBS),
        *((verb, '"$@" | :') for verb in ("export", "check", "drift", "models", "doctor")),
    ],
)
def test_streams_do_not_decide_the_status(
    copied: Path, tmp_path: Path, verb: str, script: str
) -> None:
    """A reader that left, and streams that are closed, leave a success what it is, in silence."""
    (copied.parent / "sweep.toml").write_text(SWEEP)
    arguments = [each.format(copied) for each in VERBS[verb]]  # drift draws into its report
    done = shell(tmp_path, script, verb, *arguments)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "rror" not in done.stderr


def test_closed_streams_do_not_hide_a_failure(exported: Exported, tmp_path: Path) -> None:
    """A check that fails has status 1 and bad usage 2, whoever listens."""
    for script in ('"$@" >&- 2>&-', '"$@" 2>&1 | :'):
        assert shell(tmp_path, script, "check", exported.folder, "--rtol=0").returncode == 1
        assert shell(tmp_path, script, "check", "nowhere").returncode == 2


def test_a_report_for_a_closed_stream(exported: Exported, tmp_path: Path) -> None:
    """JSON that was asked for on a standard output that is closed cannot be given: status 2."""
    done = shell(tmp_path, '"$@" >&-', "check", exported.folder, "--json", "-")
    assert done.returncode == 2
    assert "--json - is standard output, which is closed" in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_under_standard_output(tmp_path: Path) -> None:
    """A result that did not arrive is said, with status 2 and no traceback."""
    done = shell(tmp_path, '"$@" > /dev/full', "models")
    assert done.returncode == 2
    assert done.stderr.startswith("error: standard output cannot be written: No space left")


@pytest.mark.parametrize("option", ["--json", "--junit", "--markdown"])
def test_a_report_does_not_replace_what_is_read(
    cli: Cli, copied: Path, tree: Tree, option: str
) -> None:
    """A report is not written over an artifact, a manifest or golden vectors."""
    before = tree(copied)
    for name in ("manifest.json", "labels.txt", "onnx-fp32/levit_digits.onnx"):
        result = cli("check", copied, option, copied / name)
        assert result.exit_code == 2
        assert "would replace a part of what is to be read" in result.stderr
    assert tree(copied) == before


def test_two_reports_in_one_file(cli: Cli, copied: Path) -> None:
    """Two reports cannot share a file: the second would destroy the first."""
    file = copied.parent / "report"
    result = cli("check", copied, "--json", file, "--junit", file)
    assert (result.exit_code, file.exists()) == (2, False)
    assert "cannot share" in result.stderr


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make a device node")
@pytest.mark.parametrize("option", ["--json", "--junit", "--markdown"])
def test_a_device_takes_a_report(
    cli: Cli, exported: Exported, tmp_path: Path, option: str
) -> None:
    """``--json /dev/null`` writes to the device, which is there afterwards."""
    null = tmp_path / "null"
    os.mknod(null, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    assert cli("check", exported.folder, option, null).exit_code == 0
    assert null.is_char_device()


def test_a_stream_without_arrows(tmp_path: Path) -> None:
    """Where the output's encoding lacks a character, another one stands for it."""
    done = subprocess.run(
        [*COMMAND, "export", "-f", "onnx", *QUICK, "-o", tmp_path / "out"],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        check=False,
    )
    assert done.returncode == 0
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
