"""Tokens or maps: the form of a LeViT that each format and precision is written in.

Tokens are ``(B, N, C)`` with linear layers, maps ``(B, C, H, W)`` with 1x1 convolutions; the
weights are the same (``passes.lay_out_maps``). Which one a runtime is fast in was measured
(docs/performance.md); ``--layout`` overrides it.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import cast

from levit_export.core import Layout
from levit_export.errors import UsageError
from levit_export.zoo import AUTO_LAYOUT, Config, LevitConfig

MAPS_ARE_FASTER: Collection[tuple[str, str]] = (("onnx", "fp32"), ("onnx", "int8"))
"""Formats and precisions whose runtime was measured to be faster in maps; tokens are the rest."""


def layout(asked: str, kind: str, precision: str, config: Config, skip: Collection[str]) -> Layout:
    """The layout of an artifact of format ``kind``.

    Networks other than LeViT have one layout; so has one whose BatchNorms stay, as they are over
    tokens. Raises ``UsageError`` when maps are asked for there.
    """
    why_not = ""
    if not isinstance(config, LevitConfig):
        why_not = "this network has one layout"
    elif "fuse_batchnorm" in skip:
        why_not = "without fuse_batchnorm its BatchNorms are over tokens"
    if asked == "maps" and why_not:
        raise UsageError(
            f"--layout maps is not possible: {why_not}", remedy="Leave it out, or take tokens."
        )
    if asked != AUTO_LAYOUT:
        return cast("Layout", asked)
    return "maps" if not why_not and (kind, precision) in MAPS_ARE_FASTER else "tokens"
