"""The report as a page: what it says, that it is safe, whole and accessible."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from functools import cache
from importlib import resources
from itertools import product
from pathlib import Path

import gate_reports as made
import numpy as np
import pytest
from html_reports import (
    HOSTILE,
    PASSES,
    SWEPT,
    Flip,
    Node,
    artifact,
    drift_of,
    flipped,
    read,
    rows,
    swept,
    timed,
    twelve,
)

from levit_export.checks.parity import NOT_ASKED
from levit_export.checks.results import Explanation
from levit_export.checks.weights import WeightAudit
from levit_export.reports import html
from levit_export.reports.html import plots
from levit_export.reports.report import Candidate, Report, SearchPoint, SearchResult

LATENCY = "latency (95 %)"
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
PIXELS = {"noise": np.arange(192, dtype=np.uint8).reshape(8, 8, 3)}


def section(page: Node, name: str) -> Node:
    """The landmark with that id."""
    (found,) = [node for node in page.all("section") if node.attributes["id"] == name]
    return found


def sections(page: Node) -> list[str]:
    """What the page has, in order."""
    return [node.attributes["id"] for node in page.all("section")]


@cache
def full() -> str:
    """A page with every section, made once."""
    return make_full()


def make_full() -> str:
    """A page with every section."""
    report = twelve()
    first = replace(report.artifacts[0], parity=flipped(Flip("noise", 0, 1)))
    found = SearchResult(
        SearchPoint(Candidate("int8"), 0.1, 9), (SearchPoint(Candidate("int8"), 0.1, 9),)
    )
    report = replace(report, artifacts=(first, *report.artifacts[1:]), searches={"onnx": found})
    return html.page(report, drift=drift_of("onnx-fp32", "openvino-fp32"), pixels=PIXELS)


FULL = [
    "artifacts",
    "tradeoff",
    "latency",
    "drift",
    "flips",
    "passes",
    "searches",
    "environment",
]


def test_order_of_the_page() -> None:
    """The verdict is the first thing in the body; sections follow in a fixed order."""
    page = read(full())
    (body,) = page.all("body")
    assert body.text.startswith("✗ fail levit_digits")
    assert sections(page) == FULL
    (contents,) = page.all("nav")
    assert [link.attributes["href"] for link in contents.all("a")] == [f"#{name}" for name in FULL]


GRAVEST_FIRST = ("fail", "inconclusive", "not run", "pass")


@pytest.mark.parametrize("is_accused", [False, True])
@pytest.mark.parametrize("share", [0.25, 3.0])
def test_nothing_is_worse_than_the_badge(*, share: float, is_accused: bool) -> None:
    """Title and badge say the same, and it is the gravest verdict that stands on the page."""
    report = made.report_of(artifact(share=share), artifact("openvino"))
    drift = drift_of("onnx-fp32") if is_accused else None
    page = read(html.page(report, drift=drift))
    (badge,) = page.all("h1")[0].all("span")[:1]
    found = [n.text for n in page.everything() if "verdict" in n.attributes.get("class", "")]
    words = [text.split(" ", 1)[1].partition(" (")[0] for text in found]
    gravest = min(words, key=GRAVEST_FIRST.index)
    assert badge.text.split(" ", 1)[1] == gravest
    assert gravest == ("fail" if share > 1 or is_accused else "pass")
    assert page.all("title")[0].text == f"levit_digits: {gravest}"
    lead = " ".join(n.text for n in page.all("p") if n.attributes.get("class") == "lead")
    assert ("as nearly as rounding allows" in lead) == (gravest == "pass")


def test_a_quantised_artifact_has_figures_in_the_headline() -> None:
    """What agrees only mostly is said with counts, points and the size, beside what is exact."""
    exact, other = artifact(correct=357), artifact(precision="int8", size=800_000, correct=358)
    accuracy = replace(other.accuracy, agreement=359 / 360)
    report = made.report_of(exact, replace(other, accuracy=accuracy))
    lead = [
        n.text for n in read(html.page(report)).all("p") if n.attributes.get("class") == "lead"
    ]
    parameters = report.model.parameters
    assert lead == [
        "onnx-fp32 gives PyTorch's answers, as nearly as rounding allows.",
        "onnx-int8 agrees with PyTorch on 359 of 360 images, top-1 +0.3 points, "
        f"{4 * parameters / 800_000:.1f} times smaller than the weights in float32.",
    ]


def test_a_grid_that_is_only_coarse_is_no_failure() -> None:
    """Taps over the band of a file whose answers hold have a state of their own."""
    drift = drift_of("onnx-int8")
    finding = replace(drift.findings[0], cause="none")
    page = read(html.page(made.report_of(artifact()), drift=replace(drift, findings=(finding,))))
    assert page.all("h1")[0].text.startswith("✓ pass")
    said = section(page, "drift").all("li")[0].text
    assert said.startswith("over the band, answers unchanged ")


def test_files_are_linked_where_the_page_lies_beside_them() -> None:
    """A page in an export directory links to its files, and to no file from anywhere else."""
    found = replace(artifact(), path="onnx fp32/m#1.onnx")
    report = replace(made.report_of(found), output=Path("exported/x"), command="levit-export -q")
    page = read(html.page(report))
    links = [a.attributes["href"] for a in section(page, "artifacts").all("a")]
    assert links == ["onnx%20fp32/m%231.onnx"]
    assert "levit-export -q" in page.all("header")[0].text
    elsewhere = read(html.page(report, is_beside=False))
    assert all(a.attributes["href"].startswith("#") for a in elsewhere.all("a"))


def test_a_failure_is_explained_before_everything_else() -> None:
    """What did not pass stands with its reason in the header, failures and checks not run."""
    report = made.report_of(artifact(share=3.0), made.unrun(artifact("coreml"), "no Mac"))
    (header,) = read(html.page(report)).all("header")
    assert header.text.split()[:2] == ["✗", "fail"]
    failed, not_run = header.all("li")
    assert failed.text.startswith("onnx-fp32 parity ✗ fail: logits: error")
    assert not_run.text == "coreml-fp32 parity ○ not run: no Mac"


def test_table_of_artifacts() -> None:
    """Size, parity, accuracy, latency and efficiency stand in one row."""
    found = artifact(timing=timed(2.0), correct=342)
    page = read(html.page(made.report_of(found, eager=timed(4.0))))
    head, first, eager = rows(section(page, "artifacts").all("table")[0])
    row = dict(zip(head, first, strict=True))
    assert row["artifact"] == "onnx-fp32"
    assert row["parity"] == "✓ pass"
    assert row["of tolerance"] == "25 %"
    assert head[:4] == ["artifact", "parity", LATENCY, "size"]
    assert float(row["speed-up"]) == pytest.approx(2.0, rel=0.05)
    assert row["top-1 (95 %)"].startswith("95.00 % (")
    assert row["size"] == "2.00 MB"
    assert re.fullmatch(r"\d\.\d\d ms \(.*\)", row["latency (95 %)"])
    assert row["GEMM share"] == "0.50"
    assert eager[0] == "PyTorch eager"


@pytest.mark.parametrize("is_foreign", [False, True])
def test_weights_that_nobody_looked_at_are_said_once(*, is_foreign: bool) -> None:
    """Of our files this is said with the reason it decides by, of others' beside the table."""
    audit = WeightAudit(0, unread="no reader", answers_only=is_foreign)
    found = replace(made.artifact(), parity=made.parity_of(made.output(), audit=audit))
    text = html.page(made.report_of(found))
    assert text.count("not looked at") == 1
    assert ("no reader" in text, "answers only" in text) == (not is_foreign, is_foreign)


def test_columns_only_for_what_was_looked_at() -> None:
    """Without timing and accuracy there are no columns, sections or plots of them."""
    page = read(html.page(made.report_of(artifact())))
    head = rows(section(page, "artifacts").all("table")[0])[0]
    assert head == [
        "artifact",
        "parity",
        "size",
        "times smaller",
        "of tolerance",
        "max rel error",
        "weights",
    ]
    assert sections(page) == ["artifacts", "latency", "drift", "flips", "environment"]
    assert "Nothing was timed" in section(page, "latency").text
    assert not page.all("svg")


@pytest.mark.parametrize(
    "report",
    [made.report_of(model=None), made.report_of(made.unrun(artifact()), model=None)],
    ids=["nothing", "not run"],
)
def test_reports_with_little_in_them(report: Report) -> None:
    """A report without model, artifacts or answers is a page that says not run."""
    page = read(html.page(report))
    assert page.all("h1")[0].text.startswith("○ not run")


def test_a_run_that_only_measured() -> None:
    """Where parity was not asked for the page says so once, and has no column of it."""
    found = replace(artifact(timing=timed(2.0)), parity=NOT_ASKED)
    page = read(html.page(made.report_of(found)))
    (header,) = page.all("header")
    assert "only measured" in header.text
    assert not header.all("li")
    assert rows(section(page, "artifacts").all("table")[0])[0][:2] == ["artifact", LATENCY]


def test_ledger() -> None:
    """Applied passes show before and after; the others say why nothing was done."""
    page = read(html.page(replace(made.report_of(artifact()), passes=PASSES)))
    table = rows(section(page, "passes").all("table")[0])
    applied = dict(zip(table[0], table[1], strict=True))
    assert applied["operators"] == "516 → 294"
    assert applied["parameters"].replace("\N{NARROW NO-BREAK SPACE}", "") == "7800 → 7700"
    assert table[2][:2] == ["merge_heads", "not-applicable: one head"]


def test_latency_shows_every_call_and_flags_noise() -> None:
    """A strip has a dot for each call; noisy ones are flagged in the plot and in the tables."""
    quiet = [artifact(timing=timed(2.0)), artifact("coreml", timing=timed(2.5))]
    report = made.report_of(*quiet, artifact("openvino", timing=timed(3.0, spread=0.5)))
    latency = section(read(html.page(report)), "latency")
    (svg,) = latency.all("svg")
    assert len(svg.all("use")) >= 150
    words = [node.text for node in svg.all("text")]
    assert words.count("noisy") == 1
    figures = rows(latency.all("table")[0])
    assert [(row[0], row[-1]) for row in figures[1:]] == [
        ("onnx-fp32", "no"),
        ("coreml-fp32", "no"),
        ("openvino-fp32", "yes"),
    ]


def test_calls_of_all_lengths_keep_their_numbers_apart() -> None:
    """Over many powers of ten the axis names these alone; over few also what lies between."""
    for slow, between in ((30.0, True), (3000.0, False)):
        report = made.report_of(artifact(timing=timed(1.5)), eager=timed(slow))
        (svg,) = section(read(html.page(report)), "latency").all("svg")
        words = {node.text for node in svg.all("text")}
        assert "10" in words
        assert ("20" in words) is between


def test_no_map() -> None:
    """A page without a map says which command draws one, and for which directory."""
    report = made.report_of(artifact())
    assert "levit-export drift DIR" in section(read(html.page(report)), "drift").text
    placed = replace(report, output=Path("exported/x"))
    part = section(read(html.page(placed)), "drift")
    assert [node.text for node in part.all("code")] == ["levit-export drift exported/x"]


def test_a_fault_that_only_drift_found_stands_beside_the_verdict() -> None:
    """What drift accuses is said first, once; what the failure says already is not repeated."""
    drift = drift_of("onnx-fp32")
    (finding,) = drift.findings
    sound = made.report_of(artifact())
    header = read(html.page(sound, drift=drift)).all("header")[0]
    assert f"onnx-fp32 drift ✗ fail: {finding.sentence}" in header.text
    told = Explanation("known", finding.cause, finding.stage, finding.block, finding.tap)
    failed = replace(artifact(share=2.0), drift=told)
    header = read(html.page(made.report_of(failed), drift=drift)).all("header")[0]
    assert "Drift: known" in header.text
    assert finding.sentence not in header.text


def test_drift() -> None:
    """A plot for each precision, the finding in words, and where a line leaves its tolerance."""
    found = drift_of("onnx-fp32", "openvino-fp32", "coreml-fp16")
    part = section(read(html.page(made.report_of(artifact()), drift=found)), "drift")
    assert part.all("li")[0].text == "✗ fail stage2.block0.attention is at fault"
    fp32, fp16 = part.all("svg")
    assert fp32.attributes["aria-label"].endswith("fp32")
    assert fp16.attributes["aria-label"].endswith("fp16")
    said = fp32.all("desc")[0].text
    assert "onnx-fp32: 3.0e-07 at head" in said
    assert "leaves its tolerance at stage2.block0.attention" in said
    assert "openvino-fp32: 3.0e-07 at head" in said
    assert said.endswith("within its tolerance.")
    assert {"onnx-fp32", "openvino-fp32", "tolerance"} <= {t.text for t in fp32.all("text")}


def test_the_faulty_tap_is_marked_by_its_name() -> None:
    """Where a file leaves its tolerance the plot names the tap, in the colour of what it means."""
    found = drift_of("onnx-fp32", "openvino-fp32")
    for cause, colour in (("conversion", "fail"), ("none", "warn")):
        (finding,) = found.findings
        told = replace(found, findings=(replace(finding, cause=cause),))
        (svg,) = section(read(html.page(made.report_of(artifact()), drift=told)), "drift").all(
            "svg"
        )
        (name,) = [t for t in svg.all("text") if t.text == "stage2.block0.attention"]
        assert f"var(--{colour})" in name.attributes["style"]
    sound = replace(found, stages=found.stages[1:])
    part = section(read(html.page(made.report_of(artifact()), drift=sound)), "drift")
    assert "stage2.block0.attention" not in [t.text for t in part.all("svg")[0].all("text")]


def test_taps_of_a_kind_share_a_plot() -> None:
    """Scores, softmax and results have lines of their own; those inside attention are folded."""
    found = drift_of("onnx-fp32")
    (stage,) = found.stages
    inside = [
        replace(row, tap=f"{row.block}.{kind}", status="ok")
        for row in stage.rows[1:3]
        for kind in ("scores", "softmax")
    ]
    more = replace(found, stages=(replace(stage, rows=(*stage.rows, *inside)),))
    part = section(read(html.page(made.report_of(artifact()), drift=more)), "drift")
    titles = [svg.attributes["aria-label"] for svg in part.all("svg")]
    kinds = ["results of blocks", "attention scores", "attention after the softmax"]
    assert [title.split(", ")[1].split(":")[0] for title in titles] == kinds
    folded = part.all("details")[0]
    assert [svg.attributes["aria-label"] for svg in folded.all("svg")] == titles[1:]
    faulty = replace(inside[0], status="exceeds")
    worse = replace(found, stages=(replace(stage, rows=(*stage.rows, faulty, *inside[1:])),))
    part = section(read(html.page(made.report_of(artifact()), drift=worse)), "drift")
    assert len(part.all("details")[0].all("svg")) == 1


def test_figures_under_the_pointer() -> None:
    """Every point of a plot says its figures, by what browsers show without a script."""
    page = read(full())
    for name, words, count in (
        ("tradeoff", "onnx-fp32: size in MB 3.00, top-1 in percent 99.17", 1),
        ("tradeoff", "onnx-fp32: median latency in ms", 1),
        ("latency", "onnx-fp32: median", 1),
        ("drift", "onnx-fp32, stem.0: 1.0e-07 accumulated, 1.0e-07 introduced", 2),
    ):
        said = [tip.text for svg in section(page, name).all("svg") for tip in svg.all("title")]
        assert sum(tip.startswith(words) for tip in said) == count, (name, said)


@pytest.mark.parametrize(
    ("points", "best"),
    [
        ([(1, 90), (2, 95), (3, 94), (4, 97)], [0, 1, 3]),
        ([(1, 90), (1, 91), (2, 91)], [1]),
        ([(2, 80), (1, 99)], [1]),
    ],
)
def test_the_front_is_what_nothing_beats(points: list[tuple[int, int]], best: list[int]) -> None:
    """An artifact is on the Pareto front unless another is as good in both and better in one."""
    items = [html.Measured(str(n), x * 10**6, y) for n, (x, y) in enumerate(points)]
    ((of, spots),) = plots.panels(items).items()
    assert of == (plots.SIZE, plots.TOP1)
    assert [spot.of.artifact for spot in plots.front(plots.TOP1, spots)] == list(map(str, best))
    flipped_axis = [replace(spot, y=-spot.y) for spot in spots]
    assert [spot.of.artifact for spot in plots.front(plots.LATENCY, flipped_axis)] == list(
        map(str, best)
    )


def test_the_command_stands_on_the_page() -> None:
    """What was typed is said beneath the headline."""
    report = replace(made.report_of(artifact()), command="levit-export --format all '<x>'")
    (header,) = read(html.page(report)).all("header")
    assert [node.text for node in header.all("code")] == ["levit-export --format all '<x>'"]


def test_long_names_are_whole() -> None:
    """Neither a table nor a plot cuts a name or a path, however long it is."""
    long = "onnx-fp32/" + "levit_of_somebody/" * 6 + "model.onnx"
    items = (
        replace(artifact(timing=timed(2.0), correct=342), path=long),
        replace(artifact(timing=timed(3.0), correct=343), path="x.onnx"),
    )
    page = read(html.page(made.report_of(*items), drift=drift_of(f"onnx-fp32 {long}")))
    assert "…" not in page.text
    for name in ("artifacts", "tradeoff", "latency", "drift"):
        found = "".join(section(page, name).text.split())
        assert long in found, name


def test_a_sweep_has_the_same_page() -> None:
    """Verdict, reasons, plots with the front, and a table whose rows link to the artifacts."""
    page = read(swept())
    assert page.all("h1")[0].text == "✗ fail zoo.toml"
    assert page.all("title")[0].text == "zoo.toml: fail"
    assert "small openvino-int8 ✗ fail: too far" in page.all("header")[0].text
    assert sections(page) == ["tradeoff", "cells", "environment"]
    assert len(section(page, "tradeoff").all("svg")) == 2
    table = section(page, "cells").all("table")[0]
    fronts = "top-1 over size, top-1 over median latency"
    # What failed is on no front, although it is the smallest and the fastest.
    assert [row[-1] for row in rows(table)] == ["on a front", fronts, "", ""]
    assert table.all("a")[1].attributes["href"] == "store/small/openvino-int8"
    words = [node.text for node in section(page, "tradeoff").all("svg")[0].all("text")]
    assert {"onnx", "openvino", "small", "large", "nothing beats these"} <= set(words)


def test_a_sweep_of_which_nothing_is_known() -> None:
    """Without figures there are no plots, and the reasons stand at the top."""
    row = replace(SWEPT[0], measured=html.Measured("onnx-fp32", 0, model="m"), verdict="not-run")
    page = read(swept((replace(row, reason="crashed", path=""),)))
    assert page.all("h1")[0].text == "○ not run zoo.toml"
    assert "crashed" in page.all("header")[0].text
    assert not page.all("svg")


def test_a_stage_that_could_not_be_run_draws_nothing() -> None:
    """A map of failures and of values that no logarithm has is a page with the reason."""
    found = drift_of("onnx-fp32")
    (stage,) = found.stages
    empty = replace(stage, rows=(), failure="does not load")
    strange = replace(stage, rows=(replace(stage.rows[0], accumulated=float("nan")),))
    report = made.report_of(artifact())
    page = read(html.page(report, drift=replace(found, stages=(empty, strange))))
    assert "does not load" in section(page, "drift").text


def test_flips_show_the_picture_and_both_answers() -> None:
    """A sample is shown once with PyTorch's answer and that of every artifact that differs."""
    report = made.report_of(
        replace(artifact(), parity=flipped(Flip("noise", 0, 1), Flip("normal-1", 1, 0))),
        replace(artifact("openvino"), parity=flipped(Flip("noise", 0, 7, decided=True))),
    )
    part = section(read(html.page(report, pixels=PIXELS)), "flips")
    assert part.text.startswith("Changed answers2 undecided")
    assert "1 decided" in part.text
    first, second = part.all("ul")[0].children
    assert [li.text for li in first.all("li")] == [
        "PyTorch: a",
        "onnx-fp32: b",
        "openvino-fp32: class 7 (decided)",
    ]
    assert first.all("img")[0].attributes["src"].startswith("data:image/png;base64,")
    assert "no picture" in second.text


def test_flips_that_are_only_counted() -> None:
    """A report that does not say which samples flipped says how many, and that it does not."""
    counted = replace(made.output(), undecided_flips=3)
    report = made.report_of(replace(artifact(), parity=made.parity_of(counted)))
    part = section(read(html.page(report)), "flips")
    assert "Of 3 changed answers it is not known on which samples." in part.text


def test_what_comes_from_elsewhere_is_text() -> None:
    """Names, reasons, labels and paths cannot add an element, attribute, or break the page."""
    plain = artifact(timing=timed(2.0), correct=342)
    model = replace(made.MODEL, name=HOSTILE, labels=(HOSTILE,) * 2, remarks=(HOSTILE,))
    items = (
        replace(plain, path=HOSTILE, notes=(HOSTILE,), parity=flipped(Flip(HOSTILE, 0, 1))),
        replace(plain, path=HOSTILE + "2"),
        made.unrun(artifact(HOSTILE, timing=timed(3.0), correct=342), HOSTILE),
    )
    report = replace(
        made.report_of(*items, model=model, eager=timed(3.0)), toolchain={HOSTILE: HOSTILE}
    )
    text = html.page(report, drift=drift_of(f"onnx-{HOSTILE}"), pixels={HOSTILE: PIXELS["noise"]})
    page = read(text)
    assert not page.all("script")
    assert "<script" not in text
    assert "alert(1)" in page.text
    assert text.encode()  # no lone surrogates
    assert "\x00" not in text
    handlers = [a for node in page.everything() for a in node.attributes if a.startswith("on")]
    assert not handlers


@pytest.mark.parametrize("name", ["$x$", "\N{CJK UNIFIED IDEOGRAPH-6A21}"], ids=["$", "CJK"])
def test_names_are_drawn_as_they_are(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Dollar signs are no mathematics, and a glyph that matplotlib lacks is no warning."""
    page = read(html.page(made.report_of(artifact(name, timing=timed(2.0)))))
    assert any(f"{name}-fp32" in node.text for node in page.all("svg")[0].all("text"))
    assert capfd.readouterr() == ("", "")


def test_nothing_is_fetched_or_run() -> None:
    """The page forbids everything but its own styles and pictures, and refers to nothing else."""
    page = read(full())
    (policy,) = [m for m in page.all("meta") if "http-equiv" in m.attributes]
    assert policy.attributes["content"] == POLICY
    for node in page.everything():
        assert node.tag not in ("script", "link", "iframe", "object", "base", "form")
        for name in ("src", "href", "xlink:href"):
            target = node.attributes.get(name, "#")
            assert target.startswith(("#", "data:image/png;base64,"))
        assert re.sub(r"url\(#[\w.-]+\)", "", node.attributes.get("style", "")).count("url(") == 0
    (style,) = page.all("style")
    assert "url(" not in style.text
    assert "@import" not in style.text


def test_landmarks_tables_and_names() -> None:
    """Landmarks are called by headings, tables have captions and scopes, ids are unique."""
    page = read(full())
    nodes = page.everything()
    ids = [node.attributes["id"] for node in nodes if "id" in node.attributes]
    assert len(ids) == len(set(ids))
    for node in nodes:
        assert node.attributes.get("aria-labelledby", ids[0]) in ids
        if (target := node.attributes.get("href", "")).startswith("#"):
            assert target[1:] in ids
        for shape in re.findall(r"url\(#([^)]+)\)", " ".join(node.attributes.values())):
            assert shape in ids
    assert [len(page.all(tag)) for tag in ("h1", "header", "main", "footer")] == [1] * 4
    for table in page.all("table"):
        assert table.children[0].tag == "caption"
        assert {cell.attributes["scope"] for cell in table.all("th")} == {"col", "row"}
        for row in table.all("tbody")[0].all("tr"):
            assert row.children[0].tag == "th"
    assert all(node.attributes.get("alt") for node in page.all("img"))


def test_plots_have_words_and_the_colours_of_the_page() -> None:
    """Every plot is an image with a name and a description, in colours that CSS decides."""
    plots = read(full()).all("svg")
    assert len(plots) == 4
    for svg in plots:
        assert svg.attributes["role"] == "img"
        assert svg.attributes["aria-label"] == svg.all("title")[0].text
        assert len(svg.all("desc")[0].text) > 40
        assert svg.all("text")
        styles = " ".join(node.attributes.get("style", "") for node in svg.everything())
        assert "var(--ink)" in styles
        assert not re.search(r"#[0-9a-fA-F]{3,6}\b", re.sub(r"url\([^)]*\)", "", styles))


def test_the_same_report_gives_the_same_bytes() -> None:
    """The page of an equal report is equal, from another process with another hash seed too."""
    elsewhere = subprocess.run(
        [sys.executable, "-c", "import test_html; print(test_html.full(), end='')"],
        env={"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": "7", "PYTHONUTF8": "1"},
        capture_output=True,
        check=True,
    )
    assert elsewhere.stdout == full().encode()


def test_size() -> None:
    """A page over twelve artifacts with a plot of each kind stays well below a megabyte."""
    assert len(full().encode()) < 500_000


def test_pictures_are_reduced() -> None:
    """A large picture is shown as a small one, and only so many of them."""
    noise = np.random.default_rng(0).integers(0, 256, (600, 400, 3), dtype=np.uint8)
    flips = [Flip(f"real-{n}", 0, 1) for n in range(40)]
    report = made.report_of(replace(artifact(), parity=flipped(*flips)))
    text = html.page(report, pixels={flip.sample: noise for flip in flips})
    assert len(text.encode()) < 1_000_000
    assert "16 more samples" in text


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page is whole but for the plots, and says how to get them."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    page = read(make_full())
    assert not page.all("svg")
    assert sections(page) == FULL
    notes = [p.text for p in page.all("p") if "is not drawn" in p.text]
    assert len(notes) == 4
    assert all("pip install matplotlib" in note for note in notes)


def test_a_page_without_plots_does_not_load_matplotlib() -> None:
    """Importing the package and making a page that plots nothing leaves matplotlib alone."""
    code = (
        "import sys, gate_reports; from levit_export.reports import html; "
        "html.page(gate_reports.report_of(gate_reports.artifact())); "
        "assert not {'matplotlib', 'torch', 'PIL'} & set(sys.modules)"
    )
    environment = {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


SCHEMES = ("light", "dark")
TEXTS = ("ink", "muted", "pass", "fail", "warn", "link")
LINES = tuple(f"series-{number}" for number in range(plots.SERIES))


def palette(scheme: str) -> dict[str, str]:
    """The colours of the page in a scheme."""
    css = (resources.files("levit_export.reports.html") / "report.css").read_text("utf-8")
    blocks = re.findall(r":root \{(.*?)\}", css, re.DOTALL)
    assert len(blocks) == len(SCHEMES)
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", blocks[SCHEMES.index(scheme)]))


def luminance(colour: str) -> float:
    """Relative luminance of an sRGB colour (WCAG 2.2)."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return float(np.dot((0.2126, 0.7152, 0.0722), linear))


def contrast(one: str, other: str) -> float:
    """Contrast ratio of two colours (WCAG 2.2)."""
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_contrast(scheme: str) -> None:
    """Text has a contrast of 4.5, lines one of 3, on every ground they stand on (WCAG AA)."""
    colours = palette(scheme)
    for name, ground in product(TEXTS, ("page", "raised")):
        assert contrast(colours[name], colours[ground]) >= 4.5, (name, ground)
    for name, ground in product(LINES, ("page", "band")):
        assert contrast(colours[name], colours[ground]) >= 3, (name, ground)
