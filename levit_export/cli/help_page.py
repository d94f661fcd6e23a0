"""The page docs/cli-reference.md, made of every ``--help``."""

from __future__ import annotations

import click

from levit_export.cli import cli

WIDTH = 98


def commands() -> dict[str, click.Command]:
    """Every verb, loaded."""
    context = click.Context(cli)
    found = {name: cli.get_command(context, name) for name in cli.list_commands(context)}
    return {name: command for name, command in found.items() if command is not None}


def page() -> str:
    """The reference as Markdown."""
    parts = [
        "# Command-line reference",
        "",
        "Made by `scripts/cli-reference` from `--help`; a test holds the two against each other.",
    ]
    with cli.make_context("levit-export", [], resilient_parsing=True) as group:
        group.terminal_width = group.max_content_width = WIDTH
        parts += _section("levit-export", cli.get_help(group))
        for name, command in commands().items():
            with click.Context(command, info_name=name, parent=group) as context:
                parts += _section(f"levit-export {name}", command.get_help(context))
    return "\n".join(parts) + "\n"


def _section(title: str, text: str) -> list[str]:
    return ["", f"## {title}", "", "```text", text, "```"]


if __name__ == "__main__":
    click.echo(page(), nl=False)
