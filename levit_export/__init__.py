"""Export LeViT to ONNX, Core ML and OpenVINO, and prove that it is the same model there.

Importing this package loads no heavy dependency: every name below is loaded when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from levit_export._version import __version__
from levit_export.core.errors import LevitExportError

if TYPE_CHECKING:
    from levit_export.checks.reference import Overrides
    from levit_export.checks.timing import TimingPlan
    from levit_export.core.values import (
        Artifact,
        ExportOptions,
        Preprocessing,
        RunOptions,
        Session,
        Target,
        Tolerance,
    )
    from levit_export.models.loading import ModelChoice
    from levit_export.reports.report import Report, to_json
    from levit_export.workflows.check import CheckRequest, bench, check
    from levit_export.workflows.export import export
    from levit_export.workflows.export_plan import ExportRequest

__all__ = [
    "Artifact",
    "CheckRequest",
    "ExportOptions",
    "ExportRequest",
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
    "Artifact": "core.values",
    "ExportOptions": "core.values",
    "ExportRequest": "workflows.export_plan",
    "CheckRequest": "workflows.check",
    "ModelChoice": "models.loading",
    "Overrides": "checks.reference",
    "Preprocessing": "core.values",
    "Report": "reports.report",
    "RunOptions": "core.values",
    "Session": "core.values",
    "Target": "core.values",
    "TimingPlan": "checks.timing",
    "Tolerance": "core.values",
    "bench": "workflows.check",
    "check": "workflows.check",
    "export": "workflows.export",
    "to_json": "reports.report",
}


def __dir__() -> list[str]:
    return sorted(__all__)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'levit_export' has no attribute {name!r}")
    return getattr(import_module(f"levit_export.{_HOMES[name]}"), name)
