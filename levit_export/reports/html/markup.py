"""HTML that is escaped unless it was made here.

Everything a report holds (file names, class names, reasons of a runtime) is text from elsewhere.
:func:`element` escapes every child and attribute that is not itself :class:`Markup`, so a page put
together from elements cannot hold foreign markup.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from levit_export.reports.junit import NOT_XML

VOID = ("br", "img", "meta")
"""Elements that have no content, of those used here."""


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def text(value: object) -> Markup:
    """``value`` as HTML that shows it as it is; characters that no page can hold are replaced."""
    if isinstance(value, Markup):
        return value
    return Markup(escape(NOT_XML.sub("\N{REPLACEMENT CHARACTER}", str(value))))


def join(children: Iterable[object], between: str = "") -> Markup:
    """The children one after the other."""
    return Markup(between.join(text(child) for child in children))


def element(
    tag: str, *children: object, attributes: Mapping[str, str] | None = None, kind: str = ""
) -> Markup:
    """One element; ``kind`` is its class."""
    named = {**({"class": kind} if kind else {}), **(attributes or {})}
    written = "".join(f' {name}="{text(value)}"' for name, value in named.items())
    if tag in VOID:
        return Markup(f"<{tag}{written}>")
    return Markup(f"<{tag}{written}>{join(children)}</{tag}>")


@dataclass(frozen=True)
class Column:
    """A heading, and whether its cells are numbers, which line up on the right."""

    heading: str
    number: bool = False


def table(caption: str, columns: Sequence[Column], rows: Iterable[Sequence[object]]) -> Markup:
    """A table whose first cell of a row heads it, in a box that scrolls where it is too wide."""
    head = element("tr", *(_heading(column) for column in columns))
    body = [
        element("tr", *(_cell(at, column, cell) for at, (column, cell) in enumerate(pairs)))
        for pairs in (list(zip(columns, row, strict=True)) for row in rows)
    ]
    whole = element(
        "table",
        element("caption", caption),
        element("thead", head),
        element("tbody", join(body, "\n")),
    )
    box = {"role": "group", "aria-label": caption, "tabindex": "0"}
    return element("div", whole, attributes=box, kind="scroll")


def _heading(column: Column) -> Markup:
    kind = "number" if column.number else ""
    return element("th", column.heading, attributes={"scope": "col"}, kind=kind)


def _cell(at: int, column: Column, cell: object) -> Markup:
    if at == 0:
        return element("th", cell, attributes={"scope": "row"})
    return element("td", cell, kind="number" if column.number else "")


def definitions(pairs: Iterable[tuple[object, object]]) -> Markup:
    """Terms and what they are."""
    inner = join(element("div", element("dt", term), element("dd", what)) for term, what in pairs)
    return element("dl", inner)


def bullets(items: Iterable[object]) -> Markup:
    """A list, or nothing where there are no items."""
    listed = [element("li", item) for item in items]
    return element("ul", *listed) if listed else Markup("")


def folded(summary: str, *children: object) -> Markup:
    """Details that are shown when asked for."""
    return element("details", element("summary", summary), *children)


def section(name: str, heading: str, *children: object) -> Markup:
    """A landmark called by its heading."""
    title = element("h2", heading, attributes={"id": f"{name}-heading"})
    attributes = {"id": name, "aria-labelledby": f"{name}-heading"}
    return element("section", title, *children, attributes=attributes)
