"""Plots as SVG that takes its colours from the page, and its words too.

matplotlib draws in stand-in colours, which become the CSS variables of report.css: one drawing
serves light, dark and paper. Text stays text. The same values give the same bytes. What is drawn
is decided here; the sentences around a plot are in the templates.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import numpy as np
from markupsafe import Markup

from levit_export.checks.timing import TimingReport
from levit_export.core.quiet import quiet
from levit_export.reports import figures
from levit_export.reports.report import Report, labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from levit_export.checks.drift.values import DriftMap, DriftRow, DriftStage

WIDTH = 360
"""Points across: the text is legible when a telephone shows it at 350 pixels."""

POINTS_PER_INCH = 72
LEGEND_LINE = 15
FORMATS = ("onnx", "openvino", "coreml")
SERIES = 1 + len(FORMATS)
COLOURS = {
    name: f"#0101{number:02x}"
    for number, name in enumerate(
        ("ink", "muted", "line", "warn", "band", *(f"series-{n}" for n in range(SERIES))), start=1
    )
}
"""Stand-ins by the name of the CSS variable that replaces them."""

STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "levit-export",
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.color": COLOURS["ink"],
    "axes.edgecolor": COLOURS["line"],
    "axes.labelcolor": COLOURS["muted"],
    "axes.facecolor": "none",
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "none",
    "grid.color": COLOURS["line"],
    "grid.linewidth": 0.6,
    "legend.fontsize": 9.5,
    "legend.frameon": False,
    "savefig.facecolor": "none",
    "xtick.color": COLOURS["line"],
    "ytick.color": COLOURS["line"],
    "xtick.labelcolor": COLOURS["muted"],
    "ytick.labelcolor": COLOURS["muted"],
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
}
MARKERS = "osD^vP*X"
"""Of the artifacts of one format, whose colour is the same."""

DASHES = ("-", "--", "-.")
"""Of the lines of one format, such as Core ML's on several compute units."""

WIDE_RANGE = 8.0
"""Largest ratio of two latencies that a linear axis still shows side by side."""

ALIKE = 2.0
"""Largest ratio of the tolerances of two artifacts at one tap that share a band."""

MOST_TICKS = 9
DECADES_BELOW = 1e3
"""How far below its tolerance an error is still drawn; what is less is cut off."""


@dataclass(frozen=True)
class Plot:
    """A drawing with its title. ``svg`` is empty where matplotlib is not installed."""

    title: str
    svg: Markup


@dataclass(frozen=True)
class Frame:
    """Height of a plot and the room around its axes for their labels, in points.

    Given rather than fitted: fitting draws everything four times.
    """

    height: float
    left: float = 52
    right: float = 8
    top: float = 10
    bottom: float = 38


def plot(
    draw: Callable[[Axes], None], *, name: str, title: str, description: str, frame: Frame
) -> Plot:
    """The drawing of ``draw``, with ``description`` for those who cannot see it.

    ``name`` is unique on the page.
    """
    out = io.StringIO()
    try:
        # matplotlib speaks of its caches of fonts, and of glyphs that the page's own font has.
        with quiet("matplotlib"):
            import matplotlib as mpl
            from matplotlib.figure import Figure

            with mpl.rc_context():
                mpl.rcdefaults()  # a user's matplotlibrc must not change the page
                settings: Any = mpl.rcParams  # its keys' types differ from version to version
                settings.update(STYLE)
                size = (WIDTH / POINTS_PER_INCH, frame.height / POINTS_PER_INCH)
                figure = Figure(figsize=size)
                figure.subplots_adjust(
                    left=frame.left / WIDTH,
                    right=1 - frame.right / WIDTH,
                    bottom=frame.bottom / frame.height,
                    top=1 - frame.top / frame.height,
                )
                draw(figure.subplots())
                figure.savefig(out, format="svg")
    except ImportError:
        return Plot(title, Markup(""))
    return Plot(title, _adopted(out.getvalue(), name, title, description))


def _adopted(drawing: str, name: str, title: str, description: str) -> Markup:
    """A drawing as part of a page: its identifiers its own, its colours the page's."""
    root = ET.fromstring(drawing)  # noqa: S314 (written by matplotlib a moment ago)
    for parent in list(root.iter()):
        for found in list(parent):
            # A style would be that of the whole page; report.css has what it says.
            if found.tag.endswith(("metadata", "style")):
                parent.remove(found)
    for found in root.iter():
        found.tag = found.tag.rpartition("}")[2]
        attributes = {key.rpartition("}")[2]: value for key, value in found.attrib.items()}
        found.attrib.clear()
        for key, value in attributes.items():
            # Every plot numbers its clips and glyphs alike, and a page has several plots.
            owned = value.replace("url(#", f"url(#{name}-")
            if key == "id":
                owned = f"{name}-{value}"
            elif key == "href":
                owned = f"#{name}-{value.removeprefix('#')}"
            found.attrib[key] = owned
    viewbox, label = root.attrib["viewBox"], figures.printable(title)
    root.attrib.clear()
    root.attrib.update({"viewBox": viewbox, "role": "img", "aria-label": label})
    for position, (tag, words) in enumerate((("title", title), ("desc", description))):
        said = ET.Element(tag)
        said.text = figures.printable(words)
        root.insert(position, said)
    names = {stand_in: name for name, stand_in in COLOURS.items()}
    svg = ET.tostring(root, encoding="unicode")
    # ElementTree has escaped every text in it, so it is HTML as it is.
    return Markup(re.sub("#0101[0-9a-f]{2}", lambda at: f"var(--{names[at[0]]})", svg))  # noqa: S704


def _colour(label: str) -> str:
    """The stand-in of an artifact's series: a format has one colour in every plot."""
    kind = label.partition("-")[0]
    return COLOURS[f"series-{FORMATS.index(kind) if kind in FORMATS else SERIES - 1}"]


def _legend_height(names: Sequence[str]) -> float:
    """Room for the names above the axes, in points."""
    return LEGEND_LINE * math.ceil(len(names) / _abreast(names)) + 8


def _legend(axes: Axes, names: Sequence[str]) -> None:
    """Names above the axes, so that nothing that is drawn lies under them."""
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(-0.02, 1.0),
        borderpad=0,
        labelspacing=0.3,
        ncols=_abreast(names),
    )


def _abreast(names: Sequence[str]) -> int:
    """How many of ``names`` a line of the legend has room for."""
    return 2 if max(map(len, names)) <= 20 else 1


# --- size, accuracy, latency -----------------------------------------------------------------


@dataclass(frozen=True)
class Spot:
    """An artifact where one axis meets the other, with the 95 % interval of ``y``."""

    label: str
    x: float
    y: float
    interval: tuple[float, float] | None


SIZE, LATENCY, TOP1 = "size in MB", "median latency in ms", "top-1 in percent"


def tradeoff(report: Report) -> list[Plot]:
    """Accuracy over size and over latency, or latency over size where nothing was classified.

    A plot of fewer than two artifacts compares nothing and is left out.
    """
    over_size, over_latency, sized = [], [], []
    reference = None
    for label, artifact in zip(labels(report.artifacts), report.artifacts, strict=True):
        megabytes, accuracy = artifact.bytes / 1e6, artifact.accuracy
        timing = artifact.timing if artifact.timing and artifact.timing.seconds else None
        if timing is not None and megabytes:
            interval = timing.interval_ms()
            sized.append(Spot(label, megabytes, timing.median_ms, interval))
        if accuracy is None or accuracy.top1 is None:
            continue
        if accuracy.reference_correct is not None and reference is None:
            reference = 100 * accuracy.reference_correct / accuracy.images
        if megabytes:
            over_size.append(Spot(label, megabytes, accuracy.top1, accuracy.top1_interval))
        if timing is not None:
            spot = Spot(label, timing.median_ms, accuracy.top1, accuracy.top1_interval)
            over_latency.append(spot)
    panels = [
        ("size-accuracy", SIZE, TOP1, over_size),
        ("latency-accuracy", LATENCY, TOP1, over_latency),
    ]
    if not any(a.accuracy and a.accuracy.top1 is not None for a in report.artifacts):
        panels = [("size-latency", SIZE, LATENCY, sized)]
    return [
        plot(
            lambda axes, x=x, y=y, spots=spots: _scatter(axes, x, y, spots, reference),  # type: ignore[misc]
            name=f"{name}-plot",
            title=f"{y.capitalize()} over {x}",
            description=" ".join(f"{p.label}: {x} {p.x:.2f}, {y} {p.y:.2f}." for p in spots),
            frame=Frame(
                240 + _legend_height([spot.label for spot in spots]),
                top=_legend_height([spot.label for spot in spots]),
            ),
        )
        for name, x, y, spots in panels
        if len(spots) > 1
    ]


def _scatter(axes: Axes, x: str, y: str, spots: Sequence[Spot], reference: float | None) -> None:
    seen: dict[str, int] = {}
    for spot in spots:
        colour = _colour(spot.label)
        seen[colour] = seen.get(colour, -1) + 1
        marker = MARKERS[seen[colour] % len(MARKERS)]
        if spot.interval is not None:
            axes.plot((spot.x, spot.x), spot.interval, color=colour, alpha=0.4, linewidth=1.2)
        axes.plot(
            spot.x,
            spot.y,
            marker,
            color=colour,
            markersize=6,
            label=figures.shortened(spot.label, 40),
        )
    if reference is not None:
        axes.axhline(reference, color=COLOURS["muted"], linestyle="--", linewidth=1)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.margins(x=0.08, y=0.15)
    axes.ticklabel_format(useOffset=False)
    _legend(axes, [spot.label for spot in spots])


# --- latency ---------------------------------------------------------------------------------


def latency(timed: Mapping[str, TimingReport], explanation: str) -> Plot:
    """A strip for each measurement: every call, the middle half, and the median."""
    said = []
    for label, found in timed.items():
        low, high = found.interval_ms()
        said.append(
            f"{label}: median {found.median_ms:.2f} ms, 95 % interval {low:.2f} to {high:.2f}"
            f"{', noisy' if found.noisy else ''}."
        )
    return plot(
        lambda axes: _strips(axes, timed),
        name="latency-plot",
        title="Latency of single calls",
        description=f"{explanation} {' '.join(said)}",
        frame=Frame(44 + 40 * len(timed), left=12, right=12, top=6),
    )


def _strips(axes: Axes, timed: Mapping[str, TimingReport]) -> None:
    place: dict[str, Any] = {
        "transform": axes.get_yaxis_transform(),
        "va": "center",
        "fontsize": 10,
    }
    for row, (label, found) in enumerate(timed.items()):
        y, colour = -row, _colour(label)
        milliseconds = 1e3 * np.asarray(found.seconds)
        rounds = np.linspace(-0.3, 0.12, len(milliseconds))
        low, middle, high = np.quantile(milliseconds, (0.25, 0.5, 0.75))
        axes.fill_betweenx((y - 0.34, y + 0.16), low, high, color=colour, alpha=0.25, linewidth=0)
        axes.plot(milliseconds, y + rounds, ".", color=colour, markersize=3.2, alpha=0.8)
        axes.plot((middle, middle), (y - 0.34, y + 0.16), color=colour, linewidth=2)
        words = f"{figures.shortened(label, 30)} · {figures.milliseconds(float(middle))}"
        axes.text(0.0, y + 0.38, words, ha="left", **place)
        if found.noisy:
            axes.text(1.0, y + 0.38, "noisy", ha="right", color=COLOURS["warn"], **place)
    medians = [found.median_ms for found in timed.values()]
    is_wide = max(medians) > WIDE_RANGE * min(medians)
    if is_wide:
        from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(f"milliseconds a call{' (log)' if is_wide else ''}")
    axes.set_ylim(-len(timed) + 0.45, 0.62)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.grid(visible=False, axis="y")


# --- drift -----------------------------------------------------------------------------------


def drift(found: DriftMap) -> list[Plot]:
    """A plot for each precision, a line for each runtime."""
    drawn = []
    for number, stages in enumerate(_groups(found)):
        names = ", ".join(figures.shortened(stage.name, 40) for stage in stages)
        legend = _legend_height(["tolerance", *(stage.name for stage in stages)])
        drawn.append(
            plot(
                lambda axes, stages=stages: _lines(axes, stages),  # type: ignore[misc]
                name=f"drift-plot-{number}",
                title=f"Distance to PyTorch over depth: {names}",
                description=" ".join(_said(stages)),
                frame=Frame(240 + legend, left=58, top=legend, bottom=52),
            )
        )
    return drawn


def _groups(found: DriftMap) -> list[list[DriftStage]]:
    """Artifacts of one precision and of like tolerances: a band has to be right for each line."""
    groups: list[tuple[str, list[DriftStage]]] = []
    for stage in found.stages:
        if stage.kind != "artifact" or not _points(stage.rows, "accumulated"):
            continue
        precision = stage.name.partition("-")[2].partition(" ")[0]
        for known, group in groups:
            if known == precision and _alike(group[0], stage):
                group.append(stage)
                break
        else:
            groups.append((precision, [stage]))
    return [group for _, group in groups]


def _points(rows: Sequence[DriftRow], name: str) -> dict[int, float]:
    """One figure by the place of its row, where it is a number that a logarithm has."""
    values = ((at, getattr(row, name)) for at, row in enumerate(rows))
    return {at: v for at, v in values if v is not None and math.isfinite(v) and v > 0}


def _alike(one: DriftStage, other: DriftStage) -> bool:
    """Whether no tolerance of the two differs by more than ``ALIKE`` at a tap that both have."""
    here, there = _points(one.rows, "tolerance"), _points(other.rows, "tolerance")
    pairs = [(here[at], there[at]) for at in here.keys() & there.keys()]
    return all(max(pair) <= ALIKE * min(pair) for pair in pairs)


def _said(stages: Sequence[DriftStage]) -> Iterator[str]:
    for stage in stages:
        known = [row for row in stage.rows if row.accumulated is not None]
        worst = max(known, key=lambda row: row.accumulated or 0.0)
        fault = stage.first_fault
        yield (
            f"{stage.name}: {figures.error(known[-1].accumulated)} at {known[-1].tap}, largest "
            f"{figures.error(worst.accumulated)} at {worst.tap}; "
            + (f"leaves its tolerance at {fault.tap}." if fault else "within its tolerance.")
        )


def _lines(axes: Axes, stages: Sequence[DriftStage]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_yscale("log")
    seen: dict[str, int] = {}
    allowed: dict[int, float] = {}
    for stage in stages:
        colour, name = _colour(stage.name), figures.shortened(stage.name, 40)
        seen[colour] = seen.get(colour, -1) + 1
        for figure, dash, width, label in (
            ("accumulated", DASHES[seen[colour] % len(DASHES)], 1.8, name),
            ("introduced", ":", 1.2, None),
        ):
            points = _points(stage.rows, figure)
            axes.plot(
                list(points),
                list(points.values()),
                dash,
                color=colour,
                linewidth=width,
                label=label,
            )
        for at, value in _points(stage.rows, "tolerance").items():
            # The band is right for every line: it ends at the smallest tolerance.
            allowed[at] = min(value, allowed.get(at, math.inf))
    bottom, top = axes.get_ylim()
    if allowed:
        places = sorted(allowed)
        edge = [allowed[at] for at in places]
        bottom, top = max(bottom, min(edge) / DECADES_BELOW), max(top, 1.5 * max(edge))
        band = COLOURS["band"]
        axes.fill_between(places, bottom, edge, color=band, linewidth=0, label="tolerance")
        axes.plot(places, edge, color=COLOURS["muted"], linewidth=0.8)
    axes.set_ylim(bottom, top)
    _tap_axis(axes, stages[0].rows)
    axes.yaxis.set_major_locator(LogLocator(numticks=7))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0e}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_ylabel("relative distance (log)")
    _legend(axes, ["tolerance", *(stage.name for stage in stages)])


def _tap_axis(axes: Axes, rows: Sequence[DriftRow]) -> None:
    """A tick where a stage begins, or at every so many taps where there are no stages."""
    stages = [row.block.partition(".")[0] for row in rows]
    starts = [at for at, stage in enumerate(stages) if at == 0 or stages[at - 1] != stage]
    if not 1 < len(starts) <= MOST_TICKS:
        starts = list(range(0, len(rows), math.ceil(len(rows) / MOST_TICKS)))
    names = [figures.shortened(stages[at], 12) for at in starts]
    axes.set_xticks(starts)
    axes.set_xticklabels(names, rotation=40, ha="right", rotation_mode="anchor")
