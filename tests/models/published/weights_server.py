"""An HTTP server on the loopback interface whose misbehaviour a test can choose."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Answer = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    """Records each request, then does what the test's script says."""

    def do_GET(self) -> None:
        site: Site = self.server.site  # type: ignore[attr-defined]
        with site.lock:
            site.requests.append((self.path, dict(self.headers)))
            answer = site.script.pop(0) if site.script else site.usual
        self.close_connection = True
        answer(self)

    def do_HEAD(self) -> None:
        self.do_GET()

    def respond(self, status: int, body: bytes = b"", **headers: str) -> None:
        """One answer; underscores in header names stand for hyphens."""
        self.send_response(status)
        fields = {"Content_Length": str(len(body)), "Connection": "close"} | headers
        for name, value in fields.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@dataclass
class Site:
    """What the server has, how it answers, and what it was asked."""

    url: str
    usual: Answer
    script: list[Answer] = field(default_factory=list)
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def ranges(self) -> list[str | None]:
        """The Range of each request so far."""
        return [headers.get("Range") for _, headers in self.requests]


@contextmanager
def serving(usual: Answer) -> Iterator[Site]:
    """A server that answers with the script's entries first, then with ``usual``."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.block_on_close = False
    site = Site(f"http://127.0.0.1:{server.server_address[1]}", usual)
    server.site = site  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def etag(content: bytes) -> str:
    """A strong validator."""
    return f'"{hashlib.md5(content, usedforsecurity=False).hexdigest()}"'


def whole(content: bytes, **headers: str) -> Answer:
    """A server that knows no ranges."""
    return lambda handler: handler.respond(200, content, **headers)


def ranged(content: bytes) -> Answer:
    """A server that honours Range and If-Range as RFC 9110 has it."""

    def answer(handler: Handler) -> None:
        asked = handler.headers.get("Range")
        condition = handler.headers.get("If-Range", etag(content))
        if asked is None or condition != etag(content):
            handler.respond(200, content, ETag=etag(content))
            return
        start = int(asked.removeprefix("bytes=").rstrip("-"))
        if start >= len(content):
            handler.respond(416, Content_Range=f"bytes */{len(content)}")
            return
        span = f"bytes {start}-{len(content) - 1}/{len(content)}"
        handler.respond(206, content[start:], Content_Range=span, ETag=etag(content))

    return answer


def broken_off(content: bytes, after: int, **headers: str) -> Answer:
    """The connection ends when ``after`` bytes of all have been sent."""
    length = str(len(content))
    return lambda handler: handler.respond(
        200, content[:after], Content_Length=length, ETag=etag(content), **headers
    )


def stalled(content: bytes, after: int, until: threading.Event) -> Answer:
    """Silence after ``after`` bytes, until the test is over."""

    def answer(handler: Handler) -> None:
        broken_off(content, after)(handler)
        handler.wfile.flush()
        until.wait(30)

    return answer


def status(code: int, **headers: str) -> Answer:
    """An answer without a body."""
    return lambda handler: handler.respond(code, **headers)
