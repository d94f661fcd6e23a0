"""``levit-export models``: the zoo."""

from __future__ import annotations

import json as json_module
from dataclasses import asdict

import click

from levit_export.cli.command import Verb


@click.command(cls=Verb)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def models(*, as_json: bool) -> int:
    """List the models that are known by name."""
    from levit_export.models.zoo import VARIANTS

    if as_json:
        click.echo(json_module.dumps([asdict(known) for known in VARIANTS], indent=1))
        return 0
    from levit_export.reports import console

    console.print_models(console.Screen(quiet=False), VARIANTS)
    return 0
