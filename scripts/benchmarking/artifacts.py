"""The files that are timed: our exports, as the command makes them, and the alternatives' own.

Everything is exported once a run, into one folder, before anything is timed.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarking import alternatives
from benchmarking.alternatives import Alternatives, choice, flags
from benchmarking.processes import COMMAND, environment, run_once
from benchmarking.values import OPTIMUM, OURS
from levit_export.core import machine
from levit_export.inputs import preprocessing
from levit_export.models import loading
from levit_export.models.zoo import Config

FORMATS = ("onnx", "openvino")
SUFFIX = {"onnx": ".onnx", "openvino": ".xml"}
THEIRS = {"onnx": "model.onnx", "openvino": "openvino_model.xml"}
THEIRS_INT8 = {"onnx": "model_quantized.onnx", "openvino": "openvino_model.xml"}
PRECISIONS = ("fp32", "int8")
CALIBRATION_IMAGES = 32
COARSE = 8
RECTANGLES = 6

NEED = {"fuse_batchnorm": ("merge_heads",)}
"""Passes that refuse to work when another was left out."""

Kind = tuple[str, str]
"""Format and precision."""

ALL: tuple[Kind, ...] = tuple((form, precision) for form in FORMATS for precision in PRECISIONS)
FLOAT: tuple[Kind, ...] = tuple((form, "fp32") for form in FORMATS)


@dataclass(frozen=True)
class File:
    """A file to be timed at ``batch``, 0 for any; ``reason`` says why there is none."""

    name: str
    format: str
    precision: str
    batch: int
    path: Path
    reason: str = ""


@dataclass(frozen=True)
class Export:
    """One run of our command: what is asked of it, and what its rows are called."""

    name: str
    batch: int
    kinds: tuple[Kind, ...]
    flags: tuple[str, ...] = ()


def plan(config: Config, batches: Iterable[int], *, layouts: bool, ablate: bool) -> list[Export]:
    """Ours; ours in the other layout; and, at batch 1, ours with passes left out."""
    exports = []
    for batch in batches:
        exports.append(Export(OURS, batch, ALL))
        exports += [
            Export(f"{OURS}, {layout}", batch, kinds, ("--layout", layout))
            for layout, kinds in _other_layouts(config).items()
            if layouts
        ]
    if ablate:
        names = _passes()
        left_out = [*((name, *NEED.get(name, ())) for name in names), names]
        exports += [
            Export(
                f"{OURS}, no {'passes' if skipped == names else ' and '.join(skipped)}",
                1,
                FLOAT,
                tuple(part for name in skipped for part in ("--skip-pass", name)),
            )
            for skipped in left_out
        ]
    return exports


def _passes() -> tuple[str, ...]:
    from levit_export.models.passes import PASSES

    return tuple(each.name for each in PASSES)


def _other_layouts(config: Config) -> dict[str, tuple[Kind, ...]]:
    """What ``--layout auto`` did not take, for each format and precision."""
    from levit_export.models import preparation

    found: dict[str, tuple[Kind, ...]] = {}
    for kind in ALL:
        taken = preparation.layout_of("auto", *kind, config, ())
        for layout in {"tokens", "maps"} - {taken}:
            found[layout] = (*found.get(layout, ()), kind)
    return found


def calibrate(model: str, folder: Path, count: int = CALIBRATION_IMAGES) -> list[str]:
    """Write calibration images for both sides into ``folder``; the flags that name ours.

    The bundled model has its own; the others have seeded weights and get structured images.
    """
    checkpoint = loading.load(choice(model))
    recipe = checkpoint.preprocessing
    own = loading.calibration(checkpoint, None, count=count)
    if own is not None:
        np.savez(folder / "calibration.npz", inputs=own.inputs)
        return ["--num-samples", str(count)]
    pixels = structured(count, recipe.crop[0])
    np.savez(folder / "images.npz", images=pixels)
    inputs = np.stack([preprocessing.apply(recipe, image) for image in pixels])
    np.savez(folder / "calibration.npz", inputs=inputs)
    return ["--data", str(folder / "images.npz"), "--num-samples", str(count)]


def structured(count: int, side: int) -> np.ndarray:
    """Seeded images for timing where there are no photographs: smooth colour fields with
    sharp rectangles, uint8 ``(count, side, side, 3)``.
    """
    generator = np.random.default_rng(0)
    return np.stack([_image(generator, side) for _ in range(count)])


def _image(generator: np.random.Generator, side: int) -> np.ndarray:
    coarse = generator.integers(0, 256, (COARSE, COARSE, 3), dtype=np.uint8)
    field = Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)
    image = np.array(field)
    for _ in range(RECTANGLES):
        (top, bottom), (left, right) = np.sort(generator.integers(0, side, (2, 2)), axis=1)
        image[top:bottom, left:right] = generator.integers(0, 256, 3, dtype=np.uint8)
    return image


def prepare(
    model: str,
    folder: Path,
    exports: Sequence[Export],
    others: Alternatives,
    *,
    quantise_others: bool,
) -> list[File]:
    """Make everything that is to be timed of ``model``, as many at a time as there are cores.

    What optimum exported for the section of whole commands is taken from ``folder``.
    """
    alternatives.write_checkpoint(model, folder / "checkpoint")
    calibration = calibrate(model, folder)
    with ThreadPoolExecutor(machine.usable_cores()) as pool:
        theirs = [pool.submit(_theirs, form, folder, others, quantise_others) for form in FORMATS]
        ours = [
            pool.submit(export, folder / f"ours-{i}", each, model, calibration)
            for i, each in enumerate(exports)
        ]
        return [file for made in (*ours, *theirs) for file in made.result()]


def export(output: Path, asked: Export, model: str, calibration: Sequence[str]) -> list[File]:
    """Run our command; what it wrote into ``output``, or why it did not."""
    wanted = ",".join(f"{form}={precision}" for form, precision in asked.kinds)
    forms = ",".join(dict.fromkeys(form for form, _ in asked.kinds))
    quantised = any(precision == "int8" for _, precision in asked.kinds)
    command = [
        *(COMMAND, "export", *flags(model), "--format", forms),
        *("--precision", wanted, "--batch", str(asked.batch), "--output", str(output)),
        *("--no-check", "--no-bench", "--quiet", *asked.flags),
        *(calibration if quantised else ()),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment())
    reason = _reason(done.stderr.replace(f"{output.parent}/", "")) if done.returncode else ""
    return [
        File(
            asked.name,
            form,
            precision,
            asked.batch,
            next((output / f"{form}-{precision}").glob(f"*{SUFFIX[form]}"), output),
            reason,
        )
        for form, precision in asked.kinds
    ]


def _reason(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return lines[0] if lines else "it ended without a word"


def _theirs(form: str, folder: Path, others: Alternatives, quantise: bool) -> list[File]:  # noqa: FBT001 - one caller
    exported = folder / f"optimum-{form}"
    reason = others.reason
    if not reason and not exported.is_dir():
        command = others.export(form, folder / "checkpoint", exported)
        status = run_once(command).status
        reason = f"optimum-cli ended with status {status}" if status else ""
    files = [File(OPTIMUM[form], form, "fp32", 0, exported / THEIRS[form], reason)]
    if quantise:
        output = folder / f"optimum-{form}-int8"
        failed = reason or others.quantise(form, exported, output, folder / "calibration.npz")
        files.append(File(OPTIMUM[form], form, "int8", 0, output / THEIRS_INT8[form], failed))
    return files


def at(files: Iterable[File], batch: int) -> list[Mapping[str, str]]:
    """The rows of a cell that are files, as its process takes them."""
    return [
        {
            "name": file.name,
            "format": file.format,
            "precision": file.precision,
            "path": str(file.path),
            "reason": file.reason,
        }
        for file in files
        if file.batch in (0, batch)
    ]
