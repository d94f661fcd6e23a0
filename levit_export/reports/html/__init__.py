"""A report as one page for a browser: no script, no network, readable in light, dark and print.

``page.html.j2`` is the page of a report, ``sweep.html.j2`` that of a sweep, ``parts.html.j2`` has
what both are made of. ``page.py`` gathers what they show, ``plots.py`` draws.
"""

from __future__ import annotations

from levit_export.reports.html.page import Pixels, SweptRow, page, sweep_page
from levit_export.reports.html.plots import Measured, measured

__all__ = ["Measured", "Pixels", "SweptRow", "measured", "page", "sweep_page"]
