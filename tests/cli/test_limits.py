"""What no machine can do is refused before anything starts; what is told to end, ends."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from support import Cli, Exported

from levit_export.cli.command import Verb
from levit_export.core import machine
from levit_export.core.errors import UsageError

Tree = Callable[[Path], dict[str, object]]
PATIENCE_S = 60
TOO_MANY = 100_000
FOLDER = "{folder}"

ABSURD = {
    ("export", "--threads", TOO_MANY): "processors of this machine",
    ("bench", FOLDER, "--threads", TOO_MANY): "processors of this machine",
    ("check", FOLDER, "--threads", TOO_MANY): "processors of this machine",
    ("evaluate", FOLDER, "--data=digits", "--workers", TOO_MANY): "processors of this machine",
    ("evaluate", FOLDER, "--data=digits", "--max-drop", "nan"): "not a finite number",
    ("export", "--batch", 10**9): "GiB at least",
    ("export", "--random-weights", 2**64): "not in the range",
    ("export", "--random-weights", -1): "not in the range",
    ("export", "--seed", 2**64): "not in the range",
    ("export", "--iters", 10**12): "not in the range",
    ("bench", FOLDER, "--warmup", 10**12): "not in the range",
    ("export", "--num-samples", 10**12): "not in the range",
    ("drift", FOLDER, "--samples", 10**12): "not in the range",
    ("export", "--imgsz", 8192): "4096 pixels a side",
}


@pytest.mark.parametrize("arguments", ABSURD, ids=lambda given: " ".join(map(str, given)))
def test_absurd_numbers(
    cli: Cli, exported: Exported, tmp_path: Path, arguments: tuple[object, ...]
) -> None:
    """A number beyond all sense is refused with status 2 and words, and nothing is written."""
    given = [exported.folder if each == FOLDER else each for each in arguments]
    if arguments[0] == "export":
        given += ["-f", "onnx", "-o", tmp_path / "out"]
    result = cli(*given)
    assert result.exit_code == 2
    assert ABSURD[arguments] in result.stderr
    assert "bug" not in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_batch_that_fits() -> None:
    """Memory is asked of the machine: what fits is not refused, what just does not is."""
    image = 3 * 224 * 224 * 4 * machine.FIRST_MAPS
    fits = machine.usable_memory() // image
    machine.refuse_batch(fits, (224, 224))
    with pytest.raises(UsageError, match="GiB at least"):
        machine.refuse_batch(fits + 1, (224, 224))


def test_all_processors_may_be_used() -> None:
    """As many threads as there are processors are allowed, one more is not."""
    machine.refuse_threads(machine.processors())
    with pytest.raises(UsageError, match="--threads"):
        machine.refuse_threads(machine.processors() + 1)


REFUSED = [
    ("--model", "levit_128s"),
    ("--model", "levit_9000"),
    ("--checkpoint", "missing.pth"),
    ("--checkpoint", "missing.pth", "--random-weights", 0),
    ("--skip-pass", "fuse_everything"),
    ("--keep", "stage9.block9", "--precision", "int8"),
    ("--imgsz", 100),
    ("--imgsz", 128),
    ("--batch", 10**9),
    ("--data", "nowhere"),
    ("--recipe", "nowhere"),
    ("--labels", "nowhere"),
    ("--offline",),
    ("--precision", "int8", "--data", "empty"),
    ("--precision", "onnx=int9"),
    ("--dynamic", "--batch", 2),
    ("--classifier",),
]


@pytest.mark.parametrize("arguments", REFUSED, ids=lambda given: " ".join(map(str, given)))
def test_a_dry_run_refuses_what_the_run_refuses(
    cli: Cli,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[object, ...],
) -> None:
    """A dry run refuses with the words and the status of the run, before anything is written."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    given = ("export", "-f", "onnx", *arguments)
    dry, real = cli(*given, "--dry-run"), cli(*given)
    assert dry.exit_code == 2
    lines = real.stderr.splitlines(keepends=True)  # a run also says how far it is
    said = "".join(line for line in lines if not line.startswith("stage "))
    assert (dry.exit_code, dry.stderr) == (real.exit_code, said)
    assert dry.stdout == ""
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_a_dry_run_for_programs(cli: Cli) -> None:
    """``--json -`` gives JSON and nothing else, ``-q`` nothing."""
    given = ("export", "--dry-run", "-f", "onnx,openvino", "--batch", 3)
    assert cli(*given, "-q").stdout == ""
    content = json.loads(cli(*given, "--json", "-").stdout)
    assert content["batch"] == 3
    assert content["artifacts"] == [
        {"format": "onnx", "precision": "fp32"},
        {"format": "openvino", "precision": "fp32"},
    ]


BUSY = """
import hashlib, sys, threading
from pathlib import Path
from levit_export.cli import process
process.prepare()
from levit_export.storage import export_directory
from levit_export.core import files
out = Path(sys.argv[1], "out")
with export_directory.staged(out) as stage, files.temporary_folder() as folder:
    (folder / "file").touch()
    # Said by a thread: this one has to be in the native call by then.
    threading.Timer(1, print, (folder,), {"flush": True}).start()
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # minutes, without a Python instruction
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_ends_a_native_call(tmp_path: Path, number: signal.Signals) -> None:
    """Within seconds, with the conventional status, and without leaving a folder."""
    with subprocess.Popen(
        [sys.executable, "-c", BUSY, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            temporary = Path(process.stdout.readline().strip())
            assert temporary.is_dir()
            process.send_signal(number)
            assert process.wait(PATIENCE_S) == 128 + number
        finally:
            process.kill()
    assert list(tmp_path.iterdir()) == []
    assert not temporary.parent.exists()


IRREGULAR = {
    "model.onnx": ("check", "{}", "--model", "levit_digits"),
    "model.xml": ("check", "{}", "--model", "levit_digits"),
    "model.pth": ("export", "--checkpoint", "{}"),
    "model.safetensors": ("export", "--checkpoint", "{}"),
    "bundle.zip": ("check", "{}"),
    "labels.txt": ("export", "--labels", "{}"),
    "recipe.json": ("export", "--preprocessing", "{}"),
    "manifest.json": ("export", "--recipe", "{}"),
    "report.json": ("check", "--recheck", "{}", "--rtol", "1"),
    "baseline.json": ("check", FOLDER, "--baseline", "{}"),
    "images.npz": ("evaluate", FOLDER, "--data", "{}"),
    "sweep.toml": ("sweep", "{}"),
}


@pytest.mark.parametrize("name", IRREGULAR)
def test_a_pipe_in_place_of_a_file(
    exported: Exported, cli: Cli, tmp_path: Path, name: str
) -> None:
    """A named pipe is refused by its name, wherever a file was to be given; nothing waits."""
    os.mkfifo(tmp_path / name)
    given = [
        each.format(tmp_path / name, folder=exported.folder) if "{" in each else each
        for each in IRREGULAR[name]
    ]
    _refused_in_time(cli, given, name)


@pytest.mark.parametrize("name", ["Manifest.json", "Data/weight.bin"])
def test_a_pipe_inside_a_package(cli: Cli, tmp_path: Path, name: str) -> None:
    """A Core ML package that holds a named pipe is refused."""
    path = tmp_path / "model.mlpackage" / name
    path.parent.mkdir(parents=True)
    os.mkfifo(path)
    given = ["check", str(tmp_path / "model.mlpackage"), "--model", "levit_digits"]
    _refused_in_time(cli, given, path.name)


def _refused_in_time(cli: Cli, given: list[str], name: str) -> None:
    def hangs(*_: object) -> None:
        raise TimeoutError("it waits for the pipe")

    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(PATIENCE_S)
    try:
        result = cli(*given)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert result.exit_code == 2
    assert name in result.stderr
    assert "waits for the pipe" not in result.stderr
    assert "bug" not in result.stderr


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] can't allocate memory: you tried"),
        RuntimeError("can't start new thread"),
        RuntimeError("std::bad_alloc"),
    ],
    ids=repr,
)
def test_memory_that_runs_out_is_no_bug(error: Exception) -> None:
    """However a library says that memory is gone, it is said in words, with status 2."""

    def callback() -> int:
        raise error

    result = CliRunner().invoke(Verb("verb", callback=callback))
    assert result.exit_code == 2
    assert "error: there is not enough memory" in result.stderr
    assert "bug" not in result.stderr


STARVED = """
import re, resource, sys
from pathlib import Path
import torch
from levit_export.cli import main

status = Path("/proc/self/status").read_text()
size = 1024 * int(re.search(r"VmSize:\\s+(\\d+)", status)[1])
limit = size + (int(sys.argv[1]) << 20)
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
sys.argv[1:] = sys.argv[2:]
main()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, and limits address space")
def test_memory_that_runs_out_leaves_the_old_export(copied: Path, tree: Tree) -> None:
    """An export that meets the end of memory does not succeed and leaves the earlier one whole.

    Where Python meets it, it is said in words, with status 2; where a runtime's own code meets it
    first, the process may die of that and say nothing. Among these limits some are met by Python.
    """
    before = tree(copied)
    given = ("export", "-f", "onnx", "--no-bench", "--batch", "512", "-o", str(copied))
    statuses = []
    for mebibytes in (1, 30, 60):
        done = subprocess.run(
            [sys.executable, "-c", STARVED, str(mebibytes), *given],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode not in (0, 1), done.stderr
        assert tree(copied) == before
        if done.returncode == 2:
            assert "not enough memory" in done.stderr, done.stderr
        statuses.append(done.returncode)
    assert 2 in statuses
