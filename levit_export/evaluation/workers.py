"""Several processes, each with sessions of its own and its share of the images.

Plain subprocesses, as in ``helper``; messages are pickles of this package's own values.
"""

from __future__ import annotations

import os
import pickle
import queue
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from threading import Thread
from typing import IO, Any

from levit_export import launch
from levit_export.errors import LevitExportError, RuntimeFailedError
from levit_export.evaluation.answers import Answers, Task, answer, merge
from levit_export.helper import GRACE_S, die_with_parent

STEP = None
"""The message that says that a group is done."""

GONE = "gone"
"""What stands for the message that did not come."""


def run(task: Task, workers: int, advance: Callable[[], None] = lambda: None) -> Answers:
    """The answers to ``task``, the same for any number of ``workers``; 1 is this process.

    Raises what a worker raised, and ``RuntimeFailedError`` for one that died.
    """
    count = min(workers, len(task.groups))
    if count <= 1:
        return answer(task, advance)
    # Dealt like cards: files of one class, which lie together, are often of one size.
    shares = [replace(task, groups=task.groups[i::count]) for i in range(count)]
    with _started(shares) as processes:
        return merge(_collect(processes, advance))


@dataclass(frozen=True)
class _Worker:
    """A process and the file that its standard error goes to."""

    process: subprocess.Popen[bytes]
    errors: IO[bytes]

    def died(self) -> RuntimeFailedError:
        """Why there is no answer, as far as the process could say."""
        try:  # it closes its pipes a moment before it has a status of its own
            status = self.process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            status = self.process.wait()
        self.errors.seek(0)
        lines = self.errors.read().decode(errors="replace").strip().splitlines()
        said = f": {lines[-1][:300]}" if lines else ""
        return RuntimeFailedError(
            f"a worker process ended with status {status}{said}",
            remedy="Try --workers 1 and one artifact at a time; is there enough memory?",
        )


@contextmanager
def _started(shares: Sequence[Task]) -> Iterator[list[_Worker]]:
    """A process for each share; whatever happens in the block, they are gone afterwards."""
    workers: list[_Worker] = []
    try:
        workers += [_start() for _ in shares]
        for worker, share in zip(workers, shares, strict=True):
            _send(worker, share)
        yield workers
    finally:
        for worker in workers:
            worker.process.kill()
            worker.process.wait()
            for stream in (worker.process.stdin, worker.process.stdout, worker.errors):
                if stream is not None:
                    _close(stream)


def _start() -> _Worker:
    errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by _started
    process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
        launch.command("from levit_export.evaluation.workers import main; main()"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
    )
    return _Worker(process, errors)


def _send(worker: _Worker, share: Task) -> None:
    try:
        pickle.dump(share, _pipe(worker.process.stdin))
        _pipe(worker.process.stdin).close()
    except OSError as error:
        raise worker.died() from error


def _close(stream: IO[bytes]) -> None:
    try:
        stream.close()
    except OSError:  # what was left to be written has no reader any more
        return


def _collect(workers: Sequence[_Worker], advance: Callable[[], None]) -> list[Answers]:
    """Listen to all workers until each has answered; the first that failed ends it."""
    messages: queue.Queue[tuple[int, Any]] = queue.Queue()
    listeners = [
        Thread(target=_listen, args=(index, worker, messages), daemon=True)
        for index, worker in enumerate(workers)
    ]
    for listener in listeners:
        listener.start()
    answers: dict[int, Answers] = {}
    try:
        while len(answers) < len(workers):
            index, message = messages.get()
            if message is STEP:
                advance()
            elif isinstance(message, Answers):
                answers[index] = message
            elif message is GONE:
                raise workers[index].died()
            else:
                raise message
    finally:
        for worker, listener in zip(workers, listeners, strict=True):
            worker.process.kill()
            listener.join()
    return [answers[index] for index in range(len(workers))]


def _listen(index: int, worker: _Worker, messages: queue.Queue[tuple[int, Any]]) -> None:
    """Pass on what a worker says, up to its answer, its exception or its death."""
    message: Any = STEP
    while message is STEP:
        try:
            message = pickle.load(_pipe(worker.process.stdout))  # noqa: S301 - our own process
        except Exception:
            message = GONE
        messages.put((index, message))


def _pipe(stream: Any) -> Any:
    if stream is None:
        raise OSError("no pipe")
    return stream


def _serve(requests: Any, answers: Any) -> None:
    def say(message: Any) -> None:
        pickle.dump(message, answers)
        answers.flush()

    try:
        task = pickle.load(requests)  # noqa: S301 - from our own parent
        result: Any = answer(task, lambda: say(STEP))
    except LevitExportError as error:
        result = error
    except Exception as error:
        result = RuntimeFailedError(
            f"a worker process raised {type(error).__name__}: {error}",
            remedy="This is a bug in levit-export; please report it.",
        )
    say(result)


def main() -> None:
    """Be a worker."""
    die_with_parent()
    # What runtimes print must not get between the messages.
    channel = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    _serve(sys.stdin.buffer, channel)
