"""Where a verb's result goes: the screen, a JSON file, or JSON on standard output."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from levit_export.cli import process
from levit_export.core import serialisation
from levit_export.core.errors import OutputError, UsageError

if TYPE_CHECKING:
    from levit_export.reports.console import Screen
    from levit_export.reports.gate import Check
    from levit_export.reports.report import Report

FILES = {"json_file": "--json", "junit": "--junit", "markdown": "--markdown", "html": "--html"}
"""Parameters that name what is written, and the options that they come from."""

SOURCES = (
    *("checkpoint", "labels", "preprocessing", "recipe", "data", "baseline", "recheck", "file"),
    *("reference", "inputs"),
)
SEVERAL_SOURCES = ("paths", "results", "candidates")
"""Parameters that name what is read: no report may be written over it."""

SUMMARY = "GITHUB_STEP_SUMMARY"


def write_or_print(text: str, destination: str, *, append: bool = False) -> None:
    """Write ``text`` to a file, or to standard output when ``destination`` is ``-``.

    A regular file is replaced whole or not at all; see :mod:`levit_export.core.files`.
    """
    from levit_export.core import files

    if destination == "-":
        click.echo(text, nl=False)
        return
    try:
        (files.append if append else files.write)(Path(destination), text)
    except OSError as error:
        raise OutputError(
            f"{destination} cannot be written: {error.strerror or error}",
            remedy="Give another file, or - for standard output.",
        ) from error


def present(
    screen: Screen,
    report: Report,
    json_file: str | None,
    *,
    ledger: bool = False,
    steps: Sequence[Sequence[str]] = (),
) -> None:
    """The report for people on stdout, and as JSON where that was asked for.

    ``ledger`` and ``steps`` are those of :func:`levit_export.reports.console.print_report`.
    """
    from levit_export.reports.console import print_report
    from levit_export.reports.report import to_json

    if not screen.quiet and json_file != "-":
        print_report(screen, report, ledger=ledger, steps=steps)
    if json_file is not None:
        write_or_print(serialisation.to_text(to_json(report)), json_file)


def present_checks(
    screen: Screen,
    params: Mapping[str, Any],
    report: Report,
    checks: Sequence[Check],
    *,
    title: str,
    folder: Path | None = None,
    compared: Sequence[Check] = (),
    require_audit: bool = False,
    steps: Sequence[Sequence[str]] = (),
) -> None:
    """The report and the gate's answers: on the screen, and in every form that was asked for.

    Where GitHub Actions reads, every check that did not pass is an annotation as well, its path
    below ``folder``.
    ``compared`` are those of the ``checks`` that compare the report with a baseline, ``steps`` the
    commands that make sense next.
    """
    from levit_export.reports import ci
    from levit_export.reports.console import print_report
    from levit_export.reports.report import to_json

    if not screen.quiet and all(params[name] != "-" for name in FILES):
        print_report(screen, report, compared=compared, require_audit=require_audit, steps=steps)
    if params["json_file"] is not None:
        content = {**to_json(report), "checks": checks}
        write_or_print(serialisation.to_text(content), params["json_file"])
    if params["junit"] is not None:
        vouched = "" if report.vouching is None else report.vouching.sentence
        write_or_print(ci.junit(title, checks, vouched), params["junit"])
    if params["markdown"] is not None:
        text = ci.markdown(title, report, checks)
        # The steps of a GitHub job share one summary, so it is appended to.
        summary = os.environ.get(SUMMARY)
        is_shared = (
            bool(summary) and Path(params["markdown"]).absolute() == Path(str(summary)).absolute()
        )
        write_or_print(text, params["markdown"], append=is_shared)
    if params["html"] is not None:
        from levit_export.reports import html

        write_or_print(html.page(report, is_beside=False), params["html"])
    if in_github_actions():
        # On standard error, which the runner reads too; standard output may hold a report.
        for line in ci.annotate(checks, folder):
            click.echo(line, err=True)


def in_github_actions() -> bool:
    """Whether a runner of GitHub Actions reads standard error and shows annotations."""
    return os.environ.get("GITHUB_ACTIONS") == "true"


def present_plan(
    screen: Screen, lines: Sequence[str], content: Mapping[str, Any], json_file: str | None
) -> None:
    """What a dry run found: lines for people, or JSON in their place."""
    from levit_export.reports.console import print_plan

    if not screen.quiet and json_file != "-":
        print_plan(screen, lines)
    if json_file is not None:
        write_or_print(serialisation.to_text(content), json_file)


def refuse_unwritable(params: Mapping[str, Any]) -> None:
    """Raise before hours of work when a report could not be written, or would destroy something.

    ``params`` are those of a verb: they name what it writes and what it reads.
    """
    from levit_export.core import files

    given = {option: params.get(name) for name, option in FILES.items()}
    wanted = {option: str(file) for option, file in given.items() if file is not None}
    sources = [Path(params[name]) for name in SOURCES if params.get(name) is not None]
    sources += [path for name in SEVERAL_SOURCES for path in params.get(name, ())]
    taken: dict[Path | str, str] = {}
    read = {path.resolve() for path in sources}
    for option, file in wanted.items():
        place = file if file == "-" else Path(file).resolve()
        if place in taken:
            shared = "standard output" if file == "-" else file
            raise UsageError(
                f"{taken[place]} and {option} cannot share {shared}",
                remedy="Give each a file of its own.",
            )
        if file == "-":
            if process.STDOUT in process.closed:
                raise OutputError(
                    f"{option} - is standard output, which is closed", remedy="Give a file."
                )
        elif reason := _unwritable(Path(file), read):
            raise OutputError(
                f"{option} {file} {reason}",
                remedy="Give a file in a folder that exists, or - for standard output.",
            )
        # A pipe or a device takes several reports one after the other; a file would keep the last.
        if file == "-" or files.is_replaced(Path(file)):
            taken[place] = option


def _unwritable(path: Path, sources: Collection[Path]) -> str:
    """Why a report at ``path`` is refused, or empty."""
    from levit_export.core import files
    from levit_export.storage.export_directory import vouched_for

    folder = path.absolute().parent
    if path.is_dir() or not folder.is_dir():
        return "is a folder, or its folder does not exist"
    place = path.resolve()
    for source in sources:
        belongs = place.is_relative_to(source) and source.suffix in (".mlpackage", ".aimodel")
        if place == source or belongs or place in vouched_for(source):
            return "would replace a part of what is to be read"
    if files.is_replaced(path) and not os.access(folder, os.W_OK | os.X_OK):
        return "lies in a folder that cannot be written to"
    if path.exists() and not os.access(path, os.W_OK):
        return "may not be written to"
    return ""
