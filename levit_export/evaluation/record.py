"""The accuracy of an export, written into its ``report.json``, which no manifest vouches for."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from levit_export.bundle import REPORT
from levit_export.report import SCHEMA, Accuracy, accuracy_to_json


def record(folder: Path, found: Mapping[str, Sequence[Accuracy | None]]) -> str:
    """Update the artifacts of ``folder``'s report by their paths; returns why not, or empty.

    The i-th result of a path goes to the i-th entry with that path, for an artifact that was
    executed in several ways has several. The file is replaced in one step.
    """
    path = folder / REPORT
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["schema"] != SCHEMA:
            return f"{REPORT} was not updated: it has schema {content['schema']!r}"
        _update(content["artifacts"], found)
        _replace(path, json.dumps(content, indent=1, allow_nan=False) + "\n")
    except OSError as error:
        return f"{REPORT} was not updated: {error.strerror or error}"
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError) as error:
        return f"{REPORT} was not updated: it is none of ours ({type(error).__name__}: {error})"
    return ""


def _update(
    artifacts: list[dict[str, Any]], found: Mapping[str, Sequence[Accuracy | None]]
) -> None:
    left = {path: list(results) for path, results in found.items()}
    for artifact in artifacts:
        results = left.get(artifact["path"])
        accuracy = results.pop(0) if results else None
        if accuracy is not None:
            artifact["accuracy"] = accuracy_to_json(accuracy)


def _replace(path: Path, text: str) -> None:
    mode = path.stat().st_mode & 0o777
    number, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(number, "w", encoding="utf-8") as file:
            file.write(text)
        Path(name).chmod(mode)
        Path(name).replace(path)
    finally:
        with suppress(FileNotFoundError):
            Path(name).unlink()
