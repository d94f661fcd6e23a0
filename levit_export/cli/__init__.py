"""The command line: parse, call, render, exit status. No logic, and no heavy import."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from typing import NoReturn

import click

from levit_export._version import __version__
from levit_export.cli.verb import HELP_NAMES, PIPE_CLOSED, VerbGroup
from levit_export.lean import collect_garbage_rarely

__all__ = ["cli", "main"]

VERBS = {
    "export": "Export a trained LeViT, prove that it is the same model, time it.",
    "check": "Hold exports, bundles or files against PyTorch: the gate for CI.",
    "bench": "Time exports or single files, interleaved in one run.",
    "drift": "Name the first block that diverges and the stage at fault.",
    "evaluate": "Measure top-1, top-5 and agreement with PyTorch on your images.",
    "sweep": "Do all that a TOML file lists: models by formats by precisions.",
    "bundle": "Pack an export into a zip for the device that can check itself.",
    "models": "List the models that are known by name.",
    "doctor": "Say what this machine can export, run and time, and why not.",
}
"""Each verb is a module of this package, loaded when it is used, and a function in it.

In the order of a user's day.
"""


@click.group(cls=VerbGroup, verbs=VERBS, context_settings={"help_option_names": HELP_NAMES})
@click.version_option(__version__, prog_name="levit-export")
def cli() -> None:
    """Export LeViT to ONNX, OpenVINO and Core ML, and prove that it is the same model there.

    Bare flags mean the verb export: `levit-export --format coreml` is `levit-export export
    --format coreml`, whose options `levit-export export --help` lists.

    \b
    Exit status
      0  every verdict is pass
      1  a parity check or a gate failed
      2  bad usage, bad input, or a missing dependency
      3  a check that was asked for was not run
    """  # noqa: D301 - click reads the backspace


def _terminated(number: int, _: object) -> None:
    sys.exit(128 + number)


def main() -> None:
    """Run the command line and exit. SIGTERM ends it as Ctrl-C does, so that nothing is left."""
    signal.signal(signal.SIGTERM, _terminated)
    collect_garbage_rarely()
    try:
        cli(prog_name="levit-export")
    except SystemExit as end:
        _leave(end.code)


def _leave(status: int | str | None) -> NoReturn:
    """Exit without taking the interpreter down module by module: 1.5 s where torch is loaded."""
    if not isinstance(status, int | None):
        raise SystemExit(status)
    threading._shutdown()  # type: ignore[attr-defined]  # noqa: SLF001
    atexit._run_exitfuncs()  # noqa: SLF001
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            status = PIPE_CLOSED
        except ValueError:  # closed already
            continue
    os._exit(status or 0)
