"""The command line: parse, call, render, exit status. No logic, and no heavy import."""

from __future__ import annotations

import click

from levit_export._version import __version__
from levit_export.cli import process
from levit_export.cli.command import SETTINGS, VerbGroup, complain_unforeseen
from levit_export.core.packages import collect_garbage_rarely

__all__ = ["cli", "main"]

VERBS = {
    "export": "Export a trained LeViT, prove that it is the same model, time it.",
    "check": "Hold exports, bundles or files against PyTorch: the gate for CI.",
    "compare": "Hold files of any network against one of them.",
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


@click.group(cls=VerbGroup, verbs=VERBS, context_settings=SETTINGS)
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
      3  a check that was asked for was not run, or decides nothing
    """  # noqa: D301 - click reads the backspace


def main() -> None:
    """Run the command line and exit."""
    process.prepare()
    collect_garbage_rarely()
    try:
        status = cli.main(prog_name="levit-export", standalone_mode=False)
    except SystemExit as end:
        status = end.code
    except Exception as error:  # before a verb began: where memory ends, it cannot be loaded
        status = complain_unforeseen(error)
    process.leave(status)
