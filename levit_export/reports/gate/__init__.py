"""The gate of a build: every question asked of a report, each answered by a verdict.

Reports go in and checks come out; nothing is read, run or shown here.
"""

from __future__ import annotations

from levit_export.reports.gate.baseline import (
    Slack,
    compare,
    confirmed,
    refuse_other_model,
    refuse_untimed,
)
from levit_export.reports.gate.checks import Check, of_report, recheck, verdict_of

__all__ = [
    "Check",
    "Slack",
    "compare",
    "confirmed",
    "of_report",
    "recheck",
    "refuse_other_model",
    "refuse_untimed",
    "verdict_of",
]
