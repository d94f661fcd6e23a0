"""Bars and points as SVG files that follow the reader's light or dark scheme, on GitHub too."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
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
    lines = list(_opening(title, said, height))
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


def _opening(title: str, said: str, height: float, style: str = STYLE) -> Iterator[str]:
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" role="img" '
        f'aria-label="{escape(said)}">'
    )
    yield f"<style>{style}</style>"
    yield f'<text class="title" x="0" y="22">{escape(title)}</text>'


LEFT, PANEL, ABOVE, BELOW = 40, 250, 34, 46
"""Pixels: of the figures on the left, of a panel's axes, of its title, and of what is under it."""

LETTER, LINE = 7.0, 13.0
"""Pixels that a small letter and a line of them take."""

STYLE_OF_PANELS = """
.small { font-size: 12px; }
.third { fill: #c2590a; }
.grid { stroke: #d4d9de; }
.front { fill: none; stroke: #1b1f24; stroke-width: 1.2; stroke-dasharray: 4 3; }
@media (prefers-color-scheme: dark) {
  .third { fill: #f0954a; }
  .grid { stroke: #3a424b; }
  .front { stroke: #e7eaee; }
}
"""

TICKS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)
SHAPES = {"ours": "circle", "third": "square", "other": "diamond"}
"""Colour alone tells nothing to some readers."""


@dataclass(frozen=True)
class Point:
    """Both axes are the better the larger; ``kind`` is one of ``SHAPES``."""

    label: str
    x: float
    y: float
    kind: str


def front(points: Sequence[Point]) -> list[Point]:
    """The Pareto front: what no other point is at least as good as in both, from the largest x."""
    found: list[Point] = []
    for point in sorted(points, key=lambda point: (-point.x, -point.y)):
        if not found or point.y > found[-1].y:
            found.append(point)
    return found


def panels(
    title: str,
    axes: tuple[str, str],
    kinds: Mapping[str, str],
    found: Mapping[str, Sequence[Point]],
) -> str:
    """A plot of each group of points below one another, x logarithmic, with its front.

    ``kinds`` are the names of the kinds of points.
    """
    every = [point for points in found.values() for point in points]
    scale = _Scale(every)
    said = f"{title}. " + " ".join(
        f"{name}: on the front {', '.join(point.label for point in front(points))}."
        for name, points in found.items()
    )
    height = TOP + (ABOVE + PANEL + BELOW) * len(found)
    lines = list(_opening(title, said, height, STYLE + STYLE_OF_PANELS))
    lines += _legend(kinds)
    for number, (name, points) in enumerate(found.items()):
        top = TOP + ABOVE + (ABOVE + PANEL + BELOW) * number
        lines.append(f'<g transform="translate(0 {top})">')
        lines += scale.grid(name, axes)
        best = [(scale.x(point.x), scale.y(point.y)) for point in front(points)]
        steps = "".join(f"H{x:.1f}V{y:.1f}" for x, y in best)
        lines.append(f'<path class="front" d="M{best[0][0]:.1f} {PANEL}{steps}"/>')
        lines += [_marker(point.kind, scale.x(point.x), scale.y(point.y)) for point in points]
        lines += scale.labels(points)
        lines.append("</g>")
    return "\n".join([*lines, "</svg>"]) + "\n"


class _Scale:
    """Where values lie in a panel, whose upper left corner is the origin."""

    def __init__(self, points: Sequence[Point]) -> None:
        self._low, self._high = min(p.x for p in points) / 1.6, max(p.x for p in points) * 1.6
        self._bottom = math.floor(min(p.y for p in points))
        self._top = math.ceil(max(p.y for p in points))

    def x(self, value: float) -> float:
        """Pixels from the left."""
        share = math.log(value / self._low) / math.log(self._high / self._low)
        return LEFT + (WIDTH - LEFT) * share

    def y(self, value: float) -> float:
        """Pixels from the top."""
        return PANEL * (self._top - value) / (self._top - self._bottom)

    def grid(self, name: str, axes: tuple[str, str]) -> Iterator[str]:
        """The panel's title, lines and figures."""
        yield f'<text class="title" x="{LEFT}" y="-12">{escape(name)}</text>'
        yield f'<text class="small" x="{WIDTH}" y="-12" text-anchor="end">{escape(axes[1])}</text>'
        for value in range(self._bottom, self._top + 1):
            y = self.y(value)
            yield f'<line class="grid" x1="{LEFT}" x2="{WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>'
            yield _small(LEFT - 8, y + 4, f"{value}", "end")
        for tick in (tick for tick in TICKS if self._low <= tick <= self._high):
            x = self.x(tick)
            yield f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{PANEL}"/>'
            yield _small(x, PANEL + 16, f"{tick}", "middle")
        yield _small((LEFT + WIDTH) / 2, PANEL + 34, axes[0], "middle")

    def labels(self, points: Sequence[Point]) -> Iterator[str]:
        """Names beside their points, on the side where one is nearer without lying on another."""
        taken = [(self.x(p.x) - 6, self.x(p.x) + 6, self.y(p.y) + 4) for p in points]
        for point in sorted(points, key=lambda point: -point.y):
            x, width = self.x(point.x), LETTER * len(point.label)
            starts = {"start": x + 9, "end": x - 9 - width}
            anchor, y = next(
                (anchor, self.y(point.y) + 4 + lower)
                for lower in range(PANEL)
                for anchor, start in starts.items()
                if not any(
                    abs(self.y(point.y) + 4 + lower - other) < LINE
                    and start < right
                    and left < start + width
                    for left, right, other in taken
                )
            )
            taken.append((starts[anchor], starts[anchor] + width, y))
            yield _small(x + 9 if anchor == "start" else x - 9, y, point.label, anchor)


def _small(x: float, y: float, text: str, anchor: str) -> str:
    return (
        f'<text class="small" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
    )


def _legend(kinds: Mapping[str, str]) -> Iterator[str]:
    x = float(LEFT)
    for kind, name in kinds.items():
        yield _marker(kind, x + 5, TOP)
        yield _small(x + 16, TOP + 4, name, "start")
        x += 40 + LETTER * len(name)
    yield f'<path class="front" d="M{x} {TOP}h24"/>'
    yield _small(x + 30, TOP + 4, "Pareto front", "start")


def _marker(kind: str, x: float, y: float) -> str:
    if SHAPES[kind] == "circle":
        return f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="5"/>'
    turned = f' transform="rotate(45 {x:.1f} {y:.1f})"' if SHAPES[kind] == "diamond" else ""
    return (
        f'<rect class="{kind}" x="{x - 4.5:.1f}" y="{y - 4.5:.1f}" width="9" height="9"{turned}/>'
    )
