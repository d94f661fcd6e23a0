"""Bars as an SVG file that follows the reader's light or dark scheme, on GitHub too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, LABELS, VALUES, STEP, TOP = 760, 250, 150, 30, 44
"""Pixels: of the whole, of the names on the left, of the figures on the right, of a row, and of
the title."""

STYLE = """
text { font: 14px system-ui, -apple-system, "Segoe UI", sans-serif; fill: #1b1f24; }
.title { font-weight: 600; }
.ours { fill: #1f5fae; }
.other { fill: #8a94a0; }
line { stroke: #1b1f24; }
@media (prefers-color-scheme: dark) {
  text { fill: #e7eaee; }
  .ours { fill: #7fb2f5; }
  .other { fill: #6b7580; }
  line { stroke: #e7eaee; }
}
"""


@dataclass(frozen=True)
class Bar:
    """A value with its interval, the smaller the better; ``is_ours`` gives it its colour."""

    label: str
    value: float
    interval: tuple[float, float]
    words: str
    is_ours: bool


def bars(title: str, found: Sequence[Bar]) -> str:
    """The drawing; its words are its description for those who cannot see it."""
    scale = (WIDTH - LABELS - VALUES) / max(bar.interval[1] for bar in found)
    said = f"{title}: " + ", ".join(f"{bar.label} {bar.words}" for bar in found)
    height = TOP + STEP * len(found) + 10
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="{escape(said)}">',
        f"<style>{STYLE}</style>",
        f'<text class="title" x="0" y="22">{escape(title)}</text>',
    ]
    for number, bar in enumerate(found):
        top, middle = TOP + STEP * number, TOP + STEP * number + 11
        kind = "ours" if bar.is_ours else "other"
        low, high = (LABELS + scale * value for value in bar.interval)
        lines += [
            f'<text x="{LABELS - 10}" y="{middle + 5}" text-anchor="end">'
            f"{escape(bar.label)}</text>",
            f'<rect class="{kind}" x="{LABELS}" y="{top}" width="{scale * bar.value:.1f}" '
            'height="22" rx="3"/>',
            f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{middle}" y2="{middle}"/>',
            f'<text x="{high + 8:.1f}" y="{middle + 5}">{escape(bar.words)}</text>',
        ]
    return "\n".join([*lines, "</svg>"]) + "\n"
