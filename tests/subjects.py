"""Models and artifacts that several test files share, each made once in a test process."""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np

from levit_export.checks import execution, reference
from levit_export.checks.parity import ParityReport
from levit_export.checks.reference import Reference
from levit_export.core.precisions import CALIBRATED
from levit_export.core.values import (
    Artifact,
    Calibration,
    ExportOptions,
    Layout,
    Prepared,
    RunOptions,
)
from levit_export.formats import target
from levit_export.models import checkpoints
from levit_export.models.checkpoints import Checkpoint
from levit_export.models.preparation import prepare
from levit_export.models.zoo import (
    Config,
    GraftedConfig,
    LevitConfig,
    Variant,
    VitPytorchConfig,
    variant,
)

TINY: Variant = replace(
    variant("levit_digits"),
    name="levit_tiny",
    config=LevitConfig((32, 48), 16, (2, 3), (1, 1), image_size=(64, 64), classes=10),
)
"""A small model for what needs many exports."""

SIZE = {"image_size": (64, 96), "classes": 5}
CONFIGS: dict[str, Config] = {
    "levit": LevitConfig((32, 48), 16, (2, 3), (1, 1), **SIZE),  # type: ignore[arg-type]
    "one head, SiLU": LevitConfig(
        (32, 48),
        16,
        (2, 3),
        (1, 1),
        two_heads=False,
        activation="silu",
        **SIZE,  # type: ignore[arg-type]
    ),
    "gelu, stride 8": LevitConfig(
        (32, 48),
        16,
        (2, 3),
        (1, 1),
        activation="gelu",
        stem_stride=8,
        **SIZE,  # type: ignore[arg-type]
    ),
    "vit-pytorch": VitPytorchConfig(
        (32, 48),
        (2, 2),
        (1, 1),
        16,
        16,
        distill_classes=4,
        **SIZE,  # type: ignore[arg-type]
    ),
    "resnet": GraftedConfig(4, 0, dim=32, heads=2, image_size=(64, 64), classes=5),
    "deit": GraftedConfig(0, 2, dim=32, heads=2, image_size=(64, 64), classes=5),
    "grafted": GraftedConfig(2, 1, dim=32, heads=2, image_size=(64, 64), classes=5),
}
"""A small network of each architecture, with what sets it apart."""


@cache
def small(name: str) -> Checkpoint:
    """Seeded weights of one of ``CONFIGS``."""
    return checkpoints.randomised(replace(variant("levit_digits"), config=CONFIGS[name]), 0)


@cache
def folder() -> Path:
    """Where the shared artifacts are; gone when the process ends."""
    made = Path(tempfile.mkdtemp(prefix="levit-export-tests-"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made


def digits(batch: int | None = 1, layout: Layout = "tokens") -> Prepared:
    """The bundled model, prepared."""
    return _digits(batch, layout)


@cache
def _digits(batch: int | None, layout: Layout) -> Prepared:
    return prepare(checkpoints.bundled(), batch=batch, layout=layout)


def tiny(layout: Layout = "tokens") -> Prepared:
    """The small model with seeded weights, prepared."""
    return _tiny(layout)


@cache
def _tiny(layout: Layout) -> Prepared:
    return prepare(tiny_checkpoint(), layout=layout)


@cache
def tiny_checkpoint() -> Checkpoint:
    """The weights of the small model."""
    return checkpoints.randomised(TINY, 0)


def held_against(checkpoint: Checkpoint, model: Prepared) -> Reference:
    """The reference as the pipeline makes it, without the images for accuracy."""
    made = reference.make(
        checkpoint, model.info, ["fp32", "fp16"], fingerprints=model.fingerprints
    )
    return replace(made, images=None, predictions=None)


@cache
def digits_reference() -> Reference:
    """What artifacts of the bundled model are held against."""
    return held_against(checkpoints.bundled(), digits())


@cache
def tiny_reference() -> Reference:
    """What artifacts of the small model are held against."""
    return held_against(tiny_checkpoint(), tiny())


def export(model: Prepared, path: Path, kind: str, options: ExportOptions) -> Artifact:
    """``model`` as ``kind`` below ``path``, a folder that is made."""
    path.mkdir(parents=True)
    return target(kind).export(model, path / f"m{target(kind).suffix}", options)


def layout_of(kind: str) -> Layout:
    """The layout in which a shared file is written; Core AI is slow in tokens on Linux."""
    return "maps" if kind == "coreai" else "tokens"


def artifact(kind: str, precision: str, batch: int | None = 1) -> Artifact:
    """The bundled model as a file; do not change it."""
    return _artifact(kind, precision, batch)


@cache
def _artifact(kind: str, precision: str, batch: int | None) -> Artifact:
    options = ExportOptions(precision=precision, batch=batch)
    place = folder() / f"{kind}-{precision}-{batch}"
    return export(digits(batch, layout_of(kind)), place, kind, options)


@cache
def classifier() -> Artifact:
    """The bundled model as a Core ML classifier; do not change it."""
    options = ExportOptions(precision="fp16", classifier=True)
    return export(digits(), folder() / "classifier", "coreml", options)


def judge(found: Artifact, expected: Reference) -> ParityReport:
    """The verdict on a file."""
    (row,) = execution.rows([found], RunOptions())
    return execution.check(row, expected).parity


def copy(found: Artifact, place: Path) -> Artifact:
    """The files of an artifact copied into the folder ``place``, to be changed there."""
    if found.path.is_dir():
        shutil.copytree(found.path, place / found.path.name)
    else:
        for file in found.files:
            shutil.copy(file, place)
    return replace(found, path=place / found.path.name)


def contents(found: Artifact) -> dict[str, bytes]:
    """Every file of an artifact by its path beside the artifact."""
    parent = found.path.parent
    return {file.relative_to(parent).as_posix(): file.read_bytes() for file in found.files}


# --- the small model in every precision -------------------------------------------------------

IMAGES = np.random.default_rng(1).standard_normal((6, 3, 64, 64)).astype(np.float32)
"""Inputs of the small model, which files are calibrated on."""


def options_for(precision: str, **more: object) -> ExportOptions:
    """Options of an export, with images where the precision needs them; nothing is simplified."""
    images = Calibration(IMAGES, "noise") if precision in CALIBRATED else None
    made = ExportOptions(precision=precision, calibration=images, simplify=False)
    return replace(made, **more)  # type: ignore[arg-type]


def small_file(place: Path, kind: str, precision: str, *keep: str, **more: object) -> Artifact:
    """The small model as a file below ``place``."""
    folder = place / "-".join((kind, precision, *keep, *map(str, more.values())))
    options = options_for(precision, keep=keep, **more)
    return export(tiny(layout_of(kind)), folder, kind, options)


@cache
def tiny_artifact(kind: str, precision: str, *keep: str, **more: object) -> Artifact:
    """The small model as a file; do not change it."""
    return small_file(folder(), kind, precision, *keep, **more)


SMALL = tuple(
    (kind, precision, *keep)
    for kind in ("onnx", "openvino", "coreml", "coreai")
    for precision in target(kind).precisions
    for keep in ((), ("shrink1.attention",))
    if not keep or precision == "fp16"
)
"""Format, precision and what is kept, of small files that another process writes as well."""

_ELSEWHERE = """
import sys
from pathlib import Path

import subjects
from levit_export.formats import target

for each in subjects.SMALL:
    if target(each[0]).can_export().ok:
        subjects.small_file(Path(sys.argv[1]), *each)
"""


@cache
def elsewhere() -> tuple[Path, str]:
    """Where a process with another hash seed wrote ``SMALL``, and what it printed.

    It was started in the folder ``empty`` there.
    """
    place = folder() / "elsewhere"
    (place / "empty").mkdir(parents=True)
    done = subprocess.run(
        [sys.executable, "-c", _ELSEWHERE, str(place)],
        cwd=place / "empty",
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": "7"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stdout)
    return place, done.stdout


SWOLLEN = "stage2.block0.mlp"
MLP_OF_SWOLLEN = "blocks.5.m"


def swollen(factor: float) -> Checkpoint:
    """The small model with one MLP whose inner values are ``factor`` times as large.

    Its second layer divides by the factor again, but Hardswish between them is linear only for
    large values, so the answers differ; what matters is the range.
    """
    known = tiny_checkpoint()
    tensors = dict(known.tensors)
    for leaf in ("weight", "bias"):
        tensors[f"{MLP_OF_SWOLLEN}.0.bn.{leaf}"] = (
            tensors[f"{MLP_OF_SWOLLEN}.0.bn.{leaf}"] * factor
        )
    tensors[f"{MLP_OF_SWOLLEN}.2.c.weight"] = tensors[f"{MLP_OF_SWOLLEN}.2.c.weight"] / factor
    return replace(known, tensors=tensors)
