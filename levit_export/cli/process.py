"""This process: its standard streams, its temporary folder, the signals that end it, and its end.

Exit statuses mean what the table says whatever happens to the streams: a reader that leaves early
is not a failure, and a disk that is full under standard output does not turn a pass into one.
"""

from __future__ import annotations

import atexit
import errno
import io
import os
import shutil
import signal
import sys
import tempfile
import threading
from contextlib import suppress
from typing import Any, NoReturn, TextIO

GRACE_S = 3
"""How long a run that was told to end may take to unwind; a native call may hold it longer."""

UNWRITABLE = 2
"""The status of a run whose result could not be printed, though nothing else went wrong."""

ENDING = ("SIGTERM", "SIGHUP")

STDOUT, STDERR = 1, 2

closed: set[int] = set()
"""The standard streams that this process was started without."""


class _Unfailing(io.FileIO):
    """A standard stream on which writing never fails; ``fault`` is the first error."""

    fault: OSError | None = None

    def write(self, data: Any) -> int:
        """Write, or note why not and go on."""
        if self.fault is None:  # later text would come after a hole
            try:
                return super().write(data) or 0
            except OSError as error:
                self.fault = error
        return memoryview(data).nbytes


_raw: dict[int, _Unfailing] = {}
_temporary: list[str] = []
_status: list[int] = []
"""What :func:`leave` was told, once it was."""


def prepare() -> None:
    """Make this process safe to run, whatever its streams are, and ended within seconds."""
    # Exit functions are called in reverse order, so the first one to be registered ends it all.
    atexit.register(_end)
    _open_closed_streams()
    for number, name in ((STDOUT, "stdout"), (STDERR, "stderr")):
        stream: TextIO | None = getattr(sys, name)
        _raw[number] = raw = _Unfailing(number, "wb", closefd=False)
        unfailing = io.TextIOWrapper(
            io.BufferedWriter(raw),
            encoding=getattr(stream, "encoding", None) or "utf-8",
            errors=getattr(stream, "errors", None) or "backslashreplace",
            line_buffering=number == STDERR or raw.isatty(),
        )
        setattr(sys, name, unfailing)
    # All that is temporary, libraries' own files too, lies in one folder that goes at the end.
    with suppress(OSError):  # where no folder can be made, whoever needs one will say so
        root = tempfile.mkdtemp(prefix="levit-export-")
        tempfile.tempdir = os.environ["TMPDIR"] = root
        _temporary.append(root)
    _end_on_signals()


def _open_closed_streams() -> None:
    """Let no file that is opened later get the number of a standard stream."""
    for number, flags in enumerate((os.O_RDONLY, os.O_WRONLY, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            closed.add(number)
            handle = os.open(os.devnull, flags)
            if handle != number:
                os.dup2(handle, number)
                os.close(handle)
            # Children inherit standard streams, and would meet the same.
            os.set_inheritable(number, True)


def _end_on_signals() -> None:
    """End as after Ctrl-C on SIGTERM and SIGHUP; in time also where native code computes.

    Python handles a signal between two of its own instructions, which a runtime that computes for
    minutes keeps it from. A thread hears of the signal at once and ends the process when it did
    not end by itself.
    """
    if os.name != "posix":
        return
    heard, told = os.pipe()
    os.set_blocking(told, False)  # a handler must not wait, whoever reads
    for name in ENDING:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            signal.signal(number, _ended)
    signal.set_wakeup_fd(told, warn_on_full_buffer=False)
    # Without memory for a thread a signal waits for native code, and the run will fail in words.
    with suppress(RuntimeError):
        threading.Thread(target=_watch, args=(heard,), daemon=True).start()


def _ended(number: int, _: object) -> None:
    signal.signal(number, signal.SIG_IGN)  # a second one would interrupt the cleaning up
    sys.exit(128 + number)


def _watch(heard: int) -> None:
    number = 0
    awaited = {getattr(signal, name, None) for name in (*ENDING, "SIGINT")}
    while number not in awaited:
        (number,) = os.read(heard, 1)
    threading.Event().wait(GRACE_S)
    if (files := sys.modules.get("levit_export.core.files")) is not None:  # else there is nothing
        files.remove_transient()
    _remove_temporary()
    os._exit(128 + number)


def _remove_temporary() -> None:
    for root in _temporary:
        shutil.rmtree(root, ignore_errors=True)


def leave(status: int | str | None) -> NoReturn:
    """Exit with ``status`` after threads and exit functions, but without taking modules down.

    Taking the interpreter down module by module takes 1.5 s where torch is loaded.
    """
    if isinstance(status, int | None):
        _status[:] = [status or 0]
    raise SystemExit(status)


def _end() -> None:
    """The last exit function: what was printed goes out, and the process ends at once."""
    _remove_temporary()
    if not _status:  # ended by an exception or with a text, which Python still has to print
        return
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # closed already
            stream.flush()
    status = _status[0]
    fault = _raw[STDOUT].fault if STDOUT in _raw else None
    if fault is not None and fault.errno != errno.EPIPE:
        sys.stderr.write(f"error: standard output cannot be written: {fault.strerror}\n")
        sys.stderr.flush()
        status = status or UNWRITABLE
    os._exit(status)
