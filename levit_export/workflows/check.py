"""Check and time what is already on disk: export directories and bare artifacts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from levit_export.checks import claims, execution, parity, reference
from levit_export.checks.claims import Known
from levit_export.checks.execution import BASELINE, Reference, Row
from levit_export.checks.findings import Finding
from levit_export.checks.parity import ParityReport
from levit_export.checks.reference import ModelChoice, Overrides
from levit_export.checks.results import ArtifactReport
from levit_export.checks.timing import TimingPlan, TimingReport
from levit_export.core import machine
from levit_export.core.errors import BundleError, DataError, MissingDependencyError, UsageError
from levit_export.core.packages import TOOLCHAIN, versions
from levit_export.core.progress import Progress, Silent
from levit_export.core.values import (
    CALIBRATED,
    Artifact,
    Embedded,
    RunOptions,
    Session,
    Signature,
    Verdict,
    overall,
)
from levit_export.formats import target
from levit_export.reports.report import Report
from levit_export.storage import export_directory
from levit_export.storage.located import Located, locate

if TYPE_CHECKING:
    from levit_export.checks.drift import DriftMap
    from levit_export.models.checkpoints import Checkpoint
    from levit_export.storage.export_directory import Manifest
    from levit_export.workflows import explain


@dataclass(frozen=True)
class InspectRequest:
    """What ``check`` and ``bench`` may be asked for.

    ``choice`` names the model of bare artifacts; for a directory it replaces the golden outputs by
    a fresh reference. ``data`` are the images that a bare ``int8`` artifact was calibrated on.
    With ``drift`` a failure is followed to the block at fault, where the checkpoint is at hand.
    ``precision`` is what the artifacts are expected to be in, empty where nothing is expected.
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
    precision: str = ""


@dataclass
class _Model:
    """The model that artifacts are held against, loaded and computed once for all of them."""

    request: InspectRequest
    progress: Progress
    _loaded: Checkpoint | None = field(default=None, init=False)
    _made: dict[object, Reference] = field(default_factory=dict, init=False)
    _tensors: dict[object, dict[str, np.ndarray]] = field(default_factory=dict, init=False)

    @property
    def checkpoint(self) -> Checkpoint:
        """What the request names."""
        if self._loaded is None:
            self.progress.stage("computing the reference")
            self._loaded = reference.load(self.request.choice, self.progress)
        return self._loaded

    def reference(self, keep: Mapping[str, tuple[str, ...]]) -> Reference:
        """The answers, and tolerances for the precisions in ``keep`` and their blocks in float."""
        key = tuple(sorted(keep.items()))
        if key not in self._made:
            request = self.request
            data, count = request.data, request.calibration_images
            self._made[key] = reference.make(
                self.checkpoint,
                self.checkpoint.describe(),
                set(keep),
                seed=request.seed,
                overrides=request.overrides,
                calibration=reference.calibration(
                    self.checkpoint, data, count=count, seed=request.seed
                )
                if keep.keys() & set(CALIBRATED)
                else None,
                keep={precision: blocks for precision, blocks in keep.items() if blocks},
            )
        return self._made[key]

    def weights(self, passes: frozenset[str], *, raw: bool) -> dict[str, np.ndarray]:
        """The tensors that the passes make; with ``raw`` those that normalise pixels as well."""
        from levit_export.models.passes import PASSES
        from levit_export.models.preparation import capture, rewrite

        if (passes, raw) not in self._tensors:
            skip = [each.name for each in PASSES if each.name not in passes]
            rewritten = rewrite(self.checkpoint, skip=skip)
            made = capture(rewritten, 1, Embedded(preprocessing=raw))
            self._tensors[passes, raw] = dict(made.weights)
        return self._tensors[passes, raw]


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
    model = _Model(request, progress)
    for each in found:
        reports += _check_one(each, model, folder=each.folder if alone else None)
    return build_report(reports, found)


def bench(request: InspectRequest, progress: Progress | None = None) -> Report:
    """Latency of everything at ``paths``, interleaved in one run.

    Eager PyTorch takes part when ``choice`` names a model. Parity is reported as not run.
    """
    progress = progress or Silent()
    found = [locate(path) for path in dict.fromkeys(request.paths)]
    alone = len(found) == 1
    run = replace(request.run, also_by_default=True)
    rows = [(each, row) for each in found for row in execution.rows(each.artifacts, run)]
    others: dict[str, Session] = {}
    macs = _macs(found)
    if not request.choice.is_default:
        progress.stage("building the model in PyTorch")
        checkpoint = reference.load(request.choice, progress)
        macs = checkpoint.describe().macs
        others[BASELINE] = reference.eager_session(checkpoint, threads=request.run.threads)
    progress.stage("timing")
    timings, baselines = execution.time_rows(
        [row for _, row in rows],
        request.run.threads,
        request.plan,
        macs=macs,
        others=others,
        progress=progress,
    )
    skipped = parity.NOT_ASKED
    reports = [
        execution.describe(row, each.folder if alone else None, skipped, None, timings[row])
        for each, row in rows
    ]
    verdict = overall(timing.verdict for timing in timings.values())
    return build_report(reports, found, verdict=verdict, baselines=baselines)


def _check_one(each: Located, model: _Model, *, folder: Path | None) -> list[ArtifactReport]:
    request, progress = model.request, model.progress
    run = replace(request.run, also_by_default=True)
    rows = execution.rows(each.artifacts, run)
    damage = [] if each.manifest is None else export_directory.damage(each.folder, each.manifest)
    if damage:
        found = Finding("altered-files", {"text": "; ".join(damage[:3])})
        failed = ParityReport("", samples=0, findings=(found,))
        reports = [_altered(row, folder, failed) for row in rows]
        touched = [row for row in rows if _is_touched(row, each, damage)]
        return _explained(reports, rows, each, model, only=touched)
    held = _held_against(each, model)
    expected, reports = held.reference, []
    # Directories of before had no tolerance for what OpenVINO computes in by default.
    rows = tuple(
        row
        for row in rows
        if not row.run.by_default or execution.judged_as(row) in expected.tolerances
    )
    for row in rows:
        progress.stage(f"checking {row.artifact.path.name}")
        suspect = Row(held.suspects.get(row.artifact, row.artifact), row.run)
        judged = execution.check(suspect, expected, held.claims.get(row.artifact, ()))
        shown = row if each.manifest is not None else suspect
        reports.append(execution.describe(shown, folder, *judged, None))
    if each.manifest is not None and (unlisted := _unlisted(each.folder, each.manifest)):
        more = f" and {len(unlisted) - 3} more" if len(unlisted) > 3 else ""
        words = (
            f"nothing vouches for {', '.join(unlisted[:3])}{more}: the manifest does not list it"
        )
        reports = [
            replace(r, parity=r.parity.joined(Finding("unlisted-files", {"text": words})))
            for r in reports
        ]
    return _explained(reports, rows, each, model, expected=expected)


def _unlisted(folder: Path, manifest: Manifest) -> list[str]:
    """Files of an export directory that neither its manifest nor that of a bundle lists."""
    from levit_export.storage.device_bundle import description

    listed = {*manifest.files}
    with suppress(OSError, BundleError):
        found = description.decode((folder / description.DESCRIPTION).read_bytes())
        listed |= {*found.files, *description.UNLISTED}
    return sorted(
        name
        for name in set(export_directory.list_files(folder)) - listed
        if Path(name).name != export_directory.IGNORED
    )


def _is_touched(row: Row, each: Located, damage: Sequence[str]) -> bool:
    """Whether files of the artifact are among what was altered."""
    place = row.artifact.path.relative_to(each.folder).parts[0]
    return any(words.startswith(f"{place}/") for words in damage)


def _explained(
    reports: Sequence[ArtifactReport],
    rows: Sequence[Row],
    each: Located,
    model: _Model,
    *,
    only: Sequence[Row] | None = None,
    expected: Reference | None = None,
) -> list[ArtifactReport]:
    """The reports; those of ``only``, where they failed, with the block at fault."""
    from levit_export.workflows import explain

    if not model.request.drift:
        return list(reports)
    wanted = [at for at, row in enumerate(rows) if only is None or row in only]
    found, _ = explain.explained(
        [reports[at] for at in wanted],
        [rows[at] for at in wanted],
        lambda: _subject(each, model, expected),
        model.progress,
    )
    explained = dict(zip(wanted, found, strict=True))
    return [explained.get(at, report) for at, report in enumerate(reports)]


def _subject(each: Located, model: _Model, expected: Reference | None) -> explain.Subject:
    """What the artifacts were made of. Raises ``UsageError`` where that is not at hand."""
    from levit_export.checks.drift import provenance
    from levit_export.workflows import explain

    request, progress = model.request, model.progress
    checkpoint = reference.load(provenance.choice_of(request.choice, [each]), progress)
    provenance.refuse_another([each], checkpoint)
    precisions = {artifact.precision for artifact in each.artifacts}
    calibration = reference.calibration(
        checkpoint, request.data, count=request.calibration_images, seed=request.seed
    )
    return explain.Subject(
        checkpoint,
        expected or _held_against(each, model).reference,
        skip=provenance.skipped([each]),
        is_ours=provenance.are_ours([each]),
        calibration=calibration if precisions & set(CALIBRATED) else None,
    )


def _altered(row: Row, folder: Path | None, failed: ParityReport) -> ArtifactReport:
    """The failure of an artifact whose directory was altered; the artifact itself may be gone."""
    artifact = row.artifact
    if artifact.path.exists():
        return execution.describe(row, folder, failed, None, None)
    path = execution.shown_path(artifact, folder)
    return ArtifactReport(artifact.format, artifact.precision, path, 0, "", failed)


@dataclass(frozen=True)
class _Held:
    """What artifacts are held against, and what is wrong with what they say.

    ``suspects`` are artifacts as their files have them, where that is not as it was said.
    """

    reference: Reference
    claims: Mapping[Artifact, tuple[str, ...]] = field(default_factory=dict)
    suspects: Mapping[Artifact, Artifact] = field(default_factory=dict)


def _held_against(each: Located, model: _Model) -> _Held:
    """Golden vectors where there are any and no model was named, else a fresh reference."""
    manifest, request = each.manifest, model.request
    read = _read(each)
    said = None if manifest is None else _said(manifest)
    disputed: list[str] = []
    if manifest is not None:
        known = _said(manifest)
    kept: dict[Artifact, float] = {}
    suspects: dict[Artifact, Artifact] = {}
    if manifest is not None and request.choice.is_default:
        _refuse_idle(request.choice, each.folder)
        expected = _golden(each.folder, manifest, request)
        kept = {artifact: 1.0 for artifact in each.artifacts if artifact.keep}
    else:
        from levit_export.models.architectures.blocks import block_names  # which needs torch

        checkpoint = model.checkpoint
        known = _of_checkpoint(checkpoint, request.choice, said)
        if said is not None:
            disputed += claims.differing(said, known)
        tensors = _weights(model, each, read)
        blocks = block_names(checkpoint.config)
        kept = {a: claims.kept_share(a, tensors, blocks) for a in each.artifacts if a.keep}
        if manifest is None:
            suspects = {a: claims.but_for(a, share) for a, share in kept.items()}
        held = [suspects.get(artifact, artifact) for artifact in each.artifacts]
        expected = _fresh(model, held, read, tensors, blocks)
    found: dict[Artifact, tuple[str, ...]] = {}
    for artifact in each.artifacts:
        seen = read.get(artifact)
        words = tuple(disputed)
        if seen is not None:
            here = replace(known, signature=_interface(known, seen, artifact))
            here = replace(here, precisions=_expected_precisions(artifact, each, request))
            here = replace(here, keep=None if manifest is None else artifact.keep)
            share = kept.get(artifact, 0.0)
            words += claims.contradictions(seen, here, kept=share)
            if not share and seen.precision in expected.tolerances:
                suspects[artifact] = replace(artifact, precision=seen.precision)
        found[artifact] = words
    return _Held(expected, found, suspects)


def _read(each: Located) -> dict[Artifact, Artifact]:
    """Each artifact as its file has it, but for those that cannot be read here.

    What cannot be read is left to the audit of its weights, which then cannot be made either.
    """
    found = {}
    for artifact in each.artifacts:
        with suppress(MissingDependencyError):
            found[artifact] = target(artifact.format).inspect(artifact.path)
    return found


def _said(manifest: Manifest) -> Known:
    return Known(
        "the manifest",
        manifest.model.labels,
        manifest.model.preprocessing,
        manifest.embedded,
        manifest.signature,
    )


def _of_checkpoint(checkpoint: Checkpoint, choice: ModelChoice, said: Known | None) -> Known:
    """What a checkpoint says of the model; what is beside the network is known from a manifest."""
    numbers = tuple(str(index) for index in range(len(checkpoint.labels)))
    was_assumed = any("names are assumed" in each for each in checkpoint.assumptions)
    return Known(
        "the checkpoint",
        checkpoint.labels,
        checkpoint.preprocessing,
        None if said is None else said.embedded,
        None if said is None else said.signature,
        are_assumed=not choice.labels and (was_assumed or checkpoint.labels == numbers),
    )


def _interface(known: Known, seen: Artifact, artifact: Artifact) -> Signature | None:
    """The signature that a file of ours has; others may call their input as they like."""
    if known.signature is not None or artifact.claims is None:
        return known.signature
    (taken,) = seen.signature.inputs[:1]
    name = "image" if taken.dtype == "uint8" else "input"
    return Signature((replace(taken, name=name),), ())


def _expected_precisions(
    artifact: Artifact, each: Located, request: InspectRequest
) -> dict[str, str]:
    said = {} if each.manifest is None else {"the manifest": artifact.precision}
    return said | ({"--precision": request.precision} if request.precision else {})


def _golden(folder: Path, manifest: Manifest, request: InspectRequest) -> Reference:
    """The reference that travels with a directory."""
    samples, outputs = export_directory.read_golden(folder, manifest)
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


def _fresh(
    model: _Model,
    held: Sequence[Artifact],
    read: Mapping[Artifact, Artifact],
    tensors: Mapping[str, np.ndarray],
    blocks: Mapping[str, str],
) -> Reference:
    """A reference of the checkpoint with the weights that the artifacts must hold.

    There is a tolerance for what each artifact is said to be, and for what its graph is.
    """
    from levit_export.models.preparation import fingerprint

    measured = [replace(a, precision=read[a].precision) for a in held if a in read]
    keep: dict[str, tuple[str, ...]] = {a.precision: () for a in measured}
    for precision in {a.precision for a in held}:  # the blocks that all of them leave in float
        sets = (frozenset(a.keep) for a in held if a.precision == precision)
        keep[precision] = tuple(sorted(frozenset.intersection(*sets)))
    run = replace(model.request.run, also_by_default=True)
    for row in execution.rows([*held, *measured], run):  # what their runtimes compute in
        keep.setdefault(execution.judged_as(row), ())
    made = model.reference(keep)
    every = dict.fromkeys((*held, *measured))
    digests = {p: d for p, d in fingerprint(tensors).items() if p in made.tolerances}
    expected = replace(made, weights=digests)
    return reference.with_quantised_weights(expected, tensors, every, blocks)


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


def _weights(
    model: _Model, each: Located, read: Mapping[Artifact, Artifact]
) -> dict[str, np.ndarray]:
    """The weights that the artifacts must hold, rewritten by the passes they name.

    Files that name none are taken to be made by all of them, which the audit then confirms or
    finds to be wrong. None for files that name other passes than one another.
    """
    from levit_export.models.passes import LAY_OUT_MAPS, PASSES

    every = frozenset(each.name for each in PASSES)
    # Tensors are found whatever their layout is.
    sets = {
        every if artifact.passes is None else frozenset(artifact.passes) - {LAY_OUT_MAPS.name}
        for artifact in each.artifacts
    }
    if len(sets) != 1:
        return {}
    # Formats that normalise take pixels; a directory's artifacts all take the same.
    first = each.artifacts[0]
    raw = read.get(first, first).signature.inputs[0].dtype == "uint8"
    return model.weights(sets.pop(), raw=raw)


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
    from levit_export.reports import html
    from levit_export.reports.report import read_report

    found = [locate(path) for path in dict.fromkeys(paths)]
    alone = found[0] if len(found) == 1 else None
    if alone is not None and alone.manifest is not None:
        saved = read_report(alone.folder / export_directory.REPORT)
        return html.page(saved, drift=drawn, pixels=_pixels(alone.folder, alone.manifest))
    folder = None if alone is None else alone.folder
    skipped = parity.NOT_ASKED
    reports = [
        execution.describe(row, folder, skipped, None, None)
        for each in found
        for row in execution.rows(each.artifacts, RunOptions())
    ]
    return html.page(build_report(reports, found, verdict=drawn.verdict), drift=drawn)


def _pixels(folder: Path, manifest: Manifest) -> Mapping[str, np.ndarray]:
    """The pictures behind the samples; a page without them says so."""
    try:
        return export_directory.read_golden(folder, manifest)[0].pixels
    except DataError:
        return {}
