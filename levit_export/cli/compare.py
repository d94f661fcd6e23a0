"""``levit-export compare``: any artifacts against another file of the same network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from levit_export.cli import options
from levit_export.cli.command import Verb, status_of
from levit_export.cli.output import present_checks, refuse_unwritable
from levit_export.core.errors import UsageError


@click.command(cls=Verb)
@click.argument("reference", type=options.EXISTING)
@click.argument("candidates", nargs=-1, required=True, type=options.EXISTING)
@click.option(
    "--inputs",
    type=options.EXISTING,
    metavar="FILE",
    help="An .npz with an array (samples, …) for each input of the reference, by its name.",
)
@click.option(
    "-d",
    "--data",
    type=options.EXISTING,
    help="Images, for a network of one picture; they are resized to its input.",
)
@click.option(
    "--samples",
    type=options.TURNS,
    default=8,
    show_default=True,
    help="How many inputs are drawn, or images are read.",
)
@options.parity_options
@click.option(
    "--drift/--no-drift",
    default=True,
    help="Name the first inner value that differs when a comparison fails.",
)
@options.report_options
@options.run_options
@options.output_options
@click.pass_context
def compare(ctx: click.Context, /, reference: Path, candidates: tuple[Path, ...], **_: Any) -> int:
    """Hold CANDIDATES against REFERENCE: files of one network, LeViT or any other.

    Both are an .onnx, an OpenVINO .xml, an .mlpackage or an .aimodel; a reference may be a .pt2
    of torch.export or a TorchScript .pt as well, which are programs: trust who wrote them. All are
    given the same inputs. The tolerance follows from the reference in float64, which .onnx, .pt2
    and .pt can be run in; others need --rtol or --atol, or nothing is decided (exit status 3).
    """
    from levit_export.reports import console, gate
    from levit_export.workflows import compare as comparing

    params = ctx.params
    options.refuse_missing(params)
    if params["inputs"] is not None and params["data"] is not None:
        raise UsageError("--inputs and --data exclude each other", remedy="Give one of them.")
    refuse_unwritable(params)
    screen = console.Screen(quiet=params["quiet"])
    request = comparing.CompareRequest(
        reference=reference,
        candidates=candidates,
        inputs=params["inputs"],
        data=params["data"],
        samples=params["samples"],
        seed=params["seed"],
        run=options.run(params),
        overrides=options.overrides(params),
        drift=params["drift"],
    )
    with screen.progress() as progress:
        report = comparing.compare(request, progress)
    checks = gate.of_report(report.artifacts)
    report = replace(report, verdict=gate.verdict_of(checks))
    present_checks(screen, params, report, checks, title="levit-export compare")
    return status_of(report.verdict, allow_not_run=params["allow_not_run"])
