"""Plots as SVG that takes its colours from the page, and its words too.

matplotlib draws in stand-in colours, which become the CSS variables of report.css: one drawing
serves light, dark and paper. Text stays text. The same values give the same bytes. What is drawn
is decided here; the sentences around a plot are in the templates.
"""

from __future__ import annotations

import io
import math
import re
import textwrap
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import numpy as np
from markupsafe import Markup

from levit_export.checks.results import ArtifactReport
from levit_export.checks.timing import TimingReport
from levit_export.core.quiet import quiet
from levit_export.reports import figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from levit_export.checks.drift.values import DriftMap, DriftRow, DriftStage

WIDTH = 360
"""Points across: the text is legible when a telephone shows it at 350 pixels."""

POINTS_PER_INCH = 72
LEGEND_LINE = 15
LONGEST = 46
"""Characters of a line of words in a plot."""
ROOM_ABOVE = 4.0
"""How much higher than what is drawn the axis of drift reaches: a mark's name stands there."""
FORMATS = ("onnx", "openvino", "coreml", "coreai")
SERIES = 1 + len(FORMATS)
COLOURS = {
    name: f"#0101{number:02x}"
    for number, name in enumerate(
        ("ink", "muted", "line", "warn", "band", "fail", *(f"series-{n}" for n in range(SERIES))),
        start=1,
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

VERY_WIDE = 300.0
"""Largest ratio of two calls for which there is room for three numbers to a power of ten."""

ALIKE = 2.0
"""Largest ratio of the tolerances of two artifacts at one tap that share a band."""

MOST_TICKS = 9
DECADES_BELOW = 1e3
"""How far below its tolerance an error is still drawn; what is less is cut off."""

Tips = dict[str, tuple[str, ...]]
"""What is shown under the pointer, by the ``gid`` of what was drawn: a text for each point of a
line, or one for all of it. The browser shows it, without a script."""

TARGET = 9
"""Points across of what the pointer has to meet around a point."""


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
    draw: Callable[[Axes], Tips], *, name: str, title: str, description: str, frame: Frame
) -> Plot:
    """The drawing of ``draw``, with ``description`` for those who cannot see it.

    ``name`` is unique on the page.
    """
    out, tips = io.StringIO(), Tips()
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
                tips = draw(figure.subplots())
                figure.savefig(out, format="svg")
    except ImportError:
        return Plot(title, Markup(""))
    return Plot(title, _adopted(out.getvalue(), tips, name, title, description))


def _adopted(drawing: str, tips: Tips, name: str, title: str, description: str) -> Markup:
    """A drawing as part of a page: its identifiers its own, its colours the page's."""
    root = ET.fromstring(drawing)  # noqa: S314 (written by matplotlib a moment ago)
    _tip(root, tips)
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


def _tip(root: ET.Element, tips: Tips) -> None:
    """Titles for what was drawn, or for each of its points."""
    drawn = {found.get("id", ""): found for found in root.iter()}
    for gid, said in tips.items():
        group = drawn[gid]
        points = [group] if len(said) == 1 else [e for e in group.iter() if e.tag.endswith("}use")]
        for point, words in zip(points, said, strict=True):
            ET.SubElement(point, "title").text = figures.printable(words)


def _colour(label: str) -> str:
    """The stand-in of an artifact's series: a format has one colour in every plot."""
    kind = label.partition("-")[0]
    return COLOURS[f"series-{FORMATS.index(kind) if kind in FORMATS else SERIES - 1}"]


def _folded(label: str) -> str:
    """A label in lines that a plot has room for; a name is never cut."""
    return "\n".join(textwrap.wrap(figures.printable(label), LONGEST, break_on_hyphens=False))


def _target(axes: Axes, x: Sequence[float], y: Sequence[float], gid: str) -> None:
    """Points that nobody sees, large enough for the pointer to meet them."""
    axes.plot(
        x,
        y,
        "o",
        color=COLOURS["ink"],
        markersize=TARGET,
        markeredgewidth=0,
        alpha=0,
        gid=gid,
        zorder=9,
    )


def _legend_height(names: Sequence[str]) -> float:
    """Room for the names above the axes, in points."""
    lines = sum(_folded(name).count("\n") + 1 for name in names)
    return LEGEND_LINE * math.ceil(lines / _abreast(names)) + 8


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
class Measured:
    """What is known of an artifact, each figure with its 95 % interval.

    ``model`` tells the artifacts of several models apart; it is empty where there is one. What
    ``has_failed`` its check is drawn hollow, and nothing is said for it.
    """

    artifact: str
    bytes: int
    top1: float | None = None
    top1_interval: tuple[float, float] | None = None
    latency_ms: float | None = None
    latency_interval: tuple[float, float] | None = None
    model: str = ""
    has_failed: bool = False

    @property
    def label(self) -> str:
        """The name on a page."""
        return f"{self.model} {self.artifact}".strip()


@dataclass(frozen=True)
class Spot:
    """An artifact where one axis meets the other, with the 95 % interval of ``y``."""

    of: Measured
    x: float
    y: float
    interval: tuple[float, float] | None


SIZE, LATENCY, TOP1 = "size in MB", "median latency in ms", "top-1 in percent"


def measured(label: str, artifact: ArtifactReport) -> Measured:
    """What is known of an artifact, which is called ``label``."""
    accuracy, timing = artifact.accuracy, artifact.timing
    is_timed = timing is not None and bool(timing.seconds)
    return Measured(
        label,
        artifact.bytes,
        None if accuracy is None else accuracy.top1,
        None if accuracy is None else accuracy.top1_interval,
        timing.median_ms if timing is not None and is_timed else None,
        timing.interval_ms() if timing is not None and is_timed else None,
        has_failed=artifact.parity.verdict == "fail",
    )


def panels(items: Sequence[Measured]) -> dict[tuple[str, str], list[Spot]]:
    """What is drawn over what: accuracy over size and over latency.

    Latency over size where nothing was classified. A plot of fewer than two artifacts compares
    nothing and is left out.
    """
    over_size, over_latency, sized = [], [], []
    for item in items:
        if item.top1 is not None and item.bytes:
            over_size.append(Spot(item, item.bytes / 1e6, item.top1, item.top1_interval))
        if item.top1 is not None and item.latency_ms is not None:
            over_latency.append(Spot(item, item.latency_ms, item.top1, item.top1_interval))
        if item.latency_ms is not None and item.bytes:
            sized.append(Spot(item, item.bytes / 1e6, item.latency_ms, item.latency_interval))
    found = {(SIZE, TOP1): over_size, (LATENCY, TOP1): over_latency}
    if all(item.top1 is None for item in items):
        found = {(SIZE, LATENCY): sized}
    return {axes: spots for axes, spots in found.items() if len(spots) > 1}


def front(y: str, spots: Sequence[Spot]) -> list[Spot]:
    """The Pareto front: what no other is at least as good as in both, by rising ``x``.

    Of the axes only accuracy is the better the larger it is. What failed is not on it.
    """
    sign = -1 if y == TOP1 else 1
    found: list[Spot] = []
    sound = [spot for spot in spots if not spot.of.has_failed]
    for spot in sorted(sound, key=lambda spot: (spot.x, sign * spot.y)):
        if not found or sign * spot.y < sign * found[-1].y:
            found.append(spot)
    return found


def tradeoff(items: Sequence[Measured], reference: float | None = None) -> list[Plot]:
    """A plot of each of ``panels``; ``reference`` is PyTorch's top-1."""
    drawn = []
    for number, ((x, y), spots) in enumerate(panels(items).items()):
        entries = _entries([spot.of for spot in spots])
        legend = _legend_height([*entries, FRONT])
        drawn.append(
            plot(
                lambda axes, of=(x, y), spots=spots, entries=entries: _scatter(  # type: ignore[misc]
                    axes, of, spots, entries, reference
                ),
                name=f"tradeoff-plot-{number}",
                title=f"{y.capitalize()} over {x}",
                description=" ".join(f"{s.of.label}: {x} {s.x:.2f}, {y} {s.y:.2f}." for s in spots)
                + f" On the front: {', '.join(s.of.label for s in front(y, spots))}.",
                frame=Frame(240 + legend, top=legend),
            )
        )
    return drawn


FRONT = "nothing beats these"


def _entries(items: Sequence[Measured]) -> dict[str, tuple[str, str]]:
    """Colour and marker by what the legend calls them: artifacts, or formats and models."""
    if any(item.model for item in items):
        kinds = dict.fromkeys(item.artifact.partition("-")[0] for item in items)
        models = dict.fromkeys(item.model for item in items)
        found = {kind: (_colour(kind), "s") for kind in kinds}
        return found | {
            model: (COLOURS["muted"], MARKERS[number % len(MARKERS)])
            for number, model in enumerate(models)
        }
    seen: dict[str, int] = {}
    found = {}
    for item in items:
        colour = _colour(item.artifact)
        seen[colour] = seen.get(colour, -1) + 1
        found[item.artifact] = (colour, MARKERS[seen[colour] % len(MARKERS)])
    return found


def _scatter(
    axes: Axes,
    of: tuple[str, str],
    spots: Sequence[Spot],
    entries: Mapping[str, tuple[str, str]],
    reference: float | None,
) -> Tips:
    x, y = of
    best = front(y, spots)
    axes.step(
        [spot.x for spot in best],
        [spot.y for spot in best],
        where="post",
        color=COLOURS["muted"],
        linewidth=1,
        label=FRONT,
    )
    for name, (colour, marker) in entries.items():
        axes.plot([], [], marker, color=colour, markersize=6, label=_folded(name))
    for spot in spots:
        colour, marker = _colour(spot.of.artifact), entries[spot.of.model or spot.of.artifact][1]
        if spot.interval is not None:
            axes.plot((spot.x, spot.x), spot.interval, color=colour, alpha=0.4, linewidth=1.2)
        filling = "none" if spot.of.has_failed else colour
        axes.plot(spot.x, spot.y, marker, color=colour, markersize=6, markerfacecolor=filling)
    if reference is not None and y == TOP1:
        axes.axhline(reference, color=COLOURS["muted"], linestyle="--", linewidth=1)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.margins(x=0.08, y=0.15)
    axes.ticklabel_format(useOffset=False)
    _legend(axes, [*entries, FRONT])
    _target(axes, [spot.x for spot in spots], [spot.y for spot in spots], "spots")
    return {"spots": tuple(_spot_words(x, y, spot) for spot in spots)}


def _spot_words(x: str, y: str, spot: Spot) -> str:
    span = ""
    if spot.interval is not None:
        span = f" (95 % interval {spot.interval[0]:.2f} to {spot.interval[1]:.2f})"
    failed = ", failed" if spot.of.has_failed else ""
    return f"{spot.of.label}{failed}: {x} {spot.x:.2f}, {y} {spot.y:.2f}{span}"


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
        frame=Frame(44 + 40 * len(timed) + 12 * _more_lines(timed), left=12, right=12, top=6),
    )


def _strip_words(label: str, found: TimingReport) -> str:
    return _folded(f"{label} · {figures.milliseconds(found.median_ms)}")


def _more_lines(timed: Mapping[str, TimingReport]) -> int:
    """Lines of words beyond one for each strip."""
    return sum(_strip_words(label, found).count("\n") for label, found in timed.items())


def _strips(axes: Axes, timed: Mapping[str, TimingReport]) -> Tips:
    tips: Tips = {}
    y = 1.0
    place: dict[str, Any] = {
        "transform": axes.get_yaxis_transform(),
        "va": "bottom",
        "fontsize": 10,
        "linespacing": 1.0,
    }
    for row, (label, found) in enumerate(timed.items()):
        words, colour = _strip_words(label, found), _colour(label)
        y -= 1 + 0.3 * words.count("\n")  # 12 of a strip's 40 points
        milliseconds = 1e3 * np.asarray(found.seconds)
        rounds = np.linspace(-0.3, 0.12, len(milliseconds))
        low, middle, high = np.quantile(milliseconds, (0.25, 0.5, 0.75))
        axes.fill_betweenx(
            (y - 0.34, y + 0.16),
            low,
            high,
            color=colour,
            alpha=0.25,
            linewidth=0,
            gid=f"strip-{row}",
        )
        tips[f"strip-{row}"] = (
            f"{label}: median {middle:.3f} ms, the middle half from {low:.3f} to {high:.3f} ms",
        )
        axes.plot(milliseconds, y + rounds, ".", color=colour, markersize=3.2, alpha=0.8)
        axes.plot((middle, middle), (y - 0.34, y + 0.16), color=colour, linewidth=2)
        axes.text(0.0, y + 0.22, words, ha="left", **place)
        if found.noisy:
            axes.text(1.0, y + 0.22, "noisy", ha="right", color=COLOURS["warn"], **place)
    medians = [found.median_ms for found in timed.values()]
    is_wide = max(medians) > WIDE_RANGE * min(medians)
    if is_wide:
        from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

        axes.set_xscale("log")
        calls = [second for found in timed.values() for second in found.seconds]
        is_very_wide = max(calls) > VERY_WIDE * min(calls)
        axes.xaxis.set_major_locator(LogLocator(subs=(1,) if is_very_wide else (1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(f"milliseconds a call{' (log)' if is_wide else ''}")
    axes.set_ylim(y - 0.55, 0.62)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.grid(visible=False, axis="y")
    return tips


# --- drift -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class DriftPlots:
    """``shown`` are of the blocks' results and wherever a tap is marked, ``more`` all the rest."""

    shown: tuple[Plot, ...]
    more: tuple[Plot, ...]


KINDS = {"scores": "attention scores", "softmax": "attention after the softmax"}
"""Kinds of taps beside the results of blocks, by the last part of their names."""
RESULTS = "results of blocks"


def drift(found: DriftMap) -> DriftPlots:
    """A plot for each precision and kind of tap, a line for each runtime.

    Scores, attention and results differ by their nature: a line through all of them would go up
    and down without a meaning, and so would the tolerance.
    """
    coarse = {each.subject for each in found.findings if found.state(each) == "coarse"}
    shown: list[Plot] = []
    more: list[Plot] = []
    for number, (kind, stages) in enumerate(_groups(found)):
        is_marked = any(stage.first_fault for stage in stages)
        names = [stage.name for stage in stages]
        legend = _legend_height(["tolerance", *names])
        drawn = plot(
            lambda axes, stages=stages: _lines(axes, stages, coarse),  # type: ignore[misc]
            name=f"drift-plot-{number}",
            title=f"Distance to PyTorch over depth, {kind}: {', '.join(names)}",
            description=" ".join(_said(stages)),
            frame=Frame(240 + legend, left=58, top=legend, bottom=52),
        )
        (shown if is_marked or kind == RESULTS else more).append(drawn)
    return DriftPlots(tuple(shown), tuple(more))


def _groups(found: DriftMap) -> list[tuple[str, list[DriftStage]]]:
    """Artifacts of one precision, one kind of tap, and like tolerances, which share a band."""
    groups: list[tuple[str, str, list[DriftStage]]] = []
    for stage in found.stages:
        for kind in (RESULTS, *KINDS.values()):
            part = replace(stage, rows=tuple(row for row in stage.rows if _kind(row) == kind))
            if stage.kind != "artifact" or not _points(part.rows, "accumulated"):
                continue
            for *known, group in groups:
                if known == [stage.precision, kind] and _alike(group[0], part):
                    group.append(part)
                    break
            else:
                groups.append((stage.precision, kind, [part]))
    return [(kind, group) for _, kind, group in groups]


def _kind(row: DriftRow) -> str:
    return KINDS.get(row.tap.rpartition(".")[2], RESULTS)


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


def _lines(axes: Axes, stages: Sequence[DriftStage], coarse: Collection[str]) -> Tips:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_yscale("log")
    seen: dict[str, int] = {}
    allowed: dict[int, float] = {}
    for stage in stages:
        colour = _colour(stage.name)
        seen[colour] = seen.get(colour, -1) + 1
        for figure, dash, width, label in (
            ("accumulated", DASHES[seen[colour] % len(DASHES)], 1.8, _folded(stage.name)),
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
    axes.set_ylim(bottom, ROOM_ABOVE * top)
    _mark_faults(axes, stages, coarse)
    _tap_axis(axes, stages[0].rows)
    axes.yaxis.set_major_locator(LogLocator(numticks=7))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0e}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_ylabel("relative distance (log)")
    _legend(axes, ["tolerance", *(stage.name for stage in stages)])
    return _tap_tips(axes, stages)


def _mark_faults(axes: Axes, stages: Sequence[DriftStage], coarse: Collection[str]) -> None:
    """A ring around the first tap at which each file leaves its tolerance, and once its name."""
    named: set[int] = set()
    for stage in stages:
        colour = COLOURS["warn" if stage.name in coarse else "fail"]
        at = next((at for at, row in enumerate(stage.rows) if row.is_fault), None)
        if at is None:
            continue
        known = [_points(stage.rows, name).get(at) for name in ("introduced", "accumulated")]
        height = next((value for value in known if value is not None), None)
        if height is None:  # there is nothing to be drawn of what is missing
            continue
        axes.plot(at, height, "o", markersize=10, markerfacecolor="none", color=colour)
        if at in named:
            continue
        named.add(at)
        is_right = at >= len(stage.rows) / 2
        axes.annotate(
            _folded(stage.rows[at].tap),
            (at, height),
            xytext=(6 if is_right else -6, 9),
            textcoords="offset points",
            ha="right" if is_right else "left",
            color=colour,
            fontsize=9.5,
        )


def _tap_tips(axes: Axes, stages: Sequence[DriftStage]) -> Tips:
    """Every figure of a tap under the pointer, at each of its two points."""
    tips: Tips = {}
    bottom, top = axes.get_ylim()
    for number, stage in enumerate(stages):
        for figure in ("accumulated", "introduced"):
            points = _points(stage.rows, figure)
            seen = {at: value for at, value in points.items() if bottom <= value <= top}
            gid = f"taps-{number}-{figure}"
            _target(axes, list(seen), list(seen.values()), gid)
            tips[gid] = tuple(
                f"{stage.name}, {row.tap}: {figures.error(row.accumulated)} accumulated, "
                f"{figures.error(row.introduced)} introduced, tolerance "
                f"{figures.error(row.tolerance)}"
                for row in (stage.rows[at] for at in seen)
            )
    return tips


def _tap_axis(axes: Axes, rows: Sequence[DriftRow]) -> None:
    """A tick where a stage begins, or at every so many taps where there are no stages."""
    stages = [row.block.partition(".")[0] for row in rows]
    starts = [at for at, stage in enumerate(stages) if at == 0 or stages[at - 1] != stage]
    if not 1 < len(starts) <= MOST_TICKS:
        starts = list(range(0, len(rows), math.ceil(len(rows) / MOST_TICKS)))
    names = [figures.printable(stages[at]) for at in starts]
    axes.set_xticks(starts)
    axes.set_xticklabels(names, rotation=40, ha="right", rotation_mode="anchor")
