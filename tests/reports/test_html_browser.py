"""The pages in a browser: whole on a telephone and on a desk, silent, in both schemes.

Needs chromium and chromedriver; what keeps people out is looked for by axe-core.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from browser import CHROMIUM, DRIVER, Browser, browsing, served
from html_reports import drift_of, swept, twelve
from PIL import Image

from levit_export.reports import html

pytestmark = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None,
    reason="no chromium with chromedriver (apt-get install chromium chromium-driver)",
)

SIZES = [(390, 800), (1280, 800), (1920, 1000)]
PAGES = {"report": 4, "sweep": 2}
"""The pages, and how many plots each has."""

LOOK = """
const box = (node) => {
  const { left, right, top, width, height } = node.getBoundingClientRect();
  return { left, right, top, width, height, fill: getComputedStyle(node).fill };
};
const all = (choice) => [...document.querySelectorAll(choice)].map(box);
return {
  across: document.documentElement.scrollWidth,
  verdict: box(document.querySelector("h1 .verdict")),
  plots: all("figure.plot svg"),
  words: all("figure.plot svg text"),
  ground: getComputedStyle(document.body).backgroundColor,
  ink: getComputedStyle(document.body).color,
};
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One browser for all tests of this file."""
    with browsing(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the pages are, which have every kind of plot and table."""
    folder = tmp_path_factory.mktemp("pages")
    report = html.page(twelve(), drift=drift_of("onnx-fp32", "openvino-fp32"))
    foreign = '<img src="/elsewhere.png"><div style="width:2000px">wide</div></body>'
    for name, text in (
        ("report", report),
        ("sweep", swept()),
        ("foreign", report.replace("</body>", foreign)),
    ):
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    Image.new("RGB", (9, 9)).save(folder / "elsewhere.png")
    with served(folder) as found:
        yield found


def look(browser: Browser, address: str) -> tuple[dict[str, Any], list[str], list[str]]:
    """What is seen on a page, what the browser complained of, what it asked for."""
    browser.complaints()
    browser.requests()
    browser.open(address)
    found = browser.run(LOOK)
    return found, browser.complaints(), browser.requests()


@pytest.mark.parametrize("size", SIZES, ids=lambda size: str(size[0]))
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_a_page_in_a_browser(
    browser: Browser, address: str, name: str, size: tuple[int, int], *, dark: bool
) -> None:
    """Verdict first, plots whole and legible, no scrolling sideways, no complaint, no request."""
    width, height = size
    browser.show(width, height, dark=dark)
    seen, complaints, asked = look(browser, f"{address}/{name}.html")
    assert complaints == []
    assert asked == [f"{address}/{name}.html"]
    assert seen["across"] <= width
    assert 0 <= seen["verdict"]["top"] < height / 4
    assert len(seen["plots"]) == PAGES[name]
    for plot in seen["plots"]:
        assert plot["left"] >= 0
        assert plot["right"] <= width
        assert plot["width"] >= 300
        assert plot["height"] >= 100
    assert all(word["height"] >= 8 for word in seen["words"])
    assert {word["fill"] for word in seen["words"]} >= {seen["ink"]}
    light = sum(map(int, re.findall(r"\d+", seen["ground"])[:3])) > 3 * 128
    assert light != dark


def test_a_telephone_shows_latency_and_size(browser: Browser, address: str) -> None:
    """Name, verdict, median latency and size are seen without scrolling at 390 pixels."""
    browser.show(*SIZES[0])
    browser.open(f"{address}/report.html")
    script = """const row = document.querySelector('#artifacts tbody tr');
        return [...row.children].slice(0, 4).map((cell) =>
            [cell.innerText.trim(), cell.getBoundingClientRect().right])"""
    cells = browser.run(script)
    assert [text for text, _ in cells] == ["onnx-fp32", "✓ pass", "9.01 ms", "3.00 MB"]
    assert max(right for _, right in cells) <= SIZES[0][0]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_nobody_is_kept_out(browser: Browser, address: str, name: str, *, dark: bool) -> None:
    """axe-core finds nothing, whatever is folded up."""
    browser.show(*SIZES[0], dark=dark)
    browser.open(f"{address}/{name}.html")
    browser.run("for (const folded of document.querySelectorAll('details')) folded.open = true")
    assert browser.barriers() == []


def test_a_request_and_a_wide_page_would_be_seen(browser: Browser, address: str) -> None:
    """The look itself works: a foreign picture is refused aloud, a wide element widens."""
    browser.show(*SIZES[0])
    seen, complaints, asked = look(browser, f"{address}/foreign.html")
    assert any("Content Security Policy" in line for line in complaints)
    assert f"{address}/elsewhere.png" in asked
    assert browser.run("return [...document.images].at(-1).naturalWidth") == 0
    assert seen["across"] > SIZES[0][0]
