"""Export LeViT to ONNX, Core ML and OpenVINO, and prove that it is the same model there.

Importing this package loads no heavy dependency: every name below is loaded when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from levit_export._version import __version__
from levit_export.errors import LevitExportError

if TYPE_CHECKING:
    from levit_export.core import (
        Artifact,
        ExportOptions,
        Preprocessing,
        RunOptions,
        Session,
        Target,
        Tolerance,
    )
    from levit_export.inspection import InspectRequest, bench, check
    from levit_export.pipeline import ExportRequest, export
    from levit_export.reference import ModelChoice, Overrides
    from levit_export.report import Report, to_json
    from levit_export.timing import TimingPlan

__all__ = [
    "Artifact",
    "ExportOptions",
    "ExportRequest",
    "InspectRequest",
    "LevitExportError",
    "ModelChoice",
    "Overrides",
    "Preprocessing",
    "Report",
    "RunOptions",
    "Session",
    "Target",
    "TimingPlan",
    "Tolerance",
    "__version__",
    "bench",
    "check",
    "export",
    "to_json",
]

_HOMES = {
    "Artifact": "core",
    "ExportOptions": "core",
    "ExportRequest": "pipeline",
    "InspectRequest": "inspection",
    "ModelChoice": "reference",
    "Overrides": "reference",
    "Preprocessing": "core",
    "Report": "report",
    "RunOptions": "core",
    "Session": "core",
    "Target": "core",
    "TimingPlan": "timing",
    "Tolerance": "core",
    "bench": "inspection",
    "check": "inspection",
    "export": "pipeline",
    "to_json": "report",
}


def __dir__() -> list[str]:
    return sorted(__all__)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'levit_export' has no attribute {name!r}")
    return getattr(import_module(f"levit_export.{_HOMES[name]}"), name)
