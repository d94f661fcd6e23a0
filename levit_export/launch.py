"""How processes of this package begin."""

from __future__ import annotations

import gc
import os
import signal
import sys
from typing import BinaryIO

GARBAGE_THRESHOLDS = (50_000, 20, 20)
"""For ``gc.set_threshold``, which begins with 700, 10, 10."""


def collect_garbage_rarely() -> None:
    """Look for garbage in cycles after more objects: importing PyTorch makes a million, to stay.

    A quarter of the time of importing ``torch`` and ``torch.export`` went there.
    """
    gc.set_threshold(*GARBAGE_THRESHOLDS)


def command(code: str, *arguments: str) -> list[str]:
    """The command line that runs ``code`` with ``sys.argv[1:]`` set to ``arguments``.

    It has the import path of this process, and no other: ``python -m`` and ``python -c`` put the
    current directory first, so a ``random.py`` or ``onnx.py`` in a user's folder would be
    imported, and run, in place of the real one.
    """
    path = [entry for entry in sys.path if entry]
    return [sys.executable, "-c", f"import sys; sys.path[:] = {path!r}\n{code}", *arguments]


def as_child() -> BinaryIO:
    """Begin a process that works for the one that started it; returns the way to answer it.

    It ends with its parent, and what runtimes and converters print goes to standard error, so that
    it does not get between the answers.
    """
    die_with_parent()
    collect_garbage_rarely()
    channel = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return channel


def die_with_parent() -> None:
    """End when the first process is gone, however it went (Linux; elsewhere its pipe tells)."""
    if sys.platform == "linux":
        import ctypes

        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
