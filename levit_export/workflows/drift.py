"""``drift`` as a function: from paths to a map, and the map in the page for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from levit_export.checks import claims, execution, parity, reference
from levit_export.checks.drift import chain, provenance
from levit_export.checks.drift.tolerances import samples_of, spread
from levit_export.checks.drift.values import DriftMap
from levit_export.core.errors import DataError, MissingDependencyError
from levit_export.core.packages import needs
from levit_export.core.precisions import CALIBRATED
from levit_export.core.progress import Progress, Silent
from levit_export.core.values import Artifact, RunOptions, Tolerances
from levit_export.formats import target
from levit_export.formats.pytorch import cpu_threads
from levit_export.inputs import samples
from levit_export.models import loading
from levit_export.models.loading import ModelChoice, held_out
from levit_export.storage import export_directory
from levit_export.storage.located import locate
from levit_export.workflows.check import build_report

if TYPE_CHECKING:
    from levit_export.inputs.samples import Samples
    from levit_export.models.checkpoints import Checkpoint
    from levit_export.storage.located import Located

SAMPLES = 6


@dataclass(frozen=True)
class DriftRequest:
    """What ``drift`` may be asked for.

    ``choice`` names the checkpoint; an export directory of the bundled model, or of seeded random
    weights, says itself which it is. ``data`` are images that an ``int8`` artifact was calibrated
    on; without them the samples themselves show what range its activations have.
    """

    paths: tuple[Path, ...]
    choice: ModelChoice = field(default_factory=ModelChoice)
    run: RunOptions = field(default_factory=RunOptions)
    samples: int = SAMPLES
    seed: int = 0
    data: Path | None = None
    calibration_images: int = 200


def trace(request: DriftRequest, progress: Progress | None = None) -> DriftMap:
    """The map of everything at ``paths``, which must be of one checkpoint.

    Raises ``UsageError`` when it is not known of which, and when passes differ.
    """
    progress = progress or Silent()
    if not (torch := needs("torch")).ok:
        raise MissingDependencyError(f"drift runs PyTorch: {torch.reason}", remedy=torch.fix)
    found = [locate(path) for path in dict.fromkeys(request.paths)]
    artifacts = [artifact for each in found for artifact in each.artifacts]
    for artifact in artifacts:
        provenance.refuse_embedded(artifact)
    # A format may be executed in several ways, and each has its own stage.
    rows = [(row.artifact, row.run) for row in execution.rows(artifacts, request.run)]
    runnable = [(artifact, run) for artifact, run in rows if _can_run(artifact)]
    progress.plan(3 + len(runnable))
    progress.stage("reading the checkpoint")
    checkpoint = loading.load(provenance.choice_of(request.choice, found), progress)
    provenance.refuse_another(found, checkpoint)
    calibration = loading.calibration(
        checkpoint, request.data, count=request.calibration_images, seed=request.seed
    )
    notes = [
        *provenance.damage(found),
        *(f"{a.id} cannot be run here and was left out" for a, _ in rows if not _can_run(a)),
    ]
    concerned = [artifact.id for artifact in artifacts if artifact.precision in CALIBRATED]
    if concerned and calibration is None:
        notes.append(
            f"{', '.join(concerned)}: the images that settled the ranges were not given (--data); "
            "the tolerances rest on the range of the samples"
        )
    model = replace(
        _model(request, found, checkpoint),
        skip=provenance.skipped(found),
        is_ours=provenance.are_ours(found),
        layouts=provenance.layouts([artifact for artifact, _ in runnable]),
    )
    progress.stage("computing the reference")
    with cpu_threads(chain.THREADS):
        against = chain.DriftReference(model, calibration)
        runnable = [
            (claims.but_for(a, claims.kept_share(a, against.tensors, model.blocks)), run)
            for a, run in runnable
        ]
        drawn = chain.draw(against, runnable, progress)
    return replace(drawn, notes=tuple(notes))


def _can_run(artifact: Artifact) -> bool:
    return target(artifact.format).can_run().ok


def _model(request: DriftRequest, found: Sequence[Located], checkpoint: Checkpoint) -> chain.Model:
    """The checkpoint on a few of a directory's golden inputs, else of what a check is made on."""
    manifest = found[0].manifest
    if manifest is None:
        inputs = samples.make(checkpoint.preprocessing, seed=request.seed)
        if (images := held_out(checkpoint)) is not None:
            inputs = inputs.joined(images.first(reference.SHOWN_REAL))
        return chain.Model(checkpoint, samples_of(inputs, _spread(inputs, request)))
    inputs, outputs = export_directory.read_golden(found[0].folder, manifest)
    chosen = _spread(inputs, request)
    answers = accepted(manifest.golden.tolerances, outputs, chosen)
    return chain.Model(checkpoint, samples_of(inputs, chosen), answers=answers)


def _spread(inputs: Samples, request: DriftRequest) -> list[int]:
    return list(spread(len(inputs), request.samples))


def accepted(
    tolerances: Mapping[str, Tolerances], outputs: Mapping[str, np.ndarray], chosen: list[int]
) -> dict[str, dict[str, np.ndarray]]:
    """For each precision and output what parity accepts of the ``chosen`` rows, relatively."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for precision, of_output in tolerances.items():
        for name, tolerance in of_output.items():
            rows = outputs[name].reshape(len(outputs[name]), -1)
            largest = np.maximum(np.abs(rows).max(axis=1), np.finfo(np.float64).tiny)
            relative = tolerance.allowed(outputs[name]) / largest
            found.setdefault(precision, {})[name] = relative[chosen]
    return found


def page(paths: Sequence[Path], drawn: DriftMap, *, is_beside: bool = True) -> str:
    """A report for people with the map ``drawn`` of what is at ``paths``.

    ``is_beside`` says that it is to lie in the export directory, and may link to its files.
    It is that of an export directory, as it was saved, or one that knows no more than the map.
    Raises ``DataError`` where a directory's ``report.json`` cannot be read.
    """
    from levit_export.reports import html
    from levit_export.reports.report import read_report

    found = [locate(path) for path in dict.fromkeys(paths)]
    alone = found[0] if len(found) == 1 else None
    if alone is not None and alone.manifest is not None:
        saved = read_report(alone.folder / export_directory.REPORT)
        pixels: Mapping[str, np.ndarray] = {}
        with suppress(DataError):  # a page without the pictures behind the samples says so
            pixels = export_directory.read_golden(alone.folder, alone.manifest)[0].pixels
        return html.page(saved, drift=drawn, pixels=pixels, is_beside=is_beside)
    folder = None if alone is None else alone.folder
    skipped = parity.NOT_ASKED
    reports = [
        execution.describe(row, folder, skipped)
        for each in found
        for row in execution.rows(each.artifacts, RunOptions())
    ]
    return html.page(build_report(reports, found, verdict=drawn.verdict), drift=drawn)
