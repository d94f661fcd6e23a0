"""Whole commands: exports of one model, ours and the alternatives', and the start of ours."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import cattrs
import numpy as np

from benchmarking import alternatives, record
from benchmarking.alternatives import Alternatives, choice
from benchmarking.processes import COMMAND, measure, worker
from benchmarking.values import Command, Stage, StartupRecord, ToolRecord
from levit_export.models import loading

ALL = "levit-export --format all --no-bench"
ALL_TIMED = "levit-export --format all"
ONE = "levit-export --format {} --no-bench"
THEIRS = "optimum-cli export {}"
OF_THEIRS = (THEIRS.format("onnx"), THEIRS.format("openvino"))

NOTE = (
    "the same folder in the form of transformers is read by all; ours writes three formats and "
    "checks each, optimum writes two and checks ONNX; memory is the sum over a command's "
    "processes, shared pages counted in each"
)


def run(
    model: str,
    folder: Path,
    others: Alternatives,
    *,
    runs: int,
    timed: bool,
    thorough: bool,
) -> ToolRecord:
    """Measure commands in turn.

    ``timed`` adds an export that ends with timing, ``thorough`` every single format and where the
    time goes.
    """
    weights = folder / "checkpoint"
    alternatives.write_checkpoint(model, weights)
    commands = _ours(weights, folder, timed=timed, thorough=thorough) | _theirs(folder, others)
    found = measure(commands, runs)
    for form in ("onnx", "openvino"):
        name = THEIRS.format(form)
        if others.reason:
            found.append(Command(name, reason=others.reason))
    for command in found:
        if command.failures:
            print(f"{command.name}: exit status {command.failures}", file=sys.stderr)
    found = [
        replace(command, runs=(), reason=f"exit status {command.failures[0]}")
        if command.failures
        else command
        for command in found
    ]
    as_run, one_by_one = _stages(weights, folder) if thorough else ((), ())
    return ToolRecord(
        circumstances=record.circumstances(others.versions, (NOTE,)),
        model=model,
        parameters=loading.load(choice(model)).describe().parameters,
        commands=tuple(found),
        as_run=as_run,
        one_by_one=one_by_one,
    )


def _ours(weights: Path, folder: Path, *, timed: bool, thorough: bool) -> dict[str, list[str]]:
    asked = {ALL: ["--format", "all", "--no-bench"]}
    if timed:
        asked[ALL_TIMED] = ["--format", "all"]
    if thorough:
        asked |= {
            ONE.format(form): ["--format", form, "--no-bench"]
            for form in ("onnx", "openvino", "coreml")
        }
    return {
        name: [COMMAND, "export", "--checkpoint", str(weights), *flags, "-o", str(folder / "tool")]
        for name, flags in asked.items()
    }


def _theirs(folder: Path, others: Alternatives) -> dict[str, list[str]]:
    """The alternatives' commands; what they export is timed by another section."""
    if others.reason:
        return {}
    for form in ("onnx", "openvino"):
        shutil.rmtree(folder / f"optimum-{form}", ignore_errors=True)
    return {
        THEIRS.format(form): others.export(form, folder / "checkpoint", folder / f"optimum-{form}")
        for form in ("onnx", "openvino")
    }


def _stages(weights: Path, folder: Path) -> tuple[tuple[Stage, ...], tuple[Stage, ...]]:
    answer = worker("stages", {"checkpoint": str(weights), "folder": str(folder / "stages")})
    as_run, one_by_one = (cattrs.structure(part, tuple[Stage, ...]) for part in answer)
    return as_run, one_by_one


def startup(runs: int) -> StartupRecord:
    """``--help`` of every verb, and the verbs that only list things."""
    import click

    from levit_export.cli import cli

    verbs = [[], *([name] for name in cli.list_commands(click.Context(cli)))]
    commands = {" ".join(("levit-export", *v, "--help")): [COMMAND, *v, "--help"] for v in verbs}
    commands |= {f"levit-export {name}": [COMMAND, name] for name in ("models", "doctor")}
    return StartupRecord(
        record.circumstances({}), "levit_digits", tuple(measure(commands, runs, warm_up=True))
    )


def share(found: ToolRecord, ours: str = ALL) -> tuple[float, float, float] | None:
    """Wall clock of ``ours`` over the sum of both alternatives, round by round.

    Median, smallest and largest; None where one of them was not run.
    """
    by_name = {command.name: command for command in found.commands}
    names = (ours, *OF_THEIRS)
    if any(name not in by_name or not by_name[name].runs for name in names):
        return None
    walls = [[run.wall_s for run in by_name[name].runs] for name in names]
    ratios = [a / (b + c) for a, b, c in zip(*walls, strict=True)]
    return float(np.median(ratios)), min(ratios), max(ratios)
