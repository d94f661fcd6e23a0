"""The page: verdict first, then what it rests on."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import resources
from typing import TYPE_CHECKING

from levit_export.reports.gate import Check, of_report
from levit_export.reports.html import wording
from levit_export.reports.html.artifacts import artifacts
from levit_export.reports.html.drift import drift as drift_section
from levit_export.reports.html.flips import Pixels, flips
from levit_export.reports.html.latency import latency
from levit_export.reports.html.markup import Markup, bullets, definitions, element, join
from levit_export.reports.html.surroundings import environment, ledger, searches
from levit_export.reports.html.tradeoff import tradeoff
from levit_export.reports.report import Report

if TYPE_CHECKING:
    from levit_export.checks.drift.values import DriftMap

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""Nothing is fetched and nothing is run, whatever the page might hold."""

TITLES = {
    "pass": "passed",
    "fail": "failed",
    "inconclusive": "inconclusive",
    "not-run": "could not be checked",
}


FOOTER = (
    "Made by levit-export. report.json has it all. This page and the directory that it lies in "
    "vouch for themselves: a checkpoint or a signature tells whose they are."
)


def page(report: Report, *, drift: DriftMap | None = None, pixels: Pixels | None = None) -> str:
    """``report`` as one HTML file. ``pixels`` are the images behind the samples.

    Without matplotlib the page has no plots and says how to get them.
    """
    sections = (
        artifacts(report),
        tradeoff(report),
        latency(report),
        drift_section(drift, _place(report)),
        flips(report, pixels or {}),
        ledger(report),
        searches(report),
        environment(report),
    )
    body = element(
        "body",
        element("header", *_header(report, drift)),
        element("main", join((part for part in sections if part), "\n")),
        element("footer", element("p", FOOTER)),
    )
    return f"<!doctype html>\n{element('html', _head(report), body, attributes={'lang': 'en'})}\n"


def _head(report: Report) -> Markup:
    style = (resources.files(__package__) / "report.css").read_text(encoding="utf-8")
    policy = {"http-equiv": "Content-Security-Policy", "content": POLICY}
    return element(
        "head",
        element("meta", attributes={"charset": "utf-8"}),
        element("meta", attributes=policy),
        element(
            "meta",
            attributes={"name": "viewport", "content": "width=device-width, initial-scale=1"},
        ),
        element("meta", attributes={"name": "color-scheme", "content": "light dark"}),
        element("title", f"{_name(report)}: {wording.WORDS[report.verdict]}"),
        element("style", Markup(style)),
    )


def _place(report: Report) -> str:
    return "" if report.output is None else str(report.output)


def _name(report: Report) -> str:
    return "levit-export" if report.model is None else report.model.name


def _header(report: Report, drift: DriftMap | None) -> Iterator[Markup]:
    checks = of_report(report.artifacts)
    title = element("span", _name(report), kind="name")
    yield element("h1", wording.verdict(report.verdict), " ", title)
    yield element("p", _sentence(report), kind="lead")
    wrong = [check for check in checks if check.verdict != "pass"]
    if wrong and not _only_measured(report):
        yield _reasons(wrong)
    if drift is not None and (faults := list(_faults(report, drift))):
        yield bullets(faults)
    if report.model is not None:
        yield definitions(_model(report))
        if report.model.doubt:
            yield bullets([report.model.doubt])


def _faults(report: Report, drift: DriftMap) -> Iterator[Markup]:
    """What drift found and the reasons above do not say, such as of files that changed since."""
    told = {(a.drift.stage, a.drift.tap) for a in report.artifacts if a.drift is not None}
    for finding in drift.findings:
        if not finding.clean and (finding.stage, finding.tap) not in told:
            word = wording.verdict("fail")
            yield element(
                "span", element("b", finding.subject), " drift ", word, f": {finding.sentence}"
            )


def _sentence(report: Report) -> str:
    verdicts = [artifact.parity.verdict for artifact in report.artifacts]
    if not verdicts:
        return "There is no artifact."
    if _only_measured(report):
        return "This run only measured: parity was not asked for."
    if set(verdicts) == {"pass"}:
        every = (
            "The artifact gives" if len(verdicts) == 1 else f"All {len(verdicts)} artifacts give"
        )
        return f"{every} PyTorch's answers, as nearly as rounding allows."
    counts = {kind: verdicts.count(kind) for kind in TITLES if kind in verdicts}
    said = ", ".join(f"{count} {TITLES[kind]}" for kind, count in counts.items())
    return f"Of {len(verdicts)} artifacts {said}."


def _only_measured(report: Report) -> bool:
    return not any(artifact.parity.was_asked for artifact in report.artifacts)


def _reasons(checks: list[Check]) -> Markup:
    """A list, not a table: on a telephone the reason has to be read without scrolling."""
    return bullets(
        element(
            "span",
            element("b", check.artifact),
            f" {check.name} ",
            wording.verdict(check.verdict),
            f": {check.reason}",
        )
        for check in checks
    )


def _model(report: Report) -> Iterator[tuple[object, object]]:
    model = report.model
    if model is not None:
        yield "parameters", f"{model.parameters / 1e6:.2f} M"
        yield "multiply-adds", f"{model.macs / 1e6:.0f} M an image"
        yield "heads", model.heads
        yield "classes", len(model.labels)
