"""``levit-export bundle``: from an export directory to one file for the device."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from support import Exported

from levit_export.cli.bundle import bundle as command

Bundle = Callable[..., Result]


@pytest.fixture
def bundle() -> Bundle:
    """Run the verb: ``bundle(folder, "-o", file)``."""

    def run(*arguments: object) -> Result:
        return CliRunner().invoke(command, [str(a) for a in arguments])

    return run


def test_default_output(bundle: Bundle, copied: Path) -> None:
    """Without -o the bundle lies beside the directory; its size and hash are said."""
    result = bundle(copied)
    assert result.exit_code == 0, result.output
    path = copied.with_name("copied.zip")
    assert f"{path}  {path.stat().st_size:,} bytes  sha256 " in result.stdout
    assert "onnx-fp32/levit_digits.onnx" in result.stdout
    assert result.stderr == ""


def test_two_bundles_are_the_same(bundle: Bundle, exported: Exported, tmp_path: Path) -> None:
    """The same export bundled twice gives the same bytes, with the digits' licence inside."""
    for name in ("one.zip", "two.zip"):
        assert bundle(exported.folder, "-q", "-o", tmp_path / name).output == ""
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "one.zip") as file:
        assert "CC BY 4.0" in file.read("licences/digits.md").decode()
        assert "digits.md" in file.read("LICENCES.md").decode()


KILLED = """
import os, signal, sys
from pathlib import Path
from levit_export.storage.device_bundle import write

moment, writing = sys.argv[3], False

def watch(event, arguments):
    global writing
    writing |= event == "tempfile.mkstemp"
    is_read = event == "open" and str(arguments[0]).endswith(".onnx")
    is_half = moment == "half" and is_read and writing
    if is_half or (moment == "before the rename" and event == "os.rename"):
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(watch)
write(Path(sys.argv[1]), Path(sys.argv[2]))
"""


@pytest.mark.parametrize("moment", ["half", "before the rename"])
def test_a_kill_leaves_the_old_bundle(
    bundle: Bundle, exported: Exported, tmp_path: Path, moment: str
) -> None:
    """A kill at the worst moments leaves the old bundle whole, and the next run tidies up."""
    path = tmp_path / "out.zip"
    bundle(exported.folder, "-o", path)
    old = path.read_bytes()
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(exported.folder), str(path), moment],
        env={**os.environ, "SOURCE_DATE_EPOCH": "1700000000"},
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    assert path.read_bytes() == old
    assert len(list(tmp_path.iterdir())) == 2
    assert bundle(exported.folder, "-o", path).exit_code == 0
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("given", ["onnx", "ORT", "all", "onnx,ort"])
def test_formats(bundle: Bundle, exported: Exported, tmp_path: Path, given: str) -> None:
    """Formats may be given by their usual other names, in any case, more than once."""
    result = bundle(exported.folder, "--format", given, "-o", tmp_path / "b.zip")
    assert result.exit_code == 0, result.output


def test_unknown_format(bundle: Bundle, exported: Exported, tmp_path: Path) -> None:
    """A format that the export does not hold is refused: status 2, and what it holds."""
    result = bundle(exported.folder, "--format", "coreml", "-o", tmp_path / "b.zip")
    assert result.exit_code == 2
    assert "Known: onnx" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_failed_export(bundle: Bundle, copied: Path) -> None:
    """A failed export is refused with status 2, or bundled with a notice when that is allowed."""
    path = copied / "manifest.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["verdict"] = content["artifacts"][0]["verdict"] = "fail"
    path.write_text(json.dumps(content), encoding="utf-8")
    result = bundle(copied)
    assert result.exit_code == 2
    assert "failed its check" in result.stderr
    assert not copied.with_name("copied.zip").exists()
    allowed = bundle(copied, "--allow-failed")
    assert allowed.exit_code == 0
    assert "notice: this export failed its check" in allowed.stderr


@pytest.mark.parametrize(
    ("verdict", "words"), [("not-run", "was not run"), ("inconclusive", "decided nothing")]
)
def test_unchecked_export(bundle: Bundle, copied: Path, verdict: str, words: str) -> None:
    """An export whose check was not run, or decided nothing, is bundled with a notice."""
    path = copied / "manifest.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["verdict"] = content["artifacts"][0]["verdict"] = verdict
    path.write_text(json.dumps(content), encoding="utf-8")
    result = bundle(copied)
    assert result.exit_code == 0
    assert f"has a check that {words}" in result.stderr


def test_what_is_no_export(bundle: Bundle, tmp_path: Path) -> None:
    """A folder that is no export is refused with its path: status 2."""
    result = bundle(tmp_path, "-o", tmp_path.parent / "b.zip")
    assert result.exit_code == 2
    assert str(tmp_path) in result.stderr
