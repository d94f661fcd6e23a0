"""``levit-export bench``: latency of what is on disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from levit_export.cli import options
from levit_export.cli.command import Verb, status_of
from levit_export.cli.output import present, refuse_unwritable
from levit_export.core.errors import UsageError

LONGEST_S = 600.0
"""Of a sustained run, of which every call is kept. A mistyped number is refused at once."""


@click.command(cls=Verb)
@click.argument("paths", nargs=-1, required=True, type=options.EXISTING)
@options.model_options
@options.run_options
@options.timing_options
@click.option(
    "--rules",
    type=click.Choice(("mlperf-mobile",)),
    help="Measure as a benchmark asks: mlperf-mobile times one image at a time, file after file, "
    "at least 1,024 calls and 60 s of each, and quotes the 90th percentile.",
)
@click.option(
    "--sustain",
    type=options.FiniteRange(min=0, max=LONGEST_S),
    default=0,
    metavar="SECONDS",
    help="Then call each file for so long without a pause, as a device does that becomes hot.",
)
@click.option("--allow-not-run", is_flag=True, help="Exit 0 although nothing could be timed.")
@options.output_options
@click.pass_context
def bench(ctx: click.Context, /, paths: tuple[Path, ...], **_: Any) -> int:
    """Time export directories or single artifacts, interleaved in one run.

    Cold and first calls have figures of their own, and so has a sustained run.
    What cannot be timed here, such as Core ML off macOS, is named, and the run passes if anything
    was timed. With --checkpoint (or --model levit_digits) eager PyTorch takes part.
    """
    from levit_export.checks import timing
    from levit_export.reports import console
    from levit_export.workflows import check

    params = ctx.params
    plan = replace(options.plan(params), sustain_s=params["sustain"])
    if params["rules"] is not None:
        if ctx.get_parameter_source("iters") is not ParameterSource.DEFAULT:
            raise UsageError(
                f"--rules {params['rules']} says how many calls are timed, and so does --iters",
                remedy="Give one of them.",
            )
        plan = replace(plan, rules=timing.RULES[params["rules"]])
    refuse_unwritable(params)
    request = check.CheckRequest(
        paths=paths,
        choice=options.model_choice(params),
        run=options.run(params),
        plan=plan,
    )
    screen = console.Screen(quiet=params["quiet"])
    with screen.progress() as progress:
        report = check.bench(request, progress)
    present(screen, report, params["json_file"])
    return status_of(report.verdict, allow_not_run=params["allow_not_run"])
