"""The C++ programs of a bundle, compiled against the runtimes' own headers.

OpenVINO's wheel carries its headers. ONNX Runtime's does not: Debian 13's ``libonnxruntime-dev``
or an unpacked release of ONNX Runtime has them; ``ONNXRUNTIME_INCLUDE`` names the folder.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

from levit_export.storage.device_bundle import verifiers

COMPILER = shutil.which("g++") or shutil.which("c++")
SOURCES = Path(verifiers.__file__).parent
HEADERS = (
    os.environ.get("ONNXRUNTIME_INCLUDE", ""),
    "/usr/include/onnxruntime",
    "/usr/local/include/onnxruntime",
    "/usr/local/include",
)


def package(name: str) -> Path:
    """The folder of an installed package."""
    spec = find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def build(program: Path, *options: object) -> Path:
    """Compile the program of this name with warnings as errors."""
    source = SOURCES / f"{program.name}.cpp"
    command = [COMPILER, "-std=c++17", "-Wall", "-Wextra", "-Werror", source, *options]
    done = subprocess.run(
        [*map(str, command), "-o", str(program)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return program
