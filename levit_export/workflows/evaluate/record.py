"""The accuracy of an export, written into its ``report.json``, which no manifest vouches for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from levit_export.checks.results import Accuracy
from levit_export.core import files, serialisation
from levit_export.reports.report import SCHEMA, accuracy_to_json
from levit_export.storage.export_directory import REPORT


def record(folder: Path, found: Mapping[str, Sequence[Accuracy | None]]) -> str:
    """Update the artifacts of ``folder``'s report by their paths; returns why not, or empty.

    The i-th result of a path goes to the i-th entry with that path, for an artifact that was
    executed in several ways has several. The file is replaced in one step.
    """
    path = folder / REPORT
    try:
        content = serialisation.parse(files.read_text(path), SCHEMA)
        _update(content["artifacts"], found)
        files.write(path, serialisation.to_text(content))
    except OSError as error:
        return f"{REPORT} was not updated: {error.strerror or error}"
    except serialisation.OtherSchemaError as error:
        return f"{REPORT} was not updated: it {error}"
    except (ValueError, TypeError, KeyError, AttributeError) as error:
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
