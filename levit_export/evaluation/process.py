"""A process that was started to work for this one: what it is given, what it says, how it ends."""

from __future__ import annotations

import pickle
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Thread
from typing import IO, Any

from levit_export import launch
from levit_export.errors import RuntimeFailedError
from levit_export.helper import GRACE_S


class Process:
    """A worker as its parent sees it; what it prints on standard error goes to a file."""

    def __init__(self, code: str) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by end
        self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            launch.command(code),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
        )

    def say(self, message: Any) -> None:
        """Send a message; a worker that is gone will be found out by listening."""
        with suppress(OSError):
            pipe = _pipe(self._process.stdin)
            pickle.dump(message, pipe)
            pipe.flush()

    def listen(self) -> Any:
        """The next message, or the error that stands for one that did not come."""
        try:
            return pickle.load(_pipe(self._process.stdout))  # noqa: S301 - our own process
        except Exception:
            return self._died()

    def end(self) -> None:
        """Stop it, whatever it does, and wait until it is gone."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """Let go of its pipes, after :meth:`end`."""
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None:
                with suppress(OSError):  # what was left to be written has no reader any more
                    stream.close()

    def _died(self) -> RuntimeFailedError:
        """Why there is no message, as far as the process could say."""
        try:  # it closes its pipes a moment before it has a status of its own
            status = self._process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        said = f": {lines[-1][:300]}" if lines else ""
        return RuntimeFailedError(
            f"a worker process ended with status {status}{said}",
            remedy="Try --workers 1 and one artifact at a time; is there enough memory?",
        )


@contextmanager
def conversing(
    process: Process, first: Any, heard: Callable[[Process, Any], None]
) -> Iterator[Process]:
    """``process``, which is sent ``first``; it is gone when the block ends.

    ``heard`` is called in a thread with every message up to one that is no string, which is the
    last: its result, or the error that it raised or died of.
    """
    listener = Thread(target=_listen, args=(process, first, heard), daemon=True)
    listener.start()
    try:
        yield process
    finally:
        process.end()
        listener.join()
        process.close()


def _listen(process: Process, first: Any, heard: Callable[[Process, Any], None]) -> None:
    process.say(first)
    message: Any = ""
    while isinstance(message, str):
        message = process.listen()
        heard(process, message)


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    if stream is None:
        raise OSError("no pipe")
    return stream
