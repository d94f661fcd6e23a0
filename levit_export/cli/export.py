"""``levit-export export``, and what bare flags mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from levit_export.cli import options
from levit_export.cli.output import present, refuse_unwritable
from levit_export.cli.verb import Verb, status_of


@click.command(cls=Verb)
@options.model_options
@click.option(
    "-f",
    "--format",
    "formats",
    multiple=True,
    default=("all",),
    show_default=True,
    help="onnx, openvino, coreml, or all; repeat it or separate with commas.",
)
@click.option(
    "--precision",
    help="fp32, fp16, int8, w8, w6, w4; or for each format: onnx=int8,coreml=fp16.  "
    "[default: fp32, for coreml fp16]",
)
@click.option(
    "--keep",
    multiple=True,
    metavar="BLOCK",
    help="Leave a block, such as stage1.block0.mlp, in float; repeatable.",
)
@click.option("--half", "alias", flag_value="fp16", hidden=True)
@click.option("--int8", "alias", flag_value="int8", hidden=True)
@click.option(
    "--data",
    type=options.EXISTING,
    help="Images to calibrate int8 on: a folder, of classes or not, or an .npz file.",
)
@click.option(
    "--num-samples",
    type=options.POSITIVE,
    default=200,
    show_default=True,
    help="How many of them.",
)
@click.option("-b", "--batch", type=options.POSITIVE, help="Fixed batch size.  [default: 1]")
@click.option("--dynamic", is_flag=True, help="Leave the batch size open.")
@click.option("--opset", type=options.POSITIVE, default=18, show_default=True, help="ONNX only.")
@click.option("--simplify/--no-simplify", default=True, help="Run onnxsim (ONNX only).")
@click.option(
    "--deployment-target",
    default="iOS16",
    show_default=True,
    help="Oldest system that must run it (Core ML only).",
)
@click.option("--classifier", is_flag=True, help="Give labels and probabilities (Core ML only).")
@click.option("--skip-pass", "skip", multiple=True, metavar="NAME", help="Leave out a pass.")
@click.option("--check/--no-check", default=True, help="Prove parity on the target's runtime.")
@click.option("--bench/--no-bench", default=True, help="Measure latency.")
@options.parity_options
@options.run_options
@options.timing_options
@click.option(
    "-o", "--output", type=options.EXISTING, help="Export directory.  [default: exported/MODEL]"
)
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@options.output_options
@click.pass_context
def export(ctx: click.Context, /, **_: Any) -> int:
    """Export a trained LeViT, prove that the files on disk are the same model, and time them.

    Without --model and --checkpoint the bundled digits model is exported.
    """
    from levit_export import pipeline
    from levit_export.render import console

    params = ctx.params
    refuse_unwritable(params["json_file"])
    request = _request(params)
    jobs = pipeline.plan(request)
    screen = console.Screen(quiet=params["quiet"])
    if request.choice.is_default:
        screen.notice(
            "exporting the bundled digits model; "
            "export your own with --checkpoint FILE (see levit-export models)"
        )
    if params["dry_run"]:
        console.print_plan(screen, pipeline.describe(request, jobs))
        return 0
    with screen.progress() as progress:
        report = pipeline.export(request, progress)
    present(screen, report, params["json_file"])
    if not request.check:
        screen.notice("parity was not checked (--no-check)")
        return 0
    return status_of(report.verdict, allow_not_run=params["allow_not_run"])


def _request(params: dict[str, Any]) -> Any:
    from levit_export import precisions
    from levit_export.core import ExportOptions
    from levit_export.errors import UsageError
    from levit_export.pipeline import ExportRequest
    from levit_export.targets import TARGETS, target

    if params["dynamic"] and params["batch"] is not None:
        raise UsageError(
            f"--dynamic and --batch {params['batch']} contradict each other",
            remedy="Give one of them.",
        )
    given = (name.strip() for value in params["formats"] for name in value.split(","))
    names = [name for name in given if name]
    if "all" in (name.lower() for name in names):
        names = [kind.name for kind in TARGETS]
    output: Path | None = params["output"]
    return ExportRequest(
        choice=options.model_choice(params),
        formats=tuple(names),
        precisions=precisions.parse(
            params["precision"] or params["alias"],
            {target(name).name: target(name).precisions for name in names},
        ),
        options=ExportOptions(
            batch=None if params["dynamic"] else params["batch"] or 1,
            opset=params["opset"],
            simplify=params["simplify"],
            deployment_target=params["deployment_target"],
            classifier=params["classifier"],
        ),
        skip=params["skip"],
        seed=params["seed"],
        check=params["check"],
        bench=params["bench"],
        run=options.run(params),
        plan=options.plan(params),
        overrides=options.overrides(params),
        keep={target(name).name: params["keep"] for name in names},
        data=params["data"],
        calibration_images=params["num_samples"],
        output=output,
    )
