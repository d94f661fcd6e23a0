"""Latency and throughput of artifacts, beside PyTorch and beside what others export."""

from __future__ import annotations

import sys
from pathlib import Path
from time import perf_counter

import cattrs

from benchmarking import artifacts, record
from benchmarking.alternatives import CACHE, HEADS, Alternatives, choice
from benchmarking.processes import WorkerError, worker
from benchmarking.values import COMPILED, EAGER, Cell, LatencyRecord
from levit_export.core import machine
from levit_export.models import loading

ABLATED = ("levit_digits", "levit_128s", "levit_256")
"""Models that are also exported with passes left out."""

RANDOM = (
    "weights are random (seed 0); int8 is calibrated on 32 synthetic images, which is right for "
    "timing and says nothing about accuracy"
)
BUNDLED = "the bundled model's weights, int8 calibrated on 32 of its own images"


def all_threads() -> tuple[int, ...]:
    """One thread, and all."""
    return tuple(dict.fromkeys((1, machine.usable_cores())))


def run(
    model: str, folder: Path, others: Alternatives, *, quick: bool, seconds: float
) -> LatencyRecord:
    """Export what is to be timed, then measure cell by cell, each in a process of its own.

    A ``quick`` run has one image at a time, and leaves out the dearer rows.
    """
    batches = (1,) if quick else (1, 16)
    checkpoint = loading.load(choice(model))
    info = checkpoint.describe()
    start = perf_counter()
    exports = artifacts.plan(
        checkpoint.config,
        batches,
        layouts=not quick,
        ablate=not quick and model in ABLATED,
    )
    files = artifacts.prepare(model, folder, exports, others, quantise_others=not quick)
    _say(f"{model}: {len(files)} files exported in {perf_counter() - start:.0f} s")
    cells = []
    for batch in batches:
        for threads in all_threads():
            start = perf_counter()
            task = {
                "batch": batch,
                "threads": threads,
                "side": checkpoint.config.image_size[0],
                "seconds": seconds,
                "rows": [*_pytorch(quick=quick), *artifacts.at(files, batch)],
            }
            cells.append(measure(model, task))
            took = perf_counter() - start
            _say(f"{model}: batch {batch}, {threads} threads measured in {took:.0f} s")
    notes = (BUNDLED if model == "levit_digits" else RANDOM, HEADS)
    return LatencyRecord(
        circumstances=record.circumstances(others.versions, notes),
        model=model,
        macs=info.macs,
        parameters=info.parameters,
        cells=tuple(cells),
    )


def measure(model: str, task: dict[str, object]) -> Cell:
    """One cell, in a process of its own."""
    more = {"TORCHINDUCTOR_CACHE_DIR": str(CACHE / "inductor")}
    try:
        cell: Cell = cattrs.structure(worker("cell", {"model": model, **task}, more=more), Cell)
    except WorkerError as error:
        where = f"batch {task['batch']} on {task['threads']} threads"
        raise WorkerError(f"{model}, {where}: {error}") from error
    return cell


def _pytorch(*, quick: bool) -> list[dict[str, str]]:
    left_out = "left out of a quick run: compiling takes long" if quick else ""
    return [
        {"name": name, "format": "", "precision": "fp32", "path": "", "reason": reason}
        for name, reason in ((EAGER, ""), (COMPILED, left_out))
    ]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
