"""``levit-export sweep``: models by formats by precisions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from levit_export.cli import options
from levit_export.cli.command import TYPED, Verb, status_of
from levit_export.cli.output import present_plan, refuse_unwritable, write_or_print


@click.command(cls=Verb)
@click.argument("file", type=options.EXISTING)
@click.option(
    "-o", "--output", type=options.EXISTING, help="Folder to write.  [default: FILE-sweep]"
)
@click.option(
    "--workers",
    type=options.POSITIVE,
    default=1,
    show_default=True,
    help="Cells at a time, each in a process of its own; latency is measured with 1.",
)
@click.option(
    "--scheduler",
    metavar="ADDRESS",
    help="The address of a Dask cluster whose workers do the cells; latency is not measured.",
)
@click.option("--dry-run", is_flag=True, help="List the cells, and do nothing.")
@click.option("--allow-not-run", is_flag=True, help="Exit 0 although a cell could not be done.")
@options.output_options
@click.pass_context
def sweep(ctx: click.Context, /, file: Path, **_: Any) -> int:
    """Export, check, evaluate and time what a TOML file lists, with one report at the end.

    Finished cells are kept by the digest of all that determines them: an interrupted sweep goes
    on where it was, and one that was changed does what is new. docs/scaling.md describes the file.
    """
    from levit_export.core import machine
    from levit_export.reports import console
    from levit_export.workflows import sweep as sweeping
    from levit_export.workflows.sweep.report import print_sweep, report_files

    params = ctx.params
    refuse_unwritable(params)
    machine.refuse_threads(params["workers"], "--workers")
    request = sweeping.SweepRequest(
        file=file,
        output=params["output"],
        workers=params["workers"],
        scheduler=params["scheduler"],
        command=ctx.meta.get(TYPED, ""),
    )
    screen = console.Screen(quiet=params["quiet"])
    if params["dry_run"]:
        cells = [{"model": c.label, "artifact": c.id} for c in sweeping.plan(request).cells]
        lines = [f"{cell['model']} {cell['artifact']}" for cell in cells]
        present_plan(screen, lines, {"cells": cells}, params["json_file"])
        return 0
    with screen.progress() as progress:
        report = sweeping.sweep(request, progress)
    if not screen.quiet and params["json_file"] != "-":
        print_sweep(screen, report)
    if params["json_file"] is not None:
        write_or_print(report_files(report)["sweep.json"], params["json_file"])
    return status_of(report.verdict, allow_not_run=params["allow_not_run"])
