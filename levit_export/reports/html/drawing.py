"""Plots as SVG that takes its colours from the page, and its words too.

matplotlib draws in stand-in colours, which become the CSS variables of report.css: one drawing
serves light, dark and paper. Text stays text. The same values give the same bytes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

from levit_export.core.quiet import quiet
from levit_export.reports.html.markup import Markup, element
from levit_export.reports.junit import NOT_XML

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH = 360
"""Points across: the text is legible when a telephone shows it at 350 pixels."""

POINTS_PER_INCH = 72
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
    "savefig.facecolor": "none",
    "xtick.color": COLOURS["line"],
    "ytick.color": COLOURS["line"],
    "xtick.labelcolor": COLOURS["muted"],
    "ytick.labelcolor": COLOURS["muted"],
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
}
HOW_TO_GET = "pip install matplotlib"


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

    def margins(self) -> dict[str, float]:
        """The edges of the axes as shares of the figure."""
        return {
            "left": self.left / WIDTH,
            "right": 1 - self.right / WIDTH,
            "bottom": self.bottom / self.height,
            "top": 1 - self.top / self.height,
        }


def plot(
    draw: Callable[[Axes], None], *, name: str, title: str, description: str, frame: Frame
) -> Markup:
    """The drawing of ``draw``, with ``description`` for who cannot see it.

    ``name`` is unique on the page. Without matplotlib, a sentence that says how to get the plot.
    """
    try:
        drawing = _drawn(draw, frame)
    except ImportError:
        words = f"“{title}” is not drawn: matplotlib is not installed. To have plots: "
        return element("p", words, element("code", HOW_TO_GET), kind="note")
    svg = _adopted(drawing, name, title, description)
    return element("figure", svg, element("figcaption", title), kind="plot")


def colour(label: str) -> str:
    """The stand-in of an artifact's series: a format has one colour in every plot."""
    kind = label.partition("-")[0]
    return COLOURS[f"series-{FORMATS.index(kind) if kind in FORMATS else SERIES - 1}"]


def _drawn(draw: Callable[[Axes], None], frame: Frame) -> str:
    out = io.StringIO()
    # It speaks of caches of fonts, and of glyphs that the page's own font has.
    with quiet("matplotlib"):
        import matplotlib as mpl
        from matplotlib.figure import Figure

        with mpl.rc_context():
            mpl.rcdefaults()
            settings: Any = mpl.rcParams  # its keys' types differ from version to version
            settings.update(STYLE)
            size = (WIDTH / POINTS_PER_INCH, frame.height / POINTS_PER_INCH)
            figure = Figure(figsize=size)
            figure.subplots_adjust(**frame.margins())
            draw(figure.subplots())
            figure.savefig(out, format="svg")
    return out.getvalue()


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
        found.attrib.update({key: _owned(key, value, name) for key, value in attributes.items()})
    viewbox = root.attrib["viewBox"]
    root.attrib.clear()
    label = NOT_XML.sub("\N{REPLACEMENT CHARACTER}", title)
    root.attrib.update({"viewBox": viewbox, "role": "img", "aria-label": label})
    for position, (tag, words) in enumerate((("title", title), ("desc", description))):
        said = ET.Element(tag)
        said.text = NOT_XML.sub("\N{REPLACEMENT CHARACTER}", words)
        root.insert(position, said)
    return Markup(_coloured(ET.tostring(root, encoding="unicode")))


def _owned(key: str, value: str, name: str) -> str:
    if key == "id":
        return f"{name}-{value}"
    if key == "href":
        return f"#{name}-{value.removeprefix('#')}"
    return value.replace("url(#", f"url(#{name}-")


def _coloured(svg: str) -> str:
    names = {stand_in: name for name, stand_in in COLOURS.items()}
    return re.sub("#0101[0-9a-f]{2}", lambda found: f"var(--{names[found[0]]})", svg)
