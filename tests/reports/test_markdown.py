"""Checks as a Markdown summary, read back by a parser of GitHub's tables."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from gate_reports import artifact, report_of, timed, unrun
from markdown_it import MarkdownIt

from levit_export.reports import ci, gate
from levit_export.reports.gate import Check, Slack
from levit_export.reports.report import Report


def tables(text: str) -> list[list[list[str]]]:
    """Every table of a page: rows of cells, as a reader sees them."""
    found: list[list[list[str]]] = []
    cell = False
    for token in MarkdownIt("commonmark").enable("table").parse(text):
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            found[-1].append([])
        elif token.type in ("th_open", "td_open"):
            cell = True
        elif token.type == "inline" and cell:
            assert {child.type for child in token.children or ()} <= {"text", "text_special"}
            found[-1][-1].append("".join(child.content for child in token.children or ()))
            cell = False
    return found


def page(found: Report, *more: Check) -> str:
    """The summary of a report with its checks."""
    checks = (*gate.of_report(found.artifacts), *more)
    return ci.markdown("levit_digits", replace(found, verdict=gate.verdict_of(checks)), checks)


def test_a_pass() -> None:
    """A page of a pass has one table: verdicts, figures, and no list of reasons."""
    text = page(report_of(artifact(size=2_500_000, timing=timed(np.full(9, 0.0025)))))
    assert text.startswith("## ✅ pass levit\\_digits\n")
    (table,) = tables(text)
    assert table == [
        ["artifact", "parity", "weights", "of tolerance", "size", "latency"],
        ["onnx-fp32", "✅ pass", "✅ pass", "25 %", "2.50 MB", "2.50 ms"],
    ]


def test_what_did_not_pass() -> None:
    """Failures and checks that were not run are listed with their reasons."""
    text = page(report_of(artifact(share=3.0), unrun(artifact("coreml"), "no Mac")))
    assert text.startswith("## ❌ fail")
    overview, reasons = tables(text)
    assert [row[:2] for row in overview[1:]] == [
        ["onnx-fp32", "❌ fail"],
        ["coreml-fp32", "⚠️ not run"],
    ]
    assert [row[:3] for row in reasons[1:]] == [
        ["onnx-fp32", "parity", "❌ fail"],
        ["coreml-fp32", "parity", "⚠️ not run"],
    ]
    assert "exceeds the tolerance" in reasons[1][3]
    assert reasons[2][3] == "no Mac"


def test_an_artifact_that_only_the_baseline_has() -> None:
    """A missing artifact has a row of its own, and a new one is mentioned."""
    now, then = report_of(artifact("coreml")), report_of(artifact("onnx"))
    text = page(now, *gate.compare(now, then, Slack()))
    overview, reasons = tables(text)
    assert ["onnx-fp32", "", "", "❌ fail", "", "", ""] in overview
    assert len(reasons) == 2
    assert "new: the baseline does not have it" in text


@pytest.mark.parametrize(
    "reason",
    [
        "a | b",
        "<script>alert(1)</script>",
        "`x` *y* _z_ [l](u) ![i](u) ~~s~~",
        "&lt; &amp;",
        "\\| $x$",
    ],
)
def test_any_reason_is_shown_as_it_is(reason: str) -> None:
    """Nothing that a runtime says is markup, HTML or the end of a cell."""
    check = Check(reason, "p", reason, "fail", reason)
    text = ci.markdown(reason, report_of(artifact()), [check])
    _, reasons = tables(text)
    assert reasons[1] == [reason, reason, "❌ fail", reason]


def test_lines_of_a_reason_are_joined() -> None:
    """A reason of several lines stays in its cell."""
    check = Check("a", "p", "parity", "fail", "one\r\n\n| two")
    _, reasons = tables(ci.markdown("t", report_of(artifact()), [check]))
    assert reasons[1][3] == "one | two"
