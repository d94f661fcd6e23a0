"""Levits that timm itself computed: what `scripts/record-timm-levits` and the tests share.

Weights are a function of their names and shapes, so that only timm's answers have to be kept.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import torch

ANSWERS = Path(__file__).with_suffix(".json")

BODY: dict[str, Any] = {
    "embed_dim": [32, 48, 64],
    "key_dim": 16,
    "num_heads": [2, 3, 4],
    "depth": [2, 1, 2],
    "num_classes": 5,
}
RECORDED: dict[str, dict[str, Any]] = {
    "wide": {"img_size": [128, 512]},
    "tall-in-maps": {"img_size": [160, 96], "use_conv": True},
    "stride-8": {"img_size": [64, 96], "stem_type": "s8", "act_layer": "silu"},
    "one-token": {"img_size": [48, 64]},
    "linear-heads": {"img_size": [96, 96], "linear_heads": True},
}
"""Arguments of timm's ``LevitDistilled`` beside :data:`BODY`; ``linear_heads`` are ``nn.Linear``
in the place of its heads."""


def weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """Seeded weights that exercise every branch, whatever the file calls them."""
    made = {}
    for name, shape in shapes.items():
        generator = np.random.default_rng(crc32(name.encode()))
        if name.endswith("num_batches_tracked"):
            values = np.array(1000)
        elif name.endswith("running_var"):
            values = generator.uniform(0.5, 2, shape)
        elif name.endswith("bn.weight"):
            values = generator.uniform(0.5, 1.5, shape)
        elif name.endswith("attention_biases"):
            values = generator.standard_normal(shape)
        elif len(shape) < 2:
            values = 0.2 * generator.standard_normal(shape)
        else:
            values = generator.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        made[name] = torch.from_numpy(values.astype(np.float32))
    return made


def image(channels: int, height: int, width: int) -> torch.Tensor:
    """A seeded batch of two in float64."""
    generator = np.random.default_rng(7)
    return torch.from_numpy(generator.standard_normal((2, channels, height, width)))


def recorded() -> dict[str, Any]:
    """For each name of :data:`RECORDED`, timm's shapes and answers; ``versions`` beside them."""
    return json.loads(ANSWERS.read_text(encoding="utf-8"))
