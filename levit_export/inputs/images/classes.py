"""From the names of class folders to the model's classes."""

from __future__ import annotations

import re
from collections.abc import Sequence

from levit_export.core.errors import DataError
from levit_export.inputs.class_names import imagenet_labels, imagenet_synsets
from levit_export.inputs.images.image_set import listed

SYNSET = re.compile(r"n\d{8}")


def classes_of(
    folders: Sequence[str], labels: Sequence[str], source: str
) -> tuple[dict[str, int], str]:
    """The class of each folder, and a sentence on how it was found.

    In this order: ImageNet's synset ids where the labels are ImageNet's; the model's labels,
    exactly first, then without case and underscores, then one of the synonyms that a label lists;
    torchvision's rule, by which the i-th name in sorted order is class i, which needs a folder for
    each class. Raises ``DataError`` for names that fit none of them: a class that is missing would
    shift all behind it.
    """
    if all(SYNSET.fullmatch(name) for name in folders) and tuple(labels) == imagenet_labels():
        return _by_synset(folders, source), "class folders are ImageNet's synset ids"
    readings = _readings(labels)
    meant = {name: _meant(name, readings, labels, source) for name in folders}
    found = {name: index for name, index in meant.items() if index is not None}
    if len(found) == len(folders):
        _refuse_doubles(found, source)
        return found, _said_of_names(found, labels)
    unknown = [name for name in folders if name not in found]
    if found or len(folders) != len(labels):
        raise DataError(
            f"{source} has {len(folders)} class folders, the model {len(labels)} classes, and "
            f"{len(unknown)} folders have no class's name: {listed(unknown)}",
            remedy=f"Name folders after the model's labels ({listed(list(labels))}), or have one "
            "for each class in sorted order, empty ones included.",
        )
    ordered = {name: index for index, name in enumerate(sorted(folders))}
    return ordered, "class folders are taken in sorted order, as torchvision takes them"


def _by_synset(folders: Sequence[str], source: str) -> dict[str, int]:
    places = {name: index for index, name in enumerate(imagenet_synsets())}
    if unknown := [name for name in folders if name not in places]:
        raise DataError(
            f"{len(unknown)} class folders of {source} are not classes of ILSVRC2012: "
            f"{listed(unknown)}",
            remedy="Move them elsewhere: the model cannot answer with these classes.",
        )
    return {name: places[name] for name in folders}


def _readings(labels: Sequence[str]) -> tuple[dict[str, set[int]], ...]:
    """Classes by name: the labels, the labels without case, the names that a label lists."""
    same: dict[str, set[int]] = {}
    plain: dict[str, set[int]] = {}
    listed_in: dict[str, set[int]] = {}
    for index, label in enumerate(labels):
        same.setdefault(label, set()).add(index)
        plain.setdefault(_plain(label), set()).add(index)
        for part in label.split(","):
            listed_in.setdefault(_plain(part), set()).add(index)
    return same, plain, listed_in


def _meant(
    folder: str, readings: Sequence[dict[str, set[int]]], labels: Sequence[str], source: str
) -> int | None:
    """The class that a folder's name means, None where it is the name of no class.

    The strictest reading that knows the name counts, so that ``A`` and ``a`` are two classes
    where the model has both. Raises ``DataError`` where it gives several classes.
    """
    same, plain, listed_in = readings
    found = same.get(folder) or plain.get(_plain(folder)) or listed_in.get(_plain(folder)) or ()
    if len(found) > 1:
        names = [f"{index} ({labels[index]})" for index in sorted(found)]
        raise DataError(
            f"folder {folder} of {source} may be one of {len(found)} classes: {listed(names)}",
            remedy="Name it exactly as one label, list the images in a labels.csv with the "
            "numbers of their classes, or give --labels with distinct names.",
        )
    return next(iter(found), None)


def _plain(name: str) -> str:
    return name.strip().lower().replace("_", " ")


def _refuse_doubles(found: dict[str, int], source: str) -> None:
    first: dict[int, str] = {}
    for name, index in found.items():
        if index in first:
            raise DataError(
                f"{source} has two folders for class {index}: {first[index]}, {name}",
                remedy="Put their images into one.",
            )
        first[index] = name


def _said_of_names(found: dict[str, int], labels: Sequence[str]) -> str:
    said = "class folders are named as the model's labels"
    numbered = tuple(labels) == tuple(str(i) for i in range(len(labels)))
    if numbered and [found[name] for name in sorted(found)] != sorted(found.values()):
        said += "; they are numbers, and sorted as text, as torchvision does, they would be others"
    return said
