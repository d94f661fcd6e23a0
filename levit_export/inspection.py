"""Check and time what is already on disk: export directories and bare artifacts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from levit_export import bundle, checking, machine, parity, reference
from levit_export.checking import Reference, Row
from levit_export.core import CALIBRATED, RunOptions, Session, Verdict, overall
from levit_export.errors import DataError, UsageError
from levit_export.findings import Finding
from levit_export.locating import Located, locate
from levit_export.parity import ParityReport
from levit_export.pipeline import BASELINE, TOOLCHAIN
from levit_export.progress import Progress, Silent
from levit_export.reference import ModelChoice, Overrides
from levit_export.report import ArtifactReport, Report
from levit_export.targets.metadata import versions
from levit_export.timing import TimingPlan, TimingReport

if TYPE_CHECKING:
    from levit_export.bundle import Manifest
    from levit_export.checkpoints import Checkpoint
    from levit_export.drift import DriftMap, explaining


@dataclass(frozen=True)
class InspectRequest:
    """What ``check`` and ``bench`` may be asked for.

    ``choice`` names the model of bare artifacts; for a directory it replaces the golden outputs by
    a fresh reference. ``data`` are the images that a bare ``int8`` artifact was calibrated on.
    With ``drift`` a failure is followed to the block at fault, where the checkpoint is at hand.
    """

    paths: tuple[Path, ...]
    choice: ModelChoice = field(default_factory=ModelChoice)
    run: RunOptions = field(default_factory=RunOptions)
    plan: TimingPlan = field(default_factory=TimingPlan)
    seed: int = 0
    overrides: Overrides = field(default_factory=Overrides)
    data: Path | None = None
    calibration_images: int = 200
    drift: bool = True


def check(request: InspectRequest, progress: Progress | None = None) -> Report:
    """Parity of everything at ``paths``.

    An export directory needs no torch: it is held against its own golden vectors, after every file
    was held against the manifest. A bare artifact needs ``choice``.
    """
    progress = progress or Silent()
    found = [locate(path) for path in dict.fromkeys(request.paths)]
    alone = len(found) == 1
    for each in found:
        if each.manifest is None and request.choice.is_default:
            raise UsageError(
                f"{each.artifacts[0].path} carries no golden vectors to be checked against",
                remedy="Add --checkpoint FILE (or --model levit_digits for the bundled model).",
            )
    reports: list[ArtifactReport] = []
    for each in found:
        reports += _check_one(each, request, progress, folder=each.folder if alone else None)
    return build_report(reports, found)


def bench(request: InspectRequest, progress: Progress | None = None) -> Report:
    """Latency of everything at ``paths``, interleaved in one run.

    Eager PyTorch takes part when ``choice`` names a model. Parity is reported as not run.
    """
    progress = progress or Silent()
    found = [locate(path) for path in dict.fromkeys(request.paths)]
    alone = len(found) == 1
    rows = [(each, row) for each in found for row in checking.rows(each.artifacts, request.run)]
    others: dict[str, Session] = {}
    macs = _macs(found)
    if not request.choice.is_default:
        progress.stage("building the model in PyTorch")
        checkpoint = reference.load(request.choice, progress)
        macs = checkpoint.describe().macs
        others[BASELINE] = reference.eager_session(checkpoint, threads=request.run.threads)
    progress.stage("timing")
    progress.steps(request.plan.iterations)
    timings, baselines = checking.time_rows(
        [row for _, row in rows],
        request.run.threads,
        request.plan,
        macs=macs,
        others=others,
        progress=progress.advance,
    )
    skipped = parity.NOT_ASKED
    reports = [
        checking.describe(row, each.folder if alone else None, skipped, None, timings[row])
        for each, row in rows
    ]
    verdict = overall(timing.verdict for timing in timings.values())
    return build_report(reports, found, verdict=verdict, baselines=baselines)


def _check_one(
    each: Located, request: InspectRequest, progress: Progress, *, folder: Path | None
) -> list[ArtifactReport]:
    rows = checking.rows(each.artifacts, request.run)
    damage = [] if each.manifest is None else bundle.damage(each.folder, each.manifest)
    if damage:
        found = Finding("altered-files", {"text": "; ".join(damage[:3])})
        failed = ParityReport("", samples=0, findings=(found,))
        reports = [_altered(row, folder, failed) for row in rows]
        touched = [row for row in rows if _is_touched(row, each, damage)]
        return _explained(reports, rows, each, request, progress, only=touched)
    expected = _reference(each, request, progress)
    reports = []
    for row in rows:
        progress.stage(f"checking {row.artifact.path.name}")
        reports.append(checking.describe(row, folder, *checking.check(row, expected), None))
    return _explained(reports, rows, each, request, progress, expected=expected)


def _is_touched(row: Row, each: Located, damage: Sequence[str]) -> bool:
    """Whether files of the artifact are among what was altered."""
    place = row.artifact.path.relative_to(each.folder).parts[0]
    return any(words.startswith(f"{place}/") for words in damage)


def _explained(
    reports: Sequence[ArtifactReport],
    rows: Sequence[Row],
    each: Located,
    request: InspectRequest,
    progress: Progress,
    *,
    only: Sequence[Row] | None = None,
    expected: Reference | None = None,
) -> list[ArtifactReport]:
    """The reports; those of ``only``, where they failed, with the block at fault."""
    from levit_export.drift import explaining

    if not request.drift:
        return list(reports)
    wanted = [at for at, row in enumerate(rows) if only is None or row in only]
    found, _ = explaining.explained(
        [reports[at] for at in wanted],
        [rows[at] for at in wanted],
        lambda: _subject(each, request, progress, expected),
        progress,
    )
    explained = dict(zip(wanted, found, strict=True))
    return [explained.get(at, report) for at, report in enumerate(reports)]


def _subject(
    each: Located, request: InspectRequest, progress: Progress, expected: Reference | None
) -> explaining.Subject:
    """What the artifacts were made of. Raises ``UsageError`` where that is not at hand."""
    from levit_export.drift import explaining, origin

    checkpoint = reference.load(origin.choice_of(request.choice, [each]), progress)
    origin.refuse_another([each], checkpoint)
    precisions = {artifact.precision for artifact in each.artifacts}
    calibration = reference.calibration(
        checkpoint, request.data, count=request.calibration_images, seed=request.seed
    )
    return explaining.Subject(
        checkpoint,
        expected or _reference(each, request, progress),
        skip=origin.skipped([each]),
        is_ours=origin.are_ours([each]),
        calibration=calibration if precisions & set(CALIBRATED) else None,
    )


def _altered(row: Row, folder: Path | None, failed: ParityReport) -> ArtifactReport:
    """The failure of an artifact whose directory was altered; the artifact itself may be gone."""
    artifact = row.artifact
    if artifact.path.exists():
        return checking.describe(row, folder, failed, None, None)
    path = checking.shown_path(artifact, folder)
    return ArtifactReport(artifact.format, artifact.precision, path, 0, "", failed)


def _reference(each: Located, request: InspectRequest, progress: Progress) -> Reference:
    """Golden vectors where there are any and no model was named, else a fresh reference."""
    manifest = each.manifest
    if manifest is not None and request.choice.is_default:
        _refuse_idle(request.choice, each.folder)
        samples, outputs = bundle.read_golden(each.folder, manifest)
        return Reference(
            signature=manifest.signature,
            samples=samples,
            outputs=outputs,
            weights=manifest.golden.weights,
            tolerances={
                precision: request.overrides.apply(tolerance)
                for precision, tolerance in manifest.golden.tolerances.items()
            },
            doubt=manifest.golden.doubt,
            preprocessing=manifest.model.preprocessing,
            task=manifest.model.task,
        )
    progress.stage("computing the reference")
    from levit_export.preparation import fingerprint

    checkpoint = reference.load(request.choice, progress)
    precisions = {artifact.precision for artifact in each.artifacts}
    weights = _weights(checkpoint, each)
    expected = reference.make(
        checkpoint,
        checkpoint.describe(),
        precisions,
        fingerprints=fingerprint(weights),
        seed=request.seed,
        overrides=request.overrides,
        calibration=reference.calibration(
            checkpoint, request.data, count=request.calibration_images, seed=request.seed
        )
        if precisions & set(CALIBRATED)
        else None,
    )
    return reference.with_quantised_weights(expected, weights, each.artifacts)


def _refuse_idle(choice: ModelChoice, folder: Path) -> None:
    """Raise for words about a checkpoint where none is read."""
    said = {
        "--labels": bool(choice.labels),
        "--preprocessing": choice.preprocessing is not None,
        "--imgsz": choice.image_size is not None,
        "--activation": choice.activation is not None,
        "--resize-bias": choice.resize_bias,
    }
    if idle := [name for name, is_said in said.items() if is_said]:
        raise UsageError(
            f"{' and '.join(idle)} would change nothing: {folder} is held against its own golden "
            "vectors",
            remedy="Leave it out, or add the --checkpoint that was exported.",
        )


def _weights(checkpoint: Checkpoint, each: Located) -> dict[str, np.ndarray]:
    """The weights that the artifacts must hold, rewritten by the passes they name.

    None for files that are not ours, or that name other passes than one another.
    """
    from levit_export.passes import LAY_OUT_MAPS, PASSES
    from levit_export.preparation import rewrite, weights_of

    named = {artifact.passes for artifact in each.artifacts}
    if None in named:
        return {}
    # Tensors are found whatever their layout is.
    sets = {frozenset(names or ()) - {LAY_OUT_MAPS.name} for names in named}
    if len(sets) != 1:
        return {}
    (passes,) = sets
    module = rewrite(checkpoint, skip=[p.name for p in PASSES if p.name not in passes]).module
    # Formats that normalise take pixels; a directory's artifacts all take the same.
    raw = each.artifacts[0].signature.inputs[0].dtype == "uint8"
    return weights_of(module, checkpoint.preprocessing if raw else None)


def _macs(found: Sequence[Located]) -> int:
    """MACs of the one model that all paths hold, or 0 when that is not known."""
    macs = {0 if each.manifest is None else each.manifest.model.macs for each in found}
    return macs.pop() if len(macs) == 1 else 0


def build_report(
    reports: Sequence[ArtifactReport],
    found: Sequence[Located],
    *,
    verdict: Verdict | None = None,
    baselines: Mapping[str, TimingReport] | None = None,
) -> Report:
    """A report on what was found; it speaks of the model where all of it is of one."""
    manifests = [each.manifest for each in found if each.manifest is not None]
    only = manifests[0] if len(manifests) == len(found) == 1 else None
    return Report(
        verdict=verdict or overall(r.parity.verdict for r in reports),
        model=None if only is None else only.model,
        passes=() if only is None else only.passes,
        artifacts=tuple(reports),
        baselines=baselines or {},
        machine=machine.describe(),
        toolchain=versions(TOOLCHAIN),
    )


def page(paths: Sequence[Path], drawn: DriftMap) -> str:
    """A report for people with the map ``drawn`` of what is at ``paths``.

    It is that of an export directory, as it was saved, or one that knows no more than the map.
    Raises ``DataError`` where a directory's ``report.json`` cannot be read.
    """
    from levit_export.gate import read_report
    from levit_export.render import html

    found = [locate(path) for path in dict.fromkeys(paths)]
    alone = found[0] if len(found) == 1 else None
    if alone is not None and alone.manifest is not None:
        saved = read_report(alone.folder / bundle.REPORT)
        return html.page(saved, drift=drawn, pixels=_pixels(alone.folder, alone.manifest))
    folder = None if alone is None else alone.folder
    skipped = parity.NOT_ASKED
    reports = [
        checking.describe(row, folder, skipped, None, None)
        for each in found
        for row in checking.rows(each.artifacts, RunOptions())
    ]
    return html.page(build_report(reports, found, verdict=drawn.verdict), drift=drawn)


def _pixels(folder: Path, manifest: Manifest) -> Mapping[str, np.ndarray]:
    """The pictures behind the samples; a page without them says so."""
    try:
        return bundle.read_golden(folder, manifest)[0].pixels
    except DataError:
        return {}
