"""``levit-export drift``: where an artifact diverges, block by block."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from levit_export.cli import options
from levit_export.cli.command import STATUS, Verb
from levit_export.cli.output import refuse_unwritable, write_or_print
from levit_export.core.errors import LevitExportError

if TYPE_CHECKING:
    from levit_export.checks.drift import DriftMap
    from levit_export.reports.console import Screen


@click.command(cls=Verb)
@click.argument("paths", nargs=-1, required=True, type=options.EXISTING)
@click.option(
    "--samples",
    type=options.TURNS,
    default=6,
    show_default=True,
    help="How many inputs, evenly spread over noise, adversarial and real images.",
)
@click.option("--seed", type=options.SEED, default=0, show_default=True)
@click.option(
    "--html",
    metavar="FILE",
    help="Write the report with the map in it.  [default: the report.html of an export directory]",
)
@options.model_options
@options.calibration_options
@options.run_options
@options.output_options
@click.pass_context
def drift(ctx: click.Context, /, paths: tuple[Path, ...], **_: Any) -> int:
    """Name the first block that diverges, in each file, and the stage at fault.

    The chain is followed from the checkpoint through the passes and the captured network to every
    file in its own runtime, with the error introduced and accumulated at every tap. A directory of
    the bundled model or of seeded random weights says itself what it is of; others need
    --checkpoint. Without --data, int8 files are followed with the ranges of the samples. The map
    is put into the report.html of an export directory; -v prints all of it. Exits 1 on a fault.
    """
    from levit_export.checks.drift import to_json
    from levit_export.cli.paths import opened
    from levit_export.core import serialisation
    from levit_export.reports import console
    from levit_export.workflows import drift as drifting

    params = ctx.params
    options.refuse_missing(params)
    refuse_unwritable(params)
    screen = console.Screen(quiet=params["quiet"])
    with opened(paths) as places, screen.progress() as progress:
        request = drifting.DriftRequest(
            paths=places.paths,
            choice=options.model_choice(params),
            run=options.run(params),
            samples=params["samples"],
            seed=params["seed"],
            data=params["data"],
            calibration_images=params["num_samples"],
        )
        found = drifting.trace(request, progress)
        page = None
        if params["html"] is not None:
            page = drifting.page(places.paths, found, is_beside=False)
        if page is None and len(paths) == 1 and not places.bundles:
            _redraw(screen, paths[0], found)
    if page is not None:
        write_or_print(page, params["html"])
    if not screen.quiet and params["json_file"] != "-":
        console.print_drift(screen, found, whole=params["verbose"])
    if params["json_file"] is not None:
        write_or_print(serialisation.to_text(to_json(found)), params["json_file"])
    return STATUS[found.verdict]


def _redraw(screen: Screen, path: Path, found: DriftMap) -> None:
    """Put the map into the report of an export directory; a failure there is not an error."""
    from levit_export.storage.export_directory import MANIFEST, PAGE
    from levit_export.workflows import drift as drifting

    if path.suffix == ".mlpackage" or not (path / MANIFEST).is_file():
        return
    page = path / PAGE
    try:
        write_or_print(drifting.page((path,), found), str(page))
    except LevitExportError as error:
        screen.notice(f"the map is not in {page}: {error.what}")
    else:
        screen.notice(f"the map is in {page}")
