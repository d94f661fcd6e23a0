"""Measure the Core ML reference evaluator against eager PyTorch on one image.

usage: python -m benchmarking.evaluator_cell TASK ANSWER
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarking.alternatives import choice
from benchmarking.evaluator import EAGER, NAME, PRECISIONS
from benchmarking.processes import reply
from benchmarking.values import Row
from levit_export.checks import reference, timing
from levit_export.core.values import ExportOptions
from levit_export.formats import mil, target
from levit_export.models import loading
from levit_export.models.preparation import prepare

ROUNDS = 30


def main() -> None:
    """Export, load, measure, answer."""
    task, answer = reply(*sys.argv[1:])
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
    rows += [Row(NAME, "coreml", each, seconds=seconds[each]) for each in PRECISIONS]
    answer.write_text(json.dumps([asdict(row) for row in rows]), encoding="utf-8")


if __name__ == "__main__":
    main()
