"""Check and time what is already on disk: export directories and bare artifacts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from levit_export.checks import execution, other_versions, parity, reference
from levit_export.checks.agreement import Witness, witnessed
from levit_export.checks.execution import Row
from levit_export.checks.findings import Finding
from levit_export.checks.other_versions import Environments
from levit_export.checks.parity import ParityReport
from levit_export.checks.reference import Overrides, Reference
from levit_export.checks.results import ArtifactReport
from levit_export.checks.timing import EAGER, Rules, TimingPlan, TimingReport
from levit_export.core import files, hashing, machine
from levit_export.core.errors import BundleError, DataError, NotRunError, UsageError
from levit_export.core.packages import TOOLCHAIN, versions
from levit_export.core.precisions import CALIBRATED
from levit_export.core.progress import Progress, Silent
from levit_export.core.values import (
    RunOptions,
    Session,
    Verdict,
    overall,
)
from levit_export.formats.environments import Version
from levit_export.models import loading
from levit_export.models.loading import ModelChoice
from levit_export.reports.report import Report
from levit_export.storage import export_directory
from levit_export.storage.located import Located, locate
from levit_export.workflows.expectations import (
    CheckedModel,
    Expectations,
    expectations_of,
    golden,
)

if TYPE_CHECKING:
    from levit_export.storage.device_bundle.results import Results
    from levit_export.storage.export_directory import Manifest
    from levit_export.workflows import explain


@dataclass(frozen=True)
class CheckRequest:
    """What ``check`` and ``bench`` may be asked for.

    ``choice`` names the model of bare artifacts; for a directory it replaces the golden outputs by
    a fresh reference. ``data`` are the images that ``int8`` artifacts of it were calibrated on.
    With ``drift`` a failure is followed to the block at fault, where the checkpoint is at hand.
    ``precision`` is what the artifacts are expected to be in, empty where nothing is expected.
    ``results`` are files that verifiers of a bundle wrote on devices. ``min_ane`` are the percent
    of the work that Core ML has to place on the Neural Engine, for compute units that have it.
    ``against`` are other versions of runtimes that have to give the right answers as well.
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
    results: tuple[Path, ...] = ()
    min_ane: float | None = None
    against: tuple[Version, ...] = ()


def check(request: CheckRequest, progress: Progress | None = None) -> Report:
    """Parity of everything at ``paths``.

    An export directory needs no torch: it is held against its own golden vectors, after every file
    was held against the manifest. A bare artifact needs ``choice``. Results of devices are held
    against the golden vectors of the bundle that they name, whatever ``choice`` is, since those
    are what the devices ran.
    """
    progress = progress or Silent()
    found = [locate(path) for path in dict.fromkeys(request.paths)]
    alone = len(found) == 1
    reported = _results_by_bundle(request.results, found)
    for each in found:
        if each.manifest is None and request.choice.is_default:
            raise UsageError(
                f"{each.artifacts[0].path} carries no golden vectors to be checked against",
                remedy="Add --checkpoint FILE (or --model levit_digits for the bundled model).",
            )
    if request.min_ane is not None:
        _refuse_without_ane(found, request.run)
    _refuse_idle_versions(found, request)
    ways = sum(
        len(execution.rows(each.artifacts, request.run, also_by_default=True)) for each in found
    )
    formats = [artifact.format for each in found for artifact in each.artifacts]
    ways += sum(formats.count(version.format) for version in request.against)
    progress.plan(ways + (not request.choice.is_default))
    where = other_versions.install(request.against, progress)
    witnesses: list[Witness] = []
    model = CheckedModel(request, progress)
    for each in found:
        witnesses += _check_one(each, model, where, folder=each.folder if alone else None)
    reports = witnessed(witnesses)
    for each, results in reported:
        reports += _judge_results(results, each, request)
    return build_report(reports, found)


def _refuse_without_ane(found: Sequence[Located], run: RunOptions) -> None:
    """Raise where a share of the Neural Engine is asked for and nothing checked may use it."""
    from levit_export.formats.coreml import target as coreml

    if not any(artifact.format == "coreml" for each in found for artifact in each.artifacts):
        raise UsageError(
            "--min-ane is about Core ML, and none of what is checked is a Core ML package",
            remedy="Leave it out, or give a package.",
        )
    if coreml.on_macos() and not set(run.compute_units) & set(coreml.UNITS_WITH_ANE):
        raise UsageError(
            f"--min-ane with the compute units {', '.join(run.compute_units)}, which leave the "
            "Neural Engine out",
            remedy=f"Add --compute-units {' or '.join(coreml.UNITS_WITH_ANE)}.",
        )


def _refuse_idle_versions(found: Sequence[Located], request: CheckRequest) -> None:
    """Raise for versions of a runtime that would execute nothing, or not as was asked."""
    formats = {artifact.format for each in found for artifact in each.artifacts}
    for version in request.against:
        if version.format not in formats:
            raise UsageError(
                f"--against {version.package} is about {version.format}, and none of what is "
                "checked is in that format",
                remedy="Leave it out, or give such a file.",
            )
    default = RunOptions()
    if request.against and (request.run.providers, request.run.device.upper()) != (
        default.providers,
        default.device,
    ):
        raise UsageError(
            "--against runs other versions on the CPU only",
            remedy="Leave out --provider and --device, or --against.",
        )


def _results_by_bundle(
    paths: Sequence[Path], found: Sequence[Located]
) -> list[tuple[Located, Results]]:
    """Every results file with the bundle that it is about.

    Raises ``DataError`` where that bundle is not among ``found``, and where two files tell of the
    same device and unit.
    """
    from levit_export.storage.device_bundle import results

    bundles = {
        hashed: each
        for each in found
        if each.manifest is not None and (hashed := results.bundle_hash(each.folder)) is not None
    }
    told: dict[tuple[str, ...], Path] = {}
    matched = []
    for path in dict.fromkeys(paths):
        read = results.read(path)
        if read.bundle not in bundles:
            known = ", ".join(bundles) or "no bundle"
            raise DataError(
                f"{path} is about the bundle {read.bundle}, and what is checked is {known}",
                remedy="Give the bundle (.zip, or its unpacked folder) that was on the device.",
            )
        for row in read.rows:
            place = (read.bundle, row.artifact, read.device, row.unit)
            if (other := told.setdefault(place, path)) != path:
                raise DataError(
                    f"{other} and {path} both tell of {row.artifact} on {read.device}, {row.unit}",
                    remedy="Give one of them, or write them with different --device names.",
                )
        matched.append((bundles[read.bundle], read))
    return matched


def _judge_results(results: Results, each: Located, request: CheckRequest) -> list[ArtifactReport]:
    """A report on each row that a device reported."""
    from levit_export.checks import device_results
    from levit_export.storage.device_bundle import description

    if each.manifest is None:
        raise ValueError("only bundles are matched with results")
    # The bundle's hash stands for its files only where those are as bundle.json says.
    described = description.decode(files.read_bytes(each.folder / description.DESCRIPTION))
    altered = [
        name
        for name, entry in described.files.items()
        if not (each.folder / name).is_file() or hashing.file_entry(each.folder / name) != entry
    ]
    if altered:
        raise BundleError(
            f"{altered[0]} is not as {description.DESCRIPTION} says, so that nobody knows what "
            f"{results.device} is to be held against",
            remedy="Unpack the bundle again, or give the .zip itself.",
        )
    artifacts = {
        artifact.path.relative_to(each.folder).as_posix(): artifact for artifact in each.artifacts
    }
    return device_results.judge(results, artifacts, golden(each.folder, each.manifest, request))


def bench(request: CheckRequest, progress: Progress | None = None) -> Report:
    """Latency of everything at ``paths``, interleaved in one run.

    Eager PyTorch takes part when ``choice`` names a model. Parity is reported as not run.
    """
    progress = progress or Silent()
    found = [locate(path) for path in dict.fromkeys(request.paths)]
    alone = len(found) == 1
    rows = [
        (each, row)
        for each in found
        for row in execution.rows(each.artifacts, request.run, also_by_default=True)
    ]
    if request.plan.rules is not None:
        _refuse_batches(rows, request.plan.rules)
    others: dict[str, Session] = {}
    # Efficiency is known where all paths hold one model.
    counts = {0 if each.manifest is None else each.manifest.model.macs for each in found}
    macs = counts.pop() if len(counts) == 1 else 0
    progress.plan(1 + (not request.choice.is_default))
    if not request.choice.is_default:
        progress.stage("building the model in PyTorch")
        checkpoint = loading.load(request.choice, progress)
        macs = checkpoint.describe().macs
        others[EAGER] = reference.eager_session(checkpoint, threads=request.run.threads)
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
    reports = []
    for each, row in rows:
        timed, folder = timings[row], each.folder if alone else None
        found_out = execution.describe(row, folder, skipped, None, timed)
        told = () if timed.regimes is None else (timed.regimes.in_words,)
        reports.append(replace(found_out, notes=(*found_out.notes, *told)))
    # A directory may hold what only another system can time; that is said, and is not a fault.
    is_timed = any(timing.verdict == "pass" for timing in timings.values())
    verdict: Verdict = "pass" if is_timed else "not-run"
    return build_report(reports, found, verdict=verdict, baselines=baselines)


def _refuse_batches(rows: Sequence[tuple[Located, Row]], rules: Rules) -> None:
    """Raise for a file whose calls are not of one image, as rules want them."""
    for _, row in rows:
        if (batch := row.artifact.signature.batch) not in (None, 1):
            raise UsageError(
                f"{row.artifact.path} takes {batch} images at a time, and {rules.name} times one",
                remedy="Export it with --batch 1 or --dynamic, or leave out --rules.",
            )


def _check_one(
    each: Located, model: CheckedModel, where: Environments, *, folder: Path | None
) -> list[Witness]:
    """A report on each artifact at one path; a failure names the block at fault, if it may.

    Reports on the runtime versions in ``where`` follow, for unaltered files only; they are not
    compared with Core AI or Core ML.
    """
    rows = execution.rows(each.artifacts, model.request.run, also_by_default=True)
    expectations: Expectations | None = None
    elsewhere: list[ArtifactReport] = []
    damage = [] if each.manifest is None else export_directory.damage(each.folder, each.manifest)
    if damage:
        # Nothing is executed, so the ways to execute a file do not matter.
        rows = tuple({row.artifact: row for row in reversed(rows)}.values())[::-1]
        witnesses = [Witness(_altered(row, folder, damage)) for row in rows]
    else:
        expectations = expectations_of(each, model)
        executed = dict(_executed(each, rows, expectations, model, folder=folder))
        rows, witnesses = tuple(executed), list(executed.values())
        elsewhere = _elsewhere(each, expectations, model, where, folder=folder)
    if model.request.drift:
        expected = None if expectations is None else expectations.reference
        reports = [witness.report for witness in witnesses]
        reports = _explained(reports, rows, each, model, expected=expected, damage=damage)
        witnesses = [replace(w, report=r) for w, r in zip(witnesses, reports, strict=True)]
    return [*witnesses, *map(Witness, elsewhere)]


def _executed(
    each: Located,
    rows: Sequence[Row],
    expectations: Expectations,
    model: CheckedModel,
    *,
    folder: Path | None,
) -> Iterator[tuple[Row, Witness]]:
    """Each row with the report on it and its answers, executed here.

    Rows that nobody asked for, of what a runtime computes in by default, are left out where they
    decide nothing.
    """
    least = model.request.min_ane
    unvouched = [] if each.manifest is None else _unlisted(each.folder, each.manifest)
    for row in rows:
        # Directories of before had no tolerance for what OpenVINO computes in by default.
        tolerances = expectations.reference.tolerances
        if row.run.by_default and execution.judged_as(row) not in tolerances:
            continue
        model.progress.stage(f"checking {row.artifact.path.name}")
        suspect = Row(expectations.suspects.get(row.artifact, row.artifact), row.run)
        said = expectations.claims.get(row.artifact, ())
        checked = execution.check(suspect, expectations.reference, said)
        found = checked.parity
        if row.run.by_default and found.verdict == "inconclusive":
            continue
        if least is not None and row.artifact.format == "coreml":
            found = found.joined(*_on_ane(row, least))
        found = found.joined(*unvouched)
        shown = row if each.manifest is not None else suspect
        report = execution.describe(shown, folder, found, checked.accuracy, None)
        yield row, Witness(report, checked.answers)


def _elsewhere(
    each: Located,
    expectations: Expectations,
    model: CheckedModel,
    where: Environments,
    *,
    folder: Path | None,
) -> list[ArtifactReport]:
    """The reports on the artifacts in other versions of their runtimes."""
    reports: list[ArtifactReport] = []
    for artifact in each.artifacts:
        suspect = expectations.suspects.get(artifact, artifact)
        reports += other_versions.check(
            suspect,
            expectations.reference,
            expectations.claims.get(artifact, ()),
            where,
            shown=artifact if each.manifest is not None else suspect,
            folder=folder,
            threads=model.request.run.threads,
            progress=model.progress,
        )
    return reports


def _on_ane(row: Row, least: float) -> Iterator[Finding]:
    """Whether enough of the work is placed on the Neural Engine, where the row may use it.

    Off macOS nobody knows, and the rows there name no compute unit that was chosen.
    """
    from levit_export.formats.coreml import target as coreml

    (unit,) = row.run.compute_units[:1]
    if coreml.on_macos() and unit not in coreml.UNITS_WITH_ANE:
        return
    try:
        share = 100 * coreml.ane_share(row.artifact.path, unit)
    except NotRunError as error:
        yield Finding("placement-unknown", {"text": str(error)})
        return
    kind = "enough-on-ane" if share >= least else "too-little-on-ane"
    yield Finding(kind, {"share": share, "least": least})


def _altered(row: Row, folder: Path | None, damage: Sequence[str]) -> ArtifactReport:
    """The failure of an artifact whose directory was altered; the artifact itself may be gone."""
    artifact = row.artifact
    found = Finding("altered-files", {"text": "; ".join(damage[:3])})
    failed = ParityReport("", samples=0, findings=(found,))
    if artifact.path.exists():
        return execution.describe(row, folder, failed, None, None)
    path = execution.shown_path(artifact, folder)
    return ArtifactReport(artifact.format, artifact.precision, path, 0, "", failed)


def _unlisted(folder: Path, manifest: Manifest) -> list[Finding]:
    """A finding on files that the manifest does not list and that are none of a bundle's own.

    That ``bundle.json`` lists a file proves nothing: whoever adds one can list it there. A
    bundle's own files have to be as it describes them.
    """
    from levit_export.storage.device_bundle import contents, description

    found = export_directory.list_files(folder)
    known = {*manifest.files}
    with suppress(OSError, BundleError):
        described = description.decode((folder / description.DESCRIPTION).read_bytes()).files
        own = contents.possible_names(manifest)
        known |= {name for name in own if found.get(name) == described.get(name)}
        known |= {*description.UNLISTED}
    ignored = export_directory.IGNORED
    names = [name for name in found if name not in known and Path(name).name != ignored]
    if not names:
        return []
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    them = "it" if len(names) == 1 else "them"
    words = f"nothing vouches for {', '.join(names[:3])}{more}: the manifest does not list {them}"
    return [Finding("unlisted-files", {"text": words})]


def _explained(
    reports: Sequence[ArtifactReport],
    rows: Sequence[Row],
    each: Located,
    model: CheckedModel,
    *,
    expected: Reference | None,
    damage: Sequence[str],
) -> list[ArtifactReport]:
    """The reports, those of failures with the block at fault.

    Of an altered directory only the artifacts are looked into whose own files were touched.
    """
    from levit_export.checks.drift import provenance
    from levit_export.workflows import explain

    def subject() -> explain.Subject:
        """What the artifacts were made of. Raises ``UsageError`` where that is not at hand."""
        request = model.request
        checkpoint = loading.load(provenance.choice_of(request.choice, [each]), model.progress)
        provenance.refuse_another([each], checkpoint)
        precisions = {artifact.precision for artifact in each.artifacts}
        calibration = loading.calibration(
            checkpoint, request.data, count=request.calibration_images, seed=request.seed
        )
        return explain.Subject(
            checkpoint,
            expected or expectations_of(each, model).reference,
            skip=provenance.skipped([each]),
            is_ours=provenance.are_ours([each]),
            calibration=calibration if precisions & set(CALIBRATED) else None,
        )

    def is_touched(row: Row) -> bool:
        place = row.artifact.path.relative_to(each.folder).parts[0]
        return any(words.startswith(f"{place}/") for words in damage)

    wanted = [at for at, row in enumerate(rows) if not damage or is_touched(row)]
    found, _ = explain.explained(
        [reports[at] for at in wanted], [rows[at] for at in wanted], subject, model.progress
    )
    explained = dict(zip(wanted, found, strict=True))
    return [explained.get(at, report) for at, report in enumerate(reports)]


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
