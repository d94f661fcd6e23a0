"""What is loaded when, and what the package and its command line promise by name."""

from __future__ import annotations

import shlex
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

import levit_export
from levit_export.cli import cli
from levit_export.cli.command import Verb
from levit_export.cli.export import EXAMPLES
from levit_export.cli.help_page import commands

HEAVY = (
    "torch",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "onnxsim",
    "openvino",
    "coremltools",
    "coreai",
    "rich",
    "cattrs",
    "requests",
    "huggingface_hub",
    "filelock",
    "matplotlib",
)
COMMANDS = commands()
VERBS = sorted(COMMANDS)
EAGER = {"LevitExportError", "__version__"}


def imported(*arguments: str) -> set[str]:
    """The top-level packages that a fresh interpreter imports while it runs ``arguments``."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    lines = (line.rsplit("|", 1) for line in done.stderr.splitlines() if "import time:" in line)
    return {name.strip().split(".")[0] for _, name in lines}


def options() -> list[tuple[str, click.Option]]:
    """Every option of every verb."""
    return [
        (f"{verb} {option.opts[-1]}", option)
        for verb, command in COMMANDS.items()
        for option in command.params
        if isinstance(option, click.Option)
    ]


def test_importing_the_package_is_light() -> None:
    """``import levit_export`` loads none of the heavy packages."""
    found = imported("-c", "import levit_export")
    assert "levit_export" in found
    assert not found & set(HEAVY)


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help_is_light(verb: str) -> None:
    """Help loads neither a heavy package nor numpy."""
    found = imported("-m", "levit_export", *filter(None, [verb]), "--help")
    assert "click" in found
    assert not found & {*HEAVY, "numpy"}


def test_the_list_of_models_is_light() -> None:
    """``models`` prints its table without NumPy, which alone would take half of its time."""
    found = imported("-m", "levit_export", "models")
    assert "rich" in found
    assert not found & {*HEAVY, "numpy"} - {"rich"}


def test_the_list_of_verbs_loads_none() -> None:
    """What the command can do is listed without loading a verb, and on a line each."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "levit_export", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert not [verb for verb in VERBS if f"levit_export.cli.{verb}" in done.stderr]
    listed = done.stdout.partition("Commands:\n")[2].splitlines()
    assert [line.split()[0] for line in listed] == list(cli.verbs)


@pytest.mark.parametrize("name", levit_export.__all__)
def test_public_names_resolve(name: str) -> None:
    """Every public name can be had and, but for the version, is the thing of that name."""
    value = getattr(levit_export, name)
    assert name in {"__version__", getattr(value, "__name__", "")}


def test_all_is_what_can_be_had() -> None:
    """``__all__`` is sorted and lists the lazy names and the eager ones, no more and no fewer."""
    assert set(levit_export.__all__) == EAGER | set(levit_export._HOMES)
    assert levit_export.__all__ == sorted(levit_export.__all__)


def test_unknown_attribute() -> None:
    """A name that is not public is an AttributeError that names it."""
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = levit_export.no_such_name


@pytest.mark.parametrize("verb", VERBS)
def test_verbs_have_help(verb: str) -> None:
    """Every verb says in a sentence what it does."""
    text = COMMANDS[verb].help
    assert text is not None
    assert text.split("\n")[0].strip().endswith(".")


@pytest.mark.parametrize(("name", "option"), options(), ids=str)
def test_options_have_help(name: str, option: click.Option) -> None:
    """Every option has help, or is a count whose name and shown default say it all."""
    counted = isinstance(option.type, click.IntRange) and option.show_default
    assert option.help or counted, name


def test_options_of_export_stand_below_headings() -> None:
    """Every option of ``export`` has a heading, in up to 100 columns, and examples follow."""
    command = COMMANDS["export"]
    assert isinstance(command, Verb)
    named = [name for names in command.sections.values() for name in names]
    shown = [option.name for option in command.params if not getattr(option, "hidden", False)]
    assert sorted(named) == sorted(name for name in shown if name is not None)
    settings = command.context_settings  # click remembers the names of help from the first context
    with click.Context(
        command, info_name="levit-export export", terminal_width=100, **settings
    ) as context:
        text = command.get_help(context)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 100
    assert [line[:-1] for line in lines if line.endswith(":") and line[0] != " "] == [
        *command.sections,
        "Others",
        "Examples",
    ]
    examples = lines[lines.index("Examples:") + 1 :]
    assert [line.strip() for line in examples[::2]] == [example for example, _ in command.examples]


@pytest.mark.parametrize("example", [example for example, _ in EXAMPLES])
def test_examples_of_export_can_be_given(example: str) -> None:
    """What the help shows is parsed as it stands."""
    given = [*shlex.split(example)[1:], "--help"]
    result = CliRunner().invoke(cli, given, prog_name="levit-export")
    assert result.exit_code == 0, result.output


def test_help_of_exit_status_keeps_its_lines() -> None:
    """The table of exit statuses has a line for each, not a paragraph."""
    done = subprocess.run(
        [sys.executable, "-m", "levit_export", "-h"], capture_output=True, text=True, check=True
    )
    starts = [line.strip()[:1] for line in done.stdout.splitlines() if line.startswith("    ")]
    assert starts == ["0", "1", "2", "3"]
    assert "\\b" not in done.stdout
