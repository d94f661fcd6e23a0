"""Pictures on which an artifact answers otherwise than PyTorch, with both answers."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from levit_export.checks.parity import Flip
from levit_export.reports.html import wording
from levit_export.reports.html.markup import Markup, element, section
from levit_export.reports.report import Report, labels

SIDE = 112
"""Pixels that a picture is reduced to on its longer side; smaller ones are kept as they are."""

MOST_OF_A_NAME = 48

MOST = 24
"""Pictures shown; the rest are counted."""

Pixels = Mapping[str, np.ndarray]
"""The uint8 image ``(H, W)`` or ``(H, W, 3)`` behind a sample, by the sample's name."""


@dataclass(frozen=True)
class _Found:
    """A flip of one output of one artifact."""

    label: str
    output: str
    flip: Flip


def flips(report: Report, pixels: Pixels) -> Markup:
    """A picture for each sample that flipped anywhere, and who answered what."""
    checked = [a for a in report.artifacts if a.parity.outputs]
    if not checked:
        return Markup("")
    counted = sum(o.decided_flips + o.undecided_flips for a in checked for o in a.parity.outputs)
    found = _by_sample(report)
    if not counted and not found:
        most = max(a.parity.samples for a in checked)
        words = f"No artifact changes PyTorch's best class on any of {most} samples."
        return section("flips", "Changed answers", element("p", words))
    classes = () if report.model is None else report.model.labels
    cards = [
        _card(name, items, classes, pixels.get(name)) for name, items in list(found.items())[:MOST]
    ]
    return section(
        "flips",
        "Changed answers",
        element("p", _words(report)),
        element("ul", *cards, kind="cards"),
        *_left_out(counted, found),
    )


def _words(report: Report) -> str:
    outputs = [output for artifact in report.artifacts for output in artifact.parity.outputs]
    decided = sum(output.decided_flips for output in outputs)
    undecided = sum(output.undecided_flips for output in outputs)
    words = (
        f"{undecided} undecided: PyTorch itself is so near a tie there that rounding explains "
        "another best class."
    )
    if decided:
        words += f" {decided} decided: rounding does not explain them, and they are failures."
    return words


def _left_out(counted: int, found: Mapping[str, Sequence[_Found]]) -> list[Markup]:
    listed = sum(len(items) for items in found.values())
    notes = []
    if len(found) > MOST:
        notes.append(f"{len(found) - MOST} more samples are in report.json.")
    if listed < counted:
        notes.append(f"Of {counted - listed} changed answers it is not known on which samples.")
    return [element("p", note, kind="note") for note in notes]


def _by_sample(report: Report) -> dict[str, list[_Found]]:
    found: dict[str, list[_Found]] = {}
    for label, artifact in zip(labels(report.artifacts), report.artifacts, strict=True):
        for output in artifact.parity.outputs:
            for flip in output.flipped:
                found.setdefault(flip.sample, []).append(_Found(label, output.name, flip))
    return found


def _card(
    name: str, items: Sequence[_Found], classes: Sequence[str], pixels: np.ndarray | None
) -> Markup:
    picture = (
        element("p", "no picture: random numbers", kind="note missing")
        if pixels is None
        else _picture(name, pixels)
    )
    answers = [
        element(
            "li",
            f"{item.label}: ",
            element("b", _class(item.flip.artifact_class, classes)),
            " (decided)" if item.flip.decided else "",
            "" if _only_output(items) else f" in {item.output}",
        )
        for item in items
    ]
    expected = dict.fromkeys(_class(item.flip.reference_class, classes) for item in items)
    reference = element("li", "PyTorch: ", element("b", " / ".join(expected)))
    return element("li", picture, element("code", name), element("ul", reference, *answers))


def _only_output(items: Sequence[_Found]) -> bool:
    return len({item.output for item in items}) == 1


def _class(number: int, classes: Sequence[str]) -> str:
    if 0 <= number < len(classes) and classes[number]:
        return wording.shortened(classes[number], MOST_OF_A_NAME)
    return f"class {number}"


def _picture(name: str, pixels: np.ndarray) -> Markup:
    attributes = {
        "src": f"data:image/png;base64,{base64.b64encode(_png(pixels)).decode()}",
        "alt": f"sample {name}",
    }
    return element("img", attributes=attributes)


def _png(pixels: np.ndarray) -> bytes:
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(pixels))
    image.thumbnail((SIDE, SIDE))
    out = io.BytesIO()
    image.save(out, format="PNG", optimize=True)
    return out.getvalue()
