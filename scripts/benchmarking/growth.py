"""How time grows with the number of samples: a check's, and the ``evaluate`` command's."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import cattrs
import numpy as np

from benchmarking import images, record
from benchmarking.alternatives import flags
from benchmarking.processes import COMMAND, run_once, worker
from benchmarking.values import GrowthRecord, Point
from levit_export.core import machine

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
    points = cattrs.structure(worker("samples_growth", task), list[Point])
    points += _evaluate(model, exported, folder / "images.npz", counts)
    return GrowthRecord(record.circumstances({}, (NOTE,)), model, tuple(points))


def _evaluate(model: str, exported: Path, data: Path, counts: Sequence[int]) -> list[Point]:
    np.savez(data, images=images.structured(max(counts), PIXELS))
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


def per_sample(points: Sequence[Point], name: str) -> float | None:
    """Seconds a sample costs beyond what a run costs anyway: the slope of the last two counts."""
    found = sorted((p for p in points if p.name == name), key=lambda p: p.samples)
    if len(found) < 2:
        return None
    first, last = found[-2:]
    return (last.seconds - first.seconds) / (last.samples - first.samples)
