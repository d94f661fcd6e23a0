"""Names of classes: in order, one a line, and never another model's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from folders import TINY, in_timm, tensors_of, written

from levit_export.core.errors import CheckpointError, UsageError
from levit_export.inputs.class_names import control_character, imagenet_labels, imagenet_synsets
from levit_export.models import checkpoints
from levit_export.models.checkpoints.description import settle_labels
from levit_export.models.checkpoints.dialect import Settled
from levit_export.models.loading import ModelChoice
from levit_export.models.zoo import Config, variant

KNOWN: Config = replace(variant("levit_256").config)
NAMES = ("cat", "dog", "newt", "owl", "yak")


def settled(
    said: dict[str, Any], classes: int = 5, given: tuple[str, ...] = ()
) -> Settled[tuple[str, ...]]:
    """The names for a network of so many classes."""
    return settle_labels(replace(TINY, classes=classes), given, said, "w")


def test_every_way_to_name_classes() -> None:
    """Transformers' table, timm's list and both its objects, nested, beside or flat."""
    by_number = {str(number): name for number, name in enumerate(NAMES)}
    shuffled = dict(sorted(by_number.items(), key=lambda each: each[1][-1]))
    for said in (
        {"id2label": shuffled, "label2id": {name: i for i, name in enumerate(NAMES)}},
        {"label_names": list(NAMES)},
        {"label_names": shuffled},
        {"pretrained_cfg": {"label_names": list(NAMES)}},
        {"pretrained_cfg": {"label_names": list("abcde")}, "label_names": shuffled},
        {"architecture": "levit_256", "labels": list(NAMES)},
        {"label_names": list(NAMES), "label_descriptions": dict.fromkeys(NAMES, "an animal")},
    ):
        assert settled(said) == Settled(NAMES), said


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"id2label": {"0": "a"}}, "names 1 classes, the head has 5"),
        ({"id2label": dict(zip("01245", "abcde", strict=True))}, "no name for 1 of 5 classes: 3"),
        ({"id2label": {**dict(zip("0123", "abcd", strict=True)), "03": "e"}}, "class 3 twice"),
        ({"id2label": dict(zip("abcde", "abcde", strict=True))}, "key 'a', which is not a num"),
        ({"id2label": dict(zip("01234", [*"abcd", None], strict=True))}, "None, which is not te"),
        ({"id2label": ["a"] * 5}, "is a list, not an object"),
        ({"id2label": dict(zip("01234", [*"abcd", " "], strict=True))}, "class 4 .* has no name"),
        ({"label_names": ["a"]}, "names 1 classes"),
        ({"label_names": dict(zip("01245", "abcde", strict=True))}, "no name for 1 of 5"),
        ({"label_names": "abcde"}, "a str, not a list"),
        ({"label_descriptions": {"a": "b"}}, "label_descriptions and no label_names"),
        (
            {"id2label": dict(zip("01234", "abcde", strict=True)), "label2id": {"a": 1}},
            "label2id gives 'a' the number 1, id2label calls that class 'b'",
        ),
    ],
)
def test_names_that_do_not_fit(said: dict[str, Any], message: str) -> None:
    """Gaps, doubles, wrong counts and contradictions are refused, and ``--labels`` is the way."""
    with pytest.raises(CheckpointError, match=message):
        settled(said)
    assert settled(said, given=NAMES).value == NAMES


@pytest.mark.parametrize(
    "bad",
    [
        "\n",
        "\r",
        "\x00",
        "\x1b",
        "\t",
        "\x0b",
        "\x0c",
        "\x1d",
        "\x85",
        "\u2028",
        "\u2029",
        "\u202e",
    ],
)
def test_names_of_more_than_a_line(bad: str) -> None:
    """A name that breaks its line, or controls the terminal, is refused wherever it is from.

    ``labels.txt`` has one line a class: a second line would be the name of the next one.
    """
    assert control_character(f"ca{bad}t") == bad
    names = ["a", "b", f"ca{bad}t", "d", "e"]
    for said in ({"label_names": names}, {"id2label": dict(enumerate_text(names))}):
        with pytest.raises(CheckpointError, match=f"class 2 .* U\\+{ord(bad):04X}"):
            settled(said)
    with pytest.raises(UsageError, match="class 2 of --labels"):
        settled({}, given=tuple(names))


def enumerate_text(names: list[str]) -> list[tuple[str, str]]:
    """Names with their numbers as JSON has them."""
    return [(str(number), name) for number, name in enumerate(names)]


def test_names_of_any_language() -> None:
    """Letters, signs and joined emoji of any language are names."""
    names = ("猫", "собака", "naïve – fish", "👩\u200d🚀", 'a, b; "c"')
    assert settled({"label_names": list(names)}) == Settled(names)


def test_padded_names_lose_their_blanks() -> None:
    """Outer blanks are taken off, and a remark says so."""
    found = settled({"label_names": [" cat", "dog", "newt ", "owl", "yak"]})
    assert found.value == NAMES
    assert found.remarks == (
        "2 names of classes began or ended with blanks, which were taken off; the first is that "
        "of class 0",
    )


def test_shared_names_are_said() -> None:
    """Several classes of one name stay as they are, as ImageNet's two cranes; a remark tells."""
    found = settled({"label_names": ["crane", "dog", "crane", "owl", "crane"]})
    assert found.value == ("crane", "dog", "crane", "owl", "crane")
    assert found.remarks == ("3 classes are called crane: 0, 2, 4",)


def test_imagenets_names_are_an_assumption() -> None:
    """1000 classes of a known model get ImageNet's names where nothing else is said, as such."""
    found = settle_labels(KNOWN, (), None, "w")
    assert found.value == imagenet_labels()
    assert "ImageNet's names are assumed" in found.assumptions[0]
    invented = {"id2label": {str(i): f"LABEL_{i}" for i in range(1000)}}
    assert settle_labels(KNOWN, (), invented, "w") == found
    kept = {"label_names": [f"LABEL_{i}" for i in range(1000)]}  # TimmWrapper writes them so
    assert settle_labels(KNOWN, (), kept, "w") == found
    own = {"label_names": {str(i): f"part {i}" for i in range(1000)}}
    assert settle_labels(KNOWN, (), own, "w") == Settled(tuple(f"part {i}" for i in range(1000)))
    synsets = {"label_names": list(imagenet_synsets())}
    assert settle_labels(KNOWN, (), synsets, "w") == Settled(imagenet_labels())


def test_numbers_where_nothing_is_known() -> None:
    """Any other model has its numbers, and nothing is assumed."""
    few = settle_labels(replace(KNOWN, classes=3), (), None, "w")
    assert few == Settled(("0", "1", "2"))
    assert settle_labels(replace(TINY, classes=1000), (), None, "w").value[:2] == ("0", "1")


def test_a_folder_says_them_whatever_form_its_weights_have(tmp_path: Path) -> None:
    """``config.json`` beside the authors' weights counts, and the user's word above it."""
    config = {"id2label": {str(number): name for number, name in enumerate(NAMES)}}
    place = written(tmp_path, tensors_of(TINY), config=config)
    assert checkpoints.load(place).labels == NAMES
    assert checkpoints.load(place, ModelChoice(labels=tuple("abcde"))).labels == tuple("abcde")
    config = {"label_names": {"0": "a"}}
    place = written(tmp_path / "timm", in_timm(TINY), config=config)
    with pytest.raises(CheckpointError, match="names 1 classes"):
        checkpoints.load(place)
