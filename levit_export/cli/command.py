"""What all verbs share: how they end, and that bare flags mean ``export``."""

from __future__ import annotations

import errno
import logging
import shlex
import sys
import traceback
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, cast

import click

from levit_export.core.errors import LevitExportError, UnknownNameError

HELP_NAMES = ["-h", "--help"]
SETTINGS = {"help_option_names": HELP_NAMES, "max_content_width": 100}
DEFAULT = "export"
TYPED = "levit_export.typed"
"""Where a context keeps the command as it was typed."""
FOR_THE_GROUP = (*HELP_NAMES, "--version")

INTERRUPTED = 130
"""128 + SIGINT, the shell's convention."""

NO_MEMORY = ("allocate memory", "bad_alloc", "out of memory", "start new thread")
"""What PyTorch and the runtimes say of a lack of memory, in exceptions of any type."""

UNDECIDED = 3
STATUS = {"pass": 0, "fail": 1, "inconclusive": UNDECIDED, "not-run": UNDECIDED}


class Verb(click.Command):
    """A command whose callback returns its exit status and whose errors have three parts.

    ``sections`` are the headings of its options in ``--help`` and the parameters below each,
    ``examples`` commands with what each is for.
    """

    def __init__(
        self,
        *args: Any,
        sections: Mapping[str, Sequence[str]] | None = None,
        examples: Sequence[tuple[str, str]] = (),
        **kwargs: Any,
    ) -> None:
        # Of its own, not only of the group: click remembers the help option of the first call.
        kwargs.setdefault("context_settings", SETTINGS)
        super().__init__(*args, **kwargs)
        self.sections = sections or {}
        self.examples = examples

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The options below their headings, then the examples."""
        if not self.sections:
            super().format_options(ctx, formatter)
            return
        shown = [(p.name, p.get_help_record(ctx)) for p in self.get_params(ctx)]
        named = {name for names in self.sections.values() for name in names}
        for heading, names in self.sections.items():
            records = dict(shown)
            with formatter.section(heading):
                formatter.write_dl([found for name in names if (found := records[name])])
        with formatter.section("Others"):
            formatter.write_dl([found for name, found in shown if found and name not in named])
        with formatter.section("Examples"):
            for command, purpose in self.examples:
                # A command that is to be copied is not wrapped.
                formatter.write(f"  {command}\n      {purpose}\n")

    def invoke(self, ctx: click.Context) -> Any:
        """Run the callback; map errors on purpose, interrupts and bugs to their exit status."""
        verbose = bool(ctx.params.get("verbose"))
        if verbose:  # what other packages said, and was kept from the screen
            log = logging.getLogger("levit_export")
            log.setLevel(logging.DEBUG)
            log.addHandler(logging.StreamHandler(sys.stderr))
        try:
            status = super().invoke(ctx)
        except LevitExportError as error:
            _complain(error.what, error.remedy, verbose=verbose)
            status = error.exit_status
        except KeyboardInterrupt:
            _complain("interrupted", "An earlier export was left as it was.", verbose=False)
            status = INTERRUPTED
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            status = complain_unforeseen(error, verbose=verbose)
        ctx.exit(status or 0)


def complain_unforeseen(error: Exception, *, verbose: bool = False) -> int:
    """Say what this package did not raise itself; the status of it.

    Python's own status for an exception, 1, would mean a failed check.
    """
    _complain(*_unforeseen(error), verbose=verbose)
    return 2


def _unforeseen(error: Exception) -> tuple[str, str]:
    """What to say of an error that this package did not raise itself, and what to do."""
    said = str(error).lower()
    # A SystemError is what is left where an extension's allocation fails and it does not say so.
    is_memory = isinstance(error, MemoryError | SystemError)
    is_memory = is_memory or getattr(error, "errno", None) == errno.ENOMEM
    if is_memory or any(words in said for words in NO_MEMORY):
        return (
            "there is not enough memory",
            "An earlier export was left as it was. Take a smaller --batch or --imgsz, or one "
            "format at a time.",
        )
    if isinstance(error, OSError):
        return f"the system refused: {error}", "Is the disk full?"
    return (
        f"unexpected {type(error).__name__}: {error}",
        "This is a bug in levit-export; please report it with the output of -v.",
    )


class VerbGroup(click.Group):
    """A group in which a first argument that is a flag belongs to the verb ``export``.

    ``verbs`` are the names of its commands and a line on each; a command is imported when it is
    asked for.
    """

    command_class = Verb

    def __init__(self, *args: Any, verbs: Mapping[str, str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.verbs = verbs

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run, and say what click refuses as all other errors are said; see ``click.Command``."""
        is_alone = kwargs.pop("standalone_mode", True)
        try:
            kwargs["standalone_mode"] = False
            status = super().main(*args, **kwargs)
        except click.ClickException as error:
            what = error.format_message().rstrip(".")
            context = getattr(error, "ctx", None)
            remedy = f"See {context.command_path} --help." if context is not None else ""
            _complain(what[:1].lower() + what[1:], remedy, verbose=False)
            status = error.exit_code
        except click.Abort:  # click's own word for Ctrl-C, and its own status would be 1
            status = INTERRUPTED
        if is_alone:
            sys.exit(status)
        return status

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the default verb in front of bare flags, and keep what was typed."""
        ctx.meta[TYPED] = shlex.join(["levit-export", *args])
        if args and args[0].startswith("-") and args[0] not in FOR_THE_GROUP:
            args.insert(0, DEFAULT)
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order in which they were given."""
        del ctx
        return list(self.verbs)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command in the module of its name."""
        del ctx
        if cmd_name not in self.verbs:
            return None
        command = getattr(import_module(f"levit_export.cli.{cmd_name}"), cmd_name)
        return cast("click.Command", command)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The verbs and what they do, without loading any."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl(list(self.verbs.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Suggest the nearest verb for one that does not exist."""
        if args and args[0] not in self.verbs:
            unknown = UnknownNameError("verb", args[0], self.verbs)
            raise click.UsageError(f"{unknown.what}: {unknown.remedy}", ctx)
        return super().resolve_command(ctx, args)


def _complain(what: str, remedy: str, *, verbose: bool) -> None:
    if verbose:
        traceback.print_exc(file=sys.stderr)
    click.echo(f"{click.style('error:', fg='red', bold=True)} {what}", err=True)
    if remedy:
        click.echo(f"       {remedy}", err=True)


def status_of(verdict: str, *, allow_not_run: bool) -> int:
    """The exit status of a verdict; ``--allow-not-run`` turns 3 into 0, and says so."""
    if STATUS[verdict] == UNDECIDED and allow_not_run:
        words = "was not run" if verdict == "not-run" else "decides nothing"
        click.echo(f"notice: a check {words} (--allow-not-run)", err=True)
        return 0
    return STATUS[verdict]
