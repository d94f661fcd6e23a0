"""What decides a result: versions, and this package's own source. Workers must have the same."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from levit_export.core.errors import MissingDependencyError

PACKAGES = (
    "levit-export",
    "torch",
    "numpy",
    "pillow",
    "onnx",
    "onnxsim",
    "onnxruntime",
    "openvino",
    "coremltools",
    "nncf",
)
"""What decides an answer or an artifact; workers must have what the client has."""

SAME = "Install the same versions on all workers, or run without --scheduler."


@cache
def identity() -> Mapping[str, str]:
    """Versions of all that decides a result, and the digest of this package's own files."""
    found = {"Python": ".".join(platform.python_version_tuple()[:2])}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "absent"
    root = Path(__file__).parents[2]
    digest = hashlib.sha256()
    for path in sorted(each for each in root.rglob("*") if each.is_file()):
        if path.suffix == ".pyc":
            continue
        digest.update(f"{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes())
    return {**found, "source of levit-export": digest.hexdigest()[:12]}


def refuse_other(found: Mapping[str, str], ours: Mapping[str, str], worker: str) -> None:
    """Raise unless ``worker``, which has ``found``, has all that is ``ours``."""
    for name, version in ours.items():
        if found.get(name) != version:
            raise MissingDependencyError(
                f"worker {worker} has {name} {found.get(name, 'absent')}, here it is {version}",
                remedy=SAME,
            )
