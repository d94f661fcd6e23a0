"""Names of classes: what they may hold, and ImageNet's."""

from __future__ import annotations

import unicodedata
from importlib import resources

DIRECTIONS = frozenset(map(chr, (*range(0x202A, 0x202F), *range(0x2066, 0x206A))))
"""Characters that turn the direction of writing around, and so show other text than there is."""


def imagenet_labels() -> tuple[str, ...]:
    """The 1000 class names of ILSVRC2012 in the order of the published models' outputs.

    A name is the synset's lemmas, separated by commas: ``tench, Tinca tinca``. All differ, as
    Core ML classifiers demand: the two cranes, whose lemmas are the same, have their synset's id
    added. Source and licence are in ``levit_export/inputs/data/LICENSE-imagenet-labels.md``.
    """
    file = resources.files("levit_export.inputs.data") / "imagenet_labels.txt"
    return tuple(file.read_text(encoding="utf-8").splitlines())


def imagenet_synsets() -> tuple[str, ...]:
    """The synset ids of the same classes in the same order, such as ``n01440764``."""
    file = resources.files("levit_export.inputs.data") / "imagenet_synsets.txt"
    return tuple(file.read_text(encoding="ascii").split())


def control_character(name: str) -> str:
    """The first character of a name that breaks its line or controls what shows it, or nothing.

    ``labels.txt`` has a line for each class, so a name of two lines would shift all behind it.
    """
    kinds = ("Cc", "Zl", "Zp", "Cs")
    bad = (c for c in name if unicodedata.category(c) in kinds or c in DIRECTIONS)
    return next(bad, "")
