"""What a smaller or faster artifact costs: size against accuracy against latency."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from levit_export.checks.results import ArtifactReport
from levit_export.reports.html import drawing, wording
from levit_export.reports.html.markup import Markup, element, section
from levit_export.reports.report import Report, labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HEIGHT = 260
CHARACTER = 5.8
LINE = 13.0
"""Mean width and height of plotted text in points, enough to keep labels apart."""

PLACES = [
    (side, LINE * step) for step in (0, 1, -1, 2, -2, 3, -3, 4, -4, 5, -5) for side in (1, -1)
]
"""Where a label may stand, the best first: right or left of its point, and how far above."""


@dataclass(frozen=True)
class Point:
    """An artifact where one axis meets the other, with the 95 % interval of ``y``."""

    label: str
    x: float
    y: float
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Axis:
    """What an axis shows, and the reference's own value on it."""

    heading: str
    reference: float | None = None


def tradeoff(report: Report) -> Markup:
    """Accuracy over size and over latency, or latency over size where nothing was classified."""
    known = list(zip(labels(report.artifacts), report.artifacts, strict=True))
    sized = [item for item in known if item[1].bytes]
    drawn: list[Markup] = []
    accuracy = _accuracy_axis(report)
    if accuracy is not None:
        drawn = [
            *_panel("size-accuracy", Axis("size in MB"), accuracy, _over_size(sized)),
            *_panel("latency-accuracy", LATENCY, accuracy, _over_latency(known)),
        ]
    else:
        drawn = _panel("size-latency", Axis("size in MB"), LATENCY, _plain(sized))
    if not drawn:
        return Markup("")
    grid = element("div", *drawn, kind="plots")
    return section("tradeoff", "Size, accuracy, latency", element("p", _words(accuracy)), grid)


LATENCY = Axis("median latency in ms")


def _words(accuracy: Axis | None) -> str:
    if accuracy is None:
        return "No labelled images were classified in this run, so accuracy is not shown."
    lines = (
        "The lines through the points are 95 % intervals: artifacts whose lines overlap widely "
    )
    return (
        f"{lines}do not differ on so few images. The dashed line is PyTorch."
        if accuracy.reference is not None
        else f"{lines}do not differ on so few images."
    )


def _accuracy_axis(report: Report) -> Axis | None:
    found = [a.accuracy for a in report.artifacts if a.accuracy and a.accuracy.correct is not None]
    if not found:
        return None
    first = found[0]
    known = first.reference_correct
    reference = None if known is None else 100 * known / first.images
    return Axis("top-1 in percent", reference)


Known = Sequence[tuple[str, ArtifactReport]]


def _over_size(known: Known) -> list[Point]:
    return [_classified(label, a, a.bytes / 1e6) for label, a in known if _top1(a)]


def _over_latency(known: Known) -> list[Point]:
    return [
        _classified(label, a, a.timing.median_ms)
        for label, a in known
        if _top1(a) and a.timing is not None and a.timing.seconds
    ]


def _plain(known: Known) -> list[Point]:
    return [
        Point(
            label,
            artifact.bytes / 1e6,
            artifact.timing.median_ms,
            artifact.timing.interval_ms(),
        )
        for label, artifact in known
        if artifact.timing is not None and artifact.timing.seconds
    ]


def _top1(artifact: ArtifactReport) -> bool:
    return artifact.accuracy is not None and artifact.accuracy.correct is not None


def _classified(label: str, found: ArtifactReport, x: float) -> Point:
    accuracy = found.accuracy
    top1 = None if accuracy is None else accuracy.top1
    if accuracy is None or top1 is None:
        raise ValueError(f"{label} was not evaluated")
    return Point(label, x, top1, accuracy.top1_interval)


def _panel(name: str, x: Axis, y: Axis, points: Sequence[Point]) -> list[Markup]:
    """The plot of ``points``; none where a plot would compare nothing."""
    if len(points) < 2:
        return []
    said = [f"{p.label}: {x.heading} {p.x:.2f}, {y.heading} {p.y:.2f}." for p in points]
    return [
        drawing.plot(
            lambda axes: _scatter(axes, x, y, points),
            name=f"{name}-plot",
            title=f"{y.heading.capitalize()} over {x.heading}",
            description=" ".join(said),
            frame=drawing.Frame(HEIGHT),
        )
    ]


def _scatter(axes: Axes, x: Axis, y: Axis, points: Sequence[Point]) -> None:
    for point in points:
        colour = drawing.colour(point.label)
        if point.interval is not None:
            axes.plot((point.x, point.x), point.interval, color=colour, alpha=0.4, linewidth=1.2)
        axes.plot(point.x, point.y, "o", color=colour, markersize=6)
    if y.reference is not None:
        axes.axhline(y.reference, color=drawing.COLOURS["muted"], linestyle="--", linewidth=1)
    axes.set_xlabel(x.heading)
    axes.set_ylabel(y.heading)
    axes.margins(x=0.15, y=0.15)
    axes.ticklabel_format(useOffset=False)
    axes.autoscale_view()
    _label(axes, points)


def _label(axes: Axes, points: Sequence[Point]) -> None:
    """Names beside their points, where no other name or point is."""
    figure = axes.get_figure()
    if figure is None:
        raise ValueError("axes without a figure")
    inside = axes.get_window_extent()
    scale = drawing.POINTS_PER_INCH / figure.dpi
    centres = [axes.transData.transform((p.x, p.y)) * scale for p in points]
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in centres]
    left, right = inside.x0 * scale, inside.x1 * scale
    for point, (x, y) in zip(points, centres, strict=True):
        words = wording.shortened(point.label, 22)
        boxes = [(_box(x, y, side, up, words), side, up) for side, up in PLACES]
        within = [item for item in boxes if item[0][0] >= left and item[0][2] <= right] or boxes
        box, side, up = min(within, key=lambda item: _overlap(item[0], taken))
        taken.append(box)
        axes.annotate(
            words,
            (point.x, point.y),
            (8 * side, up),
            textcoords="offset points",
            ha="left" if side > 0 else "right",
            va="center",
            fontsize=9.5,
            arrowprops=_leader() if up else None,
        )


def _leader() -> dict[str, object]:
    return {
        "arrowstyle": "-",
        "color": drawing.COLOURS["line"],
        "linewidth": 0.8,
        "shrinkA": 0,
        "shrinkB": 4,
    }


Box = tuple[float, float, float, float]


def _box(x: float, y: float, side: int, up: float, words: str) -> Box:
    near, far = x + 8 * side, x + (8 + CHARACTER * len(words)) * side
    return min(near, far), y + up - LINE / 2, max(near, far), y + up + LINE / 2


def _overlap(box: Box, taken: Sequence[Box]) -> float:
    """The area of ``box`` that others have."""
    return sum(
        max(0.0, min(box[2], other[2]) - max(box[0], other[0]))
        * max(0.0, min(box[3], other[3]) - max(box[1], other[1]))
        for other in taken
    )
