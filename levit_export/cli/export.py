"""``levit-export export``, and what bare flags mean."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from levit_export.cli import options
from levit_export.cli.command import TYPED, Verb, status_of
from levit_export.cli.output import present, present_plan, refuse_unwritable
from levit_export.core.errors import UsageError
from levit_export.models.zoo import AUTO_LAYOUT, LAYOUTS

if TYPE_CHECKING:
    from levit_export.reports.report import Report

SECTIONS = {
    "Input": (
        "model",
        "checkpoint",
        "pretrained",
        "offline",
        "random_weights",
        "imgsz",
        "resize_bias",
        "activation",
        "labels",
        "preprocessing",
        "task",
    ),
    "Output": (
        "formats",
        "output",
        "batch",
        "dynamic",
        "opset",
        "ort_min",
        "simplify",
        "deployment_target",
        "classifier",
        "embed_preprocessing",
        "softmax",
        "layout",
        "skip",
        "dry_run",
    ),
    "Precision": (
        "precision",
        "keep",
        "data",
        "num_samples",
        "max_drop",
        "prefer",
        "recipe",
    ),
    "Checks": (
        "check",
        "atol",
        "rtol",
        "seed",
        "allow_not_run",
        "device",
        "compute_units",
        "providers",
    ),
    "Timing": ("bench", "threads", "warmup", "iters"),
    "What is said": ("json_file", "verbose", "quiet"),
}
"""The headings of ``--help``, and the parameters below each."""

EXAMPLES = (
    ("levit-export -c levit_256.pth", "all formats, from your weights"),
    ("levit-export -c levit_256.pth -f coreml --classifier", "for an iPhone"),
    (
        "levit-export -c levit_256.pth -f onnx --precision int8 --data photos/",
        "smaller and faster, calibrated on photos",
    ),
)
"""Commands that ``--help`` shows, with what each is for."""


@click.command(cls=Verb, sections=SECTIONS, examples=EXAMPLES)
@options.model_options
@click.option(
    "-f",
    "--format",
    "formats",
    multiple=True,
    default=("all",),
    show_default=True,
    help="onnx, openvino, coreml, or all of these; coreai by its name only. Repeat it or separate "
    "with commas.",
)
@click.option(
    "--precision",
    help="fp32, fp16, bf16, int8, w8, w6, w4, auto; or for each format: onnx=int8,coreml=fp16.  "
    "[default: fp32, for coreml and coreai fp16]",
)
@click.option(
    "--keep",
    multiple=True,
    metavar="BLOCK",
    help="Leave a block, such as stage1.block0.mlp, in float; repeatable.",
)
@click.option(
    "--max-drop",
    type=options.FiniteRange(min=0),
    default=0.5,
    show_default=True,
    help="Points of accuracy that --precision auto may lose on the images of --data.",
)
@click.option(
    "--prefer",
    type=click.Choice(("latency", "size")),
    default="latency",
    show_default=True,
    help="What --precision auto tries to make small.",
)
@click.option(
    "--recipe",
    type=options.EXISTING,
    help="The precisions and blocks in float of an earlier export: its folder or manifest.",
)
@click.option("--half", "alias", flag_value="fp16", hidden=True, help="--precision fp16")
@click.option("--int8", "alias", flag_value="int8", hidden=True, help="--precision int8")
@click.option(
    "--data",
    type=options.EXISTING,
    help="Images for int8 and auto: a folder, of classes or not, or an .npz file.",
)
@click.option(
    "--num-samples",
    type=options.TURNS,
    default=200,
    show_default=True,
    help="How many images of --data are used.",
)
@click.option("-b", "--batch", type=options.POSITIVE, help="The fixed batch size.  [default: 1]")
@click.option("--dynamic", is_flag=True, help="Leave the batch size open.")
@click.option(
    "--opset",
    type=options.POSITIVE,
    help="ONNX only: 18 to 26, for int8 to 20.  [default: 18]",
)
@click.option(
    "--ort-min",
    metavar="VERSION",
    help="Oldest ONNX Runtime that must read the file, such as 1.16: the newest opset that it "
    "reads is written.",
)
@click.option(
    "--simplify/--no-simplify",
    default=True,
    help="Let onnxsim judge the ONNX graph: what it can leave out is checked, taken and reported.",
)
@click.option(
    "--deployment-target",
    default="iOS16",
    show_default=True,
    help="Oldest system that must run it (Core ML only).",
)
@click.option("--classifier", is_flag=True, help="Give labels and probabilities (Core ML only).")
@click.option(
    "--embed-preprocessing",
    is_flag=True,
    help="Take raw RGB bytes: scaling to [0, 1] and normalisation go into the graph.",
)
@click.option(
    "--softmax",
    is_flag=True,
    help="Give probabilities: the activation that the model's task asks for goes into the graph, "
    "a softmax, or a sigmoid where each label is answered by itself.",
)
@click.option(
    "--layout",
    type=click.Choice(LAYOUTS),
    default=AUTO_LAYOUT,
    show_default=True,
    help="Write linear layers over tokens or 1x1 convolutions over maps; auto: maps for Core ML "
    "and Core AI and, as they were measured to be faster there, for ONNX in fp32 and int8; else "
    "tokens.",
)
@click.option("--skip-pass", "skip", multiple=True, metavar="NAME", help="Leave out a pass.")
@click.option("--check/--no-check", default=True, help="Check parity on each format's runtime.")
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
    from levit_export.reports import console
    from levit_export.workflows import export as export_workflow
    from levit_export.workflows import export_plan

    params = ctx.params
    refuse_unwritable(params)
    options.refuse_missing(params)
    request = _request(params, ctx.meta.get(TYPED, ""))
    jobs = export_plan.plan(request)
    screen = console.Screen(quiet=params["quiet"])
    if request.choice.is_default:
        screen.notice(
            "exporting the bundled digits model; "
            "export your own with --checkpoint FILE (see levit-export models)"
        )
    if params["dry_run"]:
        request = export_plan.rehearse(request)
        present_plan(
            screen,
            export_plan.describe(request, jobs),
            export_plan.planned(request, jobs),
            params["json_file"],
        )
        return 0
    with screen.progress() as progress:
        report = export_workflow.export(request, progress)
    present(screen, report, params["json_file"], ledger=True, steps=_next(params, report))
    if not request.check:
        screen.notice("parity was not checked (--no-check)")
        return 0
    return status_of(report.verdict, allow_not_run=params["allow_not_run"])


def _next(params: dict[str, Any], report: Report) -> list[list[str]]:
    """The commands that make sense after an export."""
    folder = str(report.output)
    if report.verdict == "fail":
        return [["levit-export", "drift", folder, *options.same_again(params)]]
    if report.verdict == "not-run" and params["check"]:
        return [["levit-export", "doctor"]]
    is_digits = options.model_choice(params).is_digits
    images = options.DIGITS if is_digits else "IMAGES"
    evaluate = ["levit-export", "evaluate", folder, "--data", images]
    has_page = any(artifact.format == "onnx" for artifact in report.artifacts)
    return [evaluate, ["levit-export", "bundle", folder, *["--with", "web"] * has_page]]


def _request(params: dict[str, Any], command: str) -> Any:
    from levit_export.core.values import Embedded, ExportOptions
    from levit_export.formats import TARGETS, target
    from levit_export.workflows import export_plan
    from levit_export.workflows.export_plan import ExportRequest
    from levit_export.workflows.precision_search import Promise

    if params["dynamic"] and params["batch"] is not None:
        raise UsageError(
            f"--dynamic and --batch {params['batch']} contradict each other",
            remedy="Give one of them.",
        )
    if params["ort_min"] is not None and params["opset"] is not None:
        raise UsageError(
            f"--ort-min {params['ort_min']} chooses the opset, and so does --opset "
            f"{params['opset']}",
            remedy="Give one of them.",
        )
    names = options.comma_separated(params["formats"])
    if "all" in (name.lower() for name in names):
        names = [kind.name for kind in TARGETS]
    names = list(dict.fromkeys(target(name).name for name in names))
    chosen = {name: target(name).precisions for name in names}
    wanted = export_plan.parse_precisions(params["precision"] or params["alias"], chosen)
    keep = dict.fromkeys(chosen, params["keep"])
    layouts = {}
    if params["recipe"] is not None:
        beside = [f"--{name}" for name in ("precision", "keep") if params[name]]
        beside += ["--layout"] * (params["layout"] != AUTO_LAYOUT)
        if beside:
            raise UsageError(
                f"--recipe and {' and '.join(beside)} contradict each other",
                remedy="Give one of them.",
            )
        recipe = export_plan.read_earlier_settings(params["recipe"])
        names, wanted, keep = list(recipe.precisions), dict(recipe.precisions), dict(recipe.keep)
        layouts = dict(recipe.layouts)
    output: Path | None = params["output"]
    return ExportRequest(
        choice=options.model_choice(params),
        formats=tuple(names),
        precisions=wanted,
        options=ExportOptions(
            batch=None if params["dynamic"] else params["batch"] or 1,
            opset=params["opset"] or ExportOptions.opset,
            simplify=params["simplify"],
            deployment_target=params["deployment_target"],
            classifier=params["classifier"],
            embedded=Embedded(params["embed_preprocessing"], params["softmax"]),
            layout=params["layout"],
        ),
        skip=params["skip"],
        seed=params["seed"],
        check=params["check"],
        bench=params["bench"],
        run=options.run(params),
        plan=options.plan(params),
        overrides=options.overrides(params),
        keep=keep,
        layouts=layouts,
        promise=Promise(params["max_drop"], params["prefer"]),
        data=params["data"],
        calibration_images=params["num_samples"],
        ort_min=params["ort_min"],
        output=output,
        command=command,
    )
