"""What a sweep found out, as values and as JSON (schema 1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from levit_export.core.machine import Machine
from levit_export.core.values import Verdict
from levit_export.workflows.sweep.cell import Cell, Result

SCHEMA = 1


@dataclass(frozen=True)
class Row:
    """A cell and its result. ``path`` is the artifact's below the sweep's folder.

    ``fresh`` says that it was done by this run and not by an earlier one.
    """

    cell: Cell
    result: Result
    path: str
    fresh: bool

    @property
    def bytes(self) -> int | None:
        """Size of the artifact."""
        return None if self.result.artifact is None else int(self.result.artifact["bytes"])

    @property
    def parity(self) -> Mapping[str, Any] | None:
        """The parity section of a report."""
        return None if self.result.artifact is None else self.result.artifact["parity"]

    @property
    def accuracy(self) -> Mapping[str, Any] | None:
        """The accuracy section, None where there were no images."""
        return None if self.result.artifact is None else self.result.artifact["accuracy"]

    @property
    def timing(self) -> Mapping[str, Any] | None:
        """The timing section, None where latency was not asked for or could not be measured."""
        if self.result.artifact is None or not self.cell.timed:
            return None
        timing = self.result.artifact["timing"]
        return timing if timing and timing["verdict"] == "pass" else None


@dataclass(frozen=True)
class SweepReport:
    """All rows in the order of the file; ``notes`` say what was left out and why."""

    file: str
    output: Path
    verdict: Verdict
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    machine: Machine
    toolchain: Mapping[str, str]


def to_json(report: SweepReport) -> dict[str, Any]:
    """The report as plain data."""
    return {
        "schema": SCHEMA,
        "file": report.file,
        "verdict": report.verdict,
        "rows": [_row(row) for row in report.rows],
        "notes": list(report.notes),
        "machine": asdict(report.machine),
        "toolchain": dict(report.toolchain),
    }


def _row(row: Row) -> dict[str, Any]:
    artifact = row.result.artifact or {}
    return {
        "model": row.cell.label,
        "format": row.cell.format,
        "precision": row.cell.precision,
        "key": row.cell.key,
        "verdict": row.result.verdict,
        "reason": row.result.reason,
        "path": row.path,
        "bytes": row.bytes,
        "sha256": artifact.get("sha256"),
        "notes": artifact.get("notes", []),
        "parity": row.parity,
        "accuracy": row.accuracy,
        "timing": row.timing,
        "checkpoint": None if row.result.model is None else row.result.model["checkpoint"],
        "parameters": None if row.result.model is None else row.result.model["parameters"],
        "fresh": row.fresh,
    }
