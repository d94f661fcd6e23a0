"""Seconds of checks over growing numbers of samples.

usage: python -m benchmarking.samples_growth TASK ANSWER
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from time import perf_counter

import numpy as np

from benchmarking.alternatives import choice
from benchmarking.processes import reply
from benchmarking.values import Point
from levit_export.checks import execution, parity, reference
from levit_export.checks.reference import REFERENCE_BATCH, Reference
from levit_export.checks.tolerance import derive
from levit_export.core import machine
from levit_export.core.values import RunOptions
from levit_export.inputs.samples import Samples
from levit_export.models import loading
from levit_export.storage import export_directory


def main() -> None:
    """For each count: the reference's answers, then a check of each artifact against them."""
    task, answer = reply(*sys.argv[1:])
    folder = Path(task["exported"])
    artifacts = export_directory.artifacts(folder, export_directory.read_manifest(folder))
    points = []
    for count in task["counts"]:
        expected, seconds = _reference(task["model"], count)
        points.append(Point("reference", count, seconds))
        for artifact in artifacts:
            row = execution.Row(artifact, RunOptions(threads=machine.usable_cores()))
            start = perf_counter()
            report = execution.check(row, expected).parity
            points.append(Point(f"check {artifact.format}", count, perf_counter() - start))
            if report.verdict != "pass":
                print(f"{artifact.id}: {report.verdict}: {report.reason}", file=sys.stderr)
    answer.write_text(json.dumps([asdict(point) for point in points]), encoding="utf-8")


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


if __name__ == "__main__":
    main()
