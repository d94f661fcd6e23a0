"""Other Python processes that work for this one: a function goes there, a Future comes back.

One way for all that runs beside other work: onnxsim and Core AI's compiler, which may crash; peak
memory, which needs a process that holds nothing else; the workers of ``evaluate``; the cells of
``sweep``.

It is a plain subprocess with pickles over its pipes. Neither ``multiprocessing`` nor loky would
do: both start Python with ``-m`` or ``-c`` and the current folder on its import path, so that a
user's ``random.py`` or ``onnx.py`` would be run in place of the real one (Python 3.10 has no
switch against that), ``multiprocessing`` runs the caller's main module again, and the workers of
both outlive a parent that is killed.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from threading import Lock
from types import TracebackType
from typing import IO, Any, TypeVar, cast

from levit_export.core.errors import LevitExportError, RuntimeFailedError
from levit_export.core.packages import collect_garbage_rarely

Result = TypeVar("Result")

GRACE_S = 5
"""How long a process whose pipes broke may take to end by itself."""

SERVE = "from levit_export.core.processes import serve; serve()"


class Worker:
    """A process that calls functions, one after the other; one that dies is followed by a new one.

    Functions, arguments and results are pickled. The process ends with this one, however that
    ends, and when the ``with`` block does. What it prints is kept, and the last line of it is said
    when it dies.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "worker")
        self._lock = Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._printed: IO[bytes] | None = None
        self._ended = False

    def submit(self, function: Callable[..., Result], *arguments: Any) -> Future[Result]:
        """Have ``function(*arguments)`` called there, after what was submitted before.

        The future raises the ``LevitExportError`` that was raised there, and
        ``RuntimeFailedError`` for every other exception and for a process that died.
        """
        # At once: what is in it may change while it waits its turn.
        request = pickle.dumps((function, arguments))
        return self._thread.submit(self._answer, request)

    def kill(self) -> None:
        """End the process, whatever it does, for good. What was submitted raises."""
        with self._lock:
            self._ended = True
            if self._process is not None:
                self._process.kill()
                self._process.wait()

    def __enter__(self) -> Worker:  # noqa: PYI034 - typing.Self needs Python 3.11
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.kill()
        self._thread.shutdown(cancel_futures=True)
        self._let_go()

    def _answer(self, request: bytes) -> Any:
        process = self._running()
        try:
            to, back = _pipe(process.stdin), _pipe(process.stdout)
            to.write(request)
            to.flush()
            is_result, found = pickle.load(back)  # noqa: S301 - from our own process
        except Exception as error:
            raise self._died(process) from error
        if not is_result:
            raise found
        return found

    def _running(self) -> subprocess.Popen[bytes]:
        """The process, or a new one where it does not live any more."""
        with self._lock:
            if self._ended:
                raise RuntimeFailedError("the worker process was ended", remedy="Ask a new one.")
            if self._process is None or self._process.poll() is not None:
                self._let_go()
                self._printed = tempfile.TemporaryFile()  # noqa: SIM115 - closed by _let_go
                self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                    command(SERVE),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=self._printed,
                )
            return self._process

    def _let_go(self) -> None:
        """Close the pipes of a process that has ended."""
        streams = () if self._process is None else (self._process.stdin, self._process.stdout)
        for stream in (*streams, self._printed):
            if stream is not None:
                with suppress(OSError):  # what was left to be written has no reader any more
                    stream.close()

    def _died(self, process: subprocess.Popen[bytes]) -> RuntimeFailedError:
        """The error that says how the process ended, and what it printed last."""
        try:  # it closes its pipes a moment before it has a status of its own
            status = process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            status = process.wait()
        said = last_words(cast("IO[bytes]", self._printed))
        return RuntimeFailedError(
            f"a worker process ended with status {status}{said}",
            remedy="Is there enough memory? Try one worker, or one format, at a time.",
        )


@contextmanager
def alone(function: Callable[..., Result], *arguments: Any) -> Iterator[Future[Result]]:
    """``function(*arguments)`` in a fresh process, which is gone when the block ends."""
    with Worker() as worker:
        yield worker.submit(function, *arguments)


def each_alone(
    function: Callable[..., Result], calls: Iterable[tuple[Any, ...]], *, at_a_time: int
) -> list[Result | LevitExportError]:
    """``function(*call)`` for each call in a process of its own: its result, or its error."""

    def one(call: tuple[Any, ...]) -> Result | LevitExportError:
        with alone(function, *call) as future:
            try:
                return future.result()
            except LevitExportError as error:
                return error

    with ThreadPoolExecutor(at_a_time) as pool:
        return list(pool.map(one, calls))


def last_words(printed: IO[bytes]) -> str:
    """The last line that a process printed, behind a colon; empty where it printed nothing."""
    printed.seek(0)
    lines = printed.read().decode(errors="replace").strip().splitlines()
    return f": {lines[-1][:300]}" if lines else ""


def command(code: str, *arguments: str) -> list[str]:
    """The command line that runs ``code`` with ``sys.argv[1:]`` set to ``arguments``.

    It has the import path of this process, and no other.
    """
    path = [entry for entry in sys.path if entry]
    return [sys.executable, "-c", f"import sys; sys.path[:] = {path!r}\n{code}", *arguments]


def serve() -> None:
    """Be a worker: call what comes on standard input, and answer on standard output.

    What runtimes and converters print goes to standard error, so that it does not get between the
    answers.
    """
    _die_with_parent()
    collect_garbage_rarely()
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    while requests.peek(1):  # empty when nothing more is asked
        try:
            function, arguments = pickle.load(requests)  # noqa: S301 - from our parent
            answer = pickle.dumps((True, function(*arguments)))
        except Exception as error:
            answer = pickle.dumps((False, _sendable(error)))
        answers.write(answer)
        answers.flush()


def _sendable(error: Exception) -> LevitExportError:
    """``error`` where it is one of ours, else what it says."""
    if isinstance(error, LevitExportError):
        return error
    return RuntimeFailedError(
        f"a worker process raised {type(error).__name__}: {error}",
        remedy="This is a bug in levit-export; please report it.",
    )


def _die_with_parent() -> None:
    """End when the first process is gone, however it went (Linux; elsewhere its pipe tells)."""
    if sys.platform == "linux":
        import ctypes

        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    if stream is None:
        raise OSError("no pipe")
    return stream
