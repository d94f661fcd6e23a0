"""The names of ImageNet's classes."""

from __future__ import annotations

from importlib import resources

import pytest

from levit_export.inputs.class_names import imagenet_labels


def test_there_is_one_label_for_each_class() -> None:
    """A thousand labels, none empty, none with blanks around it."""
    labels = imagenet_labels()
    assert len(labels) == 1000
    assert all(label and label == label.strip() for label in labels)


def test_no_two_labels_are_the_same() -> None:
    """Core ML classifiers refuse repeated labels; the bird and the machine are told apart."""
    labels = imagenet_labels()
    assert len(set(labels)) == len(labels)
    assert labels[134] == "crane (n02012849)"
    assert labels[517] == "crane (n03126707)"


@pytest.mark.parametrize(
    ("index", "label"),
    [
        (0, "tench, Tinca tinca"),
        (1, "goldfish, Carassius auratus"),
        (207, "golden retriever"),
        (281, "tabby, tabby cat"),
        (638, "maillot"),
        (639, "maillot, tank suit"),
        (954, "banana"),
        (999, "toilet tissue, toilet paper, bathroom tissue"),
    ],
)
def test_labels_are_in_the_order_of_the_outputs(index: int, label: str) -> None:
    """Well-known indices of ILSVRC2012 carry their names."""
    assert imagenet_labels()[index] == label


def test_the_licence_of_the_labels_travels_with_them() -> None:
    """WordNet's licence asks that its notice appear on all copies."""
    note = (resources.files("levit_export.inputs.data") / "LICENSE-imagenet-labels.md").read_text(
        "utf-8"
    )
    assert "WordNet 3.0 Copyright 2006 by Princeton University. All rights reserved." in note
