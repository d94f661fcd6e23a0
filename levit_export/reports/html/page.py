"""What the page shows, gathered from a report for the template beside this file.

Everything that a report holds (names of files and classes, reasons of a runtime) is text from
elsewhere. The template escapes each value that is not a drawing of ours or our own style sheet.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np
from markupsafe import Markup

from levit_export.checks.parity import ParityReport
from levit_export.checks.results import ArtifactReport
from levit_export.checks.timing import NOISY
from levit_export.core.precisions import FLOATS
from levit_export.core.values import Verdict, overall
from levit_export.reports import figures
from levit_export.reports.gate import of_report
from levit_export.reports.html import plots
from levit_export.reports.report import Report, labels

if TYPE_CHECKING:
    from levit_export.checks.drift.values import DriftFinding, DriftMap

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""Nothing is fetched and nothing is run, whatever the page might hold."""

COUNTED = {
    "pass": "passed",
    "fail": "failed",
    "inconclusive": "inconclusive",
    "not-run": "could not be checked",
}
LATENCY = f"{figures.LATENCY} (95 %)"
SPEED_UP, SMALLER = "speed-up", "times smaller"
STRIPS = (
    "Each dot is one call, from the first round at the bottom of its strip to the last at the "
    "top; the bar spans the middle half, its stroke is the median."
)
SIDE = 112
"""Pixels that a picture is reduced to on its longer side; smaller ones are kept as they are."""

MOST_PICTURES = 24
"""Samples with changed answers that are shown; the rest are counted."""

Pixels = Mapping[str, np.ndarray]
"""The uint8 image ``(H, W)`` or ``(H, W, 3)`` behind a sample, by the sample's name."""


@dataclass(frozen=True)
class ArtifactRow:
    """A row of the table of artifacts; a baseline has no parity."""

    name: str
    place: str
    cells: tuple[str, ...]
    parity: ParityReport | None
    noisy: bool


@dataclass(frozen=True)
class Answer:
    """What an artifact answers on a sample; ``output`` is named where there are several."""

    label: str
    name: str
    decided: bool
    output: str


@dataclass(frozen=True)
class Card:
    """A sample with changed answers: its picture as an address, PyTorch's answer, the others."""

    name: str
    picture: str
    expected: str
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class ChangedAnswers:
    """The section of the samples whose best class changed."""

    words: str
    cards: tuple[Card, ...] = ()
    notes: tuple[str, ...] = ()


def page(
    report: Report,
    *,
    drift: DriftMap | None = None,
    pixels: Pixels | None = None,
    is_beside: bool = True,
) -> str:
    """``report`` as one HTML file. ``pixels`` are the images behind the samples.

    A page that lies in the export directory (``is_beside``) links to the files in it.
    Without matplotlib the page has no plots and says how to get them.
    """
    return _rendered(
        "page.html.j2",
        {
            **_context(report, drift, pixels or {}),
            "has_links": is_beside and report.output is not None,
        },
    )


@dataclass(frozen=True)
class SweptRow:
    """A cell of a sweep: its verdict, figures as ``cells``, and the artifact's ``path``."""

    measured: plots.Measured
    verdict: Verdict
    reason: str
    path: str
    cells: tuple[str, ...]


def sweep_page(
    name: str,
    verdict: Verdict,
    rows: Sequence[SweptRow],
    *,
    headings: Sequence[str],
    notes: Sequence[str],
    environment: Sequence[tuple[str, str]],
    command: str,
) -> str:
    """A sweep as one HTML file, which lies in the sweep's folder.

    ``headings`` are those of each row's ``cells``.
    """
    items = [row.measured for row in rows]
    drawn = plots.tradeoff(items)
    passed = sum(row.verdict == "pass" for row in rows)
    contents = [("tradeoff", "Size, accuracy, latency")] if drawn else []
    return _rendered(
        "sweep.html.j2",
        {
            "name": name,
            "verdict_of_all": verdict,
            "lead": f"{passed} of {len(rows)} artifacts pass.",
            "wrong": [row for row in rows if row.verdict != "pass"],
            "command": command,
            "contents": [*contents, ("cells", "Artifacts"), ("environment", "Environment")],
            "plots": drawn,
            "headings": ["artifact", "verdict", *headings, "on a front"],
            "rows": rows,
            "fronts": _fronts(items),
            "notes": notes,
            "environment": environment,
        },
    )


def _fronts(items: Sequence[plots.Measured]) -> list[str]:
    """For each item the plots on whose Pareto front it stands."""
    best = {
        f"{y.partition(' in ')[0]} over {x.partition(' in ')[0]}": plots.front(y, spots)
        for (x, y), spots in plots.panels(items).items()
    }
    return [
        ", ".join(name for name, spots in best.items() if any(s.of is item for s in spots))
        for item in items
    ]


def _rendered(template: str, context: Mapping[str, Any]) -> str:
    """A template with what every page has: its policy, its looks, marks and words."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("levit_export.reports", "html"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_printable,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        error=figures.error,
        size=figures.size,
        count=figures.count,
        milliseconds=figures.milliseconds,
    )
    style = (resources.files(__package__) / "report.css").read_text(encoding="utf-8")
    return environment.get_template(template).render(
        policy=POLICY,
        style=Markup(style),  # noqa: S704 - ours
        marks=figures.MARKS,
        words=figures.WORDS,
        none_known=figures.NONE,
        **context,
    )


def _printable(value: object) -> object:
    """A value without the characters that no page can hold; what is HTML already stays."""
    return figures.printable(value) if type(value) is str else value


def _context(report: Report, drift: DriftMap | None, pixels: Pixels) -> dict[str, Any]:
    """Every name that the template uses."""
    columns = list(_columns(report))
    headings = [LATENCY if c.heading == figures.LATENCY else c.heading for c in columns]
    asked = any(artifact.parity.was_asked for artifact in report.artifacts)
    checks = of_report(report.artifacts) if asked else ()
    named = list(zip(labels(report.artifacts), report.artifacts, strict=True))
    timings = [(label, a.timing) for label, a in named if a.timing is not None]
    timed = {name: t for name, t in (*timings, *report.baselines.items()) if t.seconds}
    # Devices measure each row by itself.
    devices = {label for label, artifact in named if artifact.device}
    first = next((t for name, t in timed.items() if name not in devices), None)
    accuracies = [
        a.accuracy for a in report.artifacts if a.accuracy and a.accuracy.top1 is not None
    ]
    faults = [] if drift is None else _faults(report, drift)
    # Nothing on the page is greener than the gravest that was found.
    gravest = [report.verdict, *(check.verdict for check in checks)]
    verdict: Verdict = "fail" if faults else overall(gravest)
    references = (
        100 * a.reference_correct / a.images for a in accuracies if a.reference_correct is not None
    )
    items = [plots.measured(*each) for each in named]
    tradeoff = plots.tradeoff(items, next(references, None))
    flips = _flips(report, pixels)
    return {
        "report": report,
        "verdict_of_all": verdict,
        "drift": drift,
        "name": "levit-export" if report.model is None else report.model.name,
        "sentences": list(_sentences(report, {fault.subject for fault in faults})),
        "contents": [
            (name, heading)
            for name, heading, is_there in (
                ("artifacts", "Artifacts", True),
                ("tradeoff", "Size, accuracy, latency", bool(tradeoff)),
                ("latency", "Latency", True),
                ("drift", "Drift", True),
                ("flips", "Changed answers", flips is not None),
                ("passes", "Passes", bool(report.passes)),
                ("searches", "Search for a precision", bool(report.searches)),
                ("environment", "Environment", True),
            )
            if is_there
        ],
        "wrong": [check for check in checks if check.verdict != "pass"],
        "faults": faults,
        "asked": asked,
        "headings": ["artifact", *headings],
        "latency_heading": LATENCY,
        "rows": list(_rows(report, columns)),
        "remarks": _remarks(report),
        "is_timed": any(column.heading == figures.LATENCY for column in columns),
        "tradeoff": tradeoff,
        "ratios": [c.heading for c in columns if c.heading in (SPEED_UP, SMALLER)],
        "gemm_share": figures.GEMM_SHARE,
        "classified": bool(accuracies),
        "referenced": any(a.reference_correct is not None for a in accuracies),
        "strips": plots.latency(timed, STRIPS) if timed else None,
        "strips_explanation": STRIPS,
        "threads": 0 if first is None else first.threads,
        "has_devices": bool(devices & timed.keys()),
        "batch": 0 if first is None else first.batch,
        "any_noisy": any(timing.noisy for timing in timed.values()),
        "noisy_percent": f"{100 * NOISY:.0f}",
        "untimed": [(label, t.reason) for label, t in timings if t.verdict == "not-run"],
        "timed": timed,
        "maps": None if drift is None else plots.drift(drift),
        "found": []
        if drift is None
        else [(drift.state(each), each.sentence) for each in drift.findings if each.sentence],
        "flips": flips,
        "environment": list(_environment(report)),
    }


def _columns(report: Report) -> Iterator[figures.Column]:
    """The columns of the table of artifacts; on a telephone the first of them are seen."""
    known = {column.heading: column for column in figures.columns(report)}
    firsts = [
        known.pop(name) for name in (figures.PARITY, figures.LATENCY, "size") if name in known
    ]
    yield from firsts
    baseline = next((timing for timing in report.baselines.values() if timing.seconds), None)
    if baseline is not None:
        median = baseline.median_ms

        def speed_up(artifact: ArtifactReport) -> str:
            timing = artifact.timing
            if timing is None or not timing.seconds:
                return figures.NONE
            return f"{median / timing.median_ms:.2f}"

        yield figures.Column(SPEED_UP, speed_up)
    if any(_smaller(report, artifact) is not None for artifact in report.artifacts):

        def smaller(artifact: ArtifactReport) -> str:
            ratio = _smaller(report, artifact)
            return figures.NONE if ratio is None else f"{ratio:.2f}"

        yield figures.Column(SMALLER, smaller)
    yield from known.values()


def _smaller(report: Report, artifact: ArtifactReport) -> float | None:
    """How many times smaller an artifact is than the model's weights in float32."""
    if report.model is None or not report.model.parameters or not artifact.bytes:
        return None
    return 4 * report.model.parameters / artifact.bytes


def _sentences(report: Report, accused: Collection[str]) -> Iterator[str]:
    """The headline: how the checks ended, figures of what is quantised, and what drift accuses."""
    verdicts = [artifact.parity.verdict for artifact in report.artifacts]
    if not verdicts:
        yield "There is no artifact."
    elif not any(artifact.parity.was_asked for artifact in report.artifacts):
        yield "This run only measured: parity was not asked for."
    elif accused:
        names = ", ".join(sorted(accused))
        yield (
            f"Drift finds a fault in {names}, whatever an earlier check said. The figures below "
            "were measured before."
        )
    elif set(verdicts) == {"pass"}:
        exact = [a for a in report.artifacts if a.precision in FLOATS]
        if exact:
            whole = len(exact) == len(report.artifacts)
            every = f"All {len(exact)} artifacts give" if whole else f"{_names(exact)} give"
            if len(exact) == 1:
                every = "The artifact gives" if whole else f"{exact[0].id} gives"
            is_file = report.vouching is not None and report.vouching.by == "reference"
            whose = "the reference's" if is_file else "PyTorch's"
            yield f"{every} {whose} answers, as nearly as rounding allows."
        for artifact in report.artifacts:
            if artifact.precision not in FLOATS:
                yield _of_quantised(report, artifact)
    else:
        said = ", ".join(
            f"{verdicts.count(kind)} {words}"
            for kind, words in COUNTED.items()
            if kind in verdicts
        )
        yield f"Of {len(verdicts)} artifacts {said}."


def _names(artifacts: Sequence[ArtifactReport]) -> str:
    *others, last = dict.fromkeys(artifact.id for artifact in artifacts)
    return f"{', '.join(others)} and {last}" if others else last


def _of_quantised(report: Report, artifact: ArtifactReport) -> str:
    """What quantising cost and brought, in figures."""
    accuracy, outputs = artifact.accuracy, artifact.parity.outputs
    said = []
    if accuracy is not None and accuracy.agreement is not None:
        same = round(accuracy.agreement * accuracy.images)
        said.append(f"agrees with PyTorch on {same} of {accuracy.images} images")
        if accuracy.correct is not None and accuracy.reference_correct is not None:
            gained = 100 * (accuracy.correct - accuracy.reference_correct) / accuracy.images
            said.append(f"top-1 {gained:+.1f} points")
    elif outputs:
        share = min(output.top1_agreement for output in outputs)
        same = round(share * artifact.parity.samples)
        said.append(f"agrees with PyTorch on {same} of {artifact.parity.samples} samples")
    if (ratio := _smaller(report, artifact)) is not None:
        said.append(f"{ratio:.1f} times smaller than the weights in float32")
    return f"{artifact.id} {', '.join(said) or 'passes'}."


def _faults(report: Report, drift: DriftMap) -> list[DriftFinding]:
    """What drift found and the reasons above do not say, such as of files that changed since."""
    told = {(a.drift.stage, a.drift.tap) for a in report.artifacts if a.drift is not None}
    return [f for f in drift.findings if not f.clean and (f.stage, f.tap) not in told]


def _rows(report: Report, columns: Sequence[figures.Column]) -> Iterator[ArtifactRow]:
    """One row for each artifact, then the baselines."""
    for label, artifact in zip(labels(report.artifacts), report.artifacts, strict=True):
        name, _, place = label.partition(" ")
        yield ArtifactRow(
            name,
            place,
            tuple(column.of_artifact(artifact) for column in columns),
            artifact.parity,
            artifact.timing is not None
            and bool(artifact.timing.seconds)
            and artifact.timing.noisy,
        )
    for name, timing in report.baselines.items():
        cells = tuple(column.of_baseline(timing) for column in columns)
        yield ArtifactRow(name, "", cells, None, bool(timing.seconds) and timing.noisy)


def _remarks(report: Report) -> list[tuple[str, str]]:
    """What the table has no room for, each once with the names of the artifacts concerned."""
    concerned: dict[str, list[str]] = {}
    for label, artifact in zip(labels(report.artifacts), report.artifacts, strict=True):
        for remark in _remarks_on(artifact):
            concerned.setdefault(remark, []).append(label)
    everyone = len(report.artifacts)
    return [
        (remark, "all" if 1 < everyone == len(names) else ", ".join(names))
        for remark, names in concerned.items()
    ]


def _remarks_on(artifact: ArtifactReport) -> Iterator[str]:
    accuracy = artifact.accuracy
    if artifact.parity.verdict == "pass" and artifact.parity.reason:
        yield artifact.parity.reason
    if any(output.tolerance.origin == "given" for output in artifact.parity.outputs):
        yield "held against a tolerance that was given, not the derived one"
    yield from artifact.notes
    if accuracy is not None:
        yield f"accuracy on {accuracy.images} images of {accuracy.dataset}"
        yield from accuracy.remarks
        if accuracy.skipped:
            yield figures.left_out(accuracy)


def _flips(report: Report, pixels: Pixels) -> ChangedAnswers | None:
    """A card for each sample that flipped anywhere; None where no answer was compared."""
    outputs = [output for artifact in report.artifacts for output in artifact.parity.outputs]
    if not outputs:
        return None
    found: dict[str, list[tuple[str, str, Any]]] = {}
    for label, artifact in zip(labels(report.artifacts), report.artifacts, strict=True):
        for output in artifact.parity.outputs:
            for flip in output.flipped:
                found.setdefault(flip.sample, []).append((label, output.name, flip))
    decided = sum(output.decided_flips for output in outputs)
    undecided = sum(output.undecided_flips for output in outputs)
    if not decided + undecided and not found:
        most = max(artifact.parity.samples for artifact in report.artifacts)
        words = f"No artifact changes PyTorch's best class on any of {most} samples."
        return ChangedAnswers(words)
    words = (
        f"{undecided} undecided: PyTorch itself is so near a tie there that rounding explains "
        "another best class."
    )
    if decided:
        words += f" {decided} decided: rounding does not explain them, and they are failures."
    classes = () if report.model is None else report.model.labels
    cards = []
    for name, items in list(found.items())[:MOST_PICTURES]:
        one_output = len({output for _, output, _ in items}) == 1
        answers = tuple(
            Answer(
                label,
                _class(flip.artifact_class, classes),
                flip.decided,
                "" if one_output else output,
            )
            for label, output, flip in items
        )
        expected = dict.fromkeys(_class(flip.reference_class, classes) for _, _, flip in items)
        picture = _picture(pixels[name]) if name in pixels else ""
        cards.append(Card(name, picture, " / ".join(expected), answers))
    notes = []
    if len(found) > MOST_PICTURES:
        notes.append(f"{len(found) - MOST_PICTURES} more samples are in report.json.")
    unlisted = decided + undecided - sum(len(items) for items in found.values())
    if unlisted > 0:
        notes.append(f"Of {unlisted} changed answers it is not known on which samples.")
    return ChangedAnswers(words, tuple(cards), tuple(notes))


def _class(number: int, classes: Sequence[str]) -> str:
    if 0 <= number < len(classes) and classes[number]:
        return classes[number]
    return f"class {number}"


def _picture(pixels: np.ndarray) -> str:
    """The address of a small PNG that holds the picture itself."""
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(pixels))
    image.thumbnail((SIDE, SIDE))
    out = io.BytesIO()
    image.save(out, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"


def _environment(report: Report) -> Iterator[tuple[str, object]]:
    """Model, machine, runtimes and versions."""
    model = report.model
    if model is not None:
        yield "checkpoint", model.checkpoint
        yield "checkpoint SHA-256", model.checkpoint_sha256
        yield "dialect", model.dialect
        yield "preprocessing", model.preprocessing.in_words()
        if model.licence:
            yield "licence", model.licence
        yield from (("remark", remark) for remark in model.remarks)
        yield from (("assumption", assumption) for assumption in model.assumptions)
    instructions = ", ".join(report.machine.instructions)
    yield (
        "machine",
        f"{figures.machine(report.machine)}{f'; {instructions}' if instructions else ''}",
    )
    checked = {a.parity.runtime for a in report.artifacts if a.parity.runtime}
    if checked:
        yield "checked on", ", ".join(sorted(checked))
    timed = {a.timing.runtime for a in report.artifacts if a.timing and a.timing.seconds}
    if timed:
        yield "timed on", ", ".join(sorted(timed))
    yield "versions", ", ".join(f"{name} {known}" for name, known in report.toolchain.items())
    if report.output is not None:
        yield "written to", report.output
