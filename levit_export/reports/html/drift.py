"""Where along the network an artifact departs from PyTorch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from levit_export.reports.html import drawing, wording
from levit_export.reports.html.markup import (
    Column,
    Markup,
    bullets,
    element,
    folded,
    section,
    table,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from levit_export.checks.drift.values import DriftFinding, DriftMap, DriftRow, DriftStage

HEIGHT = 240
LEGEND_LINE = 15
MOST_TICKS = 9
ALIKE = 2.0
DECADES_BELOW = 1e3
"""How far below its tolerance an error is still drawn; what is less is cut off."""

DASHES = ("-", "--", "-.")
"""Of the artifacts of one format, such as Core ML's on several compute units."""

EXPLANATION = (
    "Relative distance to PyTorch at every tap, in the order of execution. The solid line is what "
    "has accumulated from the image on; the dotted one is what each part adds by itself, and that "
    "is what has to stay inside the shaded band of the tolerance."
)


def drift(found: DriftMap | None, place: str = "") -> Markup:
    """A plot for each precision, a line for each runtime; without a map, how to get one.

    ``place`` is the export directory that the page is in, if it is in one.
    """
    if found is None:
        return section("drift", "Drift", element("p", *_how(place)))
    plots = [
        drawing.plot(
            lambda axes, stages=stages: _lines(axes, stages),  # type: ignore[misc]
            name=f"drift-plot-{number}",
            title=f"Distance to PyTorch over depth: {_listed(stages)}",
            description=" ".join(_said(stages)),
            frame=_frame(len(stages) + 1),
        )
        for number, stages in enumerate(_groups(found))
    ]
    sentences = bullets(_finding(finding) for finding in found.findings if finding.sentence)
    every = folded("Figures of every tap", *(_figures(stage) for stage in found.stages))
    grid = element("div", *plots, kind="plots")
    words = element("p", EXPLANATION) if plots else ""
    return section("drift", "Drift", sentences, words, grid, every, bullets(found.notes))


def _how(place: str) -> Iterator[object]:
    yield "Where in the network the artifacts depart from PyTorch was not measured in this run. "
    yield element("code", f"levit-export drift {place or 'DIR'}")
    yield " does, block by block and stage by stage, and puts the map here."


def _finding(finding: DriftFinding) -> Markup:
    word = wording.verdict("pass" if finding.clean else "fail")
    return element("span", word, f" {finding.sentence}")


def _listed(stages: Sequence[DriftStage]) -> str:
    return ", ".join(wording.shortened(stage.name, 40) for stage in stages)


def _frame(entries: int) -> drawing.Frame:
    legend = LEGEND_LINE * entries + 8
    return drawing.Frame(HEIGHT + legend, left=58, top=legend, bottom=52)


def _groups(found: DriftMap) -> list[list[DriftStage]]:
    """Artifacts of one precision and of like tolerances: a band has to be right for each line."""
    groups: list[tuple[str, list[DriftStage]]] = []
    for stage in found.stages:
        if stage.kind != "artifact" or not any(_values(stage.rows, "accumulated")):
            continue
        precision = stage.name.partition("-")[2].partition(" ")[0]
        for known, group in groups:
            if known == precision and _alike(group[0], stage):
                group.append(stage)
                break
        else:
            groups.append((precision, [stage]))
    return [group for _, group in groups]


def _alike(one: DriftStage, other: DriftStage) -> bool:
    """Whether no tolerance of the two differs by more than ``ALIKE`` at a tap that both have."""
    known = dict(zip(*_line(one.rows, "tolerance"), strict=True))
    pairs = [
        (value, known[at])
        for at, value in zip(*_line(other.rows, "tolerance"), strict=True)
        if at in known
    ]
    return all(max(pair) <= ALIKE * min(pair) for pair in pairs)


def _said(stages: Sequence[DriftStage]) -> Iterator[str]:
    for stage in stages:
        known = [row for row in stage.rows if row.accumulated is not None]
        worst = max(known, key=_size)
        fault = stage.first_fault
        yield (
            f"{stage.name}: {_error(known[-1].accumulated)} at {known[-1].tap}, largest "
            f"{_error(worst.accumulated)} at {worst.tap}; "
            + (f"leaves its tolerance at {fault.tap}." if fault else "within its tolerance.")
        )


def _size(row: DriftRow) -> float:
    return -math.inf if row.accumulated is None else row.accumulated


def _values(rows: Sequence[DriftRow], name: str) -> list[float]:
    """One figure of every row that has it, 0 where a logarithm does not exist."""
    return [_drawable(getattr(row, name)) or 0.0 for row in rows]


def _drawable(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) and value > 0 else None


def _lines(axes: Axes, stages: Sequence[DriftStage]) -> None:
    axes.set_yscale("log")
    seen: dict[str, int] = {}
    for stage in stages:
        colour, name = drawing.colour(stage.name), wording.shortened(stage.name, 40)
        seen[colour] = seen.get(colour, -1) + 1
        dash = DASHES[seen[colour] % len(DASHES)]
        axes.plot(*_line(stage.rows, "accumulated"), dash, color=colour, linewidth=1.8, label=name)
        axes.plot(*_line(stage.rows, "introduced"), ":", color=colour, linewidth=1.2)
    _band(axes, stages)
    _tap_axis(axes, stages[0].rows)
    _error_axis(axes)
    axes.legend(
        loc="lower left", bbox_to_anchor=(-0.02, 1.0), frameon=False, fontsize=9.5, borderpad=0
    )


def _line(rows: Sequence[DriftRow], name: str) -> tuple[list[int], list[float]]:
    known = [(at, value) for at, value in enumerate(_values(rows, name)) if value]
    return [at for at, _ in known], [value for _, value in known]


def _band(axes: Axes, stages: Sequence[DriftStage]) -> None:
    """Up to the smallest tolerance that any of the stages has at a tap."""
    allowed: dict[int, float] = {}
    for stage in stages:
        for at, value in zip(*_line(stage.rows, "tolerance"), strict=True):
            allowed[at] = min(value, allowed.get(at, math.inf))
    bottom, top = axes.get_ylim()
    if allowed:
        places, edge = sorted(allowed), [allowed[at] for at in sorted(allowed)]
        bottom, top = max(bottom, min(edge) / DECADES_BELOW), max(top, 1.5 * max(edge))
        shade = drawing.COLOURS["band"]
        axes.fill_between(places, bottom, edge, color=shade, linewidth=0, label="tolerance")
        axes.plot(places, edge, color=drawing.COLOURS["muted"], linewidth=0.8)
    axes.set_ylim(bottom, top)


def _tap_axis(axes: Axes, rows: Sequence[DriftRow]) -> None:
    """A tick where a stage begins, or at every so many taps where there are no stages."""
    stages = [row.block.partition(".")[0] for row in rows]
    starts = [at for at, stage in enumerate(stages) if at == 0 or stages[at - 1] != stage]
    if not 1 < len(starts) <= MOST_TICKS:
        starts = list(range(0, len(rows), math.ceil(len(rows) / MOST_TICKS)))
    names = [wording.shortened(stages[at], 12) for at in starts]
    axes.set_xticks(starts)
    axes.set_xticklabels(names, rotation=40, ha="right", rotation_mode="anchor")


def _error_axis(axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.yaxis.set_major_locator(LogLocator(numticks=7))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0e}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_ylabel("relative distance (log)")


def _figures(stage: DriftStage) -> Markup:
    names = ("accumulated", "introduced", "tolerance")
    columns = [Column("tap"), *(Column(name, number=True) for name in names), Column("status")]
    rows = [
        (
            row.tap,
            _error(row.accumulated),
            _error(row.introduced),
            _error(row.tolerance),
            row.status,
        )
        for row in stage.rows
    ]
    failure = element("p", stage.failure, kind="note") if stage.failure else ""
    shown = table(f"{stage.name} against {stage.against}", columns, rows) if rows else ""
    return element("div", shown, failure)


def _error(value: float | None) -> str:
    return wording.NONE if value is None else wording.error(value)
