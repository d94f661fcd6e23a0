"""The Core ML reference evaluator beside eager PyTorch."""

from __future__ import annotations

from pathlib import Path

import cattrs

from benchmarking import record
from benchmarking.processes import worker
from benchmarking.values import EvaluatorRecord, Row

NAME = "reference evaluator"
EAGER = "PyTorch, unfused"
PRECISIONS = ("fp32", "fp16")


def run(model: str, folder: Path, *, threads: int) -> EvaluatorRecord:
    """One process that runs both in turn."""
    task = {"model": model, "folder": str(folder), "threads": threads}
    rows = cattrs.structure(worker("evaluator_cell", task), tuple[Row, ...])
    return EvaluatorRecord(record.circumstances({}), model, threads, rows)
