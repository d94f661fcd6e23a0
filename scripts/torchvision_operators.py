"""torchvision beside a build of PyTorch that its compiled operators were not made for.

timm and torchvision's own classifiers call none of these operators, but importing torchvision
registers shapes for them and fails where they do not exist
(https://github.com/pytorch/vision/blob/v0.28.0/torchvision/_meta_registrations.py).
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

import torch

NAMES = (
    "nms",
    "qnms",
    "roi_align",
    "qroi_align",
    "roi_pool",
    "ps_roi_align",
    "ps_roi_pool",
    "deform_conv2d",
    "_roi_align_backward",
    "_roi_pool_backward",
    "_ps_roi_align_backward",
    "_ps_roi_pool_backward",
    "_deform_conv2d_backward",
)

_defined: list[Any] = []
"""What was defined goes when nothing holds it any more."""


def let_torchvision_import() -> None:
    """Import torchvision, with operators that only have names where the compiled ones fail."""
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError):
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        for name in NAMES:
            library.define(f"{name}(Tensor a) -> Tensor")
        _defined.append(library)
