"""Checks in the forms that systems for continuous integration show: Markdown, JUnit, annotations.

Markdown is the summary page of a job. JUnit XML is the form in which test results are read; there
is not a standard, and this keeps to what the schema of Jenkins' xUnit plugin (junit-10) allows.
Annotations are lines that the runner of GitHub Actions shows beside the commit.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePath
from xml.etree import ElementTree as ET

from levit_export.core.values import Verdict
from levit_export.reports import figures
from levit_export.reports.figures import printable
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

LEVELS: dict[Verdict, str] = {"fail": "error", "inconclusive": "warning", "not-run": "warning"}


def markdown(title: str, report: Report, checks: Sequence[Check]) -> str:
    """Verdict, a line for each artifact, then what did not pass and why."""
    parts = [f"## {MARKS[report.verdict]} {escape(title)}"]
    if report.model is not None:
        model = report.model
        parts.append(
            f"{escape(model.name)}, {model.parameters / 1e6:.2f} M parameters, from "
            f"{escape(model.checkpoint)} (SHA-256 {escape(model.checkpoint_sha256[:12])})"
        )
    parts.append(_table(_overview(report, checks)))
    if wrong := [check for check in checks if check.verdict != "pass"]:
        reasons = [["artifact", "check", "verdict", "reason"]]
        reasons += [
            [escape(c.artifact), escape(c.name), MARKS[c.verdict], escape(c.reason)] for c in wrong
        ]
        parts.append(_table(reasons))
    remarks = [check for check in checks if check.verdict == "pass" and check.reason]
    parts += [f"{escape(check.artifact)}: {escape(check.reason)}" for check in remarks]
    if report.vouching is not None:
        words = report.vouching.sentence
        parts.append(f"{escape(words[0].upper() + words[1:])}.")
    return "\n\n".join(parts) + "\n"


def _overview(report: Report, checks: Sequence[Check]) -> list[list[str]]:
    """A column for every question that was asked; an empty cell where it was not."""
    names = list(dict.fromkeys(check.name for check in checks))
    answers = {(check.artifact, check.name): check.verdict for check in checks}
    known = dict(zip(labels(report.artifacts), report.artifacts, strict=True))
    rows = [["artifact", *map(escape, names), "of tolerance", "size", "latency"]]
    for label in dict.fromkeys([*known, *(check.artifact for check in checks)]):
        verdicts = (answers.get((label, name)) for name in names)
        cells = [escape(label), *(MARKS[verdict] if verdict else "" for verdict in verdicts)]
        artifact = known.get(label)
        if artifact is None:
            rows.append([*cells, "", "", ""])
            continue
        timing = artifact.timing if artifact.timing and artifact.timing.seconds else None
        median = None if timing is None else timing.median_ms
        share, size = figures.of_tolerance(artifact), figures.size(artifact.bytes)
        rows.append([*cells, share, size, figures.milliseconds(median)])
    return rows


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of escaped cells, the first of which are headings."""
    head, *body = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([head, f"| {' | '.join(['---'] * len(rows[0]))} |", *body])


def escape(text: str) -> str:
    """One line that shows ``text`` as it is: no markup, no HTML, no cell or line ended early."""
    line = " ".join(text.split())
    plain = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return SPECIAL.sub(r"\\\1", plain)


def junit(suite: str, checks: Sequence[Check], vouched: str = "") -> str:
    """A suite with one case for each check: its class is the artifact, its name the question.

    A check that failed holds its reason as a failure. One that was not run, or decides nothing,
    is skipped; the exit status says whether that stops a build. ``vouched`` says who vouches for
    what was checked.
    """
    counts = Counter(check.verdict for check in checks)
    totals = {"tests": str(len(checks)), "failures": str(counts["fail"]), "errors": "0"}
    root = ET.Element("testsuites", {"name": "levit-export check", **totals})
    skipped = {"skipped": str(counts["not-run"] + counts["inconclusive"])}
    cases = ET.SubElement(root, "testsuite", {"name": printable(suite), **totals, **skipped})
    if vouched:
        properties = ET.SubElement(cases, "properties")
        said = {"name": "vouched for", "value": printable(vouched)}
        ET.SubElement(properties, "property", said)
    for check in checks:
        name, reason = printable(check.name), printable(check.reason)
        of = {"classname": printable(f"{suite}.{check.artifact}"), "name": name}
        case = ET.SubElement(cases, "testcase", of)
        if check.verdict == "fail":
            failure = ET.SubElement(case, "failure", {"type": name, "message": reason})
            failure.text = printable(f"{check.path}: {check.reason}")
        elif check.verdict != "pass":
            message = reason if check.verdict == "not-run" else f"{check.verdict}: {reason}"
            ET.SubElement(case, "skipped", {"message": message})
        elif reason:
            ET.SubElement(case, "system-out").text = reason
    ET.indent(root)
    body = ET.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{body}\n'


def annotate(checks: Iterable[Check], folder: PurePath | None = None) -> Iterator[str]:
    """An error for every check that failed, a warning for every other one that did not pass.

    Paths of the report are shown below ``folder``, if given.
    """
    for check in checks:
        if check.verdict in LEVELS:
            path = PurePath(check.path) if folder is None else folder / check.path
            yield annotation(
                LEVELS[check.verdict],
                check.reason,
                file=path.as_posix(),
                title=f"{check.artifact}: {check.name}",
            )


def annotation(level: str, message: str, **properties: str) -> str:
    """One workflow command: ``::error file=a,title=b::message``; empty properties are left out."""

    def escaped(text: str, *, also: str = "") -> str:
        # The runner decodes these three in a message, and two more in a property.
        for character in f"%\r\n{also}":
            text = text.replace(character, f"%{ord(character):02X}")
        return text

    given = ",".join(
        f"{name}={escaped(text, also=':,')}" for name, text in properties.items() if text
    )
    return f"::{level}{' ' if given else ''}{given}::{escaped(message)}"
