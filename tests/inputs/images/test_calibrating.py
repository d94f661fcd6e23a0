"""The images that a quantiser looks at."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from pictures import picture

from levit_export.core.errors import DataError
from levit_export.inputs.images import calibration, open_images
from levit_export.inputs.images.image_set import balanced_order
from levit_export.inputs.preprocessing import RECIPES, apply

RECIPE = RECIPES["digits"]
LABELS = ("0", "1", "2")


def squares(folder: Path, per_class: tuple[int, ...]) -> Path:
    """Grey squares, each of another grey, in class folders."""
    value = 0
    for label, count in enumerate(per_class):
        for i in range(count):
            picture(folder / str(label) / f"{i}.png", value)
            value += 1
    return folder


def test_balanced(tmp_path: Path) -> None:
    """Every class is taken equally often while it lasts."""
    images = open_images(squares(tmp_path, (20, 2, 9)), labels=LABELS)
    order = balanced_order(images, seed=0)
    assert sorted(order) == list(range(31))
    taken = Counter(images.entries[row].label for row in order[:12])
    assert taken == {0: 5, 1: 2, 2: 5}


def test_chosen_images(tmp_path: Path) -> None:
    """The inputs are the chosen images in that order, through the recipe, each once."""
    images = open_images(squares(tmp_path, (5, 5, 5)), labels=LABELS)
    found = calibration(images, RECIPE, 6, seed=3)
    greys = [np.full((8, 8, 3), row, np.uint8) for row in balanced_order(images, 3)[:6]]
    np.testing.assert_array_equal(found.inputs, np.stack([apply(RECIPE, g) for g in greys]))
    assert found.inputs.dtype == np.float32
    assert found.source.startswith(f"6 images of {tmp_path} (seed 3, list ")


def test_seed(tmp_path: Path) -> None:
    """A seed always chooses the same images, another one others."""
    images = open_images(squares(tmp_path, (9, 9, 9)), labels=LABELS)
    one, again, other = (calibration(images, RECIPE, 9, seed=s).inputs for s in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)


def test_fewer_than_asked_for(tmp_path: Path) -> None:
    """All images are taken where there are fewer."""
    images = open_images(squares(tmp_path, (2, 1, 0)), labels=("0", "1"))
    assert len(calibration(images, RECIPE, 100).inputs) == 3


def test_unreadable_are_replaced_and_named(tmp_path: Path) -> None:
    """An unreadable image makes way for the next one, and is counted and named."""
    images = open_images(squares(tmp_path, (10, 10, 10)), labels=LABELS)
    first = images.entries[balanced_order(images, 0)[0]].name
    (tmp_path / first).write_bytes(b"")
    found = calibration(images, RECIPE, 12)
    assert len(found.inputs) == 12
    assert f"1 could not be read: {first}: is empty" in found.source


def test_too_many_unreadable_for_calibration(tmp_path: Path) -> None:
    """Where most are unreadable it is an error."""
    images = open_images(squares(tmp_path, (4, 4, 4)), labels=LABELS)
    for entry in images.entries[:8]:
        (tmp_path / entry.name).write_bytes(b"")
    with pytest.raises(DataError, match="cannot be read"):
        calibration(images, RECIPE, 4)


def test_unlabelled(tmp_path: Path) -> None:
    """Images of no known class serve as well."""
    for value in range(6):
        picture(tmp_path / f"{value}.png", value)
    assert len(calibration(open_images(tmp_path, labels=LABELS), RECIPE, 4).inputs) == 4


def test_a_missing_class_is_named(tmp_path: Path) -> None:
    """Where a class has no image to calibrate with, that is said."""
    images = open_images(squares(tmp_path, (4, 4)), labels=LABELS)
    assert "1 of the model's 3 classes have no folder: 2" in calibration(images, RECIPE, 4).source
