"""Checks as annotations of GitHub Actions: lines that its runner shows beside the commit.

The escaping is that of the runner's workflow commands: three characters in a message, five in a
property.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import PurePath

from levit_export.core.values import Verdict
from levit_export.reports.gate import Check

LEVELS: dict[Verdict, str] = {"fail": "error", "inconclusive": "warning", "not-run": "warning"}


def of_checks(checks: Iterable[Check], folder: PurePath | None = None) -> Iterator[str]:
    """An error for every check that failed, a warning for every other one that did not pass.

    Paths of the report are shown below ``folder``, if given.
    """
    for check in checks:
        if check.verdict in LEVELS:
            path = PurePath(check.path) if folder is None else folder / check.path
            yield annotation(
                LEVELS[check.verdict],
                check.reason,
                file=path.as_posix(),
                title=f"{check.artifact}: {check.name}",
            )


def annotation(level: str, message: str, **properties: str) -> str:
    """One workflow command: ``::error file=a,title=b::message``; empty properties are left out."""
    given = ",".join(f"{name}={_property(text)}" for name, text in properties.items() if text)
    return f"::{level}{' ' if given else ''}{given}::{_message(message)}"


def _message(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _message(text).replace(":", "%3A").replace(",", "%2C")
