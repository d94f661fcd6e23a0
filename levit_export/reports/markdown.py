"""Checks as Markdown: the summary page of a CI job."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from levit_export.core.values import Verdict
from levit_export.reports import figures
from levit_export.reports.gate import Check
from levit_export.reports.report import Report, labels

MARKS: dict[Verdict, str] = {
    "pass": "✅ pass",
    "fail": "❌ fail",
    "inconclusive": "❔ inconclusive",
    "not-run": "⚠️ not run",
}
SPECIAL = re.compile(r"([\\`*_{}\[\]()#+!|~$@])")
"""What GitHub's Markdown may take for markup in the middle of a line."""


def render(title: str, report: Report, checks: Sequence[Check]) -> str:
    """Verdict, a line for each artifact, then what did not pass and why."""
    parts = [f"## {MARKS[report.verdict]} {_escape(title)}", *_origin(report)]
    parts.append("\n".join(_table(report, checks)))
    if wrong := [c for c in checks if c.verdict != "pass"]:
        parts.append("\n".join(_reasons(wrong)))
    remarks = [c for c in checks if c.verdict == "pass" and c.reason]
    parts += [f"{_escape(c.artifact)}: {_escape(c.reason)}" for c in remarks]
    if report.vouching is not None:
        words = report.vouching.sentence
        parts.append(f"{_escape(words[0].upper() + words[1:])}.")
    return "\n\n".join(parts) + "\n"


def _origin(report: Report) -> Iterator[str]:
    model = report.model
    if model is not None:
        yield (
            f"{_escape(model.name)}, {model.parameters / 1e6:.2f} M parameters, from "
            f"{_escape(model.checkpoint)} (SHA-256 {_escape(model.checkpoint_sha256[:12])})"
        )


def _table(report: Report, checks: Sequence[Check]) -> Iterator[str]:
    """A column for every question that was asked; an empty cell where it was not."""
    names = list(dict.fromkeys(check.name for check in checks))
    answers = {(check.artifact, check.name): check.verdict for check in checks}
    known = dict(zip(labels(report.artifacts), report.artifacts, strict=True))
    yield _row(["artifact", *map(_escape, names), "of tolerance", "size", "latency"])
    yield _row(["---"] * (len(names) + 4))
    for label in dict.fromkeys([*known, *(check.artifact for check in checks)]):
        verdicts = (answers.get((label, name)) for name in names)
        cells = [MARKS[verdict] if verdict else "" for verdict in verdicts]
        artifact, latency = known.get(label), None
        if artifact is not None and artifact.timing is not None and artifact.timing.seconds:
            latency = artifact.timing.median_ms
        if artifact is None:
            cells += [""] * 3
        else:
            cells += [figures.of_tolerance(artifact), figures.size(artifact.bytes)]
            cells += [figures.milliseconds(latency)]
        yield _row([_escape(label), *cells])


def _reasons(checks: Sequence[Check]) -> Iterator[str]:
    yield _row(["artifact", "check", "verdict", "reason"])
    yield _row(["---"] * 4)
    for check in checks:
        words = (_escape(text) for text in (check.artifact, check.name))
        yield _row([*words, MARKS[check.verdict], _escape(check.reason)])


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escape(text: str) -> str:
    """One line that shows ``text`` as it is: no markup, no HTML, no cell or line ended early."""
    line = " ".join(text.split())
    plain = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return SPECIAL.sub(r"\\\1", plain)
