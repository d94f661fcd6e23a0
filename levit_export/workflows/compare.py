"""Hold any artifacts against another file of the same network, whatever the network is.

A reference is an ``.onnx``, an OpenVINO ``.xml``, an ``.mlpackage``, or a program that PyTorch
wrote (``.pt2`` of ``torch.export``, ``.pt`` of TorchScript). Nothing is known of the network but
what the files say, so only answers are compared:

- Every file is given the same numbers. They are drawn, or read, in the coarsest type that any of
  the files takes, so that each conversion is exact; what cannot be converted exactly is refused.
- The tolerance follows from the arithmetic. With ``exact`` the reference in float64, ``rounded``
  its answers in its own precision of unit roundoff ``u_r``, and ``u`` that of the coarser of
  reference and candidate, ``tolerance.derive`` is given ``exact + (rounded - exact) * u / u_r``.
  Rounding errors are proportional to the unit roundoff (Higham 2002, "Accuracy and Stability of
  Numerical Algorithms", section 3.1), so that is how far a sound candidate lies. Grids of
  quantisers are not roundoff: for them, and where there is no float64 run, nothing is derived.
- Where a candidate fails, the values that both files know by one name are compared on the sample
  that is farthest off. The first is named that differs and whose error is not lost again in what
  is made of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from levit_export.checks import execution, parity, tolerance
from levit_export.checks.drift import by_name
from levit_export.checks.execution import Row
from levit_export.checks.findings import Finding
from levit_export.checks.parity import ParityReport
from levit_export.checks.reference import Overrides
from levit_export.checks.results import ArtifactReport, Explanation
from levit_export.core.errors import (
    LevitExportError,
    MissingDependencyError,
    NotRunError,
    RuntimeFailedError,
    UsageError,
)
from levit_export.core.packages import needs
from levit_export.core.precisions import UNIT_ROUNDOFF
from levit_export.core.progress import Progress, Silent
from levit_export.core.values import (
    RunOptions,
    Session,
    Signature,
    Tensors,
    TensorSpec,
    Tolerance,
    Tolerances,
)
from levit_export.formats import target
from levit_export.inputs import shared
from levit_export.inputs.samples import Samples
from levit_export.reports.report import Report, Vouching
from levit_export.storage.located import locate
from levit_export.workflows.check import build_report

SAMPLES = 8
UNLIMITED = Tolerance(0.0, (math.inf,), "given")
"""Stands where no tolerance is known: it measures, and refuses nothing."""

DIFFERENCES = ("too-far", "decided-flips", "not-finite")
"""Kinds of findings that say that answers differ, so that there is a first difference."""

Arithmetic = Literal["own", "fp64"]


@dataclass(frozen=True)
class CompareRequest:
    """What ``compare`` may be asked for.

    ``inputs`` is an ``.npz`` with an array ``(n, ...)`` for each input of the reference, ``data``
    are images for a network of one image; without both, ``samples`` are drawn by ``seed``.
    ``run`` is how candidates are executed; the reference always runs on the processor.
    """

    reference: Path
    candidates: tuple[Path, ...]
    inputs: Path | None = None
    data: Path | None = None
    samples: int = SAMPLES
    seed: int = 0
    run: RunOptions = field(default_factory=RunOptions)
    overrides: Overrides = field(default_factory=Overrides)
    drift: bool = True


@dataclass(frozen=True)
class ReferenceFile:
    """The file that others are held against.

    ``open`` runs it in its own arithmetic or in float64, with inner values beside the outputs.
    ``values`` are the names of inner values in order, each with those that are made of it where
    that is known. ``inexact`` says why there is no run in float64; empty where there is one.
    """

    path: Path
    precision: str
    signature: Signature
    open: Callable[[Arithmetic, Sequence[str]], AbstractContextManager[Session]]
    values: Mapping[str, tuple[str, ...]]
    inexact: str = ""

    @property
    def takers(self) -> dict[str, TensorSpec]:
        """What it takes, by name."""
        return {spec.name: spec for spec in self.signature.inputs}


@dataclass(frozen=True)
class ReferenceAnswers:
    """What the reference answers to the samples, and in float64 where that is known.

    ``arrays`` are the inputs by their names in the reference, ``(n, ...)``; those of ``pixels``
    are uint8 ``(n, 3, H, W)``.
    """

    samples: Samples
    arrays: Tensors
    pixels: frozenset[str]
    outputs: Tensors
    exact: Tensors
    runtime: str
    inexact: str


def compare(request: CompareRequest, progress: Progress | None = None) -> Report:
    """Hold every candidate against the reference, and say where those diverge that fail.

    Raises ``UsageError`` and ``DataError`` for files that do not take the same inputs, and for
    samples that not all of them can be given exactly.
    """
    progress = progress or Silent()
    progress.stage(f"reading {request.reference.name}")
    found = [locate(path) for path in dict.fromkeys(request.candidates)]
    artifacts = [artifact for each in found for artifact in each.artifacts]
    reference = _opened(request, [artifact.signature for artifact in artifacts])
    taken, matched = reference.signature.inputs, []
    for artifact in artifacts:
        pairs = shared.paired(taken, artifact.signature.inputs, artifact.path.name)
        matched.append({ours.name: theirs for ours, theirs in pairs})
    names = [artifact.path.name for artifact in artifacts]
    others = list(zip(names, matched, strict=True))
    specs = shared.resolved(taken, request.reference.name, others)
    samples, arrays, pixels = _samples(request, reference, specs, matched)
    progress.stage(f"running {request.reference.name}")
    expected = _answers(request, reference, samples, arrays, pixels)
    reports = []
    for artifact, takers in zip(artifacts, matched, strict=True):
        for row in execution.rows([artifact], request.run):
            progress.stage(f"comparing {artifact.path.name}")
            reports.append(_judged(request, reference, expected, row, takers))
    vouching = Vouching("reference", f"{request.reference} on {expected.runtime}")
    return replace(build_report(reports, ()), vouching=vouching)


# --- the reference --------------------------------------------------------------------------


def _opened(request: CompareRequest, candidates: Sequence[Signature]) -> ReferenceFile:
    """The reference, ready to be run; TorchScript has its shapes from the candidates."""
    path = request.reference
    if path.suffix in (".pt", ".pt2"):
        return _torch_reference(request, candidates)
    located = locate(path)
    if len(located.artifacts) != 1:
        raise UsageError(
            f"{path} holds {len(located.artifacts)} artifacts, and one is the reference",
            remedy="Give the file of one of them.",
        )
    (artifact,) = located.artifacts
    kind, run = target(artifact.format), RunOptions(threads=request.run.threads)
    if not (available := kind.can_run()).ok:
        raise MissingDependencyError(
            f"{path.name} cannot be run: {available.reason}", remedy=available.fix
        )
    values: Mapping[str, tuple[str, ...]] = {}
    inexact = (
        f"{path.name} cannot be run in float64 (an .onnx, .pt2 or .pt file as the reference can)"
    )
    if artifact.format == "onnx":
        from levit_export.formats.onnx import exact

        values = exact.consumers(path)
        inexact = (
            ""
            if artifact.precision in UNIT_ROUNDOFF
            else (
                f"the reference is {artifact.precision}, whose error is not that of an arithmetic"
            )
        )
    else:
        values = dict.fromkeys(kind.values(artifact), ())

    def opened(arithmetic: Arithmetic, taps: Sequence[str]) -> AbstractContextManager[Session]:
        if arithmetic == "fp64":
            from levit_export.formats.onnx.exact import ExactSession

            return nullcontext(ExactSession(artifact, taps))
        return kind.open(artifact, run, taps)

    return ReferenceFile(
        path,
        artifact.precision,
        artifact.signature,
        opened,
        values,
        inexact,
    )


def _torch_reference(request: CompareRequest, candidates: Sequence[Signature]) -> ReferenceFile:
    if not (torch := needs("torch")).ok:
        raise MissingDependencyError(
            f"{request.reference.name} needs PyTorch: {torch.reason}", remedy=torch.fix
        )
    from levit_export.formats.pytorch import TorchFile, TorchFileSession

    file = TorchFile(request.reference)
    signature = Signature(file.inputs, file.outputs)

    def opened(arithmetic: Arithmetic, taps: Sequence[str]) -> AbstractContextManager[Session]:
        kind: Literal["fp64", "fp32"] = "fp64" if arithmetic == "fp64" else "fp32"
        threads = request.run.threads
        return nullcontext(TorchFileSession(file, signature, kind, threads=threads, taps=taps))

    if any(not spec.shape for spec in file.inputs):
        first = candidates[0].inputs
        batch = next((each.batch for each in candidates if each.batch is not None), None)
        signature = Signature(
            tuple(
                _as_tensor(replace(theirs, name=ours.name), batch)
                for ours, theirs in shared.paired(file.inputs, first, "the first candidate")
            ),
            file.outputs,
        )
    return ReferenceFile(request.reference, "fp32", signature, opened, file.values)


def _as_tensor(spec: TensorSpec, batch: int | None) -> TensorSpec:
    """What a program of PyTorch takes in place of a candidate's input."""
    dtype = spec.dtype if spec.dtype.startswith("int") else "float32"
    return TensorSpec(spec.name, (batch, *shared.planes(spec).shape[1:]), dtype)


def _samples(
    request: CompareRequest,
    reference: ReferenceFile,
    specs: Mapping[str, TensorSpec],
    matched: Sequence[Mapping[str, TensorSpec]],
) -> tuple[Samples, dict[str, np.ndarray], frozenset[str]]:
    """Names of the samples, the arrays, and which inputs are pixels."""
    takers = {
        spec.name: [spec, *(names[spec.name] for names in matched)]
        for spec in reference.signature.inputs
    }
    pixels = {
        name for name, sides in takers.items() if any(side.dtype == "uint8" for side in sides)
    }
    if request.inputs is not None:
        names, arrays = shared.read_arrays(request.inputs, specs, pixels)
    elif request.data is not None:
        names, arrays = shared.read_images(request.data, specs, pixels, count=request.samples)
    else:
        names, arrays = shared.drawn(specs, pixels, count=request.samples, seed=request.seed)
    for name, array in arrays.items():
        coarsest = min(
            (spec.dtype for spec in takers[name] if spec.dtype in shared.FLOATS),
            key=shared.FLOATS.index,
            default=None,
        )
        # What this program draws or normalises is rounded; what a user gives must be exact.
        if coarsest is not None and array.dtype.kind == "f" and request.inputs is None:
            arrays[name] = array.astype(coarsest)
    count = len(names)
    return Samples(names, np.arange(count), np.full(count, -1), {}), arrays, frozenset(pixels)


def _collected(
    session: Session, samples: Samples, inputs: Tensors, batch: int | None
) -> dict[str, np.ndarray]:
    """What a session answers to all samples; one of any batch is given that of the reference.

    A converter may declare a batch open that the captured program had fixed.
    """
    sizes = {spec.shape[0] for spec in session.signature.inputs}
    if len(sizes) != 1:
        raise UsageError(
            "the inputs of this file have different batch sizes: "
            f"{', '.join(sorted(map(str, sizes)))}",
            remedy="Export the network with the batch as the first axis of every input.",
        )
    pieces = samples.batches(session.signature.batch or batch)
    return parity.gather(
        session,
        (({name: array[index] for name, array in inputs.items()}, n) for index, n in pieces),
    )


def _answers(
    request: CompareRequest,
    reference: ReferenceFile,
    samples: Samples,
    arrays: Tensors,
    pixels: frozenset[str],
) -> ReferenceAnswers:
    """What the reference answers; in float64 as well, unless a tolerance was given."""
    inputs = shared.converted(arrays, reference.takers, reference.path.name)
    with reference.open("own", ()) as session:
        outputs, runtime = (
            _collected(session, samples, inputs, reference.signature.batch),
            session.runtime,
        )
    exact: Tensors = {}
    inexact = reference.inexact
    if not inexact and not _is_given(request.overrides):
        try:
            with reference.open("fp64", ()) as session:
                exact = _collected(session, samples, inputs, reference.signature.batch)
        except LevitExportError as error:
            inexact = error.what
    return ReferenceAnswers(samples, arrays, pixels, outputs, exact, runtime, inexact)


def _is_given(overrides: Overrides) -> bool:
    return overrides.atol is not None or overrides.rtol is not None


# --- the verdict ----------------------------------------------------------------------------


def _judged(
    request: CompareRequest,
    reference: ReferenceFile,
    expected: ReferenceAnswers,
    row: Row,
    takers: Mapping[str, TensorSpec],
) -> ArtifactReport:
    """The report on one candidate, as one runtime executes it."""
    kind, artifact, batch = target(row.artifact.format), row.artifact, reference.signature.batch
    available = kind.can_run()
    if not available.ok:
        not_run = parity.not_run(f"{available.reason}: {available.fix}")
        return execution.describe(row, None, not_run)
    inputs = shared.converted(expected.arrays, takers, artifact.path.name)
    with ExitStack() as stack:
        try:
            session = stack.enter_context(kind.open(artifact, row.run))
        except NotRunError as error:
            return execution.describe(row, None, parity.not_run(str(error)))
        try:
            outputs = _collected(session, expected.samples, inputs, batch)
        except RuntimeFailedError as error:
            failed = parity.run_failed(error, session.runtime, expected.samples)
            return execution.describe(row, None, failed)
        runtime = session.runtime
    precision, unknown = execution.judged_as(row), ""
    exact = expected.exact
    if not _is_given(request.overrides):
        unknown = expected.inexact
        if not unknown and precision not in UNIT_ROUNDOFF:
            unknown, exact = f"the candidate is {precision}, whose error is that of a grid", {}
    precisions = (reference.precision, precision)
    tolerances = _tolerances(request.overrides, precisions, expected.outputs, exact)
    named, notes = _named_as(expected.outputs, outputs, expected.pixels)
    found = _compared(expected, named, tolerances, runtime, unknown)
    report = execution.describe(row, None, found)
    report = replace(report, notes=(*notes, *report.notes))
    differs = any(each.kind in DIFFERENCES for each in found.findings)
    if differs and request.drift and not unknown:
        report = replace(
            report,
            drift=_located(
                request.overrides, reference, expected, row, inputs=inputs, report=found
            ),
        )
    return report


def _named_as(
    ours: Tensors, theirs: Tensors, pixels: frozenset[str]
) -> tuple[dict[str, np.ndarray], list[str]]:
    """The candidate's outputs under the reference's names, and what has to be said of it.

    Those of the same name belong together; the others by position, where their shapes agree.
    """
    named = {name: theirs[name] for name in ours if name in theirs}
    rest = [name for name in ours if name not in theirs]
    others = [name for name in theirs if name not in ours]
    notes, unmatched = [], others[len(rest) :]
    for name, other in zip(rest, others, strict=False):
        if ours[name].shape == theirs[other].shape:
            named[name] = theirs[other]
            notes.append(f"its output {other!r} is held against {name!r}, by position")
        else:
            unmatched.append(other)
    if unmatched:
        notes.append(f"gives {', '.join(unmatched)} as well, which nothing is held against")
    if pixels:
        notes.append(
            f"{', '.join(sorted(pixels))}: every file was given the pixels 0 to 255; a file that "
            "takes numbers has to normalise them itself, as a file that takes an image does"
        )
    return named, notes


def _tolerances(
    overrides: Overrides, precisions: tuple[str, str], outputs: Tensors, exact: Tensors
) -> Tolerances:
    """What answers in the second of ``precisions`` may differ by from ``outputs`` in the first.

    They are unlimited where neither ``exact`` nor a tolerance of the user's is there.
    """
    if _is_given(overrides) or not exact:
        return overrides.apply(dict.fromkeys(outputs, UNLIMITED))
    own = UNIT_ROUNDOFF[precisions[0]]
    coarser = max(precisions, key=lambda each: UNIT_ROUNDOFF[each])
    derived = {}
    for name, rounded in outputs.items():
        truth = exact[name].astype(np.float64)
        with np.errstate(invalid="ignore", over="ignore"):
            grown = truth + (rounded - truth) * (UNIT_ROUNDOFF[coarser] / own)
        derived[name] = tolerance.derive(grown, truth, precision=coarser)
    return derived


def _compared(
    expected: ReferenceAnswers, named: Tensors, tolerances: Tolerances, runtime: str, unknown: str
) -> ParityReport:
    """The comparison; where no tolerance is known, its figures and what follows without one."""
    specs = []
    ours, theirs = dict(expected.outputs), dict(named)
    for name, array in expected.outputs.items():
        specs.append(TensorSpec(name, array.shape, str(array.dtype)))
        if array.dtype.kind in "iub":  # whole numbers, such as a class, are compared as numbers
            ours[name] = array.astype(np.float64)
            if name in theirs:
                theirs[name] = theirs[name].astype(np.float64)
    report = parity.compare_outputs(
        ours,
        theirs,
        expected.samples,
        tolerances,
        expected=Signature((), tuple(specs)),
        runtime=runtime,
    )
    if not unknown:
        return report
    kept = [each for each in report.findings if each.kind not in parity.BY_TOLERANCE]
    outputs = []
    for output in report.outputs:
        if not output.errors:
            outputs.append(output)
            continue
        errors, scales = np.array(output.errors), np.array(output.scales)
        shares = errors / np.maximum(scales, np.finfo(np.float64).tiny)
        worst = int(shares.argmax())
        outputs.append(replace(output, max_abs=float(errors.max()), max_rel=float(shares.max())))
        values: dict[str, float | str] = {
            "error": float(errors.max()),
            "relative": float(shares.max()),
            "sample": output.rows[worst],
            "text": unknown,
        }
        kept.append(Finding("no-tolerance", values, output.name))
    return replace(report, outputs=tuple(outputs), findings=tuple(kept))


# --- where it diverges ----------------------------------------------------------------------


def _located(
    overrides: Overrides,
    reference: ReferenceFile,
    expected: ReferenceAnswers,
    row: Row,
    *,
    inputs: Tensors,
    report: ParityReport,
) -> Explanation:
    """The first value that both name and that differs, on the sample that is farthest off."""
    kind, stage = target(row.artifact.format), row.artifact.id
    batch = reference.signature.batch
    shown = {spec.name for spec in row.artifact.signature.outputs}
    theirs = by_name.by_key(kind.values(row.artifact))
    inner: dict[str, str] = {}
    for key, name in by_name.by_key(reference.values).items():
        other = theirs.get(key, "")
        is_new = name not in inner and other not in inner.values()
        if other and is_new and name not in expected.outputs and other not in shown:
            inner[name] = other
    if not inner:
        return Explanation(
            f"{reference.path.name} and {row.artifact.path.name} have no inner values of one "
            "name, so no place can be named",
            stage=stage,
        )
    at = _farthest(report, expected.samples)
    own = shared.converted(expected.arrays, reference.takers, reference.path.name)
    try:
        with reference.open("own", tuple(inner)) as session:
            right = _once(session, own, at, batch)
        exact: Tensors = {}
        if expected.exact:
            with reference.open("fp64", tuple(inner)) as session:
                exact = _once(session, own, at, batch)
        with kind.open(row.artifact, row.run, tuple(inner.values())) as session:
            seen = _once(session, inputs, at, batch)
    except LevitExportError as error:
        return Explanation(f"the inner values cannot be looked at: {error.what}", stage=stage)
    common = {
        name: seen[other].reshape(right[name].shape)
        for name, other in inner.items()
        if by_name.is_comparable(right[name], seen[other])
    }
    right = {name: right[name] for name in common}
    precisions = (reference.precision, execution.judged_as(row))
    allowed = _tolerances(overrides, precisions, right, exact)
    shares = {name: by_name.share(right[name], common[name], allowed[name]) for name in common}
    return by_name.first_difference(reference.values, shares, expected.samples.names[at], stage)


def _once(session: Session, inputs: Tensors, at: int, batch: int | None) -> dict[str, np.ndarray]:
    """All values of one sample, ``(1, ...)``; those without a row for each input as they are."""
    size = session.signature.batch or batch or 1
    found = session.run({name: array[[at] * size] for name, array in inputs.items()})
    return {
        name: value[:1] if np.ndim(value) and len(value) == size else value
        for name, value in found.items()
    }


def _farthest(report: ParityReport, samples: Samples) -> int:
    """The sample that used most of its tolerance, or the first that is not finite."""
    for found in report.findings:
        if found.kind == "not-finite":
            return samples.names.index(str(found.values["sample"]))
    worst = max(report.outputs, key=lambda output: output.worst_ratio, default=None)
    known = worst is not None and worst.worst_sample in samples.names
    return samples.names.index(worst.worst_sample) if worst is not None and known else 0
