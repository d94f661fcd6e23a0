"""The page in a browser: visible on a telephone and on a desk, silent, in both schemes."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from html import unescape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from html_reports import drift_of, twelve

from levit_export.reports import html

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
WIDTHS = (390, 1280)
HEIGHT = 800
DARK, LIGHT = 0, 1

LOOKING = """
<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,"><body>%s<script>
onload = () => {
  const found = {};
  for (const frame of document.querySelectorAll("iframe")) {
    const page = frame.contentDocument, view = frame.contentWindow, box = node => {
      const r = node.getBoundingClientRect(), style = view.getComputedStyle(node);
      return {left: r.left, right: r.right, top: r.top, width: r.width, height: r.height,
              color: style.color, fill: style.fill, font: parseFloat(style.fontSize)};
    };
    const all = choice => [...page.querySelectorAll(choice)].map(box);
    found[frame.width] = {
      across: page.documentElement.scrollWidth,
      verdict: box(page.querySelector("h1 .verdict")),
      plots: all("figure.plot svg"),
      words: all("figure.plot svg text"),
      ground: view.getComputedStyle(page.body).backgroundColor,
      ink: view.getComputedStyle(page.body).color,
      fetched: view.performance.getEntriesByType("resource").map(e => e.name),
    };
  }
  document.body.textContent = "FOUND" + JSON.stringify(found) + "END";
};
</script>
"""
"""A page of ours that holds the report in frames of the widths and reads off what is seen."""


def browser() -> str:
    """The program, or a skip that says that there is none."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed")
    return found


@contextmanager
def served(pages: dict[str, str]) -> Iterator[tuple[str, list[str]]]:
    """The pages on this machine: their address, and the paths that were asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            body = pages.get(self.path)
            self.send_response(404 if body is None else 200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write((body or "").encode())

        def log_message(self, format: str, *args: Any) -> None:
            """Keep quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()
            thread.join()


def look(text: str, scheme: int, profile: Path) -> tuple[dict[str, Any], list[str], list[str]]:
    """What is seen at every width, what the browser complained of, what it asked for."""
    frames = "".join(
        f'<iframe width="{w}" height="{HEIGHT}" style="border:0" src="/report.html"></iframe>'
        for w in WIDTHS
    )
    program = browser()
    with served({"/": LOOKING.strip() % frames, "/report.html": text}) as (address, asked):
        done = subprocess.run(
            [
                program,
                "--headless",
                *(["--no-sandbox"] if os.geteuid() == 0 else []),
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--disable-background-networking",
                "--no-first-run",
                "--enable-logging=stderr",
                f"--blink-settings=preferredColorScheme={scheme}",
                f"--user-data-dir={profile}",
                "--dump-dom",
                address,
            ],
            capture_output=True,
            text=True,
            timeout=240,
            check=True,
        )
    (found,) = re.findall("FOUND(.*)END", done.stdout)
    complaints = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return json.loads(unescape(found)), complaints, asked


@cache
def page() -> str:
    """A page with every kind of plot and table."""
    return html.page(twelve(), drift=drift_of("onnx-fp32", "openvino-fp32"))


@pytest.mark.parametrize("scheme", [LIGHT, DARK], ids=["light", "dark"])
def test_the_page_in_a_browser(scheme: int, tmp_path: Path) -> None:
    """Verdict first, plots whole and legible, no scrolling sideways, no complaint, no request."""
    found, complaints, asked = look(page(), scheme, tmp_path)
    assert complaints == []
    assert set(asked) == {"/", "/report.html"}
    for width in WIDTHS:
        seen = found[str(width)]
        assert seen["fetched"] == []
        assert seen["across"] <= width
        assert 0 <= seen["verdict"]["top"] < HEIGHT / 4
        assert len(seen["plots"]) == 4
        for plot in seen["plots"]:
            assert plot["left"] >= 0
            assert plot["right"] <= width
            assert plot["width"] >= 300
            assert plot["height"] >= 100
        assert all(word["height"] >= 8 for word in seen["words"])
        assert {word["fill"] for word in seen["words"]} >= {seen["ink"]}
        light = sum(map(int, re.findall(r"\d+", seen["ground"])[:3])) > 3 * 128
        assert light == (scheme == LIGHT)


def test_a_request_and_a_wide_page_would_be_seen(tmp_path: Path) -> None:
    """The look itself works: a foreign picture is refused aloud, a wide element widens."""
    foreign = '<img src="/elsewhere.png"><div style="width:2000px">wide</div></body>'
    found, complaints, asked = look(page().replace("</body>", foreign), LIGHT, tmp_path)
    assert any("Content Security Policy" in line for line in complaints)
    assert "/elsewhere.png" not in asked
    assert found[str(WIDTHS[0])]["across"] > WIDTHS[0]
