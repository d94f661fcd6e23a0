"""The command line: parse, call, render, exit status. No logic, and no heavy import."""

from __future__ import annotations

import signal
import sys

import click

from levit_export._version import __version__
from levit_export.cli.bench import bench
from levit_export.cli.bundle import bundle
from levit_export.cli.check import check
from levit_export.cli.doctor import doctor
from levit_export.cli.drift import drift
from levit_export.cli.evaluate import evaluate
from levit_export.cli.export import export
from levit_export.cli.models import models
from levit_export.cli.verb import HELP_NAMES, VerbGroup

__all__ = ["cli", "main"]


@click.group(cls=VerbGroup, context_settings={"help_option_names": HELP_NAMES})
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


for command in (export, check, bench, drift, evaluate, bundle, models, doctor):
    cli.add_command(command)


def _terminated(number: int, _: object) -> None:
    sys.exit(128 + number)


def main() -> None:
    """Run the command line and exit. SIGTERM ends it as Ctrl-C does, so that nothing is left."""
    signal.signal(signal.SIGTERM, _terminated)
    cli(prog_name="levit-export")
