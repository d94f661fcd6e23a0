"""``levit-export check``: the gate for CI."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from levit_export.cli import options
from levit_export.cli.output import present, refuse_unwritable
from levit_export.cli.verb import Verb, status_of


@click.command(cls=Verb)
@click.argument("paths", nargs=-1, required=True, type=options.EXISTING)
@options.model_options
@options.parity_options
@options.run_options
@options.output_options
@click.pass_context
def check(ctx: click.Context, /, paths: tuple[Path, ...], **_: Any) -> int:
    """Hold export directories or single artifacts against their reference.

    A directory carries its own reference and needs no PyTorch. A single file needs --checkpoint.
    """
    from levit_export import inspection
    from levit_export.render import console

    params = ctx.params
    refuse_unwritable(params["json_file"])
    request = inspection.InspectRequest(
        paths=paths,
        choice=options.model_choice(params),
        run=options.run(params),
        seed=params["seed"],
        overrides=options.overrides(params),
    )
    screen = console.Screen(quiet=params["quiet"])
    with screen.progress() as progress:
        report = inspection.check(request, progress)
    present(screen, report, params["json_file"])
    return status_of(report.verdict, allow_not_run=params["allow_not_run"])
