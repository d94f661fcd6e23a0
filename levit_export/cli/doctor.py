"""``levit-export doctor``: what this machine can do, and why not."""

from __future__ import annotations

import json as json_module
from dataclasses import asdict

import click

from levit_export.cli.command import Verb


@click.command(cls=Verb)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(*, as_json: bool) -> int:
    """Say what this machine can export, run and time, and what would help where it cannot."""
    from levit_export.core import machine
    from levit_export.core.packages import TOOLCHAIN, versions
    from levit_export.formats import known_targets
    from levit_export.formats.onnx import providers

    abilities = {
        kind.name: {
            "export": kind.can_export(),
            "run": kind.can_run(),
            "time": kind.can_time(),
        }
        for kind in known_targets()
    }
    executed = providers.present() if abilities["onnx"]["run"].ok else {}
    if as_json:
        content = {
            "machine": asdict(machine.describe()),
            "toolchain": versions(TOOLCHAIN),
            "execution_providers": executed,
            "targets": {
                name: {ability: asdict(found) for ability, found in able.items()}
                for name, able in abilities.items()
            },
        }
        click.echo(json_module.dumps(content, indent=1))
        return 0
    from levit_export.reports import console

    console.print_doctor(
        console.Screen(quiet=False),
        machine.describe(),
        versions(TOOLCHAIN),
        abilities,
        executed,
    )
    return 0
