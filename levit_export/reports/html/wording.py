"""How figures are written: one place for units, digits, and what is not known."""

from __future__ import annotations

import math

from levit_export.core.values import Verdict
from levit_export.reports.html.markup import Markup, element
from levit_export.reports.junit import NOT_XML

NONE = "–"
MARKS: dict[Verdict, str] = {"pass": "✓", "fail": "✗", "inconclusive": "?", "not-run": "○"}
WORDS: dict[Verdict, str] = {
    "pass": "pass",
    "fail": "fail",
    "inconclusive": "inconclusive",
    "not-run": "not run",
}
MOST_PERCENT = 1e6


def verdict(found: Verdict, about: str = "") -> Markup:
    """The verdict as sign, word and colour, so that none of the three is needed."""
    sign = element("span", MARKS[found], attributes={"aria-hidden": "true"})
    words = f"{WORDS[found]} ({about})" if about else WORDS[found]
    return element("span", sign, " ", words, kind=f"verdict {found}")


def size(count: int) -> str:
    """Bytes in megabytes of 10**6."""
    return f"{count / 1e6:.2f} MB" if count else NONE


def error(value: float) -> str:
    """A relative error with two digits."""
    return f"{value:.1e}" if math.isfinite(value) else NONE


def share(value: float) -> str:
    """A share as percent; what is no longer a share is only bounded."""
    percent = 100 * value
    return f"{percent:.0f} %" if percent < MOST_PERCENT else f"> {MOST_PERCENT:.0e} %"


def milliseconds(value: float) -> str:
    """Three significant digits."""
    if value >= 100:
        return f"{value:.0f} ms"
    return f"{value:.1f} ms" if value >= 10 else f"{value:.2f} ms"


def count(value: int) -> str:
    """A whole number with a thin space between thousands."""
    return f"{value:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def shortened(text: str, most: int) -> str:
    """One line of at most ``most`` characters, cut in the middle: names differ at the ends."""
    line = " ".join(NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text).split())
    if len(line) <= most:
        return line
    head = (most - 1) // 2
    return f"{line[:head]}…{line[len(line) - (most - 1 - head) :]}"
