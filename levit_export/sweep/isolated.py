"""A cell in a process of its own: one that crashes, or eats the memory, takes no other with it."""

from __future__ import annotations

import os
import pickle
import queue
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from levit_export import launch
from levit_export.errors import LevitExportError, RuntimeFailedError
from levit_export.evaluation.process import Process, conversing
from levit_export.sweep.cells import Cell, Result, failure, perform

CODE = "from levit_export.sweep.isolated import main; main()"


def isolated(
    cell: Cell, folder: Path, begun: Callable[[Process], None] = lambda _: None
) -> Result:
    """:func:`levit_export.sweep.cells.perform` elsewhere; what it raises is the row's reason.

    ``begun`` is told the process, so that it can be ended early.
    """
    messages: queue.Queue[Any] = queue.Queue()

    def heard(_: Process, message: Any) -> None:
        messages.put(message)

    with conversing(Process(CODE), (cell, folder), heard) as process:
        begun(process)
        message = messages.get()
    if isinstance(message, LevitExportError):
        return failure(message)
    result: Result = message
    return result


def main() -> None:
    """Be that process."""
    channel = launch.as_child()
    cell, folder = pickle.load(sys.stdin.buffer)  # noqa: S301 - from our own parent
    os.chdir(folder)  # where nothing is called digits, or could be imported
    answer: Any
    try:
        answer = perform(cell, folder)
    except LevitExportError as error:
        answer = error
    except Exception as error:
        answer = RuntimeFailedError(
            f"unexpected {type(error).__name__}: {error}",
            remedy="This is a bug in levit-export; please report it.",
        )
    pickle.dump(answer, channel)
    channel.flush()
