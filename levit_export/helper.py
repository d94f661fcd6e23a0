"""A second process that exports some of a run's formats while the first exports the others.

The converters are Python and use one core each. The helper is started before the checkpoint is
read, so that its imports are done when there is something to export. It is a plain subprocess and
not ``multiprocessing``, which would run the caller's main module again.

Messages are pickles of this package's own values, over pipes to a process that this one started.
"""

from __future__ import annotations

import ctypes
import io
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from levit_export import launch
from levit_export.core import Artifact, ExportOptions, Layout, Prepared, applied
from levit_export.errors import ExportFailedError
from levit_export.targets import target
from levit_export.targets.quiet import first_line

if TYPE_CHECKING:
    from torch.export import ExportedProgram


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
    made = kind.export(model, place / (model.info.name + kind.suffix), job.options)
    return replace(made, keep=job.options.keep, passes=applied(model.passes))


class Helper:
    """The other process, seen from this one."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def start(self, work: Sequence[tuple[Job, Prepared]], folder: Path) -> None:
        """Hand over jobs, each with the model to export; returns when they have been read."""
        message = (tuple((job, _bare(model)) for job, model in work), folder, _programs(work))
        try:
            pickle.dump(message, _pipe(self._process.stdin))
            _pipe(self._process.stdin).flush()
        except OSError as error:
            raise self._died() from error

    def results(self) -> tuple[Artifact, ...]:
        """Wait for the artifacts. What was raised over there is raised here."""
        try:
            answer = pickle.load(_pipe(self._process.stdout))  # noqa: S301 - our own process
        except (EOFError, OSError, pickle.UnpicklingError) as error:
            raise self._died() from error
        if isinstance(answer, BaseException):
            raise answer
        return tuple(answer)

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
    """``model`` without what the other process does not need, or gets once for all jobs."""
    return replace(model, weights={}, program=None)  # type: ignore[arg-type]


def _programs(work: Sequence[tuple[Job, Prepared]]) -> dict[Layout, bytes]:
    """The program of each layout as bytes."""
    saved: dict[Layout, bytes] = {}
    for model in {model.layout: model for _, model in work}.values():
        buffer = io.BytesIO()
        _save(model.program, buffer)
        saved[model.layout] = buffer.getvalue()
    return saved


def _save(program: ExportedProgram, buffer: io.BytesIO) -> None:
    import torch

    from levit_export.targets.quiet import quiet

    with quiet("torch"):
        torch.export.save(program, buffer)


def _serve(requests: Any, answers: Any) -> None:
    """Import what will be needed, then do what is asked and send back what came of it."""
    import torch
    import torch.onnx

    from levit_export import lean
    from levit_export.targets.quiet import quiet

    with quiet():
        lean.coremltools()
    work, folder, saved = pickle.load(requests)  # noqa: S301 - from our own parent
    answer: Any
    try:
        with quiet("torch"):
            programs = {name: torch.export.load(io.BytesIO(code)) for name, code in saved.items()}
        models = [replace(model, program=programs[model.layout]) for _, model in work]
        answer = [run(job, model, folder) for (job, _), model in zip(work, models, strict=True)]
    except Exception as error:
        answer = _sendable(error)
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
