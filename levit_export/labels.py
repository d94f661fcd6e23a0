"""The names and synset ids of ImageNet's classes."""

from __future__ import annotations

from importlib import resources


def imagenet_labels() -> tuple[str, ...]:
    """The 1000 class names of ILSVRC2012 in the order of the published models' outputs.

    A name is the synset's lemmas, separated by commas: ``tench, Tinca tinca``. All differ, as
    Core ML classifiers demand: the two cranes, whose lemmas are the same, have their synset's id
    added. Source and licence are in ``levit_export/data/LICENSE-imagenet-labels.md``.
    """
    file = resources.files("levit_export.data") / "imagenet_labels.txt"
    return tuple(file.read_text(encoding="utf-8").splitlines())


def imagenet_synsets() -> tuple[str, ...]:
    """The synset ids of the same classes in the same order, such as ``n01440764``."""
    file = resources.files("levit_export.data") / "imagenet_synsets.txt"
    return tuple(file.read_text(encoding="ascii").split())
