"""The README says what is so."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from levit_export.cli import cli

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "CONTRIBUTING.md"]
COMMANDS = [
    line.removeprefix("$ ").split("#")[0].strip()
    for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("$ ")
]


def test_there_are_commands() -> None:
    """The README shows how to export, check, and test."""
    assert "scripts/levit-export --format all" in COMMANDS
    assert "scripts/test" in COMMANDS
    assert any(command.startswith("levit-export check") for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_readme_can_be_given(command: str) -> None:
    """Every command is a script of this repository, or parses with its options."""
    program, *arguments = shlex.split(command)
    if program == "scripts/test":
        assert (ROOT / program).is_file()
        return
    assert program in ("levit-export", "scripts/levit-export")
    # Unknown options are refused before help is shown.
    result = CliRunner().invoke(cli, [*arguments, "--help"], prog_name="levit-export")
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link of the documentation names a file that exists."""
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target
