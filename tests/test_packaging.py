"""What a user installs: the wheel's exact contents."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DATA = ("inputs/data", "models", "storage/device_bundle", "reports")
"""Folders of the package that hold files which are no Python."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel that pip builds of the checkout."""
    # Built of a copy: setuptools leaves a build folder whose old files get into the next wheel.
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(
        ROOT / "levit_export",
        folder / "source" / "levit_export",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    command = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir")
    done = subprocess.run(
        [*command, folder, folder / "source"], capture_output=True, text=True, check=False
    )
    if "Could not find a version that satisfies the requirement setuptools" in done.stderr:
        pytest.skip("building a wheel needs setuptools from a package index, and none answers")
    assert done.returncode == 0, done.stderr
    (file,) = folder.glob("levit_export-*.whl")
    return zipfile.ZipFile(file)


def test_the_wheel_holds_every_module_and_the_data(wheel: zipfile.ZipFile) -> None:
    """Every Python file of the package is in the wheel, all of its data, and nothing else."""
    package = ROOT / "levit_export"
    files = {*package.rglob("*.py"), package / "py.typed"}
    for folder in DATA:
        files |= {path for path in (package / folder).rglob("*") if path.is_file()}
    sources = {
        path.relative_to(ROOT).as_posix() for path in files if "__pycache__" not in path.parts
    }
    packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert packed == sources
    assert "levit_export/models/levit_digits.safetensors" in packed


@pytest.mark.parametrize(
    ("there", "broken", "chosen"),
    [
        (("python3", "python3.11", "python3.12", "python3.13"), (), "python3.13"),
        (("python3", "python3.11", "python3.12", "python3.13"), ("python3.13",), "python3.12"),
        (("python3",), (), "python3"),
    ],
)
def test_the_newest_python_is_taken(
    tmp_path: Path, there: tuple[str, ...], broken: tuple[str, ...], chosen: str
) -> None:
    """A clone's environment is made with the newest interpreter that starts and can make one."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "prepare-venv", tmp_path / "scripts")
    for name in ("setup.cfg", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    log, folder = tmp_path / "log", tmp_path / "bin"
    folder.mkdir()
    for name in ("bash", "cat", "cksum", "dirname"):
        (folder / name).symlink_to(str(shutil.which(name)))
    for name in ("python3.10", "python3.11", "python3.12", "python3.13", "python3"):
        # Asked whether it suits, each answers by its status; what it is to make, it notes.
        asked = int(name in broken or name not in there)
        code = f'#!/bin/sh\n[ "$1" = -c ] && exit {asked}\necho {name} "$@" > {log}\nexit 7\n'
        (folder / name).write_text(code, encoding="utf-8")
        (folder / name).chmod(0o755)
    script = tmp_path / "scripts" / "prepare-venv"
    done = subprocess.run(
        [folder / "bash", script], env={"PATH": str(folder)}, capture_output=True, check=False
    )
    assert done.returncode == 7, done.stderr
    assert log.read_text("utf-8") == f"{chosen} -m venv .venv\n"


@pytest.mark.parametrize("extra", ["", "dev"])
def test_what_a_clone_has(tmp_path: Path, extra: str) -> None:
    """A clone can sign bundles and quantise for OpenVINO, with and without what tests need."""
    (tmp_path / "scripts").mkdir()
    script = Path(shutil.copy(ROOT / "scripts" / "prepare-venv", tmp_path / "scripts"))
    for name in ("setup.cfg", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    log, python = tmp_path / "log", tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\necho "$@" >> {log}\n', encoding="utf-8")
    python.chmod(0o755)
    given = [extra] if extra else []
    done = subprocess.run(["bash", script, *given], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in log.read_text("utf-8").splitlines() if "--editable" in line]
    wanted = ",".join(("int8", "sign", *given))
    assert line.endswith(f"--constraint constraints.txt --editable .[{wanted}]")


def test_the_wheel_gives_the_command(wheel: zipfile.ZipFile) -> None:
    """Installing it gives ``levit-export``, and the licence comes with it."""
    (points,) = [name for name in wheel.namelist() if name.endswith("entry_points.txt")]
    assert "levit-export = levit_export.cli:main" in wheel.read(points).decode()
    assert any(name.endswith("licenses/LICENSE") for name in wheel.namelist())
