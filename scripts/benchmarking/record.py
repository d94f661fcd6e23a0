"""Records on disk: ``models/<model>/results/<section>.json``, raw samples included."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import cattrs

from benchmarking.values import SECTIONS, Circumstances, Record
from levit_export.core import machine
from levit_export.core.packages import versions

RESULTS = "results"
DIGITS = 6
"""Significant digits that are kept of a measured number."""

PACKAGES = (
    "levit-export",
    "torch",
    "numpy",
    "onnx",
    "onnxruntime",
    "openvino",
    "nncf",
    "coremltools",
)


def circumstances(alternatives: dict[str, str], notes: Sequence[str] = ()) -> Circumstances:
    """Here and now."""
    return Circumstances(
        date=datetime.now(timezone.utc).date().isoformat(),
        machine=machine.describe(),
        packages=dict(versions(PACKAGES)),
        alternatives=alternatives,
        notes=tuple(notes),
    )


def section_of(record: Record) -> str:
    """What the file of such a record is called."""
    return next(name for name, kind in SECTIONS.items() if isinstance(record, kind))


def to_json(record: Record) -> str:
    """The record with every list of numbers on one line."""
    text = json.dumps(_rounded(asdict(record)), indent=1, allow_nan=False, ensure_ascii=False)
    return re.sub(r"\[\s*([-+\d.e,\s]+?)\s*\]", _on_one_line, text) + "\n"


def _on_one_line(found: re.Match[str]) -> str:
    return f"[{', '.join(found[1].replace(',', ' ').split())}]"


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(each) for each in value]
    return value


def from_json(section: str, text: str) -> Record:
    """The record of a section. Raises when the text is none."""
    record: Record = cattrs.structure(json.loads(text), SECTIONS[section])
    return record


def write(models: Path, record: Record) -> Path:
    """Keep a record with its model; an earlier one of the same section is replaced."""
    path = models / record.model / RESULTS / f"{section_of(record)}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(to_json(record), encoding="utf-8")
    return path


def read(folder: Path) -> dict[str, Record]:
    """The records in a model's folder, by section."""
    found = {}
    for section in SECTIONS:
        path = folder / RESULTS / f"{section}.json"
        if path.is_file():
            found[section] = from_json(section, path.read_text(encoding="utf-8"))
    return found
