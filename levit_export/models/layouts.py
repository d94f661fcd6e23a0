"""Tokens or maps: the form of a LeViT that each format and precision is written in.

Tokens are ``(B, N, C)`` with linear layers, maps ``(B, C, H, W)`` with 1x1 convolutions; the
weights are the same (``passes.lay_out_maps``). ``--layout`` overrides what is taken here.

ONNX Runtime and OpenVINO were measured (docs/performance.md). Core ML takes maps: nothing is
transposed there, so that a program has a fifth fewer ops (LeViT-128S 205 against 255, the other
sizes 256 against 318), and float16 costs as much in both, 0.0010 to 0.0017 of the largest logit.
Apple's guidance for the Neural Engine is four axes with channels second
(apple/ml-ane-transformers), and linear layers with Hardswish were reported to be wrong there on
two or three axes and right on four (https://github.com/apple/coreai-torch/issues/51).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import cast

from levit_export.core.errors import UsageError
from levit_export.core.values import Layout
from levit_export.models.zoo import AUTO_LAYOUT, Config, LevitConfig

IN_MAPS: Collection[tuple[str, str]] = (
    ("onnx", "fp32"),
    ("onnx", "int8"),
    *(("coreml", precision) for precision in ("fp16", "fp32", "int8", "w8", "w6", "w4")),
)
"""Formats and precisions that take maps; the rest takes tokens."""


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
    return "maps" if not why_not and (kind, precision) in IN_MAPS else "tokens"
