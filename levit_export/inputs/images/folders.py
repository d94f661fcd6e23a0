"""Images in folders, and the class that each folder is. Files are listed, never opened."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np

from levit_export.core import files
from levit_export.core.errors import DataError
from levit_export.inputs.class_names import imagenet_labels, imagenet_synsets
from levit_export.inputs.images.arrays import refuse_out_of_range
from levit_export.inputs.images.decoding import SUFFIXES, decode
from levit_export.inputs.images.image_set import UNKNOWN, Entry, ImageSet, Read, listed

LISTS = ("val.txt", "labels.csv")
"""Files with a line ``name index`` (or ``name,index``) for each image; the first found counts."""

INDEX = re.compile(r"-?[0-9]{1,9}")
SYNSET = re.compile(r"n\d{8}")
"""ImageNet's names of class folders."""

LARGEST_LIST = 2**28
"""Bytes; ImageNet's own list has 1.7 MB."""


@dataclass(frozen=True)
class Files:
    """Image files below ``root``, by their POSIX paths."""

    root: Path

    @contextmanager
    def open(self) -> Iterator[Read]:
        """Read single images; see :class:`levit_export.inputs.images.image_set.Store`."""

        def read(entry: Entry) -> np.ndarray:
            return decode(self.root / entry.name)

        yield read


@dataclass(frozen=True)
class _Listing:
    """Names of images below a folder, and of files that are none by their suffix."""

    images: tuple[str, ...]
    others: tuple[str, ...]


def open_folder(root: Path, labels: Sequence[str]) -> ImageSet:
    """The images below ``root``; see ``images.open_images``. Raises ``DataError``."""
    try:
        for name in LISTS:
            if (root / name).is_file():
                return _by_list(root, root / name, len(labels))
        folders = sorted(p.name for p in root.iterdir() if _is_class_folder(p))
        direct = _walk(root, deep=False)
    except OSError as error:
        raise DataError(
            f"{root} cannot be read: {error.strerror or error}", remedy="Check its permissions."
        ) from error
    if folders and direct.images:
        raise DataError(
            f"{root} holds both images ({listed(list(direct.images))}) and folders "
            f"({listed(folders)})",
            remedy="Put every image into the folder of its class, or all into one folder.",
        )
    if folders:
        return _by_class(root, folders, labels, direct.others)
    return plain(root, direct.images, others=direct.others, source=str(root))


def plain(
    root: Path, names: Sequence[str], *, source: str, others: Sequence[str] = ()
) -> ImageSet:
    """Images of no known class."""
    return _image_set(root, [Entry(name) for name in names], source, _left_out(others))


def _is_class_folder(path: Path) -> bool:
    """Folders named like an image are listed as images, and found unreadable."""
    is_image = path.suffix.lower() in SUFFIXES
    return path.is_dir() and not path.name.startswith(".") and not is_image


def _by_class(
    root: Path, folders: list[str], labels: Sequence[str], others: Sequence[str]
) -> ImageSet:
    classes, how = _classes_of(folders, labels, str(root))
    entries: list[Entry] = []
    strange = list(others)
    for folder in folders:
        found = _walk(root, folder)
        entries += [Entry(name, classes[folder]) for name in found.images]
        strange += found.others
    used = Counter(entry.label for entry in entries)
    remarks = [how]
    if empty := [folder for folder in folders if not used[classes[folder]]]:
        remarks.append(f"class folders without an image: {listed(empty)}")
    there = set(classes.values())
    if missing := [label for index, label in enumerate(labels) if index not in there]:
        remarks.append(
            f"{len(missing)} of the model's {len(labels)} classes have no folder: "
            f"{listed(missing)}"
        )
    remarks += _left_out(strange)
    return replace(_image_set(root, entries, str(root), remarks), classes=classes)


def _classes_of(
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
        places = {name: index for index, name in enumerate(imagenet_synsets())}
        if unknown := [name for name in folders if name not in places]:
            raise DataError(
                f"{len(unknown)} class folders of {source} are not classes of ILSVRC2012: "
                f"{listed(unknown)}",
                remedy="Move them elsewhere: the model cannot answer with these classes.",
            )
        return {name: places[name] for name in folders}, "class folders are ImageNet's synset ids"
    found = _classes_by_label(folders, labels, source)
    unknown = [name for name in folders if name not in found]
    if not unknown:
        how = "class folders are named as the model's labels"
        are_numbers = tuple(labels) == tuple(str(i) for i in range(len(labels)))
        if are_numbers and [found[name] for name in sorted(found)] != sorted(found.values()):
            how += (
                "; they are numbers, and sorted as text, as torchvision does, they would be others"
            )
        return found, how
    if found or len(folders) != len(labels):
        raise DataError(
            f"{source} has {len(folders)} class folders, the model {len(labels)} classes, and "
            f"{len(unknown)} folders have no class's name: {listed(unknown)}",
            remedy=f"Name folders after the model's labels ({listed(list(labels))}), or have one "
            "for each class in sorted order, empty ones included.",
        )
    ordered = {name: index for index, name in enumerate(sorted(folders))}
    return ordered, "class folders are taken in sorted order, as torchvision takes them"


def _classes_by_label(
    folders: Sequence[str], labels: Sequence[str], source: str
) -> dict[str, int]:
    """The class of each folder that is called like one.

    The strictest reading that knows a name counts, so that ``A`` and ``a`` are two classes where
    the model has both. Raises ``DataError`` where a name gives several classes, and where two
    folders give the same.
    """

    def plain(name: str) -> str:
        return name.strip().lower().replace("_", " ")

    same: dict[str, set[int]] = {}
    without_case: dict[str, set[int]] = {}
    synonyms: dict[str, set[int]] = {}
    for index, label in enumerate(labels):
        same.setdefault(label, set()).add(index)
        without_case.setdefault(plain(label), set()).add(index)
        for part in label.split(","):  # as ImageNet's labels list them
            synonyms.setdefault(plain(part), set()).add(index)
    found: dict[str, int] = {}
    for folder in folders:
        name = plain(folder)
        meant = sorted(same.get(folder) or without_case.get(name) or synonyms.get(name) or ())
        if len(meant) > 1:
            names = [f"{index} ({labels[index]})" for index in meant]
            raise DataError(
                f"folder {folder} of {source} may be one of {len(meant)} classes: {listed(names)}",
                remedy="Name it exactly as one label, list the images in a labels.csv with the "
                "numbers of their classes, or give --labels with distinct names.",
            )
        for index in meant:
            if first := [other for other, taken in found.items() if taken == index]:
                raise DataError(
                    f"{source} has two folders for class {index}: {first[0]}, {folder}",
                    remedy="Put their images into one.",
                )
            found[folder] = index
    return found


def _walk(root: Path, folder: str = "", *, deep: bool = True) -> _Listing:
    """Files below a folder in sorted order; links are followed, but never in a circle."""
    images: list[str] = []
    others: list[str] = []
    seen = {os.path.realpath(root)} if folder else set()
    for place, below, found in os.walk(root / folder, followlinks=True, onerror=_raise):
        real = os.path.realpath(place)
        if real in seen:
            raise DataError(
                f"{place} is a link to a folder that holds it or was listed before",
                remedy="Remove the link: its images would count twice.",
            )
        seen.add(real)
        named = [name for name in (*found, *below) if not name.startswith(".")]
        for name in named:
            path = (Path(place) / name).relative_to(root).as_posix()
            if Path(name).suffix.lower() in SUFFIXES:
                images.append(path)
            elif name in found:
                others.append(path)
        # os.walk goes on with what is left in this list, and in its order.
        below[:] = sorted(name for name in below if deep and _is_class_folder(Path(place) / name))
    return _Listing(tuple(sorted(images)), tuple(sorted(others)))


def _raise(error: OSError) -> None:
    raise error


def _by_list(root: Path, file: Path, classes: int) -> ImageSet:
    try:
        if file.stat().st_size > LARGEST_LIST:
            raise DataError(
                f"{file} has {file.stat().st_size} bytes", remedy="Give a list, a line an image."
            )
        lines = files.read_text(file, "utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(
            f"{file} is not UTF-8 text: {error}", remedy="Save the list as UTF-8."
        ) from error
    entries: dict[str, Entry] = {}
    for number, line in enumerate(lines, start=1):
        if line.strip() and not (number == 1 and _is_heading(line)):
            entry = _listed_entry(line, f"line {number} of {file}", classes)
            if entry.name in entries:
                raise DataError(
                    f"line {number} of {file} lists {entry.name} again",
                    remedy="List every image once.",
                )
            entries[entry.name] = entry
    ignored = len(set(_walk(root).images) - set(entries))
    remarks = [f"classes are from {file.name}"]
    if ignored:
        said = "1 image is" if ignored == 1 else f"{ignored} images are"
        remarks.append(f"{said} not in {file.name} and left out")
    return _image_set(root, list(entries.values()), str(root), remarks)


def _is_heading(line: str) -> bool:
    """Whether a first line names columns: its last field is a word and its first no image."""
    first, last = _fields(line)
    is_image = PurePosixPath(first).suffix.lower() in SUFFIXES
    return bool(first) and not is_image and not INDEX.fullmatch(last)


def _fields(line: str) -> tuple[str, str]:
    """The name, which may hold blanks, and what stands behind the last comma, tab or blank."""
    mark = next((mark for mark in (",", "\t", ";") if mark in line), " ")
    name, _, index = line.strip().rpartition(mark)
    return name.strip().strip('"'), index.strip().strip('"')


def _listed_entry(line: str, where: str, classes: int) -> Entry:
    name, index = _fields(line)
    if not name or not INDEX.fullmatch(index):
        raise DataError(
            f"{where} is {line.strip()[:80]!r}, not a file and the number of its class",
            remedy="Write lines such as: images/cat.jpg 281",
        )
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts:
        raise DataError(
            f"{where} names {name!r}, which lies elsewhere", remedy="List files of this folder."
        )
    refuse_out_of_range(int(index), classes, where)
    return Entry(path.as_posix(), int(index))


def _left_out(names: Sequence[str]) -> list[str]:
    said = (
        "1 file is not an image by its name"
        if len(names) == 1
        else (f"{len(names)} files are not images by their names")
    )
    return [f"{said}: {listed(list(names))}"] if names else []


def _image_set(
    root: Path, entries: Sequence[Entry], source: str, remarks: Sequence[str]
) -> ImageSet:
    if not entries:
        raise DataError(
            f"{source} holds no images{'; ' + '; '.join(remarks) if remarks else ''}",
            remedy=f"Images are files ending in {', '.join(sorted(SUFFIXES))}.",
        )
    digest = hashlib.sha256()
    for entry in entries:
        digest.update(f"{entry.name}\0{entry.label}\0{_size(root / entry.name)}\n".encode())
    placed = tuple(replace(entry, position=i) for i, entry in enumerate(entries))
    return ImageSet(source, placed, Files(root), digest.hexdigest(), remarks=tuple(remarks))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # which decoding will name
        return UNKNOWN
