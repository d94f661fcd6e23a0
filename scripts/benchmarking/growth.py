"""How time grows with the number of samples: a check's, and the ``evaluate`` command's.

usage: python -m benchmarking.growth TASK ANSWER     (measures the checks)
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import cattrs
import numpy as np

from benchmarking import artifacts, record
from benchmarking.alternatives import choice, flags
from benchmarking.processes import COMMAND, run_once, serve, worker
from benchmarking.values import GrowthRecord, Point
from levit_export.checks import execution, parity, reference
from levit_export.checks.reference import REFERENCE_BATCH, Reference
from levit_export.checks.tolerance import derive
from levit_export.core import machine
from levit_export.core.values import RunOptions
from levit_export.inputs.samples import Samples
from levit_export.models import loading
from levit_export.storage import export_directory

PIXELS = 224
EVALUATE = "levit-export evaluate, {}"
WORKERS = "{} worker process"
NOTE = (
    "check: samples of noise through ONNX Runtime and OpenVINO, compared with answers that are "
    "there; reference: those answers by PyTorch; evaluate: the whole command on two formats and "
    "the reference, start-up included"
)


def run(model: str, folder: Path, counts: Sequence[int]) -> GrowthRecord:
    """Checks in a process of its own; then the command, with one worker and with all cores."""
    folder.mkdir(parents=True, exist_ok=True)
    exported = folder / "exported"
    made = [COMMAND, "export", *flags(model), "--format", "onnx,openvino", "--no-bench"]
    if run_once([*made, "-o", str(exported)]).status:
        raise RuntimeError(f"{model} could not be exported")
    task = {"model": model, "exported": str(exported), "counts": list(counts)}
    points = cattrs.structure(worker("growth", task), list[Point])
    points += _evaluate(model, exported, folder / "images.npz", counts)
    return GrowthRecord(record.circumstances({}, (NOTE,)), model, tuple(points))


def _evaluate(model: str, exported: Path, data: Path, counts: Sequence[int]) -> list[Point]:
    np.savez(data, images=artifacts.structured(max(counts), PIXELS))
    command = [COMMAND, "evaluate", str(exported), *flags(model), "--data", str(data)]
    points = []
    for count in counts:
        for workers in dict.fromkeys((1, machine.usable_cores())):
            done = run_once([*command, "--limit", str(count), "--workers", str(workers)])
            name = EVALUATE.format(WORKERS.format(workers) + "es" * (workers > 1))
            if done.status:
                print(f"{name}, {count} images: exit status {done.status}", file=sys.stderr)
            else:
                points.append(Point(name, count, done.wall_s))
    return points


def main(task: Mapping[str, Any]) -> list[Point]:
    """For each count: the reference's answers, then a check of each artifact against them."""
    folder = Path(task["exported"])
    found = export_directory.artifacts(folder, export_directory.read_manifest(folder))
    points = []
    for count in task["counts"]:
        expected, seconds = _reference(task["model"], count)
        points.append(Point("reference", count, seconds))
        for artifact in found:
            row = execution.Row(artifact, RunOptions(threads=machine.usable_cores()))
            start = perf_counter()
            report = execution.check(row, expected).parity
            points.append(Point(f"check {artifact.format}", count, perf_counter() - start))
            if report.verdict != "pass":
                print(f"{artifact.id}: {report.verdict}: {report.reason}", file=sys.stderr)
    return points


def _reference(model: str, count: int) -> tuple[Reference, float]:
    """What a check is held against for ``count`` samples, and seconds of its answers."""
    checkpoint = loading.load(choice(model))
    session = reference.eager_session(checkpoint, threads=machine.usable_cores())
    noise = np.random.default_rng(0).standard_normal(
        (count, 3, *checkpoint.config.image_size), np.float32
    )
    names = tuple(f"normal-{index}" for index in range(count))
    inputs = Samples(names, noise, np.full(count, -1), {})
    parity.collect(session, inputs.first(REFERENCE_BATCH), batch=REFERENCE_BATCH)
    start = perf_counter()
    outputs = parity.collect(session, inputs, batch=REFERENCE_BATCH)
    seconds = perf_counter() - start
    few = inputs.first(REFERENCE_BATCH)
    exact = parity.collect(reference.eager_session(checkpoint, arithmetic="fp64"), few)
    bounds = {
        name: derive(outputs[name][: len(few)], values, precision="fp32")
        for name, values in exact.items()
    }
    widest = {name: replace(bound, rtol=(max(bound.rtol),)) for name, bound in bounds.items()}
    return Reference(session.signature, inputs, outputs, {"fp32": widest}), seconds


def per_sample(points: Sequence[Point], name: str) -> float | None:
    """Seconds a sample costs beyond what a run costs anyway: the slope of the last two counts."""
    found = sorted((p for p in points if p.name == name), key=lambda p: p.samples)
    if len(found) < 2:
        return None
    first, last = found[-2:]
    return (last.seconds - first.seconds) / (last.samples - first.samples)


if __name__ == "__main__":
    serve(main)
