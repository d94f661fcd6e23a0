"""``levit-export evaluate``: accuracy on your own images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from levit_export.cli import options
from levit_export.cli.command import Verb, status_of
from levit_export.cli.output import present, refuse_unwritable


@click.command(cls=Verb)
@click.argument("paths", nargs=-1, required=True, type=options.EXISTING)
@click.option(
    "-d",
    "--data",
    required=True,
    help="Folder with a folder for each class, or with a list val.txt; folder of images; .npz; "
    "or digits, the bundled images.",
)
@click.option(
    "--limit", type=options.POSITIVE, help="Take so many images, evenly spread.  [default: all]"
)
@click.option(
    "-b",
    "--batch",
    type=options.POSITIVE,
    default=16,
    show_default=True,
    help="The batch size for PyTorch and for artifacts whose batch is open.",
)
@click.option(
    "--workers",
    type=options.POSITIVE,
    help="Processes that share the images; the result does not depend on it.  "
    "[default: as many as pay]",
)
@click.option(
    "--scheduler",
    metavar="ADDRESS",
    help="The address of a Dask cluster whose workers do it; the result is the same.",
)
@click.option(
    "--max-drop",
    type=options.FiniteRange(min=0, max=100),
    metavar="POINTS",
    help="Exit 1 when top-1 falls further below PyTorch's; on images without labels, when more "
    "percent of the answers differ.",
)
@options.model_options
@click.option(
    "--threads",
    type=options.POSITIVE,
    default=1,
    show_default=True,
    help="CPU threads of each worker.",
)
@options.runtime_options
@options.output_options
@click.pass_context
def evaluate(ctx: click.Context, /, paths: tuple[Path, ...], **_: Any) -> int:
    """Measure top-1, top-5 and agreement with PyTorch on your own images.

    A directory brings its recipe and labels; add --checkpoint for PyTorch's answers. A single
    file needs --checkpoint. The directory's report.json is updated.
    """
    from levit_export.core import machine
    from levit_export.reports import console
    from levit_export.workflows import evaluate as evaluate_workflow

    params = ctx.params
    refuse_unwritable(params)
    options.refuse_missing(params)
    if params["workers"] is not None:
        machine.refuse_threads(params["workers"], "--workers")
    request = evaluate_workflow.EvaluateRequest(
        paths=paths,
        data=params["data"],
        choice=options.model_choice(params),
        run=options.run(params),
        limit=params["limit"],
        batch=params["batch"],
        workers=params["workers"],
        scheduler=params["scheduler"],
        max_drop=params["max_drop"],
    )
    screen = console.Screen(quiet=params["quiet"])
    with screen.progress() as progress:
        report = evaluate_workflow.evaluate(request, progress)
    present(screen, report, params["json_file"])
    return status_of(report.verdict, allow_not_run=False)
