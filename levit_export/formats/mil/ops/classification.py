"""The end of a classifier: class label and probabilities.

Source: coremltools, MIL op ``classify``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from levit_export.formats.mil.elements import Array


def classify(probabilities: Array, classes: list[Any]) -> tuple[Any, dict[Any, float]]:
    """The class with the largest probability (the first of equals), and all of them by class."""
    numbers = probabilities.reshape(-1)
    if numbers.size != len(classes) or not classes:
        raise ValueError(f"{len(classes)} classes for {numbers.size} probabilities")
    label = classes[int(np.argmax(numbers))]
    return label, dict(zip(classes, numbers.tolist(), strict=True))
