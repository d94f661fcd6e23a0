"""Where an artifact diverges from its checkpoint: which block, which stage, and by how much.

Every representation of a model has the same taps. The chain is followed from the
checkpoint's module through the passes and the captured network to each file in its own runtime.
At every tap two errors are told apart: what *accumulated* up to there, and what is *introduced*
there, computed by giving the stage before the values that this stage itself has at the taps
before. The files are those that ship; taps are further outputs of a copy in memory.

>>> from levit_export import drift
>>> found = drift.trace(drift.DriftRequest((Path("exported/levit_digits"),)))
>>> found.findings[1].sentence
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from levit_export.drift.values import DriftMap, Finding, Row, Stage, to_json

if TYPE_CHECKING:
    from levit_export.drift.request import DriftRequest, trace

__all__ = ["DriftMap", "DriftRequest", "Finding", "Row", "Stage", "to_json", "trace"]


def __getattr__(name: str) -> Any:
    """What needs torch is loaded when it is used, so that a map can be drawn without."""
    if name not in ("DriftRequest", "trace"):
        raise AttributeError(f"module 'levit_export.drift' has no attribute {name!r}")
    return getattr(import_module("levit_export.drift.request"), name)
