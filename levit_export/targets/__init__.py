"""The formats this toolchain writes, and how to find one by name."""

from __future__ import annotations

from levit_export.core import FORMAT_ALIASES, Target
from levit_export.errors import UnknownNameError
from levit_export.targets.coreml import CoremlTarget
from levit_export.targets.onnx import OnnxTarget
from levit_export.targets.openvino import OpenvinoTarget

__all__ = ["TARGETS", "target"]

TARGETS: tuple[Target, ...] = (OnnxTarget(), OpenvinoTarget(), CoremlTarget())


def target(name: str) -> Target:
    """The target called ``name``, aliases included."""
    wanted = FORMAT_ALIASES.get(name.lower(), name.lower())
    for known in TARGETS:
        if known.name == wanted:
            return known
    raise UnknownNameError("format", name, (known.name for known in TARGETS))
