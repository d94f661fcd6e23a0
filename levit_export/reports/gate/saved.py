"""A report read back from the JSON that an earlier run wrote (``report.to_json``)."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from levit_export.checks.findings import Finding
from levit_export.checks.results import ArtifactReport
from levit_export.checks.timing import TimingReport
from levit_export.core import files
from levit_export.core.errors import DataError
from levit_export.reports.report import SCHEMA, Report


def read_report(path: Path) -> Report:
    """The report in the file ``path``; numbers that JSON could not hold come back as NaN.

    Raises ``DataError`` when it cannot be read, is of another schema or contradicts itself.
    """
    try:
        content = json.loads(files.read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"{path} cannot be read as a report: {error}",
            remedy="Give the report.json of an export, or what --json wrote.",
        ) from error
    schema = content.get("schema") if isinstance(content, dict) else None
    if schema != SCHEMA or isinstance(schema, bool):
        raise DataError(
            f"{path} is a report of schema {schema!r}, this version reads {SCHEMA}",
            remedy="Make it anew with this version: levit-export export, or check --json.",
        )
    try:
        found = _structure(content)
        verdicts = [artifact["parity"]["verdict"] for artifact in content["artifacts"]]
    except Exception as error:
        import cattrs

        detail = "; ".join(cattrs.transform_error(error)[:3])
        raise DataError(
            f"{path} does not follow schema {SCHEMA} of reports: {detail}",
            remedy="Make it anew; the file was edited or damaged.",
        ) from error
    for problem in _inconsistencies(found, verdicts):
        raise DataError(f"{path} {problem}", remedy="Make it anew; the file was edited.")
    return found


def _structure(content: Mapping[str, Any]) -> Report:
    import cattrs

    converter = cattrs.Converter()
    converter.register_structure_hook(float | str, _number_or_text)
    converter.register_structure_hook(float, _number)
    converter.register_structure_hook(TimingReport, _timing)
    converter.register_structure_hook(Finding, _finding)
    return converter.structure(content, Report)


def _number(value: Any, _: Any) -> float:
    return math.nan if value is None else float(value)


def _number_or_text(value: Any, _: Any) -> float | str:
    return value if isinstance(value, str) else _number(value, float)


def _finding(value: Any, _: Any) -> Finding:
    """From kind and values; its part, verdict and sentence follow from the kind."""
    found = Finding(
        value["kind"],
        {name: _number_or_text(held, float) for name, held in value["values"].items()},
        str(value["output"]),
    )
    found.sentence  # noqa: B018 -- an unknown kind or a missing value is damage, found here
    return found


def _timing(value: Any, _: Any) -> TimingReport:
    """From the raw seconds; the statistics beside them are computed again."""
    peak, efficiency = value.get("peak_memory_bytes"), value.get("efficiency")
    return TimingReport(
        verdict=value["verdict"],
        reason=str(value["reason"]),
        runtime=str(value["runtime"]),
        threads=int(value.get("threads", 0)),
        batch=int(value.get("batch", 0)),
        load_s=float(value.get("load_ms", 0.0)) / 1e3,
        efficiency=None if efficiency is None else float(efficiency),
        peak_bytes=None if peak is None else int(peak),
        seconds=tuple(float(second) for second in value.get("seconds", ())),
    )


def _inconsistencies(report: Report, verdicts: Sequence[str]) -> Iterator[str]:
    """What a report that this toolchain wrote cannot say."""
    if not report.artifacts:
        yield "tells of no artifact"
    for artifact, verdict in zip(report.artifacts, verdicts, strict=True):
        if artifact.parity.verdict != verdict:
            yield (
                f"gives {artifact.id} the verdict {verdict!r}, and what was found makes it "
                f"{artifact.parity.verdict!r}"
            )
        yield from _of_outputs(artifact)
    timings = [(a.id, a.timing) for a in report.artifacts if a.timing is not None]
    for name, timing in (*timings, *report.baselines.items()):
        if timing.verdict not in ("pass", "not-run"):
            yield f"gives the latency of {name} the verdict {timing.verdict!r}"
        measured = timing.verdict == "pass"
        if measured and not (timing.seconds and all(0 < s < math.inf for s in timing.seconds)):
            yield f"has no latencies of {name}, or impossible ones"
        if timing.efficiency is not None and not 0 < timing.efficiency < math.inf:
            yield f"has the efficiency {timing.efficiency} of {name}"


def _of_outputs(artifact: ArtifactReport) -> Iterator[str]:
    for output in artifact.parity.outputs:
        rows = len(output.errors)
        if rows != len(output.scales) or (rows and len(output.tolerance.rtol) not in (1, rows)):
            yield f"has {rows} errors of {artifact.id} {output.name!r} and not as many scales"
        if output.spreads and not rows == len(output.spreads) == len(output.rows):
            yield f"has {rows} errors of {artifact.id} {output.name!r} and not as many rows"
        numbers = (*output.errors, *output.scales, *output.spreads)
        if not all(0 <= number < math.inf for number in numbers):
            yield f"has errors or scales of {artifact.id} {output.name!r} below 0 or infinite"
