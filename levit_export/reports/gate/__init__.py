"""The gate of a build: every question asked of a report, each answered by a verdict.

Pure: reports in, checks out. How they are written down is ``render``'s.
"""

from __future__ import annotations

from levit_export.reports.gate.baseline import Slack, compare, confirmed, refuse_other_model
from levit_export.reports.gate.checks import Check, of_report, verdict_of
from levit_export.reports.gate.latency import refuse_untimed
from levit_export.reports.gate.recheck import recheck
from levit_export.reports.gate.saved import read_report

__all__ = [
    "Check",
    "Slack",
    "compare",
    "confirmed",
    "of_report",
    "read_report",
    "recheck",
    "refuse_other_model",
    "refuse_untimed",
    "verdict_of",
]
