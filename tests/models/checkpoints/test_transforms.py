"""Recipes beside the libraries' own transforms: each configuration is followed or refused.

``transforms.npz`` holds what timm and both versions of transformers make of five pictures, by
``scripts/record-transforms``, which says how. Where a library is installed, it is asked again.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import numpy as np
import pytest
from PIL import Image
from support import script_module

from levit_export.core.values import Interpolation, Preprocessing, Size
from levit_export.inputs import preprocessing
from levit_export.inputs.images.decoding import decode
from levit_export.models.checkpoints import processors, timm

READ = {"timm": timm.recipe, "transformers": processors.recipe}
ELSEWHERE = [(16, 16), (24, 24), (224, 224)]
"""Sizes that are tried where the library gives no picture."""


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """``scripts/record-transforms`` as a module."""
    return script_module("record-transforms")


@dataclass(frozen=True)
class Recorded:
    """The cells with their answers, the pixels behind them, and the pictures as we decode them."""

    cells: list[dict[str, Any]]
    pool: dict[str, np.ndarray]
    pictures: dict[str, np.ndarray]


@pytest.fixture(scope="module")
def recorded(script: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """What is in ``transforms.npz``."""
    cells, pool = script.read(script.FILE)
    with np.load(script.FILE) as stored:
        names = [name for name in stored.files if name.startswith("picture ")]
        raw = {name.removeprefix("picture "): stored[name] for name in names}
    folder = tmp_path_factory.mktemp("pictures")
    for name, pixels in raw.items():
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return Recorded(cells, pool, {name: decode(folder / f"{name}.png") for name in raw})


def content_of(cell: dict[str, Any]) -> dict[str, Any]:
    """The one configuration file of a cell."""
    (content,) = cell["files"].values()
    return dict(content)


def followed(cell: dict[str, Any], size: Size) -> Preprocessing | None:
    """Our recipe for a network of this size; None where it is refused, by a setting's name."""
    content = content_of(cell)
    try:
        return READ[cell["library"]](content, size).value
    except (ValueError, TypeError, OverflowError) as error:
        message = str(error)
    inner = content.get("pretrained_cfg", {})
    settings = {*content, *inner, *processors.READ, "img_size", "it gives"}
    assert any(setting in message for setting in settings), message
    return None


def levels_apart(
    recipe: Preprocessing,
    answer: dict[str, Any],
    pool: dict[str, np.ndarray],
    pictures: dict[str, np.ndarray],
) -> float:
    """The largest difference over all pictures between our input and theirs, in 8-bit levels."""
    std = np.array(recipe.std)
    worst = 0.0
    for name, digest in answer["pixels"].items():
        ours = preprocessing.apply(recipe, pictures[name])[:, :: answer["step"], :: answer["step"]]
        slope, start = (np.array(answer[key])[:, None, None] for key in ("slope", "start"))
        theirs = pool[digest].transpose(2, 0, 1) * slope + start
        worst = max(worst, float((abs(ours - theirs).max(axis=(1, 2)) * 255 * std).max()))
    return worst


def sizes_of(cell: dict[str, Any]) -> Iterator[tuple[Size, list[dict[str, Any]]]]:
    """Every size of network that some version makes pictures for, with their answers."""
    answers = [each for each in cell["answers"].values() if "error" not in each]
    sizes = {tuple(answer["size"]) for answer in answers} or set(ELSEWHERE)
    for size in sorted(sizes):
        yield size, [answer for answer in answers if tuple(answer["size"]) == size]


@pytest.mark.parametrize("library", ["timm", "transformers"])
def test_each_configuration_is_followed_or_refused(
    recorded: Recorded, library: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """No recipe lies more than one level from any version of the library that it may mean.

    A thousandth more is left for the libraries' float32.
    """
    counts: Counter[str] = Counter()
    wrong = []
    for cell in recorded.cells:
        if cell["library"] != library:
            continue
        recipes_of = {size: followed(cell, size) for size, _ in sizes_of(cell)}
        distances = [
            max(
                (levels_apart(recipe, a, recorded.pool, recorded.pictures) for a in answers),
                default=np.inf,  # followed where the library itself gives up
            )
            for size, answers in sizes_of(cell)
            if (recipe := recipes_of[size]) is not None
        ]
        counts["equal within one level" if distances else "refused"] += 1
        wrong += [(apart, content_of(cell)) for apart in distances if apart > 1.001]
    with capsys.disabled():
        shown = ", ".join(f"{count} {what}" for what, count in sorted(counts.items()))
        sys.stdout.write(f"\n{library}: {shown}\n")
    assert wrong == []
    assert counts["equal within one level"] > 200
    assert counts["refused"] > 10


def test_the_matrix_is_whole(recorded: Recorded) -> None:
    """All crop modes, filters, forms, processors and versions are in it, on five pictures."""
    timms = [content_of(cell) for cell in recorded.cells if cell["library"] == "timm"]
    nested = [content["pretrained_cfg"] for content in timms if "pretrained_cfg" in content]
    flat = [content for content in timms if "pretrained_cfg" not in content]
    for form in (nested, flat):
        assert {"center", "squash", "border"} < {each.get("crop_mode") for each in form}
        kinds = {each.get("interpolation") for each in form}
        assert {*get_args(Interpolation), "random"} < kinds
    named = {
        content_of(cell).get("image_processor_type")
        for cell in recorded.cells
        if cell["library"] == "transformers"
    }
    assert processors.PROCESSORS.keys() < named
    tags = {tag.split(".")[0] + tag[-13:] for cell in recorded.cells for tag in cell["answers"]}
    for version in ("transformers 4", "transformers 5"):
        assert sum(tag.startswith(version) for tag in tags) == 2, tags
    assert set(recorded.pictures) == {"tall", "wide", "tiny", "odd", "16-bit"}


@pytest.mark.parametrize("library", ["timm", "transformers"])
def test_the_library_itself(
    recorded: Recorded, script: ModuleType, library: str, tmp_path: Path
) -> None:
    """The installed version, asked now about every seventh cell, lies within a level too.

    timm needs torchvision, whose operators are built for another torch and disturb transformers:
    where ``TIMM_PACKAGES`` is a folder with both, it is asked in a process of its own.
    """
    packages = os.environ.get("TIMM_PACKAGES")
    if library == "timm" and packages and find_spec(library) is None:
        asked = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n0", __file__]
        paths = os.pathsep.join([packages, os.environ.get("PYTHONPATH", "")])
        done = subprocess.run(
            [*asked, "-k", "test_the_library_itself and timm"],
            env={**os.environ, "PYTHONPATH": paths},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "1 passed" in done.stdout, done.stdout
        return
    if find_spec(library) is None:
        pytest.skip(f"{library} is not installed; its answers are recorded")
    if find_spec("torchvision") is not None:
        script.let_torchvision_import()
    runs_of = {"timm": script.timm_runs, "transformers": script.transformers_runs}[library]
    compared = 0
    for number, cell in enumerate(recorded.cells):
        if cell["library"] != library or number % 7:
            continue
        for name, content in cell["files"].items():
            (tmp_path / name).write_text(json.dumps(content), encoding="utf-8")
        pool: dict[str, np.ndarray] = {}
        for run in runs_of(tmp_path).values():
            answer = script.answer(run, script.pictures(), pool)
            if "error" in answer:
                continue
            recipe = followed(cell, tuple(answer["size"]))
            if recipe is not None:
                apart = levels_apart(recipe, answer, pool, recorded.pictures)
                assert apart <= 1.001, content_of(cell)
                compared += 1
    assert compared > 20
