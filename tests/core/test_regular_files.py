"""Files: what is read is regular, and what is written replaces whole or not at all."""

from __future__ import annotations

import ast
import errno
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import levit_export
from levit_export.core import files

PACKAGE = Path(levit_export.__file__).parent
root_only = pytest.mark.skipif(os.getuid() != 0, reason="only root can make a device node")

WRITES_ITSELF = {
    "core/files.py": "it is the owner",
    "workflows/evaluate/on_cluster.py": "a scratch file, written again for each image",
    "storage/device_bundle/archive.py": "unpacks into an empty temporary folder",
    "models/published/download.py": "appends to a partial file, so that a download can be resumed",
    "testing.py": "a file of a test",
    "formats/onnx/target.py": "into the staged directory, which is committed as a whole",
    "formats/coreml/package.py": "into the staged directory, which is committed as a whole",
    "formats/coreai/program.py": "into the staged directory, which is committed as a whole",
}


def device(path: Path, minor: int) -> Path:
    """A device node such as ``/dev/null`` (3) or ``/dev/full`` (7), in a folder of the test's."""
    os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, minor))
    return path


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    """A named pipe that nobody writes to."""
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "pipe"


@pytest.fixture(autouse=True)
def _patience() -> Iterator[None]:
    """What waits for a pipe ends by an alarm, not never."""
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it hangs"))
    signal.alarm(60)
    yield
    signal.alarm(0)


def test_a_pipe_is_not_read(pipe: Path) -> None:
    """A named pipe is refused in words rather than waited for, also behind a link."""
    link = pipe.with_name("link")
    link.symlink_to(pipe)
    for path in (pipe, link):
        for read in (files.read_bytes, files.read_text, files.require_regular):
            with pytest.raises(OSError, match="is a named pipe, not a regular file"):
                read(path)


@root_only
def test_a_device_is_not_read(tmp_path: Path) -> None:
    """A device, which may never end, is refused."""
    zero = device(tmp_path / "zero", 5)
    with pytest.raises(OSError, match="is a device, not a regular file"):
        files.read_bytes(zero)


def test_a_folder_is_not_read(tmp_path: Path) -> None:
    """A folder is refused as what it is."""
    with pytest.raises(OSError, match="is a folder"):
        files.read_bytes(tmp_path)


def test_a_link_to_a_file_is_read(tmp_path: Path) -> None:
    """A link to a regular file is as good as the file."""
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    assert files.read_bytes(tmp_path / "link") == b"content"


def test_a_pipe_is_written_to(pipe: Path) -> None:
    """What is written to a named pipe reaches its reader, and the pipe stays one."""
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()))
    reader.start()
    files.write(pipe, "a report")
    reader.join()
    assert got == [b"a report"]
    assert pipe.is_fifo()


@root_only
def test_a_device_is_written_to(tmp_path: Path) -> None:
    """A device node, as ``/dev/null`` is one, takes what is written and stays one."""
    null = device(tmp_path / "null", 3)
    files.write(null, "a report")
    assert null.is_char_device()
    assert sorted(tmp_path.iterdir()) == [null]


@pytest.mark.parametrize("old", ["old", None])
def test_a_block_that_fails_changes_nothing(tmp_path: Path, old: str | None) -> None:
    """What was there stays, and nothing is left beside it."""
    path = tmp_path / "report"
    if old is not None:
        path.write_text(old)
    with pytest.raises(OSError, match="No space"), files.replacing(path) as file:  # noqa: PT012
        file.write(b"half of a")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert [each.read_text() for each in tmp_path.iterdir()] == ([old] if old else [])


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    """Where the system ends a file early, the file that was there is whole."""
    path = tmp_path / "report"
    path.write_text("old")
    code = (
        "import resource, signal, sys; from pathlib import Path\n"
        "from levit_export.core import files\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "files.write(Path(sys.argv[1]), 'n' * 100_000)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False
    )
    assert "File too large" in done.stderr
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_is_followed(tmp_path: Path) -> None:
    """The file that a link leads to is replaced, and the link stays."""
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    files.write(tmp_path / "link", "new")
    assert (tmp_path / "real").read_text() == "new"
    assert (tmp_path / "link").is_symlink()


def test_permissions_stay(tmp_path: Path) -> None:
    """A file keeps its permissions; a new one has those that the umask leaves."""
    path = tmp_path / "report"
    path.touch(0o600)
    files.write(path, "new")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    files.write(tmp_path / "other", "new")
    assert stat.S_IMODE((tmp_path / "other").stat().st_mode) == 0o666 & ~files.umask()


def test_what_standard_output_goes_to_is_not_replaced(tmp_path: Path) -> None:
    """``--json log`` beside ``> log`` adds to the file that both are."""
    code = "import sys; from pathlib import Path; from levit_export.core import files\n"
    code += "print('first', flush=True); files.write(Path('/dev/stdout'), 'second')"
    log = tmp_path / "log"
    with log.open("wb") as stream:
        subprocess.run([sys.executable, "-c", code], stdout=stream, check=True)
    assert log.read_text() == "first\nsecond"


def test_every_writer_goes_through_one_function() -> None:
    """No module opens a file for writing by itself, but for those named with a reason."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name):
                name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
                modes = {a.value for a in node.args if isinstance(a, ast.Constant)}
                opens = name in ("open", "fdopen") and modes & {"w", "wb", "a", "ab", "xb", "w+b"}
                if name in ("write_text", "write_bytes") or opens:
                    found.add(path.relative_to(PACKAGE).as_posix())
    found -= {"storage/device_bundle/verifiers/verify.py"}  # runs alone, on devices
    found -= {"core/processes.py", "formats/answering.py"}  # pipes
    assert found <= WRITES_ITSELF.keys()
