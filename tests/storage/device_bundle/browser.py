"""Headless Chromium by way of chromedriver's HTTP (W3C WebDriver), and a server for its page."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import threading
import time
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import requests

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
"""The key under which WebDriver gives an element (W3C WebDriver, section 12)."""

AXE = os.environ.get("AXE_CORE", "")
"""The file ``axe.min.js`` of the npm package axe-core, which finds what keeps people out."""

PATIENCE = 120.0
"""Seconds after which a page that does not get ready is a failure, not a slow machine."""

ARGUMENTS = (
    "--headless=new",
    "--no-sandbox",  # a container's root has no other choice
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    # A camera that shows a test picture, given to whoever asks.
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
    "--host-resolver-rules=MAP insecure.test 127.0.0.1, MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)


@dataclass(frozen=True)
class Browser:
    """A session of chromedriver at ``url``."""

    url: str

    def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """One command; an error of WebDriver is an assertion."""
        with requests.Session() as session:
            session.trust_env = False  # no proxy to this machine
            answer = session.request(method, f"{self.url}{path}", json=body, timeout=PATIENCE)
        value = answer.json()["value"]
        assert answer.ok, value
        return value

    def open(self, address: str) -> None:
        """Load a page and wait for its ``load``."""
        self.ask("POST", "/url", {"url": address})

    def run(self, script: str, *arguments: object) -> Any:
        """The body of a function; what it returns, or what its promise gives."""
        return self.ask("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def until(self, condition: str) -> None:
        """Wait until the expression holds."""
        end = time.monotonic() + PATIENCE
        while not self.run(f"return Boolean({condition})"):
            assert time.monotonic() < end, (condition, self.text("body"), self.complaints())
            time.sleep(0.02)

    def settle(self) -> str:
        """Wait until the page has done what it was asked for; its state."""
        self.until("!['busy', undefined].includes(document.documentElement.dataset.state)")
        return str(self.run("return document.documentElement.dataset.state"))

    def text(self, selector: str) -> str:
        """What the element shows."""
        return str(self.run("return document.querySelector(arguments[0]).innerText", selector))

    def give(self, selector: str, path: Path) -> None:
        """Choose a file in a file field."""
        found = self.ask("POST", "/element", {"using": "css selector", "value": selector})
        self.ask("POST", f"/element/{found[ELEMENT]}/value", {"text": str(path)})

    def press(self, *keys: str) -> None:
        """Press and release keys, one after the other, wherever the focus is."""
        actions = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self.ask(
            "POST", "/actions", {"actions": [{"type": "key", "id": "keys", "actions": actions}]}
        )

    def command(self, name: str, **parameters: object) -> Any:
        """A command of the DevTools protocol."""
        return self.ask("POST", "/goog/cdp/execute", {"cmd": name, "params": parameters})

    def show(self, width: int, height: int, *, dark: bool = False) -> None:
        """As a window of this size, in the light or the dark scheme."""
        sizes = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.command("Emulation.setDeviceMetricsOverride", **sizes)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.command("Emulation.setEmulatedMedia", features=[scheme])

    def barriers(self) -> list[str]:
        """What axe-core finds on the page, with where; a skip where there is no axe-core."""
        if not AXE:
            pytest.skip("no axe-core: AXE_CORE does not name the axe.min.js of npm's package")
        self.run(Path(AXE).read_text(encoding="utf-8"))
        script = """return axe.run(document).then(({ violations }) => violations.flatMap(
            ({ id, nodes }) => nodes.map(({ target, failureSummary }) =>
                `${id} at ${target}: ${failureSummary}`)))"""
        return list(self.run(script))

    def picture(self, path: Path) -> None:
        """Save the whole page as PNG."""
        shot = self.command("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(b64decode(shot["data"]))

    def complaints(self) -> list[str]:
        """Errors and warnings in the console since the last call."""
        entries = self.ask("POST", "/se/log", {"type": "browser"})
        return [entry["message"] for entry in entries if entry["level"] in ("SEVERE", "WARNING")]

    def requests(self) -> list[str]:
        """The addresses that pages asked for since the last call; not those of Chromium's own."""
        entries = self.ask("POST", "/se/log", {"type": "performance"})
        messages = [json.loads(entry["message"])["message"] for entry in entries]
        asked = [
            message["params"]["request"]["url"]
            for message in messages
            if message["method"] == "Network.requestWillBeSent"
        ]
        return [url for url in asked if not url.startswith("chrome://")]


GPU = (
    "--enable-unsafe-webgpu",
    "--use-webgpu-adapter=swiftshader",
    "--use-angle=swiftshader",
    "--enable-features=Vulkan",
    "--ignore-gpu-blocklist",
)
"""What gives a browser without a GPU one that Chromium's own SwiftShader computes."""


@contextmanager
def browsing(profile: Path, *, gpu: bool = False) -> Iterator[Browser]:
    """A browser whose profile is the empty folder ``profile``; it ends with the block."""
    assert DRIVER is not None
    process = subprocess.Popen(
        [DRIVER, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    session = None
    try:
        assert process.stdout is not None
        port = next(
            found[1]
            for line in process.stdout
            if (found := re.search(r"successfully on port (\d+)", line))
        )
        arguments = [each for each in ARGUMENTS if not (gpu and each == "--disable-gpu")]
        arguments += [*(GPU if gpu else ()), f"--user-data-dir={profile}"]
        options = {"binary": CHROMIUM, "args": arguments}
        wanted = {
            "browserName": "chrome",
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }
        driver = Browser(f"http://127.0.0.1:{port}")
        created = driver.ask("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        session = Browser(f"{driver.url}/session/{created['sessionId']}")
        yield session
    finally:
        if session is not None:
            session.ask("DELETE", "")
        process.terminate()
        process.communicate()


class _Quiet(SimpleHTTPRequestHandler):
    headers_of_all: ClassVar[dict[str, str]] = {}

    def end_headers(self) -> None:
        """Add those of every answer."""
        for name, value in self.headers_of_all.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextmanager
def served(folder: Path, headers: dict[str, str] | None = None) -> Iterator[str]:
    """The address of Python's own file server for ``folder``: what the model card tells to use.

    ``headers`` go with every answer.
    """
    kind = type("Handler", (_Quiet,), {"headers_of_all": headers or {}})
    handler = functools.partial(kind, directory=str(folder))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
