"""``drift`` as a function: from paths, or from a failed check, to a map and a sentence."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from levit_export import bundle, checking, reference, samples
from levit_export.core import Artifact, Calibration, RunOptions
from levit_export.drift import chain, mapping, verdict
from levit_export.drift.values import DriftMap
from levit_export.drift.yardstick import samples_of, spread
from levit_export.errors import MissingDependencyError, UsageError
from levit_export.passes import PASSES
from levit_export.progress import Progress, Silent
from levit_export.reference import ModelChoice, _held_out
from levit_export.targets.availability import needs
from levit_export.targets.eager import _cpu_threads

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from levit_export.checking import Reference
    from levit_export.checkpoints import Checkpoint
    from levit_export.core import ModelInfo
    from levit_export.inspection import Located
    from levit_export.samples import Samples

SAMPLES = 6
EXPLAINED_BY = 3
"""Samples that a failed check is explained by: the worst ones come first."""


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
    from levit_export.inspection import locate

    progress = progress or Silent()
    if not (torch := needs("torch")).ok:
        raise MissingDependencyError(f"drift runs PyTorch: {torch.reason}", remedy=torch.fix)
    found = [locate(path) for path in dict.fromkeys(request.paths)]
    _refuse_raw(found)
    progress.stage("reading the checkpoint")
    checkpoint = reference.load(_choice(request, found), progress)
    _refuse_another(found, checkpoint)
    notes = _damage(found)
    rows = checking.rows([a for each in found for a in each.artifacts], request.run)
    runnable = [row for row in rows if _can_run(row.artifact)]
    notes += [
        f"{row.artifact.id} cannot be run here and was left out"
        for row in rows
        if row not in runnable
    ]
    inputs = _samples(request, found, checkpoint)
    model = chain.Model(checkpoint, inputs, skip=_skipped(found))
    progress.stage("computing the reference")
    pairs = [(row.artifact, row.run) for row in runnable]
    with _cpu_threads(request.run.threads):
        bench = mapping.Bench(model, _calibration(request, checkpoint))
        drawn = mapping.draw(bench, chain.prepared(model).program, pairs, progress.stage)
    return replace(drawn, notes=tuple(notes))


def explain(
    artifact: Artifact,
    checkpoint: Checkpoint,
    expected: Reference,
    run: RunOptions,
    *,
    program: ExportedProgram | None = None,
    calibration: Calibration | None = None,
) -> str:
    """One sentence on why ``artifact`` failed its check: block, stage, and what to do.

    ``expected`` is what it was held against. With the captured ``program`` at hand nothing is
    captured again.
    """
    chosen = list(spread(len(expected.samples), EXPLAINED_BY))
    skip = () if artifact.passes is None else _left_out(artifact.passes)
    model = chain.Model(checkpoint, samples_of(expected.samples, chosen), skip=skip)
    bench = mapping.Bench(model, calibration)
    stages = list(bench.stages(program or chain.prepared(model).program))
    before = verdict.of_chain(stages)
    stage = bench.artifact(artifact, run)
    finding = bench.judge(artifact, stage, before)
    return (verdict.accumulated(stage) if finding.clean else finding).sentence


def _refuse_raw(found: Sequence[Located]) -> None:
    for artifact in (artifact for each in found for artifact in each.artifacts):
        if artifact.signature.inputs[0].dtype == "uint8":
            raise UsageError(
                f"{artifact.path} normalises by itself; drift compares values behind that",
                remedy="Export without --embed-preprocessing, and look at that.",
            )


def _can_run(artifact: Artifact) -> bool:
    from levit_export.targets import target

    return target(artifact.format).can_run().ok


def _choice(request: DriftRequest, found: Sequence[Located]) -> ModelChoice:
    """The choice that was made, else what the directory says of its weights."""
    if not request.choice.is_default:
        return request.choice
    for each in found:
        if each.manifest is None:
            raise UsageError(
                f"{each.artifacts[0].path} does not say which checkpoint it is an export of",
                remedy="Add --checkpoint FILE (or --model levit_digits for the bundled model).",
            )
    manifest = found[0].manifest
    return request.choice if manifest is None else _said(manifest.model)


def _said(info: ModelInfo) -> ModelChoice:
    seeded = re.fullmatch(r"random weights, seed (\d+)", info.checkpoint)
    if seeded:
        return ModelChoice(
            info.name, random_seed=int(seeded[1]), image_size=int(info.config["image_size"])
        )
    return ModelChoice()


def _refuse_another(found: Sequence[Located], checkpoint: Checkpoint) -> None:
    for each in found:
        made_of = "" if each.manifest is None else each.manifest.model.checkpoint_sha256
        if made_of and made_of != checkpoint.sha256:
            raise UsageError(
                f"{each.folder} was made of a checkpoint with SHA-256 {made_of[:12]}…, "
                f"{checkpoint.source} has {checkpoint.sha256[:12]}…",
                remedy="Give the one that was exported with --checkpoint.",
            )


def _damage(found: Sequence[Located]) -> list[str]:
    """What was altered since an export; the files are looked at all the same, as they are."""
    return [
        f"{each.folder} was altered after it was written: {damage}"
        for each in found
        if each.manifest is not None
        for damage in bundle.damage(each.folder, each.manifest)[:3]
    ]


def _skipped(found: Sequence[Located]) -> tuple[str, ...]:
    applied = set()
    for each in found:
        if each.manifest is not None:
            done = (record for record in each.manifest.passes if record.status == "skipped")
            applied.add(tuple(record.name for record in done))
        else:
            applied |= {_left_out(a.passes) for a in each.artifacts if a.passes is not None}
    if len(applied) > 1:
        raise UsageError(
            "the artifacts were made with different passes", remedy="Look at them one by one."
        )
    return applied.pop() if applied else ()


def _left_out(passes: Sequence[str]) -> tuple[str, ...]:
    """The passes that a file does not name; one with nothing to do changes nothing either way."""
    return tuple(each.name for each in PASSES if each.name not in passes)


def _samples(request: DriftRequest, found: Sequence[Located], checkpoint: Checkpoint) -> Samples:
    """Golden inputs of a directory, else what a check would be made on; a few of them."""
    manifest = found[0].manifest
    if manifest is not None:
        inputs, _ = bundle.read_golden(found[0].folder, manifest)
    else:
        inputs = samples.make(checkpoint.preprocessing, seed=request.seed)
        if (images := _held_out(checkpoint)) is not None:
            inputs = inputs.joined(images.first(reference.SHOWN_REAL))
    return samples_of(inputs, list(spread(len(inputs), request.samples)))


def _calibration(request: DriftRequest, checkpoint: Checkpoint) -> Calibration | None:
    return reference.calibration(
        checkpoint, request.data, count=request.calibration_images, seed=request.seed
    )
