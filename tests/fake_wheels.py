"""Wheels of runtimes in versions that nobody published, in a folder that pip takes for an index.

Each stands on the ONNX Runtime that is installed here, which the wheel of NumPy makes importable,
and does one thing otherwise.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

REAL = """
import os, sys
here = os.path.dirname(os.path.dirname(__file__))
sys.path.remove(here)
del sys.modules["onnxruntime"]
import onnxruntime
"""
"""The start of a module that hands on the installed runtime, and may change it below."""

RUNTIMES = {
    "1.2.0": 'raise ImportError("libgone.so.1: cannot open shared object file")',
    "1.3.0": """
__version__ = "1.3.0"
class SessionOptions: pass
class InferenceSession:
    def __init__(self, *_, **__):
        raise RuntimeError("Unsupported model IR version: 8, max supported IR version: 7")
""",
    "1.4.0": REAL
    + """
answer = onnxruntime.InferenceSession.run
onnxruntime.InferenceSession.run = lambda *a: [o + 1 for o in answer(*a)]
""",
    "1.5.0": REAL,
    "1.6.0": REAL + "onnxruntime.InferenceSession.run = lambda *_: os._exit(7)",
}
"""By version: does not start, refuses every file, answers wrongly, is right, dies."""


def write(folder: Path) -> Path:
    """Put the wheels into ``folder``."""
    folder.mkdir(exist_ok=True)
    for version, code in RUNTIMES.items():
        _wheel(folder, "onnxruntime", version, {"onnxruntime/__init__.py": code})
    installed = Path(np.__file__).parents[1]
    _wheel(folder, "numpy", "1.99", {"installed.pth": f"{installed}\n"})
    return folder


def _wheel(folder: Path, name: str, version: str, files: dict[str, str]) -> None:
    about = f"{name}-{version}.dist-info"
    head = f"Name: {name}\nVersion: {version}\n"
    described = {
        f"{about}/METADATA": f"Metadata-Version: 2.1\n{head}",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    every = {**files, **described}
    listed = "".join(f"{path},,\n" for path in (*every, f"{about}/RECORD"))
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        for path, text in {**every, f"{about}/RECORD": listed}.items():
            archive.writestr(path, text)
