"""Checks as JUnit XML, the form in which CI systems read test results.

There is no standard; this keeps to what the schema of Jenkins' xUnit plugin (junit-10) allows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from xml.etree import ElementTree as ET

from levit_export.reports.figures import printable
from levit_export.reports.gate import Check


def render(suite: str, checks: Sequence[Check], vouched: str = "") -> str:
    """A suite with one case for each check: its class is the artifact, its name the question.

    A check that failed holds its reason as a failure. One that was not run, or decides nothing,
    is skipped; the exit status says whether that stops a build. ``vouched`` says who vouches for
    what was checked.
    """
    counts = Counter(check.verdict for check in checks)
    totals = {
        "tests": str(len(checks)),
        "failures": str(counts["fail"]),
        "errors": "0",
    }
    root = ET.Element("testsuites", {"name": "levit-export check", **totals})
    skipped = {"skipped": str(counts["not-run"] + counts["inconclusive"])}
    cases = ET.SubElement(root, "testsuite", {"name": printable(suite), **totals, **skipped})
    if vouched:
        properties = ET.SubElement(cases, "properties")
        ET.SubElement(properties, "property", {"name": "vouched for", "value": printable(vouched)})
    for check in checks:
        cases.append(_case(suite, check))
    ET.indent(root)
    body = ET.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{body}\n'


def _case(suite: str, check: Check) -> ET.Element:
    name = {"classname": printable(f"{suite}.{check.artifact}"), "name": printable(check.name)}
    case = ET.Element("testcase", name)
    reason = printable(check.reason)
    if check.verdict == "fail":
        failure = ET.SubElement(
            case, "failure", {"type": printable(check.name), "message": reason}
        )
        failure.text = printable(f"{check.path}: {check.reason}")
    elif check.verdict != "pass":
        message = reason if check.verdict == "not-run" else f"{check.verdict}: {reason}"
        ET.SubElement(case, "skipped", {"message": message})
    elif reason:
        ET.SubElement(case, "system-out").text = reason
    return case
