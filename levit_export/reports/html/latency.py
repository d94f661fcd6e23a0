"""Latency as it was measured: every call, not a bar."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from levit_export.checks.timing import NOISY, TimingReport
from levit_export.reports.html import drawing, wording
from levit_export.reports.html.markup import Column, Markup, element, folded, section, table
from levit_export.reports.report import Report, labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROW = 40
"""Points that a measurement takes in height."""

WIDE_RANGE = 8.0
"""Largest ratio of two latencies that a linear axis still shows side by side."""

EXPLANATION = (
    "Each dot is one call, from the first round at the bottom of its strip to the last at the "
    "top; the bar spans the middle half, its stroke is the median."
)


def latency(report: Report) -> Markup:
    """A strip for each artifact and baseline that was timed, then the figures behind them."""
    timed = _timed(report)
    untimed = [
        (label, artifact.timing.reason)
        for label, artifact in zip(labels(report.artifacts), report.artifacts, strict=True)
        if artifact.timing is not None and artifact.timing.verdict == "not-run"
    ]
    reasons = [element("p", f"{label}: not timed: {why}", kind="note") for label, why in untimed]
    if not timed:
        nothing = "" if reasons else element("p", "Nothing was timed in this run.", kind="note")
        return section("latency", "Latency", nothing, *reasons)
    drawn = drawing.plot(
        lambda axes: _strips(axes, timed),
        name="latency-plot",
        title="Latency of single calls",
        description=f"{EXPLANATION} {' '.join(_said(timed))}",
        frame=drawing.Frame(44 + ROW * len(timed), left=12, right=12, top=6),
    )
    first = next(iter(timed.values()))
    how = f"Measured interleaved on {_threads(first.threads)}, batch {first.batch}. {EXPLANATION}"
    noisy = (
        f"Noisy means that the middle half spans more than {100 * NOISY:.0f} % of the median: "
        "something else ran on the machine."
    )
    words = how + (f" {noisy}" if any(t.noisy for t in timed.values()) else "")
    figures = folded("Figures", _figures(timed))
    return section("latency", "Latency", element("p", words), drawn, *reasons, figures)


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"


def _timed(report: Report) -> dict[str, TimingReport]:
    """What was timed, by what people call it."""
    found = {
        label: artifact.timing
        for label, artifact in zip(labels(report.artifacts), report.artifacts, strict=True)
        if artifact.timing is not None and artifact.timing.seconds
    }
    return found | {name: t for name, t in report.baselines.items() if t.seconds}


def _said(timed: Mapping[str, TimingReport]) -> Iterator[str]:
    for label, found in timed.items():
        low, high = found.interval_ms()
        yield (
            f"{label}: median {found.median_ms:.2f} ms, 95 % interval {low:.2f} to {high:.2f}"
            f"{', noisy' if found.noisy else ''}."
        )


def _strips(axes: Axes, timed: Mapping[str, TimingReport]) -> None:
    for row, (label, found) in enumerate(timed.items()):
        _strip(axes, -row, label, found, drawing.colour(label))
    medians = [found.median_ms for found in timed.values()]
    _millisecond_axis(axes, logarithmic=max(medians) > WIDE_RANGE * min(medians))
    axes.set_ylim(-len(timed) + 0.45, 0.62)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.grid(visible=False, axis="y")


def _strip(axes: Axes, y: float, label: str, found: TimingReport, colour: str) -> None:
    milliseconds = 1e3 * np.asarray(found.seconds)
    rounds = np.linspace(-0.3, 0.12, len(milliseconds))
    low, middle, high = np.quantile(milliseconds, (0.25, 0.5, 0.75))
    axes.fill_betweenx((y - 0.34, y + 0.16), low, high, color=colour, alpha=0.25, linewidth=0)
    axes.plot(milliseconds, y + rounds, ".", color=colour, markersize=3.2, alpha=0.8)
    axes.plot((middle, middle), (y - 0.34, y + 0.16), color=colour, linewidth=2)
    words = f"{wording.shortened(label, 30)} · {wording.milliseconds(float(middle))}"
    place: dict[str, Any] = {
        "transform": axes.get_yaxis_transform(),
        "va": "center",
        "fontsize": 10,
    }
    axes.text(0.0, y + 0.38, words, ha="left", **place)
    if found.noisy:
        axes.text(1.0, y + 0.38, "noisy", ha="right", color=drawing.COLOURS["warn"], **place)


def _millisecond_axis(axes: Axes, *, logarithmic: bool) -> None:
    if logarithmic:
        from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(f"milliseconds a call{' (log)' if logarithmic else ''}")


def _figures(timed: Mapping[str, TimingReport]) -> Markup:
    columns = [Column("measured")] + [
        Column(heading, number=True)
        for heading in ("median", "95 % interval", "p10", "p90", "calls", "load", "noisy")
    ]
    rows = [
        (
            label,
            f"{found.median_ms:.3f} ms",
            "{:.3f}–{:.3f} ms".format(*found.interval_ms()),
            f"{found.quantile_ms(0.1):.3f} ms",
            f"{found.quantile_ms(0.9):.3f} ms",
            len(found.seconds),
            f"{1e3 * found.load_s:.0f} ms" if found.load_s else wording.NONE,
            "yes" if found.noisy else "no",
        )
        for label, found in timed.items()
    ]
    return table("Latency in figures", columns, rows)
