"""Names of a model's classes: as a folder says them, as a user gives them, or assumed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from levit_export.core.errors import CheckpointError, LevitExportError, UsageError
from levit_export.inputs.class_names import control_character, imagenet_labels, imagenet_synsets
from levit_export.models.checkpoints.recipes import described
from levit_export.models.zoo import Config, variant_of

REMEDY = "Correct config.json, or give --labels FILE, which replaces its names."
SHOWN = 5


@dataclass(frozen=True)
class Labels:
    """One name for each class, and what was found and assumed on the way, a sentence each."""

    names: tuple[str, ...]
    remarks: tuple[str, ...] = ()
    assumptions: tuple[str, ...] = ()


def settled(
    config: Config, given: Sequence[str], said: Mapping[str, Any] | None, source: str
) -> Labels:
    """``given`` by the user, else what ``config.json`` says; without either ImageNet's or numbers.

    ImageNet's are assumed for models of the zoo with 1000 classes, all of which were made for it.
    Raises ``UsageError`` and ``CheckpointError`` where there is not one name for each class.
    """
    if given and len(given) != config.classes:
        raise UsageError(
            f"{len(given)} labels for {config.classes} classes",
            remedy="Give one label on each line, in the order of the classes.",
        )
    if given:
        return _tidied(given, UsageError, "--labels")
    named = _said(said or {}, config.classes, f"the config.json of {source}")
    # What transformers invents where nothing was given says nothing.
    if named and named != tuple(f"LABEL_{index}" for index in range(config.classes)):
        return _tidied(named, CheckpointError, f"the config.json of {source}")
    numbers = tuple(str(index) for index in range(config.classes))
    names = imagenet_labels()
    if config.classes != len(names) or variant_of(config) is None:
        return Labels(numbers)
    return Labels(
        names,
        assumptions=(
            f"nothing names the {len(names)} classes: ImageNet's names are assumed; "
            "--labels FILE says others",
        ),
    )


def _said(said: Mapping[str, Any], classes: int, file: str) -> tuple[str, ...]:
    """The names in ``config.json`` of transformers or timm, empty where there are none."""
    if "id2label" in said:
        return _of_id2label(said, classes, file)
    fields = described(said) if {"pretrained_cfg", "architecture"} & said.keys() else said
    names = fields.get("label_names")
    if not names:
        if fields.get("label_descriptions"):
            raise CheckpointError(
                f"{file} has label_descriptions and no label_names, so that their order is not "
                "known",
                remedy=REMEDY,
            )
        return ()
    if isinstance(names, Mapping):
        found = _by_number(names, "label_names", classes, file)
    elif isinstance(names, list):
        found = tuple(_name(name, "label_names", file) for name in names)
        _refuse_count(len(found), "label_names", classes, file)
    else:
        raise CheckpointError(
            f"the label_names of {file} are a {type(names).__name__}, not a list or an object",
            remedy=REMEDY,
        )
    return imagenet_labels() if found == imagenet_synsets() else found


def _of_id2label(said: Mapping[str, Any], classes: int, file: str) -> tuple[str, ...]:
    table, numbers = said["id2label"], said.get("label2id")
    if not isinstance(table, Mapping):
        raise CheckpointError(
            f"the id2label of {file} is a {type(table).__name__}, not an object", remedy=REMEDY
        )
    names = _by_number(table, "id2label", classes, file)
    for name, number in (numbers if isinstance(numbers, Mapping) else {}).items():
        is_other = type(number) is int and 0 <= number < classes and names[number] != name
        if is_other and name != f"LABEL_{number}":
            raise CheckpointError(
                f"{file} contradicts itself: label2id gives {name!a} the number {number}, "
                f"id2label calls that class {names[number]!a}",
                remedy=REMEDY,
            )
    return names


def _by_number(table: Mapping[str, Any], key: str, classes: int, file: str) -> tuple[str, ...]:
    """Names by class of an object whose keys are the numbers 0 to ``classes - 1``, each once."""
    found: dict[int, str] = {}
    for text, name in table.items():
        if not text.strip().isdecimal():
            raise CheckpointError(
                f"the {key} of {file} has the key {ascii(text)[:40]}, which is not a number",
                remedy=REMEDY,
            )
        if int(text) in found:
            raise CheckpointError(
                f"the {key} of {file} names class {int(text)} twice", remedy=REMEDY
            )
        found[int(text)] = _name(name, key, file)
    _refuse_count(len(found), key, classes, file)
    if missing := [number for number in range(classes) if number not in found]:
        shown = ", ".join(map(str, missing[:SHOWN])) + (", …" if len(missing) > SHOWN else "")
        raise CheckpointError(
            f"the {key} of {file} has no name for {len(missing)} of {classes} classes: {shown}",
            remedy=REMEDY,
        )
    return tuple(found[number] for number in range(classes))


def _refuse_count(count: int, key: str, classes: int, file: str) -> None:
    if count != classes:
        raise CheckpointError(
            f"the {key} of {file} names {count} classes, the head has {classes}", remedy=REMEDY
        )


def _name(value: Any, key: str, file: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise CheckpointError(
            f"the {key} of {file} calls a class {ascii(value)[:40]}, which is not text",
            remedy=REMEDY,
        )
    return str(value)


def _tidied(names: Sequence[str], kind: type[LevitExportError], source: str) -> Labels:
    """``names`` without outer blanks. Raises ``kind`` for names that a text file cannot hold.

    ``labels.txt`` has a line for each class, so a name that breaks a line would shift all behind
    it; other control characters would act on the terminal that shows them.
    """
    remarks = []
    for number, name in enumerate(names):
        if not name.strip():
            raise kind(f"class {number} of {source} has no name", remedy="Give every class one.")
        if bad := control_character(name.strip()):
            raise kind(
                f"class {number} of {source} is called {ascii(name.strip())[:80]}, which holds "
                f"the control character U+{ord(bad):04X}",
                remedy="Give names of one line without control characters, such as with "
                "--labels FILE.",
            )
    if padded := [number for number, name in enumerate(names) if name != name.strip()]:
        remarks.append(
            f"{len(padded)} names of classes began or ended with blanks, which were taken off; "
            f"the first is that of class {padded[0]}"
        )
    tidy = tuple(name.strip() for name in names)
    shared = {name: count for name, count in Counter(tidy).items() if count > 1}
    for name, count in list(shared.items())[:SHOWN]:
        numbers = [str(number) for number, other in enumerate(tidy) if other == name][:SHOWN]
        remarks.append(f"{count} classes are called {name}: {', '.join(numbers)}")
    return Labels(tidy, tuple(remarks))
