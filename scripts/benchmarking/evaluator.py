"""The Core ML reference evaluator beside eager PyTorch.

usage: python -m benchmarking.evaluator TASK ANSWER     (measures both on one image, in turn)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import cattrs
import numpy as np

from benchmarking import record
from benchmarking.alternatives import choice
from benchmarking.processes import serve, worker
from benchmarking.values import EvaluatorRecord, Row
from levit_export.checks import reference, timing
from levit_export.core.values import ExportOptions
from levit_export.formats import mil, target
from levit_export.models import loading

NAME = "reference evaluator"
EAGER = "PyTorch, unfused"
PRECISIONS = ("fp32", "fp16")
ROUNDS = 30


def run(model: str, folder: Path, *, threads: int) -> EvaluatorRecord:
    """One process that runs both in turn."""
    task = {"model": model, "folder": str(folder), "threads": threads}
    rows = cattrs.structure(worker("evaluator", task), tuple[Row, ...])
    return EvaluatorRecord(record.circumstances({}), model, threads, rows)


def main(task: Mapping[str, Any]) -> list[Row]:
    """In a worker: export, load, measure."""
    import torch

    from levit_export.models.preparation import prepare

    torch.set_num_threads(task["threads"])
    checkpoint = loading.load(choice(task["model"]))
    prepared, kind = prepare(checkpoint), target("coreml")
    image = np.random.default_rng(0).standard_normal(
        (1, 3, *checkpoint.config.image_size), np.float32
    )
    eager = reference.eager_session(checkpoint)
    inputs = {"input": image}
    calls: dict[str, Callable[[], object]] = {EAGER: partial(eager.run, inputs)}
    for precision in PRECISIONS:
        path = Path(task["folder"], f"{precision}.mlpackage")
        kind.export(prepared, path, ExportOptions(precision=precision))
        calls[precision] = partial(mil.load(path).run, inputs)
    seconds = timing.measure(calls, timing.TimingPlan(iterations=ROUNDS, budget_s=20))
    rows = [Row(EAGER, seconds=seconds[EAGER])]
    return rows + [Row(NAME, "coreml", each, seconds=seconds[each]) for each in PRECISIONS]


if __name__ == "__main__":
    serve(main)
