"""A report as one page for a browser: no script, no network, readable in light, dark and print."""

from __future__ import annotations

from levit_export.reports.html.flips import Pixels
from levit_export.reports.html.page import page

__all__ = ["Pixels", "page"]
