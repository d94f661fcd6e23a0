"""A report as one page for a browser: no script, no network, readable in light, dark and print.

``page.html.j2`` is the page, ``page.py`` gathers what it shows, ``plots.py`` draws.
"""

from __future__ import annotations

from levit_export.reports.html.page import Pixels, page

__all__ = ["Pixels", "page"]
