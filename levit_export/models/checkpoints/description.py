"""What no tensor tells: how pictures become inputs, what classes are called, what outputs mean.

A user says it, or the JSON files beside the weights do; where nobody does, it is assumed, and the
report says so. What a file says is followed or refused, never followed in part.
``preprocessor_config.json`` is transformers' (:mod:`~levit_export.models.checkpoints.processors`),
a ``config.json`` is transformers' or timm's (:mod:`~levit_export.models.checkpoints.timm`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from levit_export.core.errors import CheckpointError, LevitExportError, UsageError
from levit_export.core.values import Preprocessing, Size, Task
from levit_export.inputs import preprocessing
from levit_export.inputs.class_names import control_character, imagenet_labels, imagenet_synsets
from levit_export.models.checkpoints import processors, timm
from levit_export.models.checkpoints.dialect import Found, Settled, Stored
from levit_export.models.zoo import VARIANTS, Config, size_in_words, variant_of

# --- preprocessing --------------------------------------------------------------------------

STATE_IT = (
    "State the recipe with --preprocessing FILE (docs/checkpoints.md shows one), which replaces "
    "the folder's, or correct that setting."
)


def settle_recipe(
    given: Preprocessing | None, stored: Stored, found: Found, size: Size, source: str
) -> Settled[Preprocessing]:
    """``given`` by the user, else what the files beside the weights say; else it is assumed.

    The weights were trained at the size in ``found`` and take ``size`` now, to which the recipe is
    scaled. Raises ``CheckpointError`` for settings that cannot be followed, and where two files
    say different things; ``UsageError`` where ``given`` crops to another size.
    """
    if given is not None:
        return Settled(refuse_other_crop(given, size))
    config = stored.config
    # transformers' own config.json has "architectures", and says nothing of pictures.
    is_timms = config is not None and ("pretrained_cfg" in config or "architecture" in config)
    if not is_timms and found.recipe != "timm":
        config = None
    said: list[Settled[Preprocessing]] = []
    for file, read, content in (
        ("preprocessor_config.json", processors.recipe, stored.preprocessor),
        ("config.json", timm.recipe, config or None),
    ):
        if content is None:
            continue
        try:
            said.append(read(content, found.config.image_size))
        except (TypeError, ValueError, OverflowError) as error:
            raise CheckpointError(
                f"the {file} of {source} describes no preprocessing that this toolchain can "
                f"follow: {error}",
                remedy=STATE_IT,
            ) from error
    if len(said) == 2:
        first, second = (each.value for each in said)
        if first != replace(second, name=first.name):
            raise CheckpointError(
                f"the preprocessor_config.json and the config.json of {source} describe different "
                f"preprocessings: {first.in_words()}, and {second.in_words()}",
                remedy=STATE_IT,
            )
    if not said:
        return _assumed_recipe(found, size)
    return replace(said[0], value=preprocessing.for_image_size(said[0].value, size))


def refuse_other_crop(given: Preprocessing, size: Size) -> Preprocessing:
    """``given``. Raises ``UsageError`` where it does not crop to what the network takes."""
    if given.crop != size:
        raise UsageError(
            f"--preprocessing crops to {size_in_words(given.crop)} px, the model takes "
            f"{size_in_words(size)}",
            remedy=f'Write "crop": [{size[0]}, {size[1]}], or give the --imgsz that is meant.',
        )
    return given


def _assumed_recipe(found: Found, size: Size) -> Settled[Preprocessing]:
    """The recipe that the form of the weights suggests."""
    if is_of_digits(found.config):
        recipe, whose = preprocessing.RECIPES["digits"], "that of the bundled digits"
    elif found.recipe == "timm":
        recipe, whose = timm.recipe(timm.USUAL, size).value, "timm's for its LeViT models"
    elif found.recipe == "transformers" and size[0] == size[1]:
        usual = {
            "image_processor_type": processors.ASSUMED,
            "size": {"shortest_edge": size[0]},
            "crop_size": size[0],
        }
        recipe, whose = processors.recipe(usual, size).value, f"that of {processors.ASSUMED}"
    else:
        recipe, whose = preprocessing.RECIPES["fair"], "the authors' evaluation"
    return Settled(
        preprocessing.for_image_size(recipe, size),
        assumptions=(
            f"nothing beside the weights says how pictures are prepared: {whose} is assumed; "
            "--preprocessing FILE says another",
        ),
    )


def is_of_digits(config: Config) -> bool:
    """Whether it is the bundled network, at whatever size it takes its images."""
    bundled = VARIANTS[0].config
    return {**vars(config), "image_size": bundled.image_size} == vars(bundled)


# --- the task -------------------------------------------------------------------------------

PROBLEMS: dict[str, Task] = {
    "single_label_classification": "single-label",
    "multi_label_classification": "multi-label",
    "regression": "regression",
}
"""Values of transformers' ``problem_type``, which decides the loss that the head was trained with:
cross entropy over the classes, binary cross entropy for each label, or a squared error. No tensor
shows it, and the probabilities of one are wrong for another."""
MEANT: dict[Task, str] = {
    "single-label": "one class of all",
    "multi-label": "each label by itself (a sigmoid makes probabilities of them)",
    "regression": "numbers, not classes",
}


def settle_task(
    config: Config, given: Task | None, said: Mapping[str, Any] | None, source: str
) -> Settled[Task]:
    """``given`` by the user, else ``problem_type``; without either one class of several.

    A single output of which nothing is said stays ``unsaid``: it may be a class or a number.
    Raises ``CheckpointError`` for a ``problem_type`` that transformers does not have.
    """
    problem = (said or {}).get("problem_type")
    if problem is not None and problem not in PROBLEMS and given is None:
        raise CheckpointError(
            f"the config.json of {source} has the problem_type {problem!r}",
            remedy=f"Known: {', '.join(PROBLEMS)}; --task says it in its place.",
        )
    task = given or PROBLEMS.get(problem or "")
    if task is None:
        if config.classes == 1:
            words = "nothing says whether the one output is a class or a number"
            return Settled("unsaid", (f"{words}; --task says it",))
        words = "nothing says what the outputs mean: one class of all is assumed"
        return Settled("single-label", assumptions=(f"{words}; --task says another",))
    if task == "single-label":
        return Settled(task)
    whose = "--task" if given else "its config.json"
    return Settled(task, (f"the outputs mean {MEANT[task]}, as {whose} says",))


# --- names of classes -----------------------------------------------------------------------

NAME_THEM = "Correct config.json, or give --labels FILE, which replaces its names."
SHOWN = 5


def settle_labels(
    config: Config, given: Sequence[str], said: Mapping[str, Any] | None, source: str
) -> Settled[tuple[str, ...]]:
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
        return Settled(numbers)
    return Settled(
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
    fields = timm.described(said) if {"pretrained_cfg", "architecture"} & said.keys() else said
    names = fields.get("label_names")
    if not names:
        if fields.get("label_descriptions"):
            raise CheckpointError(
                f"{file} has label_descriptions and no label_names, so that their order is not "
                "known",
                remedy=NAME_THEM,
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
            remedy=NAME_THEM,
        )
    return imagenet_labels() if found == imagenet_synsets() else found


def _of_id2label(said: Mapping[str, Any], classes: int, file: str) -> tuple[str, ...]:
    table, numbers = said["id2label"], said.get("label2id")
    if not isinstance(table, Mapping):
        raise CheckpointError(
            f"the id2label of {file} is a {type(table).__name__}, not an object", remedy=NAME_THEM
        )
    names = _by_number(table, "id2label", classes, file)
    for name, number in (numbers if isinstance(numbers, Mapping) else {}).items():
        is_other = type(number) is int and 0 <= number < classes and names[number] != name
        if is_other and name != f"LABEL_{number}":
            raise CheckpointError(
                f"{file} contradicts itself: label2id gives {name!a} the number {number}, "
                f"id2label calls that class {names[number]!a}",
                remedy=NAME_THEM,
            )
    return names


def _by_number(table: Mapping[str, Any], key: str, classes: int, file: str) -> tuple[str, ...]:
    """Names by class of an object whose keys are the numbers 0 to ``classes - 1``, each once."""
    found: dict[int, str] = {}
    for text, name in table.items():
        if not text.strip().isdecimal():
            raise CheckpointError(
                f"the {key} of {file} has the key {ascii(text)[:40]}, which is not a number",
                remedy=NAME_THEM,
            )
        if int(text) in found:
            raise CheckpointError(
                f"the {key} of {file} names class {int(text)} twice", remedy=NAME_THEM
            )
        found[int(text)] = _name(name, key, file)
    _refuse_count(len(found), key, classes, file)
    if missing := [number for number in range(classes) if number not in found]:
        shown = ", ".join(map(str, missing[:SHOWN])) + (", …" if len(missing) > SHOWN else "")
        raise CheckpointError(
            f"the {key} of {file} has no name for {len(missing)} of {classes} classes: {shown}",
            remedy=NAME_THEM,
        )
    return tuple(found[number] for number in range(classes))


def _refuse_count(count: int, key: str, classes: int, file: str) -> None:
    if count != classes:
        raise CheckpointError(
            f"the {key} of {file} names {count} classes, the head has {classes}", remedy=NAME_THEM
        )


def _name(value: Any, key: str, file: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise CheckpointError(
            f"the {key} of {file} calls a class {ascii(value)[:40]}, which is not text",
            remedy=NAME_THEM,
        )
    return str(value)


def _tidied(
    names: Sequence[str], kind: type[LevitExportError], source: str
) -> Settled[tuple[str, ...]]:
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
    return Settled(tidy, tuple(remarks))
