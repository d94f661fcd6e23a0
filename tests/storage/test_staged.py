"""A directory is written whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from levit_export.core.errors import OutputError
from levit_export.storage import export_directory

Tree = Callable[[Path], dict[str, object]]
PATIENCE_S = 60

WRITER = """
import sys, time
from pathlib import Path
from levit_export.storage import export_directory

def pause(name):
    print(name, flush=True)
    time.sleep(600) if name == sys.argv[2] else None

final = Path(sys.argv[1])
with export_directory.staged(final) as stage:
    pause("empty")
    (stage.path / "model.bin").write_bytes(b"half")
    pause("half written")
    manifest = '{"toolchain": {"levit-export": "2"}, "files": {"model.bin": {}}}'
    (stage.path / "manifest.json").write_text(manifest)
    pause("written")
    stage.commit(final)
    pause("committed")
"""
MOMENTS = ("empty", "half written", "written", "committed")


def fill(folder: Path, content: str) -> None:
    """Make ``folder`` look like an export that holds ``content``."""
    folder.mkdir(parents=True, exist_ok=True)
    manifest = {"toolchain": {"levit-export": "1"}, "files": {"model.bin": {}, "only-old": {}}}
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    (folder / "model.bin").write_text(content, encoding="utf-8")


def content(folder: Path) -> str:
    """What :func:`fill` put there."""
    return (folder / "model.bin").read_text(encoding="utf-8")


def names(folder: Path) -> list[str]:
    """What lies in a folder."""
    return sorted(path.name for path in folder.iterdir())


def kill_at(moment: str, final: Path, number: signal.Signals) -> None:
    """Run the writer in a process of its own and send it a signal at ``moment``."""
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(final), moment],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip() == moment:
                break
        process.send_signal(number)
        assert process.wait(PATIENCE_S) != 0


def test_first_write(tmp_path: Path) -> None:
    """What was committed is there, with its parents, and nothing else."""
    final = tmp_path / "a" / "b"
    with export_directory.staged(final) as stage:
        fill(stage.path, "new")
        assert not final.exists()
        stage.commit(final)
    assert content(final) == "new"
    assert names(final.parent) == ["b"]


@pytest.mark.parametrize("exchange", [True, False], ids=["exchange", "two renames"])
def test_replacement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, exchange: bool) -> None:
    """An earlier export gives way as a whole, also where a system cannot swap directories."""
    if not exchange:
        monkeypatch.setattr(export_directory, "_exchange", lambda *_: False)
    final = tmp_path / "out"
    fill(final, "old")
    (final / "only-old").touch()
    with export_directory.staged(final) as stage:
        fill(stage.path, "new")
        assert content(final) == "old"
        stage.commit(final)
    assert content(final) == "new"
    assert names(final) == ["manifest.json", "model.bin"]
    assert names(tmp_path) == ["out"]


def test_system_can_exchange(tmp_path: Path) -> None:
    """On Linux and macOS directories are swapped in one step, so that none is ever missing."""
    fill(tmp_path / "one", "one")
    fill(tmp_path / "two", "two")
    assert export_directory._exchange(tmp_path / "one", tmp_path / "two")
    assert (content(tmp_path / "one"), content(tmp_path / "two")) == ("two", "one")


def test_empty_directory_is_replaced(tmp_path: Path) -> None:
    """An empty directory is as good as none."""
    (tmp_path / "out").mkdir()
    with export_directory.staged(tmp_path / "out") as stage:
        fill(stage.path, "new")
        stage.commit(tmp_path / "out")
    assert content(tmp_path / "out") == "new"


def test_without_commit(tmp_path: Path, tree: Tree) -> None:
    """What is not committed disappears, and so do parents that were made for it."""
    fill(tmp_path / "out", "old")
    before = tree(tmp_path)
    for final in (tmp_path / "out", tmp_path / "new" / "deep" / "out"):
        with export_directory.staged(final) as stage:
            fill(stage.path, "new")
    assert tree(tmp_path) == before


@pytest.mark.parametrize("error", [RuntimeError("a bug"), KeyboardInterrupt()], ids=repr)
def test_exception(tmp_path: Path, tree: Tree, error: BaseException) -> None:
    """An exception passes through, and leaves the earlier export and nothing else."""
    final = tmp_path / "out"
    fill(final, "old")
    before = tree(tmp_path)
    with pytest.raises(type(error)) as raised, export_directory.staged(final) as stage:  # noqa: PT012
        fill(stage.path, "new")
        raise error
    assert raised.value is error
    assert tree(tmp_path) == before


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_system_error(tmp_path: Path, tree: Tree, number: int) -> None:
    """An error of the system names the output and the system's reason; nothing is left."""
    final = tmp_path / "out"
    fill(final, "old")
    before = tree(tmp_path)
    with (  # noqa: PT012
        pytest.raises(
            OutputError, match=f"out cannot be written: {os.strerror(number)}"
        ) as raised,
        export_directory.staged(final) as stage,
    ):
        fill(stage.path, "new")
        raise OSError(number, os.strerror(number), "some/file")
    assert "--output" in raised.value.remedy
    assert tree(tmp_path) == before


def test_parent_that_is_a_file(tmp_path: Path, tree: Tree) -> None:
    """An output below a file is refused."""
    (tmp_path / "file").touch()
    before = tree(tmp_path)
    with (
        pytest.raises(OutputError, match="cannot be written"),
        export_directory.staged(tmp_path / "file" / "out"),
    ):
        pytest.fail("the block was entered")
    assert tree(tmp_path) == before


@pytest.mark.parametrize("manifest", [None, "{", "[]", '{"name": "app"}', '{"toolchain": 1}'])
def test_foreign_files(tmp_path: Path, tree: Tree, manifest: str | None) -> None:
    """A directory is only replaced when its manifest says that this toolchain wrote it."""
    final = tmp_path / "out"
    final.mkdir()
    (final / "thesis.tex").touch()
    if manifest is not None:
        (final / "manifest.json").write_text(manifest, encoding="utf-8")
    before = tree(tmp_path)
    with pytest.raises(OutputError, match="no export of levit-export put there"):
        export_directory.refuse_foreign(final)
    with (
        pytest.raises(OutputError, match="no export of levit-export put there"),
        export_directory.staged(final),
    ):
        pytest.fail("the block was entered")
    assert tree(tmp_path) == before


def test_a_stranger_in_an_export(tmp_path: Path, tree: Tree) -> None:
    """A file that someone put into an export keeps it from being replaced, and is named."""
    fill(tmp_path / "out", "old")
    (tmp_path / "out" / "notes.txt").write_text("measured on the phone", encoding="utf-8")
    before = tree(tmp_path)
    with (
        pytest.raises(OutputError, match=r"there: notes\.txt"),
        export_directory.staged(tmp_path / "out"),
    ):
        pytest.fail("the block was entered")
    assert tree(tmp_path) == before


def test_files_that_came_meanwhile(tmp_path: Path) -> None:
    """Files that someone put at the output during the export are not replaced either."""
    final = tmp_path / "out"
    with export_directory.staged(final) as stage:
        fill(stage.path, "new")
        final.mkdir()
        (final / "thesis.tex").write_text("years of work", encoding="utf-8")
        with pytest.raises(OutputError, match="no export of levit-export put there"):
            stage.commit(final)
    assert names(final) == ["thesis.tex"]
    assert names(tmp_path) == ["out"]


def test_symbolic_link(tmp_path: Path) -> None:
    """A symbolic link is refused, for replacing it would leave what it points to behind."""
    fill(tmp_path / "real", "old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(OutputError, match="not a folder"):
        export_directory.refuse_foreign(tmp_path / "link")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("moment", MOMENTS[:3])
def test_kill_before_the_commit(tmp_path: Path, tree: Tree, moment: str, number: int) -> None:
    """A process killed before it commits leaves the earlier export as it was, at any moment."""
    final = tmp_path / "out"
    fill(final, "old")
    before = tree(final)
    kill_at(moment, final, signal.Signals(number))
    assert tree(final) == before
    if number == signal.SIGINT:
        assert names(tmp_path) == ["out"]


def test_kill_after_the_commit(tmp_path: Path) -> None:
    """A process killed right after its commit leaves the new directory whole."""
    final = tmp_path / "out"
    fill(final, "old")
    kill_at("committed", final, signal.SIGKILL)
    assert content(final) == "half"
    assert names(final) == ["manifest.json", "model.bin"]


@pytest.mark.parametrize("name", ["out", "out[1]", "out*"])
def test_abandoned_directories(tmp_path: Path, name: str) -> None:
    """The next run removes what a killed one left beside its output, and only that."""
    final = tmp_path / name
    kill_at("half written", final, signal.SIGKILL)
    (left,) = names(tmp_path)
    alive = f".{name}.partial-{os.getpid()}-x"
    others = [alive, f".{name}.partial-x", ".other.partial-1-x", f"{name}.failed"]
    for other in others:
        (tmp_path / other).mkdir()
    with export_directory.staged(final) as stage:
        fill(stage.path, "new")
        stage.commit(final)
    assert left.startswith(f".{name}.partial-")
    assert names(tmp_path) == sorted([name, *others])


def test_kill_between_two_renames(tmp_path: Path) -> None:
    """Where directories cannot be swapped and the kill came in between, the next run restores."""
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        pass
    final = tmp_path / "out"
    aside = tmp_path / f".out.partial-{gone.pid}-x-old"
    fill(aside, "old")
    with pytest.raises(RuntimeError), export_directory.staged(final):
        raise RuntimeError("a failing export")
    assert content(final) == "old"
    assert names(tmp_path) == ["out"]


def test_two_at_once(tmp_path: Path) -> None:
    """Two runs with one output do not disturb each other; the last to commit wins."""
    final = tmp_path / "out"
    with export_directory.staged(final) as one, export_directory.staged(final) as two:
        fill(one.path, "one")
        fill(two.path, "two")
        two.commit(final)
        assert content(final) == "two"
        one.commit(final)
    assert content(final) == "one"
    assert names(tmp_path) == ["out"]


RENAMES = """
import os, signal, sys
from pathlib import Path
from levit_export.storage import export_directory

moment, final = sys.argv[1], Path(sys.argv[2])
if sys.argv[3] == "two renames":
    export_directory._exchange = lambda *_: False
count = 0

def watch(event, arguments):
    global count
    if event == "os.rename" and str(final) in map(str, arguments[:2]):
        count += 1
        if moment == f"before rename {count}":
            os.kill(os.getpid(), signal.SIGKILL)
    if event == "shutil.rmtree" and moment == "before the old one is removed":
        os.kill(os.getpid(), signal.SIGKILL)
    if event == "ctypes.dlopen" and moment == "before the exchange":
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(watch)
with export_directory.staged(final) as stage:
    (stage.path / "model.bin").write_text("new")
    manifest = '{"toolchain": {"levit-export": "2"}, "files": {"model.bin": {}}}'
    (stage.path / "manifest.json").write_text(manifest)
    stage.commit(final)
"""


@pytest.mark.parametrize(
    ("way", "moment"),
    [
        ("exchange", "before the exchange"),
        ("exchange", "before the old one is removed"),
        ("two renames", "before rename 1"),
        ("two renames", "before rename 2"),
        ("two renames", "before the old one is removed"),
    ],
)
def test_kill_at_the_rename(tmp_path: Path, way: str, moment: str) -> None:
    """A kill at each step of the commit leaves the old or the new directory, whole, at its place.

    Between two renames it is the next run that puts the old one back.
    """
    final = tmp_path / "out"
    fill(final, "old")
    done = subprocess.run([sys.executable, "-c", RENAMES, moment, str(final), way], check=False)
    assert done.returncode == -signal.SIGKILL
    if moment != "before rename 2":
        assert content(final) == ("new" if "removed" in moment else "old")
    with pytest.raises(RuntimeError), export_directory.staged(final):
        raise RuntimeError("a failing export")
    assert content(final) == ("new" if "removed" in moment else "old")
    assert names(tmp_path) == ["out"]


def wait_until(true: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait for a condition that a process brings about, which must not end before."""
    patience = time.monotonic() + PATIENCE_S
    while not true():
        assert process.poll() is None, "the process ended too early"
        assert time.monotonic() < patience, "the process took too long"
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("number", "file"),
    [
        (signal.SIGINT, "."),
        (signal.SIGINT, "onnx-fp32"),
        (signal.SIGKILL, "onnx-fp32"),
    ],
)
def test_kill_of_an_export(copied: Path, tree: Tree, number: signal.Signals, file: str) -> None:
    """Ctrl-C or a kill during a real export leaves the earlier export byte for byte.

    After Ctrl-C nothing else is left; after a kill the next run clears it away.
    """
    before = tree(copied)
    parent = copied.parent
    options = ("-f", "onnx", "--no-check", "--no-bench", "--no-simplify", "-o", str(copied))
    with subprocess.Popen(
        [sys.executable, "-m", "levit_export", "export", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            wait_until(lambda: any(parent.glob(f".copied.partial-*/{file}")), process)
            process.send_signal(number)
            _, stderr = process.communicate(timeout=PATIENCE_S)
        finally:
            process.kill()
    assert tree(copied) == before
    if number == signal.SIGINT:
        # Where the interrupt met the exec of a string, as imports of dataclasses do, CPython ends
        # by the signal itself, whoever caught it; a shell calls both 130.
        assert process.returncode in {130, -signal.SIGINT}, stderr
        assert "interrupted" in stderr
        assert "Traceback" not in stderr
    else:
        assert process.returncode == -signal.SIGKILL
        assert len(names(parent)) == 2
        with export_directory.staged(copied):
            pass
    assert names(parent) == ["copied"]
    assert tree(copied) == before
