"""Where a verb's result goes: the screen, a JSON file, or JSON on standard output."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from levit_export.render.console import Screen
    from levit_export.report import Report


def write_or_print(text: str, destination: str) -> None:
    """Write ``text`` to a file, or to stdout when ``destination`` is ``-``."""
    from levit_export.errors import OutputError

    try:
        with click.open_file(
            destination, "w", encoding="utf-8", atomic=destination != "-"
        ) as file:
            file.write(text)
    except OSError as error:
        raise OutputError(
            f"{destination} cannot be written: {error.strerror or error}",
            remedy="Give another file, or - for standard output.",
        ) from error


def present(screen: Screen, report: Report, json_file: str | None) -> None:
    """The report for people on stdout, and as JSON where that was asked for."""
    from levit_export.render.console import print_report
    from levit_export.report import to_json

    if not screen.quiet and json_file != "-":
        print_report(screen, report)
    if json_file is not None:
        text = json.dumps(to_json(report), indent=1, allow_nan=False)
        write_or_print(text + "\n", json_file)


def refuse_unwritable(file: str | None, *, option: str = "--json") -> None:
    """Raise before hours of work when a report's file has no folder to lie in, or is one."""
    from levit_export.errors import OutputError

    if file is None or file == "-":
        return
    path = Path(file)
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise OutputError(
            f"{option} {file} is a folder, or its folder does not exist",
            remedy="Give a file in a folder that exists, or - for standard output.",
        )
