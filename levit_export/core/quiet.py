"""Keep other packages from talking to the user; the log has what they say, shown by ``-v``."""

from __future__ import annotations

import contextlib
import io
import logging
import threading
import warnings
from collections.abc import Iterator

log = logging.getLogger("levit_export")


_one_at_a_time = threading.RLock()
"""Standard output is the process's: of two threads that redirect it, one would be left with the
other's."""


@contextlib.contextmanager
def quiet(*loggers: str) -> Iterator[None]:
    """Send prints, warnings and the named ``loggers`` of a block to this package's log.

    Packages warn about versions and optional packages, draw progress bars and log at every
    level; none of it is about the user's model.
    """
    heard = io.StringIO()
    handler = logging.StreamHandler(heard)
    caught: list[warnings.WarningMessage] = []
    try:
        with _one_at_a_time, contextlib.ExitStack() as stack:
            for name in loggers:
                stack.enter_context(_only(handler, logging.getLogger(name)))
            caught = stack.enter_context(warnings.catch_warnings(record=True))
            warnings.simplefilter("always")
            stack.enter_context(contextlib.redirect_stdout(heard))
            stack.enter_context(contextlib.redirect_stderr(heard))
            yield
    finally:  # what was said before a failure matters most
        for line in filter(str.strip, heard.getvalue().splitlines()):
            log.debug("%s", line)
        for warning in caught:
            log.debug("%s", warning.message)


@contextlib.contextmanager
def _only(handler: logging.Handler, logger: logging.Logger) -> Iterator[None]:
    """Let ``handler`` alone hear ``logger``."""
    handlers, propagate, level = logger.handlers, logger.propagate, logger.level
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


def first_line(error: BaseException) -> str:
    """What an exception says, in one line of some 300 characters."""
    return _shortened((str(error).strip().splitlines() or [type(error).__name__])[0])


def last_line(error: BaseException) -> str:
    """What an exception says at its end, where C++ runtimes put the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return _shortened((lines or [type(error).__name__])[-1])


def _shortened(line: str) -> str:
    """Cut in the middle: runtimes begin with long paths and end with the reason."""
    return line if len(line) <= 300 else f"{line[:80]} … {line[-220:]}"
