"""Exact rewrites between the trained module and the exported graph, in the order they run."""

from __future__ import annotations

from levit_export.models.passes.bake_attention_bias import BAKE_ATTENTION_BIAS
from levit_export.models.passes.base import Pass
from levit_export.models.passes.fold_attention_scale import FOLD_ATTENTION_SCALE
from levit_export.models.passes.fuse_batchnorm import FUSE_BATCHNORM
from levit_export.models.passes.lay_out_maps import LAY_OUT_MAPS
from levit_export.models.passes.merge_heads import MERGE_HEADS
from levit_export.models.passes.proof import apply_passes

__all__ = ["LAY_OUT_MAPS", "PASSES", "Pass", "apply_passes"]

PASSES: tuple[Pass, ...] = (
    FUSE_BATCHNORM,
    FOLD_ATTENTION_SCALE,
    BAKE_ATTENTION_BIAS,
    MERGE_HEADS,
)
"""What every artifact goes through; ``LAY_OUT_MAPS`` follows for those that are laid out so."""
