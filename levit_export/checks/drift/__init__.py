"""Where an artifact diverges from its checkpoint: which block, which stage, and by how much.

Every representation of a model has the same taps. The chain is followed from the
checkpoint's module through the passes and the captured network to each file in its own runtime.
At every tap two errors are told apart: what *accumulated* up to there, and what is *introduced*
there, computed by giving the stage before the values that this stage itself has at the taps
before. The files are those that ship; taps are further outputs of a copy in memory.
"""

from levit_export.checks.drift.values import DriftFinding, DriftMap, DriftRow, DriftStage, to_json

__all__ = ["DriftFinding", "DriftMap", "DriftRow", "DriftStage", "to_json"]
