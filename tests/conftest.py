"""What many tests share: the command line, one export of the bundled model, and its weights."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

# Workers share the cores; OpenMP threads that spin for each other take them from the next worker.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# What a shell starts in the background ignores Ctrl-C, and what nohup starts ignores SIGHUP; so
# does all that they start themselves.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

import torch
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, settings
from support import Cli, Exported

# How long an example takes says how busy the machine is.
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")

# As wide as what is not a terminal is written; workers of xdist are told 80 by their controller.
os.environ["COLUMNS"] = "160"


@pytest.fixture(scope="session")
def cli() -> Cli:
    """Run the command line in this process: ``cli("check", folder)``."""
    from levit_export.cli import cli as group

    def run(*arguments: object) -> Result:
        return CliRunner().invoke(group, [str(a) for a in arguments], prog_name="levit-export")

    return run


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory, cli: Cli) -> Exported:
    """The bundled model as ONNX, no model and no output given; do not change its files."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("default"))
        result = cli("export", "--format", "onnx", "--warmup", 1, "--iters", 4)
        folder = Path.cwd() / "exported" / "levit_digits"
    return Exported(folder, result.stdout, result.stderr, result.exit_code)


@pytest.fixture
def copied(exported: Exported, tmp_path: Path) -> Path:
    """A copy of the default export that a test may damage."""
    return shutil.copytree(exported.folder, tmp_path / "copied")


@pytest.fixture(scope="session")
def digits_file() -> Path:
    """The bundled checkpoint's file."""
    from levit_export.models.zoo import bundled_weights

    return bundled_weights()


@pytest.fixture
def digits_tensors(digits_file: Path) -> dict[str, torch.Tensor]:
    """The bundled checkpoint's tensors; a fresh dictionary for each test."""
    from safetensors.torch import load_file

    return load_file(digits_file)


@pytest.fixture(scope="session")
def tree() -> Callable[[Path], dict[str, object]]:
    """A function that describes every file below a folder, so that two moments compare equal.

    Files are described by content and time of change, folders by their presence.
    """

    def describe(folder: Path) -> dict[str, object]:
        return {
            path.relative_to(folder).as_posix(): (
                hashlib.sha256(path.read_bytes()).hexdigest(),
                path.stat().st_mtime_ns,
            )
            if path.is_file()
            else "folder"
            for path in sorted(folder.rglob("*"))
        }

    return describe
