"""The page's preprocessing, ``recipe.js``, run by Node beside Python's."""

from __future__ import annotations

import json
import shutil
import subprocess
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_exports import RESIZES, named

from levit_export.core.errors import DataError
from levit_export.core.values import Preprocessing
from levit_export.inputs import preprocessing
from levit_export.storage.device_bundle.golden import picture

NODE = shutil.which("node")
SIZES = ((1, 1), (7, 90), (20, 20), (21, 20), (37, 53), (64, 33), (120, 41), (90, 79))
SCRIPT = """
import { readFileSync, writeFileSync } from "node:fs";
import { feed, resizeAndCrop } from "./recipe.mjs";
const { recipes, images } = JSON.parse(readFileSync("given.json"));
writeFileSync("found.json", JSON.stringify(recipes.map((recipe) => images.map((image) => {
  let cropped;
  try {
    cropped = resizeAndCrop(recipe, { ...image, data: Uint8Array.from(image.data) });
  } catch (error) {
    return error.message;
  }
  const fed = feed(recipe, { dtype: "float32", shape: [1, 3, ...recipe.crop] }, cropped);
  return [[...cropped.data], [...fed]];
}))));
"""


pytestmark = pytest.mark.skipif(NODE is None, reason="Node.js is not installed")


def page(folder: Path, recipes: list[Preprocessing], images: list[np.ndarray]) -> list[list[Any]]:
    """For each recipe and image what the page crops and feeds, or its message."""
    script = resources.files("levit_export.storage.device_bundle.web") / "recipe.js"
    (folder / "recipe.mjs").write_bytes(script.read_bytes())
    (folder / "run.mjs").write_text(SCRIPT, encoding="utf-8")
    given = {
        "recipes": [vars(recipe) for recipe in recipes],
        "images": [
            {"height": len(image), "width": image.shape[1], "data": image.ravel().tolist()}
            for image in images
        ],
    }
    (folder / "given.json").write_text(json.dumps(given), encoding="utf-8")
    subprocess.run([str(NODE), "run.mjs"], cwd=folder, check=True)
    answers: list[list[Any]] = json.loads((folder / "found.json").read_text(encoding="utf-8"))
    return answers


def test_the_resize_is_pillows(tmp_path: Path) -> None:
    """Every pixel of the page's resize and crop, and every bit of its input, is Python's.

    That holds for every way to resize, every filter and every way to settle half a pixel.
    """
    generator = np.random.default_rng(3)
    images = [generator.integers(0, 256, (*size, 3), dtype=np.uint8) for size in SIZES]
    # Black and white next to each other make a cubic filter overshoot.
    images += [np.where(image > 127, 255, 0).astype(np.uint8) for image in images]
    images.append(picture(61, 47))
    answers = page(tmp_path, RESIZES, images)
    for recipe, found in zip(RESIZES, answers, strict=True):
        for image, (cropped, fed) in zip(images, found, strict=True):
            where = f"{named(recipe)} {image.shape}"
            wanted = preprocessing.resize_and_crop(recipe, image)
            np.testing.assert_array_equal(np.reshape(cropped, wanted.shape), wanted, where)
            tensor = preprocessing.normalise(recipe, wanted)
            np.testing.assert_array_equal(np.float32(fed).reshape(tensor.shape), tensor, where)


def test_a_strip_that_vanishes_is_named(tmp_path: Path) -> None:
    """A strip of which fitting leaves no row is refused with a sentence, as Python refuses it."""
    recipe = next(each for each in RESIZES if each.resize_mode == "fit")
    strip = np.zeros((1, 90, 3), np.uint8)
    ((message,),) = page(tmp_path, [recipe], [strip])
    assert "too long a strip" in message
    with pytest.raises(DataError, match="vanishes"):
        preprocessing.resize_and_crop(recipe, strip)
