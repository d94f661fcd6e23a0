"""Types that tests and fixtures share."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from importlib.metadata import version
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from click.testing import Result

from levit_export.formats.coreai.target import CoreaiTarget
from levit_export.formats.onnx.target import OLDEST_RUNTIME

Cli = Callable[..., Result]
SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"


@dataclass(frozen=True)
class Exported:
    """An export directory and what the command line said while it wrote it."""

    folder: Path
    stdout: str
    stderr: str
    status: int


def script_module(name: str) -> ModuleType:
    """A file of ``scripts/``, which has no suffix, as a module that may import its neighbours."""
    if str(SCRIPTS) not in sys.path:
        sys.path.append(str(SCRIPTS))
    loader = SourceFileLoader(name.replace("-", "_"), str(SCRIPTS / name))
    spec = spec_from_loader(loader.name, loader)
    assert spec is not None
    module = module_from_spec(spec)
    sys.modules[loader.name] = module  # where dataclasses look for their module
    loader.exec_module(module)
    return module


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])


RUNNABLE = tuple(
    opset
    for opset, release in OLDEST_RUNTIME.items()
    if _release(version("onnxruntime")) >= _release(release)
)
"""The opsets of ONNX that the installed ONNX Runtime can read."""

_CORE_AI = CoreaiTarget().can_export()
needs_core_ai = pytest.mark.skipif(not _CORE_AI.ok, reason=_CORE_AI.reason)
"""Marks tests of a format whose package is a pre-release, with wheels for some systems only."""


def of_formats(kinds: Iterable[tuple[str, str]]) -> list[Any]:
    """Parameters of a test: formats with a precision; those of Core AI where it is installed."""
    return [
        pytest.param(
            (kind, precision),
            marks=[needs_core_ai] if kind == "coreai" else [],
            id=f"{kind}-{precision}",
        )
        for kind, precision in kinds
    ]
