"""Reports and drift maps made by hand, and pages read back."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from html.parser import HTMLParser

import gate_reports as made
import numpy as np

from levit_export.checks.drift.values import DriftFinding, DriftMap, DriftRow, DriftStage
from levit_export.checks.parity import OutputParity, ParityReport
from levit_export.checks.results import Accuracy, ArtifactReport
from levit_export.checks.timing import TimingReport
from levit_export.core.values import PassRecord, overall
from levit_export.reports import html
from levit_export.reports.report import Report

VOID = {"meta", "img", "br"}
HOSTILE = "<script>alert(1)</script>&\"'$x$\x00\udcff<b>"
PASSES = (
    PassRecord("fuse_batchnorm", "applied", "", 48, 4e-16, (7_800, 7_700), (516, 294), -400),
    PassRecord("merge_heads", "not-applicable", "one head"),
)


@dataclass(frozen=True)
class Flip:
    """A changed answer."""

    sample: str
    reference_class: int
    artifact_class: int
    decided: bool = False


@dataclass(frozen=True)
class Flipped(OutputParity):
    """An output that knows which samples flipped."""

    flipped: tuple[Flip, ...] = ()


def flipped(*flips: Flip) -> ParityReport:
    """A parity report over one output with these flips."""
    output = made.output()
    counts = {
        "decided_flips": sum(flip.decided for flip in flips),
        "undecided_flips": sum(not flip.decided for flip in flips),
    }
    known = {name: getattr(output, name) for name in OutputParity.__dataclass_fields__}
    return made.parity_of(Flipped(**{**known, **counts, "flipped": flips}))


def timed(milliseconds: float, *, spread: float = 0.01) -> TimingReport:
    """Fifty calls; ``spread`` is their deviation relative to the median."""
    noise = np.random.default_rng(0).standard_normal(50)
    return made.timed(milliseconds / 1e3 * np.exp(spread * noise), efficiency=0.5)


def artifact(
    kind: str = "onnx",
    precision: str = "fp32",
    *,
    size: int = 2_000_000,
    timing: TimingReport | None = None,
    correct: int | None = None,
    share: float = 0.25,
) -> ArtifactReport:
    """An artifact that passes unless ``share`` exceeds 1; ``correct`` counts of 360 images."""
    found = made.artifact(kind, size=size, timing=timing, share=share)
    accuracy = None
    if correct is not None:
        accuracy = Accuracy("digits", 360, correct, 357, correct / 360)
    return replace(found, precision=precision, accuracy=accuracy)


def twelve() -> Report:
    """Every format in four precisions, with everything measured."""
    artifacts = [
        artifact(kind, precision, size=size, timing=timed(latency * factor), correct=correct)
        for kind, factor in (("onnx", 1.0), ("openvino", 0.9), ("coreml", 1.1))
        for precision, size, latency, correct in (
            ("fp32", 3_000_000, 9.0, 357),
            ("fp16", 1_500_000, 8.8, 357),
            ("int8", 800_000, 6.0, 355),
            ("w4", 440_000, 9.1, 340),
        )
    ]
    return replace(made.report_of(*artifacts, eager=timed(20, spread=0.3)), passes=PASSES)


def drift_of(*names: str) -> DriftMap:
    """A map over ``names`` in which the first introduces an error in stage2.block0.attention."""
    taps = ("stem.0", "stage1.block0.attention", "stage2.block0.attention", "head")
    stages = []
    for at, name in enumerate(names):
        errors = (1e-7, 2e-7, 5e-5 if at == 0 else 2e-7, 3e-7)
        rows = tuple(
            DriftRow(tap, tap, name, "exceeds" if error > 1e-6 else "ok", error, error, 1e-6)
            for tap, error in zip(taps, errors, strict=True)
        )
        precision = name.partition("-")[2]
        stages.append(DriftStage(name, "artifact", "the module", rows, precision=precision))
    finding = DriftFinding(
        names[0], "conversion", names[0], taps[2], taps[2], f"{taps[2]} is at fault"
    )
    return DriftMap("levit_digits", ("noise",), tuple(stages), (finding,))


SWEPT = tuple(
    html.SweptRow(
        html.Measured(
            f"{kind}-{precision}",
            size,
            top1,
            (top1 - 1, top1 + 0.5),
            latency,
            (latency * 0.9, latency * 1.1),
            model=model,
            has_failed=verdict == "fail",
        ),
        verdict,
        reason,
        f"store/{model}/{kind}-{precision}",
        (f"{size / 1e6:.2f} MB", f"{top1}", f"{latency} ms"),
    )
    for model, kind, precision, size, top1, latency, verdict, reason in (
        ("small", "onnx", "fp32", 3_000_000, 97.0, 3.0, "pass", ""),
        ("small", "openvino", "int8", 800_000, 96.0, 2.0, "fail", "too far"),
        ("large", "onnx", "fp32", 9_000_000, 96.5, 9.0, "pass", ""),
    )
)


def swept(rows: tuple[html.SweptRow, ...] = SWEPT) -> str:
    """The page of a sweep."""
    return html.sweep_page(
        "zoo.toml",
        overall(row.verdict for row in rows),
        rows,
        headings=("size", "top-1", "latency"),
        notes=["a note"],
        environment=[("machine", "M")],
        command="levit-export sweep zoo.toml",
    )


@dataclass
class Node:
    """An element: its name, attributes, children, and the text directly and below."""

    tag: str
    attributes: dict[str, str]
    children: list[Node] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """All text below, in order."""
        return "".join(self.pieces)

    def all(self, tag: str) -> list[Node]:
        """Every element below of that name."""
        below = [node for child in self.children for node in child.all(tag)]
        return [node for node in self.children if node.tag == tag] + below

    def everything(self) -> list[Node]:
        """Every element below."""
        return [node for child in self.children for node in [child, *child.everything()]]


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.root = Node("", {})
        self.open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"an attribute twice: {tag} {names}"
        node = Node(tag, {name: value or "" for name, value in attrs})
        self.open[-1].children.append(node)
        if tag not in VOID:
            self.open.append(node)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1].tag == tag, f"</{tag}> closes <{self.open[-1].tag}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        for node in self.open:
            node.pieces.append(data)


def read(text: str) -> Node:
    """The page as a tree; fails where an element is left open or closed twice."""
    reader = _Reader()
    reader.feed(text)
    reader.close()
    assert [node.tag for node in reader.open] == [""]
    return reader.root


def rows(table: Node) -> list[list[str]]:
    """The cells of a table as text."""
    return [
        [cell.text for cell in row.children if cell.tag in ("th", "td")] for row in table.all("tr")
    ]
