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
  that is farthest off, and the first is named that differs while nothing made of it agrees.
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
from levit_export.core import machine
from levit_export.core.errors import (
    DataError,
    LevitExportError,
    MissingDependencyError,
    NotRunError,
    RuntimeFailedError,
    UsageError,
)
from levit_export.core.packages import TOOLCHAIN, needs, versions
from levit_export.core.progress import Progress, Silent
from levit_export.core.values import (
    UNIT_ROUNDOFF,
    Artifact,
    Preprocessing,
    RunOptions,
    Session,
    Signature,
    Tensors,
    TensorSpec,
    Tolerance,
    Tolerances,
    overall,
)
from levit_export.formats import target
from levit_export.inputs import images as image_files
from levit_export.inputs.samples import Samples
from levit_export.reports.report import Report, Vouching
from levit_export.storage.located import locate

SAMPLES = 8
UNLIMITED = Tolerance(0.0, (math.inf,), "given")
"""Stands where no tolerance is known: it measures, and refuses nothing."""

DIFFERENCES = ("too-far", "decided-flips", "not-finite")
"""Kinds of findings that say that answers differ, so that there is a first difference."""

FLOATS = ("float16", "float32", "float64")
"""From the coarsest; every number of one is a number of those behind it."""

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
class Reference:
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
class Answers:
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
    matched = [_matched_inputs(reference, artifact) for artifact in artifacts]
    specs = _resolved(reference, artifacts, matched)
    samples, arrays, pixels = _samples(request, reference, specs, matched)
    progress.stage(f"running {request.reference.name}")
    expected = _answers(request, reference, samples, arrays, pixels)
    reports = []
    for artifact, names in zip(artifacts, matched, strict=True):
        for row in execution.rows([artifact], request.run):
            progress.stage(f"comparing {artifact.path.name}")
            reports.append(_judged(request, reference, expected, row, names))
    return Report(
        verdict=overall(report.parity.verdict for report in reports),
        model=None,
        passes=(),
        artifacts=tuple(reports),
        baselines={},
        machine=machine.describe(),
        toolchain=versions(TOOLCHAIN),
        vouching=Vouching("reference", f"{request.reference} on {expected.runtime}"),
    )


# --- the reference --------------------------------------------------------------------------


def _opened(request: CompareRequest, candidates: Sequence[Signature]) -> Reference:
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

    return Reference(
        path,
        artifact.precision,
        artifact.signature,
        opened,
        values,
        inexact,
    )


def _torch_reference(request: CompareRequest, candidates: Sequence[Signature]) -> Reference:
    if not (torch := needs("torch")).ok:
        raise MissingDependencyError(
            f"{request.reference.name} needs PyTorch: {torch.reason}", remedy=torch.fix
        )
    from levit_export.formats.pytorch import TorchFile

    file = TorchFile(request.reference)
    signature = Signature(file.inputs, file.outputs)

    def opened(arithmetic: Arithmetic, taps: Sequence[str]) -> AbstractContextManager[Session]:
        kind: Literal["fp64", "fp32"] = "fp64" if arithmetic == "fp64" else "fp32"
        return nullcontext(file.open(signature, kind, threads=request.run.threads, taps=taps))

    if any(not spec.shape for spec in file.inputs):
        first = candidates[0].inputs
        batch = next((each.batch for each in candidates if each.batch is not None), None)
        signature = Signature(
            tuple(
                _as_tensor(replace(theirs, name=ours.name), batch)
                for ours, theirs in _paired_specs(file.inputs, first, "the first candidate")
            ),
            file.outputs,
        )
    return Reference(request.reference, "fp32", signature, opened, file.values)


def _as_tensor(spec: TensorSpec, batch: int | None) -> TensorSpec:
    """What a program of PyTorch takes in place of a candidate's input."""
    dtype = spec.dtype if spec.dtype.startswith("int") else "float32"
    return TensorSpec(spec.name, (batch, *_planes(spec).shape[1:]), dtype)


# --- inputs ---------------------------------------------------------------------------------


def _paired_specs(
    ours: Sequence[TensorSpec], theirs: Sequence[TensorSpec], name: str
) -> list[tuple[TensorSpec, TensorSpec]]:
    """Inputs of the reference with those of a candidate: by name, the others by position."""
    if len(ours) != len(theirs):
        raise UsageError(
            f"{name} takes {len(theirs)} inputs ({', '.join(s.name for s in theirs)}), the "
            f"reference {len(ours)} ({', '.join(s.name for s in ours)})",
            remedy="Compare files of the same network, exported with the same inputs.",
        )
    named = {spec.name: spec for spec in theirs}
    known = {spec.name for spec in ours}
    rest = iter([spec for spec in theirs if spec.name not in known])
    return [(spec, named[spec.name] if spec.name in named else next(rest)) for spec in ours]


def _matched_inputs(reference: Reference, artifact: Artifact) -> dict[str, TensorSpec]:
    """What the candidate takes, by the names that the reference has for it."""
    pairs = _paired_specs(
        reference.signature.inputs, artifact.signature.inputs, artifact.path.name
    )
    return {ours.name: theirs for ours, theirs in pairs}


def _is_image(spec: TensorSpec) -> bool:
    """Whether an input is an image, uint8 ``(batch, H, W, 3)``: of a package, or of bytes."""
    return spec.dtype == "uint8" and len(spec.shape) == 4 and spec.shape[3] == 3


def _planes(spec: TensorSpec) -> TensorSpec:
    """An input as the network behind it sees it: planes in place of an image."""
    if not _is_image(spec):
        return spec
    batch, height, width, channels = spec.shape
    return replace(spec, shape=(batch, channels, height, width))


def _resolved(
    reference: Reference,
    artifacts: Sequence[Artifact],
    matched: Sequence[Mapping[str, TensorSpec]],
) -> dict[str, TensorSpec]:
    """Each input of the reference, with sizes that it leaves open taken from the candidates.

    Raises ``UsageError`` where two files take other ranks, sizes or kinds of number.
    """
    found = {}
    for spec in reference.signature.inputs:
        ours = _planes(spec)
        if not ours.shape:
            raise UsageError(
                f"input {spec.name!r} of {reference.path.name} has no axes",
                remedy="Export the network with a batch axis in front of every input.",
            )
        shape = list(ours.shape)
        for artifact, names in zip(artifacts, matched, strict=True):
            theirs = _planes(names[spec.name])
            fits = len(theirs.shape) == len(shape) and all(
                a is None or b is None or a == b
                for a, b in zip(shape[1:], theirs.shape[1:], strict=True)
            )
            is_alike = _family(ours.dtype) == _family(theirs.dtype)
            if not fits or not (is_alike or "uint8" in (ours.dtype, theirs.dtype)):
                raise _unlike(reference, ours, artifact, theirs)
            shape = [shape[0], *(a or b for a, b in zip(shape[1:], theirs.shape[1:], strict=True))]
        found[spec.name] = replace(ours, shape=tuple(shape))
    return found


def _family(dtype: str) -> str:
    return "bool" if dtype == "bool" else np.dtype(dtype).kind.replace("u", "i")


def _unlike(
    reference: Reference, ours: TensorSpec, artifact: Artifact, theirs: TensorSpec
) -> UsageError:
    """The error for two inputs that cannot be given the same numbers."""
    sides = [
        f"{name} takes {spec.name!r} as {spec.dtype} {_shown(spec.shape)}"
        for name, spec in ((artifact.path.name, theirs), (reference.path.name, ours))
    ]
    is_layout = sorted(map(str, ours.shape)) == sorted(map(str, theirs.shape))
    return UsageError(
        ", ".join(sides),
        remedy="They are in other layouts: export both in the same one."
        if is_layout and ours.shape != theirs.shape
        else "Export both with inputs of the same shape and kind of number.",
    )


def _shown(shape: Sequence[int | None]) -> str:
    return f"({', '.join('any' if side is None else str(side) for side in shape)})"


def _samples(
    request: CompareRequest,
    reference: Reference,
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
        names, arrays = _read_inputs(request.inputs, specs, pixels)
    elif request.data is not None:
        names, arrays = _read_images(request, specs, pixels)
    else:
        names, arrays = _drawn(request, specs, pixels)
    for name, array in arrays.items():
        coarsest = min(
            (spec.dtype for spec in takers[name] if spec.dtype in FLOATS),
            key=FLOATS.index,
            default=None,
        )
        # What this program draws or normalises is rounded; what a user gives must be exact.
        if coarsest is not None and array.dtype.kind == "f" and request.inputs is None:
            arrays[name] = array.astype(coarsest)
    count = len(names)
    return Samples(names, np.arange(count), np.full(count, -1), {}), arrays, frozenset(pixels)


def _drawn(
    request: CompareRequest, specs: Mapping[str, TensorSpec], pixels: set[str]
) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """Seeded normal numbers, or bytes where one of the files takes an image or bytes."""
    generator = np.random.default_rng(request.seed)
    arrays: dict[str, np.ndarray] = {}
    for name, spec in specs.items():
        shape = (request.samples, *_sides(spec))
        if name in pixels:
            arrays[name] = generator.integers(0, 256, shape, dtype=np.uint8)
        elif spec.dtype == "bool":
            arrays[name] = generator.integers(0, 2, shape).astype(bool)
        elif spec.dtype in FLOATS:
            arrays[name] = generator.standard_normal(shape)
        else:
            raise UsageError(
                f"input {name!r} is {spec.dtype}, and which whole numbers make sense for it is "
                "not known",
                remedy="Give --inputs FILE.npz with an array for each input.",
            )
    kind = "pixels" if pixels else "normal"
    return tuple(f"{kind}-{index}" for index in range(request.samples)), arrays


def _sides(spec: TensorSpec) -> tuple[int, ...]:
    """The shape of one sample."""
    sides = tuple(side for side in spec.shape[1:] if side is not None)
    if len(sides) != len(spec.shape) - 1:
        raise UsageError(
            f"input {spec.name!r} is {_shown(spec.shape)}, and no file says which size to take",
            remedy="Give --inputs FILE.npz with arrays of the size that you mean.",
        )
    return sides


def _read_inputs(
    path: Path, specs: Mapping[str, TensorSpec], pixels: set[str]
) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """The arrays of an ``.npz``; an image may be uint8 ``(n, H, W, 3)`` or ``(n, 3, H, W)``."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, AttributeError, TypeError) as error:
        raise DataError(
            f"{path} cannot be read as arrays: {error}",
            remedy="Write it with numpy.savez(file, NAME=array, …).",
        ) from error
    except Exception as error:  # zipfile and zlib have errors of their own
        raise DataError(f"{path} is damaged: {error}", remedy="Write it again.") from error
    if set(arrays) != set(specs):
        raise DataError(
            f"{path} holds {sorted(arrays)}, the reference takes {sorted(specs)}",
            remedy="Give one array for each input, under its name in the reference.",
        )
    for name, spec in specs.items():
        array = arrays[name]
        if name in pixels and array.ndim == 4 and array.shape[3] == spec.shape[1]:
            array = array.transpose(0, 3, 1, 2)
        admitted = array.ndim == len(spec.shape) and all(
            want is None or want == have
            for want, have in zip(spec.shape[1:], array.shape[1:], strict=True)
        )
        if not admitted or not len(array):
            raise DataError(
                f"{name!r} of {path} has shape {array.shape}, the reference takes "
                f"{_shown((None, *spec.shape[1:]))}",
                remedy="The first axis counts the samples; the others are those of the input.",
            )
        if array.dtype.kind not in "fiub" or not np.isfinite(array).all():
            raise DataError(
                f"{name!r} of {path} holds {array.dtype} that are not all finite numbers",
                remedy="Give finite numbers.",
            )
        arrays[name] = array
    counts = {len(array) for array in arrays.values()}
    if len(counts) != 1:
        raise DataError(
            f"the arrays of {path} hold {sorted(counts)} samples",
            remedy="Give every input for each sample.",
        )
    return tuple(f"{path.stem}-{index}" for index in range(counts.pop())), arrays


def _read_images(
    request: CompareRequest, specs: Mapping[str, TensorSpec], pixels: set[str]
) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """Images resized to the input's size: as bytes, or normalised as ImageNet's are.

    Whatever was done to the training images, both files are given the same.
    """
    (name, spec), *others = specs.items()
    if others or len(spec.shape) != 4 or spec.shape[1] != 3:
        raise UsageError(
            f"--data gives pictures, and the network takes "
            f"{', '.join(f'{n} {_shown(s.shape)}' for n, s in specs.items())}",
            remedy="Give --inputs FILE.npz with an array for each input.",
        )
    _, height, width = _sides(spec)
    size = (height, width)
    recipe = Preprocessing("compare", resize=size, crop=size, resize_mode="exact")
    found = image_files.open_images(request.data or "", labels=()).limited(request.samples)
    inputs, names = [], []
    for batch in image_files.batches(found, recipe, [range(len(found))]):
        inputs.append(batch.inputs)
        names += [found.entries[row].name for row in batch.rows]
        image_files.refuse_too_many(
            [each for _, each in batch.unreadable], len(found), found.source
        )
    array = np.concatenate(inputs)
    if name in pixels:
        from levit_export.inputs.preprocessing import pixels_of

        array = pixels_of(recipe, array).transpose(0, 3, 1, 2)
    return tuple(names), {name: array}


def _given(arrays: Tensors, takers: Mapping[str, TensorSpec], file: str) -> dict[str, np.ndarray]:
    """The samples as a file takes them, by its own names. Raises where a number would change."""
    found = {}
    for name, array in arrays.items():
        spec, given = takers[name], array
        if _is_image(spec):
            given = array.transpose(0, 2, 3, 1)
        with np.errstate(over="ignore", invalid="ignore"):
            converted = given.astype(spec.dtype)
        if not np.array_equal(converted, given):
            raise DataError(
                f"{file} takes {spec.name!r} as {spec.dtype}, which cannot hold the numbers given "
                f"for {name!r} ({given.dtype})",
                remedy=f"Round the numbers to {spec.dtype} first, so that every file is given "
                "the same.",
            )
        found[spec.name] = np.ascontiguousarray(converted)
    return found


def _collected(
    session: Session, samples: Samples, inputs: Tensors, batch: int | None
) -> dict[str, np.ndarray]:
    """What a session answers to all samples; one of any batch is given that of the reference.

    A converter may declare a batch open that the captured program had fixed.
    """
    sizes = {spec.shape[0] for spec in session.signature.inputs}
    if len(sizes) != 1:
        raise UsageError(
            f"the inputs have other first axes: {sorted(map(str, sizes))}",
            remedy="Export the network with the batch as the first axis of every input.",
        )
    pieces = samples.batches(session.signature.batch or batch)
    return parity.gather(
        session,
        (({name: array[index] for name, array in inputs.items()}, n) for index, n in pieces),
    )


def _answers(
    request: CompareRequest,
    reference: Reference,
    samples: Samples,
    arrays: Tensors,
    pixels: frozenset[str],
) -> Answers:
    """What the reference answers; in float64 as well, unless a tolerance was given."""
    inputs = _given(arrays, reference.takers, reference.path.name)
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
    return Answers(samples, arrays, pixels, outputs, exact, runtime, inexact)


def _is_given(overrides: Overrides) -> bool:
    return overrides.atol is not None or overrides.rtol is not None


# --- the verdict ----------------------------------------------------------------------------


def _judged(
    request: CompareRequest,
    reference: Reference,
    expected: Answers,
    row: Row,
    takers: Mapping[str, TensorSpec],
) -> ArtifactReport:
    """The report on one candidate, as one runtime executes it."""
    kind, artifact, batch = target(row.artifact.format), row.artifact, reference.signature.batch
    available = kind.can_run()
    if not available.ok:
        not_run = parity.not_run(f"{available.reason}: {available.fix}")
        return execution.describe(row, None, not_run, None, None)
    inputs = _given(expected.arrays, takers, artifact.path.name)
    with ExitStack() as stack:
        try:
            session = stack.enter_context(kind.open(artifact, row.run))
        except NotRunError as error:
            return execution.describe(row, None, parity.not_run(str(error)), None, None)
        try:
            outputs = _collected(session, expected.samples, inputs, batch)
        except RuntimeFailedError as error:
            failed = parity.run_failed(error, session, expected.samples)
            return execution.describe(row, None, failed, None, None)
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
    report = execution.describe(row, None, found, None, None)
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
    notes = []
    for name, other in zip(rest, others, strict=False):
        if ours[name].shape == theirs[other].shape:
            named[name] = theirs[other]
            notes.append(f"its output {other!r} is held against {name!r}, by position")
    taken = len(notes)
    if len(others) > taken:
        notes.append(f"gives {', '.join(others[taken:])} as well, which nothing is held against")
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
    expected: Answers, named: Tensors, tolerances: Tolerances, runtime: str, unknown: str
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
    reference: Reference,
    expected: Answers,
    row: Row,
    *,
    inputs: Tensors,
    report: ParityReport,
) -> Explanation:
    """The first value that both name and that differs, on the sample that is farthest off."""
    kind, stage = target(row.artifact.format), row.artifact.id
    batch = reference.signature.batch
    theirs = by_name.by_key(kind.values(row.artifact))
    ours = by_name.by_key(reference.values)
    inner = [key for key in ours if key in theirs and ours[key] not in expected.outputs]
    if not inner:
        return Explanation(
            f"{reference.path.name} and {row.artifact.path.name} have no inner values of one "
            "name, so no place can be named",
            stage=stage,
        )
    at = _farthest(report, expected.samples)
    own = _given(expected.arrays, reference.takers, reference.path.name)
    taps = [ours[key] for key in inner]
    try:
        with reference.open("own", taps) as session:
            right = _once(session, own, at, batch)
        exact: Tensors = {}
        if expected.exact:
            with reference.open("fp64", taps) as session:
                exact = _once(session, own, at, batch)
        with kind.open(row.artifact, row.run, [theirs[key] for key in inner]) as session:
            seen = _once(session, inputs, at, batch)
    except LevitExportError as error:
        return Explanation(f"the inner values cannot be looked at: {error.what}", stage=stage)
    shared = {
        ours[key]: seen[theirs[key]].reshape(right[ours[key]].shape)
        for key in inner
        if by_name.is_comparable(right[ours[key]], seen[theirs[key]])
    }
    right = {name: right[name] for name in shared}
    precisions = (reference.precision, execution.judged_as(row))
    allowed = _tolerances(overrides, precisions, right, exact)
    shares = {name: by_name.share(right[name], shared[name], allowed[name]) for name in shared}
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
