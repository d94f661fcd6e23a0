"""How long the command takes to say what it can."""

from __future__ import annotations

from benchmarking import record
from benchmarking.processes import COMMAND, measure
from benchmarking.values import StartupRecord

HELP_S = 0.15
LIST_S = 0.5
"""What is aimed at."""


def run(runs: int) -> StartupRecord:
    """``--help`` of every verb, and the verbs that only list things."""
    import click

    from levit_export.cli import cli

    verbs = [[], *([name] for name in cli.list_commands(click.Context(cli)))]
    commands = {" ".join(("levit-export", *v, "--help")): [COMMAND, *v, "--help"] for v in verbs}
    lists = {f"levit-export {name}": [COMMAND, name] for name in ("models", "doctor")}
    aims = dict.fromkeys(commands, HELP_S) | dict.fromkeys(lists, LIST_S)
    return StartupRecord(
        circumstances=record.circumstances({}),
        model="levit_digits",
        commands=tuple(measure(commands | lists, runs, aims=aims, warm_up=True)),
    )
