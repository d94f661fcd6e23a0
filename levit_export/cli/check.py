"""``levit-export check``: the gate for CI."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from levit_export.cli import options
from levit_export.cli.command import Verb, status_of
from levit_export.cli.output import (
    in_github_actions,
    present_checks,
    refuse_unwritable,
)
from levit_export.core.errors import LevitExportError, UsageError
from levit_export.core.precisions import PRECISIONS

if TYPE_CHECKING:
    from levit_export.reports.console import Screen
    from levit_export.reports.gate import Slack
    from levit_export.reports.report import Report, Vouching

SLACKS = ("parity_slack", "size_slack", "latency_slack")


@click.command(cls=Verb)
@click.argument("paths", nargs=-1, type=options.EXISTING)
@options.model_options
@options.calibration_options
@options.parity_options
@click.option(
    "--precision",
    type=click.Choice(tuple(PRECISIONS)),
    help="What the files are expected to be in; it is measured in their graphs.",
)
@click.option(
    "--require-audit",
    is_flag=True,
    help="Exit 3 when a file passes by its answers only: one of another tool, whose "
    "weights are not looked at.",
)
@click.option("--baseline", type=options.EXISTING, help="An earlier report.json.")
@click.option(
    "--parity-slack",
    type=click.FloatRange(min=1),
    help="How many times the baseline's share of its tolerance may be used.  [default: 2]",
)
@click.option(
    "--size-slack",
    type=click.FloatRange(min=0),
    help="Percent by which a file may be larger than in the baseline.  [default: 1]",
)
@click.option(
    "--latency-slack",
    type=click.FloatRange(min=0),
    help="Measure latency as well: percent by which the latency, relative to eager "
    "PyTorch or matrix products in the same run, may exceed the baseline's.",
)
@click.option(
    "--recheck",
    type=options.EXISTING,
    metavar="REPORT",
    help="Judge a saved report by --atol and --rtol; nothing is run.",
)
@click.option(
    "--drift/--no-drift",
    default=True,
    help="Name the block at fault when parity fails; needs PyTorch and the checkpoint.",
)
@click.option(
    "--verify-key",
    type=options.EXISTING,
    metavar="KEY",
    help="Refuse a bundle that the holder of this public key (PEM) did not sign.",
)
@click.option(
    "--verify-certificate",
    type=options.EXISTING,
    metavar="ROOT",
    help="Refuse a bundle that was not signed with a certificate of this authority (PEM).",
)
@click.option(
    "--min-ane",
    type=click.FloatRange(0, 100),
    metavar="PERCENT",
    help="Exit 1 when Core ML would place less of its estimated work on the Neural "
    "Engine; macOS only, with --compute-units cpu_and_ne or all.",
)
@click.option(
    "--results",
    type=options.EXISTING,
    multiple=True,
    metavar="FILE",
    help="What a verifier of the bundle wrote on a device; may be repeated, each compute "
    "unit or provider is a row.",
)
@click.option(
    "--against",
    multiple=True,
    metavar="NAME==VERSION",
    help="Check on another version of a runtime as well, such as onnxruntime==1.20 or "
    "openvino==2025.2, in an environment that is made once and kept; may be repeated.",
)
@options.report_options
@options.run_options
@options.timing_options
@options.output_options
@click.pass_context
def check(ctx: click.Context, /, paths: tuple[Path, ...], **_: Any) -> int:
    """Hold export directories, bundles or single artifacts against their reference.

    A directory or a bundle (.zip) carries its own reference and needs no PyTorch. A single file
    needs --checkpoint. With --baseline, each is held against an earlier report as well.
    """
    from levit_export.reports import ci

    try:
        return _check(ctx.params, paths)
    except LevitExportError as error:
        if in_github_actions():
            click.echo(ci.annotation("error", str(error), title="levit-export"), err=True)
        raise


def _check(params: dict[str, Any], paths: tuple[Path, ...]) -> int:
    from levit_export.reports import console, gate
    from levit_export.reports.report import read_report

    options.refuse_missing(params)
    _refuse(params, paths)
    slack = _slack(params)
    baseline = None if params["baseline"] is None else read_report(params["baseline"])
    if baseline is not None and slack.latency is not None:
        gate.refuse_untimed(baseline)
    screen = console.Screen(quiet=params["quiet"])
    run = _recheck if params["recheck"] is not None else _run
    report, folder = run(params, screen, paths, baseline)
    checks = gate.of_report(report.artifacts, require_audit=params["require_audit"])
    own = len(checks)
    if baseline is not None:
        checks += gate.compare(report, baseline, slack)
    report = replace(report, verdict=gate.verdict_of(checks))
    title = "levit-export check" if report.model is None else report.model.name
    steps = []
    failed = [artifact for artifact in report.artifacts if artifact.parity.verdict == "fail"]
    # Drift looks at what runs here, and finds nothing where only another device or version fails.
    is_elsewhere = bool(failed) and all(artifact.device for artifact in failed)
    if report.verdict == "fail" and paths and not is_elsewhere:
        named = [str(path) for path in paths]
        steps.append(["levit-export", "drift", *named, *options.same_again(params)])
    elif report.verdict == "not-run":
        steps.append(["levit-export", "doctor"])
    present_checks(
        screen,
        params,
        report,
        checks,
        title=title,
        folder=folder,
        compared=checks[own:],
        require_audit=params["require_audit"],
        steps=steps,
    )
    return status_of(report.verdict, allow_not_run=params["allow_not_run"])


def _refuse(params: dict[str, Any], paths: tuple[Path, ...]) -> None:
    """Raise for options that contradict each other or lead nowhere, before anything is run."""
    for name in SLACKS:
        if params["baseline"] is None and params[name] is not None:
            raise UsageError(
                f"--{name.replace('_', '-')} needs --baseline", remedy="Add --baseline REPORT."
            )
        if params[name] is not None and not math.isfinite(params[name]):
            raise UsageError(
                f"--{name.replace('_', '-')} {params[name]} accepts anything",
                remedy="Give a finite number.",
            )
    if not paths and params["recheck"] is None:
        raise UsageError(
            "nothing to check was given", remedy="Give an export directory, a bundle or a file."
        )
    if params["recheck"] is not None:
        _refuse_recheck(params, paths)
    for name, other in (("results", "a device"), ("against", "another version")):
        if params[name] and params["latency_slack"] is not None:
            raise UsageError(
                "--latency-slack compares with a reference timed in the same run, which "
                f"{other} did not time",
                remedy=f"Leave out --{name} or --latency-slack.",
            )
    if params["verify_key"] is not None and params["verify_certificate"] is not None:
        raise UsageError(
            "a bundle has one signature, made with a key or with a certificate",
            remedy="Give --verify-key or --verify-certificate.",
        )
    refuse_unwritable(params)


def _refuse_recheck(params: dict[str, Any], paths: tuple[Path, ...]) -> None:

    if paths or not options.model_choice(params).is_default:
        raise UsageError(
            "--recheck runs nothing, so it takes neither paths nor a model",
            remedy="Leave them out, or leave out --recheck.",
        )
    for name in ("data", "verify_key", "verify_certificate", "results", "min_ane", "against"):
        if params[name] not in (None, ()):
            raise UsageError(
                f"--{name.replace('_', '-')} is about files, and --recheck reads none",
                remedy="Leave one of them out.",
            )
    if params["atol"] is None and params["rtol"] is None:
        raise UsageError(
            "--recheck without a tolerance repeats the report", remedy="Add --rtol or --atol."
        )


def _slack(params: dict[str, Any]) -> Slack:
    from levit_export.reports.gate import Slack

    given = {name: params[f"{name}_slack"] for name in ("parity", "size", "latency")}
    return Slack(**{name: value for name, value in given.items() if value is not None})


def _run(
    params: dict[str, Any], screen: Screen, paths: tuple[Path, ...], baseline: Report | None
) -> tuple[Report, Path | None]:
    """Check what is at ``paths``, and time it when the baseline's latency is asked about."""
    from levit_export.cli.paths import opened
    from levit_export.formats.environments import Version
    from levit_export.reports import gate
    from levit_export.workflows import check as check_workflow

    vouching = _vouching(params, paths)
    with opened(paths) as places:
        request = check_workflow.CheckRequest(
            paths=places.paths,
            choice=options.model_choice(params),
            run=options.run(params),
            plan=options.plan(params),
            seed=params["seed"],
            overrides=options.overrides(params),
            data=params["data"],
            calibration_images=params["num_samples"],
            drift=params["drift"],
            precision=params["precision"] or "",
            results=params["results"],
            min_ane=params["min_ane"],
            against=tuple(map(Version.parse, params["against"])),
        )
        with screen.progress() as progress:
            report = places.renamed(check_workflow.check(request, progress))
            report = replace(report, vouching=vouching)
            if baseline is not None:
                gate.refuse_other_model(report, baseline)
            if baseline is None or params["latency_slack"] is None or report.verdict == "fail":
                return report, places.folder

            def timed() -> Report:
                """The report, with the latencies of its artifacts."""
                found = places.renamed(check_workflow.bench(request, progress))
                rows = zip(report.artifacts, found.artifacts, strict=True)
                artifacts = tuple(replace(each, timing=other.timing) for each, other in rows)
                return replace(report, artifacts=artifacts, baselines=found.baselines)

            return gate.confirmed(timed, baseline, _slack(params)), places.folder


def _vouching(params: dict[str, Any], paths: tuple[Path, ...]) -> Vouching:
    """Who vouches for what is checked. Raises ``BundleError`` for a signature that does not."""
    from levit_export.reports.report import Vouching
    from levit_export.storage.device_bundle import signing

    key, authority = params["verify_key"], params["verify_certificate"]
    if key is not None or authority is not None:
        signers = [signing.verify(path, key=key, authority=authority) for path in paths]
        return Vouching("signature", signers[0])
    return Vouching("itself" if options.model_choice(params).is_default else "checkpoint")


def _recheck(
    params: dict[str, Any], _: Screen, __: tuple[Path, ...], baseline: Report | None
) -> tuple[Report, Path | None]:
    """The saved report, judged by the tolerance that was given."""
    from levit_export.core.values import Tolerance
    from levit_export.reports import gate
    from levit_export.reports.report import read_report

    options.overrides(params)  # which refuses what is not finite
    saved = read_report(params["recheck"])
    if baseline is not None:
        gate.refuse_other_model(saved, baseline)
    tolerance = Tolerance(params["atol"] or 0.0, (params["rtol"] or 0.0,), "given")
    folder = saved.output or params["recheck"].parent
    return replace(gate.recheck(saved, tolerance), output=None, vouching=None), folder
