"""A second process that exports some of a run's formats while the first exports the others.

The converters are Python and use one core each. The helper is started before the checkpoint is
read, so that its imports are done when there is something to do. It is a plain subprocess and
not ``multiprocessing``, which would run the caller's main module again.

Messages are pickles of this package's own values, over pipes to a process that this one started.
"""

from __future__ import annotations

import gc
import pickle
import queue
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

from levit_export import launch
from levit_export.core import Artifact, ExportOptions, Prepared, applied
from levit_export.errors import ExportFailedError
from levit_export.targets import target
from levit_export.targets.quiet import first_line

PACKAGES = {
    "onnx": ("torch.export", "torch.onnx", "onnxscript", "onnxruntime"),
    "openvino": ("torch.export", "openvino", "openvino.frontend.pytorch.fx_decoder"),
    "coreml": ("torch.export", "coremltools"),
}
"""What an export of a format imports."""

GRACE_S = 5
"""How long a process whose pipes broke may take to end by itself."""


@dataclass(frozen=True)
class Job:
    """One artifact to make: a format, and what is asked of it."""

    format: str
    options: ExportOptions


def run(job: Job, model: Prepared, folder: Path) -> Artifact:
    """Export ``model`` as ``job`` says into a folder of its own below ``folder``."""
    kind = target(job.format)
    place = folder / f"{kind.name}-{job.options.precision}"
    place.mkdir()
    with uncollected():
        made = kind.export(model, place / (model.info.name + kind.suffix), job.options)
    return replace(made, keep=job.options.keep, passes=applied(model.passes))


@contextmanager
def uncollected() -> Iterator[None]:
    """Without looking for garbage: graphs are full of cycles, and nearly all of it is in use.

    coremltools asks for it by itself; what is there already is left out of that (0.4 s).
    """
    was_on, was_frozen = gc.isenabled(), gc.get_freeze_count() > 0
    gc.disable()
    if not was_frozen:
        gc.freeze()
    try:
        yield
    finally:
        if not was_frozen:
            gc.unfreeze()
        if was_on:
            gc.enable()


@dataclass(frozen=True)
class _Message:
    """Calls to be done one after the other; ``about_last`` ones take the answer before them."""

    calls: tuple[Callable[..., Any], ...]
    answered: bool
    about_last: bool


class Helper:
    """The other process, seen from this one.

    It is asked for calls and answers them in their order. Threads write and read, so that neither
    process waits for the other to take what it has to say.
    """

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._outbox: queue.Queue[bytes | None] = queue.Queue()
        self._inbox: queue.Queue[Any] = queue.Queue()
        self._jobs = 0
        self._threads = [Thread(target=each, daemon=True) for each in (self._write, self._read)]
        for thread in self._threads:
            thread.start()

    def get_ready(self, packages: Sequence[str]) -> None:
        """Let it import ``packages``; one that is missing is missed by who needs it."""
        self._say((partial(import_early, tuple(packages)),), answered=False)

    def ask(self, call: Callable[[], Any]) -> None:
        """Let it call ``call``, which a pickle must hold, and :meth:`answer` what comes of it."""
        self._say((call,))

    def ask_about_last(self, call: Callable[[Artifact], Any]) -> None:
        """The same for a call that takes the artifact of the last job, as soon as that is made."""
        self._say((call,), about_last=True)

    def start(self, work: Sequence[tuple[Job, Prepared]], folder: Path) -> None:
        """Hand over jobs, each with the model to export, for :meth:`results`."""
        self._jobs += len(work)
        self._say(tuple(partial(run, job, _bare(model), folder) for job, model in work))

    def results(self) -> Iterator[Artifact]:
        """The artifacts in the order of the jobs, each as soon as it is written.

        What was raised over there is raised here.
        """
        while self._jobs:
            self._jobs -= 1
            yield self.answer()

    def answer(self) -> Any:
        """The next answer. Raises what was raised over there, or that nobody is there."""
        answer = self._inbox.get()
        if isinstance(answer, BaseException):
            self._inbox.put(answer)  # nothing comes after it
            raise answer
        return answer

    def close(self) -> None:
        """End the process, whatever it does, and let go of its pipes."""
        self._process.kill()
        self._process.wait()
        self._outbox.put(None)
        for thread in self._threads:
            thread.join()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):  # what was left to be written has no reader any more
                    pipe.close()

    def _say(
        self,
        calls: tuple[Callable[..., Any], ...],
        *,
        answered: bool = True,
        about_last: bool = False,
    ) -> None:
        # At once: what is in it may change while a thread would still pickle it.
        self._outbox.put(pickle.dumps(_Message(calls, answered, about_last)))

    def _write(self) -> None:
        while (message := self._outbox.get()) is not None:
            with suppress(OSError):  # whoever waits for an answer finds out
                pipe = _pipe(self._process.stdin)
                pipe.write(message)
                pipe.flush()

    def _read(self) -> None:
        answer: Any = None
        while not isinstance(answer, BaseException):
            try:
                answer = pickle.load(_pipe(self._process.stdout))  # noqa: S301 - from our process
            except Exception as error:
                answer = self._died()
                answer.__cause__ = error
            self._inbox.put(answer)

    def _died(self) -> ExportFailedError:
        try:  # it closes its pipes a moment before it has a status of its own
            status = self._process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        return ExportFailedError(
            f"the process that exported the other formats ended with status {status}",
            remedy="Export one --format at a time to see which; is there enough memory?",
        )


@contextmanager
def helper() -> Iterator[Helper]:
    """Start the process; whatever happens in the block, it is gone afterwards."""
    process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
        launch.command("from levit_export.helper import main; main()"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    made = Helper(process)
    try:
        yield made
    finally:
        made.close()


def _pipe(stream: Any) -> Any:
    if stream is None:
        raise OSError("no pipe")
    return stream


def _bare(model: Prepared) -> Prepared:
    """``model`` without what the other process does not need."""
    return replace(model, weights={})


def _serve(requests: Any, answers: Any) -> None:
    """Do what is asked, and send back what comes of it, until something is raised."""
    answer: Any = None
    try:
        for message in _messages(requests):
            for call in message.calls:
                answer = call(answer) if message.about_last else call()
                if message.answered:
                    _send(answer, answers)
    except Exception as error:
        _send(_sendable(error), answers)


def _messages(requests: Any) -> Iterator[_Message]:
    while True:
        try:
            message = pickle.load(requests)  # noqa: S301 - from our own parent
        except EOFError:  # nothing more is asked
            return
        yield message


def import_early(packages: Sequence[str]) -> None:
    """Import ``packages`` before they are needed; who needs one that is missing says so."""
    from levit_export import lean
    from levit_export.targets.quiet import quiet

    with quiet():
        for package in packages:
            with suppress(ImportError):
                lean.load(package)


def _send(answer: object, answers: Any) -> None:
    pickle.dump(answer, answers)
    answers.flush()


def _sendable(error: Exception) -> Exception:
    """``error``, or what it says where it does not survive the way as what it is."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - made one line above
    except Exception:
        return ExportFailedError(
            f"the other process raised {type(error).__name__}: {first_line(error)}",
            remedy="Report the model.",
        )
    return error


def main() -> None:
    """Be the helper."""
    channel = launch.as_child()
    _serve(sys.stdin.buffer, channel)
