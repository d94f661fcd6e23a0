"""A second process that exports some of a run's formats while the first exports the others.

The converters are Python and use one core each. The helper is started before the checkpoint is
read, so that its imports are done when there is something to export. It is a plain subprocess and
not ``multiprocessing``, which would run the caller's main module again.

Messages are pickles of this package's own values, over pipes to a process that this one started.
"""

from __future__ import annotations

import ctypes
import gc
import io
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from levit_export import launch
from levit_export.core import Artifact, ExportOptions, Prepared, applied
from levit_export.errors import ExportFailedError
from levit_export.targets import target
from levit_export.targets.quiet import first_line

PACKAGES = {
    "onnx": ("torch.onnx", "onnxscript", "onnxruntime"),
    "openvino": ("openvino", "openvino.frontend.pytorch.fx_decoder"),
    "coreml": ("coremltools",),
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
    """Without looking for garbage: graphs are full of cycles, and nearly all of it is in use."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


class Helper:
    """The other process, seen from this one."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def start(self, work: Sequence[tuple[Job, Prepared]], folder: Path) -> None:
        """Hand over jobs, each with the model to export; returns when they have been sent."""
        message = tuple((job, _bare(model)) for job, model in work), folder
        try:
            with _pipe(self._process.stdin) as pipe:
                pickle.dump(message, pipe)
        except OSError as error:
            raise self._died() from error

    def results(self) -> Iterator[Artifact]:
        """The artifacts in the order of the jobs, each as soon as it is written.

        What was raised over there is raised here.
        """
        while (answer := self._answer()) is not None:
            if isinstance(answer, BaseException):
                raise answer
            yield answer

    def _answer(self) -> Artifact | BaseException | None:
        try:
            answer = pickle.load(_pipe(self._process.stdout))  # noqa: S301 - our own process
        except (EOFError, OSError, pickle.UnpicklingError) as error:
            raise self._died() from error
        return answer  # type: ignore[no-any-return]

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
def helper(formats: Iterable[str] = ()) -> Iterator[Helper]:
    """Start the process; whatever happens in the block, it is gone afterwards.

    It gets ready for exports of ``formats`` at once.
    """
    process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
        launch.command("from levit_export.helper import main; main()", *formats),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield Helper(process)
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


def _pipe(stream: Any) -> Any:
    if stream is None:
        raise OSError("no pipe")
    return stream


def _bare(model: Prepared) -> Prepared:
    """``model`` without what the other process does not need."""
    return replace(model, weights={})


def _serve(requests: Any, answers: Any) -> None:
    """Import what will be needed, then do what is asked and send back what comes of it."""
    with ThreadPoolExecutor(1) as reader:  # so that the first process need not wait for imports
        message = reader.submit(requests.read)
        _import(sys.argv[1:])
        work, folder = pickle.load(io.BytesIO(message.result()))  # noqa: S301 - from our parent
    try:
        for job, model in work:
            _send(run(job, model, folder), answers)
        _send(None, answers)
    except Exception as error:
        _send(_sendable(error), answers)


def _import(formats: Sequence[str]) -> None:
    """What exports of ``formats`` need. A package that is missing is missed by who needs it."""
    from levit_export import lean
    from levit_export.targets.quiet import quiet

    with quiet():
        for package in ("torch.export", *(p for f in formats for p in PACKAGES.get(f, ()))):
            with suppress(ImportError):
                lean.load(package)


def _send(answer: Artifact | Exception | None, answers: Any) -> None:
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


def die_with_parent() -> None:
    """End when the first process is gone, however it went (Linux; elsewhere its pipe tells)."""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


def main() -> None:
    """Be the helper."""
    die_with_parent()
    # What converters print must not get between the messages.
    channel = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    _serve(sys.stdin.buffer, channel)
