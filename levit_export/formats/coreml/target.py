"""Core ML packages, run by Core ML on macOS and by the reference evaluator elsewhere.

The evaluator (:mod:`levit_export.mil`) reads the saved package and computes it with the types that
it declares. It cannot show what the Neural Engine's and the GPU's own kernels do.
"""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from levit_export.core import packages
from levit_export.core.errors import (
    ArtifactError,
    ExportFailedError,
    LevitExportError,
    NotRunError,
    RuntimeFailedError,
    UnknownNameError,
    UsageError,
)
from levit_export.core.packages import needs
from levit_export.core.precisions import CALIBRATED, GRIDS
from levit_export.core.quiet import first_line, quiet
from levit_export.core.values import (
    PROBABILITIES,
    Arithmetic,
    Artifact,
    Availability,
    ExportOptions,
    Prepared,
    RunOptions,
    Signature,
    Tensors,
    TensorSpec,
)
from levit_export.formats import compressed, mil
from levit_export.formats.coreml import precisions
from levit_export.formats.coreml.package import (
    DEPLOYMENT_TARGETS,
    assembled,
    describe,
    write_package,
)
from levit_export.formats.coreml.write import Range, from_image, program, to_probabilities
from levit_export.formats.metadata import PREFIX, inspected, metadata

EVALUATOR = "MIL reference evaluator"
EVALUATOR_NOTE = (
    "checked by the reference evaluator: it computes the saved package op by op with its declared "
    "types; it cannot show what the Neural Engine's and the GPU's own kernels do"
)
COMPUTE_UNITS = ("cpu_only", "cpu_and_ne", "cpu_and_gpu", "all")
UNITS_WITH_ANE = ("cpu_and_ne", "all")
EARLIEST = {"int8": "iOS17", "w8": "iOS16", "w6": "iOS16", "w4": "iOS16"}
"""The first system that has the ops of a precision; float programs run since iOS 15."""

PREVIEW = "com.apple.coreml.model.preview.type"
LOGGERS = ("coremltools",)


def on_macos() -> bool:
    """Whether Core ML itself is here."""
    return sys.platform == "darwin"


SYSTEMS = {
    "iOS15": "iOS 15, macOS 12",
    "iOS16": "iOS 16, macOS 13",
    "iOS17": "iOS 17, macOS 14",
    "iOS18": "iOS 18, macOS 15",
    "iOS26": "iOS 26, macOS 26",
}
"""The systems of Apple's that first read a deployment target's packages."""


class CoremlTarget:
    """See :class:`levit_export.core.values.Target`."""

    name = "coreml"
    suffix = ".mlpackage"
    precisions = ("fp16", "fp32", *GRIDS)

    def computes_in_half(self, precision: str) -> bool:
        """All but float32: compressed weights are computed with in float16."""
        return precision != "fp32"

    def can_export(self) -> Availability:
        """Needs torch and coremltools."""
        return needs("torch", "coremltools")

    def can_run(self) -> Availability:
        """Needs coremltools: Core ML runs the package on macOS, the evaluator elsewhere."""
        available = needs("coremltools")
        return (
            available if on_macos() or not available.ok else replace(available, reason=EVALUATOR)
        )

    def can_time(self) -> Availability:
        """Only Core ML's own time says anything, and it exists on macOS only."""
        if on_macos():
            return needs("coremltools")
        return Availability(
            ok=False,
            reason="Core ML runs on macOS only",
            fix="run levit-export bench on a Mac",
        )

    def refuse(self, options: ExportOptions) -> None:
        """Raise for an open batch, a deployment target that is unknown or too early,
        several images for a classifier, or a calibration without images.
        """
        if options.batch is None:
            raise UsageError(
                "a Core ML model with an open batch loses the Neural Engine (coremltools#1764)",
                remedy="Leave out --dynamic, or export --format onnx,openvino with it.",
            )
        if options.deployment_target not in DEPLOYMENT_TARGETS:
            raise UnknownNameError(
                "deployment target", options.deployment_target, DEPLOYMENT_TARGETS
            )
        _refuse_early(options)
        if options.precision in CALIBRATED and options.calibration is None:
            raise UsageError(
                f"{options.precision} is calibrated on real images, and there are none",
                remedy="Give --data DIR with a few hundred of them, or use --precision w8.",
            )
        if options.embedded.preprocessing and options.batch != 1:
            raise UsageError(
                f"a Core ML model of raw pixels takes one image at a time, not {options.batch}",
                remedy="Leave out --batch or --embed-preprocessing.",
            )
        if options.classifier and options.batch != 1:
            raise UsageError(
                f"a Core ML classifier takes one image at a time, not {options.batch}",
                remedy="Leave out --batch or --classifier.",
            )

    def runs(self, options: RunOptions) -> tuple[RunOptions, ...]:
        """Once for each compute unit on macOS; once elsewhere, by the evaluator."""
        for unit in options.compute_units:
            if unit not in COMPUTE_UNITS:
                raise UnknownNameError("compute unit", unit, COMPUTE_UNITS)
        if not on_macos():
            if options.compute_units != RunOptions().compute_units:
                raise UsageError(
                    f"--compute-units {','.join(options.compute_units)} needs macOS",
                    remedy="Leave it out: here the reference evaluator checks the package.",
                )
            return (options,)
        return tuple(replace(options, compute_units=(unit,)) for unit in options.compute_units)

    def export(self, model: Prepared, path: Path, options: ExportOptions) -> Artifact:
        """Write an ML Program with a fixed batch, float32 input and output."""
        labels = model.info.labels
        if options.classifier and len(set(labels)) != len(labels):
            raise UsageError(
                f"a Core ML classifier needs distinct labels, {len(labels) - len(set(labels))} "
                "are repeated",
                remedy="Give --labels with one distinct name a line.",
            )
        asked, earliest = options.deployment_target, EARLIEST.get(options.precision, "iOS15")
        notes: tuple[str, ...] = ()
        if DEPLOYMENT_TARGETS[asked] < earliest:  # ``refuse`` lets only the default be earlier
            options = replace(options, deployment_target=earliest)
            notes = (
                f"runs on {earliest} and later, not on {asked}: {options.precision} needs ops "
                "that came with it",
            )
        try:
            with quiet(*LOGGERS):
                converted = _convert(model, options)
                specification = converted.get_spec()
                describe(specification, model, options)
                said = metadata(model, options, ("coremltools",))
                if options.classifier:
                    said[PREVIEW] = "imageClassifier"
                write_package(path, specification, Path(converted.weights_dir), said)
        except (LevitExportError, OSError):
            raise
        except Exception as error:
            raise ExportFailedError(
                f"could not write the Core ML package of {model.info.name}: {first_line(error)}",
                remedy="Try another --deployment-target, or report the model.",
            ) from error
        signature = model.signature
        if options.classifier:
            probabilities = TensorSpec(PROBABILITIES, signature.outputs[0].shape)
            signature = Signature(signature.inputs, (probabilities,))
        return Artifact(
            self.name,
            options.precision,
            path,
            signature,
            (*notes, _ops(specification)),
            keep=options.keep,
            runs_on=f"{SYSTEMS[DEPLOYMENT_TARGETS[options.deployment_target]]} and later",
        )

    def inspect(self, path: Path) -> Artifact:
        """Signature and precision of a package."""
        with quiet(*LOGGERS):
            program = mil.load(path)
        return inspected(
            self.name,
            path,
            _signature(program),
            program.metadata,
            program.contents,
            classes=program.classes,
        )

    def constants(self, artifact: Artifact) -> Iterator[np.ndarray]:
        """The numbers that the outputs depend on; see :mod:`levit_export.formats.mil.contents`.

        Compressed weights come as the program computes with them, rounded to float16.
        """
        with quiet(*LOGGERS):
            program = mil.load(artifact.path)
        yield from (each.numbers for each in program.contents)

    def arithmetic(self, options: RunOptions) -> Arithmetic:
        """Float32: a package says itself what is float16."""
        del options
        return Arithmetic()

    def values(self, artifact: Artifact) -> tuple[str, ...]:
        """The names of all inner values, in the program's order: what ``open`` takes as taps."""
        with quiet(*LOGGERS):
            return mil.load(artifact.path).value_names

    def remarks(self, artifact: Artifact, options: RunOptions) -> tuple[str, ...]:
        """Which ops Core ML would place where; elsewhere, what the evaluator cannot show."""
        if not on_macos():
            return (EVALUATOR_NOTE,)
        unit = options.compute_units[0]
        try:
            found = placement(artifact.path, unit)
        except Exception as error:
            return (f"op placement on {unit} unknown: {first_line(error)}",)
        placed = ", ".join(f"{count} on {device}" for device, count in found.counts.items())
        work = f"; {found.shares['ane']:.0%} of the estimated work on ane" if found.shares else ""
        return (f"op placement on {unit}: {placed}{work}",)

    @contextmanager
    def open(
        self, artifact: Artifact, options: RunOptions, taps: Sequence[str] = ()
    ) -> Iterator[EvaluatorSession | CoremlSession]:
        """Load the package from disk into Core ML on macOS, into the evaluator elsewhere."""
        if not on_macos():
            with quiet(*LOGGERS):
                program = mil.load(artifact.path)
            yield EvaluatorSession(program, taps)
            return
        if taps:
            raise UsageError(
                "Core ML does not give out inner values",
                remedy="Leave the taps to the reference evaluator, levit_export.mil.",
            )
        yield CoremlSession(
            _load(artifact.path, options.compute_units[0]),
            self.inspect(artifact.path),
            options.compute_units[0],
        )


class EvaluatorSession:
    """A package in the reference evaluator as :class:`levit_export.core.values.Session`."""

    runtime = EVALUATOR

    def __init__(self, program: mil.Program, taps: Sequence[str] = ()) -> None:
        self._program = program
        self._taps = tuple(taps)
        self._labels = _labels(program.metadata, program.path)
        self.signature = _signature(program)
        self._images = {f.name for f in program.inputs if isinstance(f, mil.ImageFeature)}

    def run(self, inputs: Tensors) -> dict[str, np.ndarray]:
        """One evaluation; a classifier's probabilities come in the order of its labels."""
        given = {
            name: value[0] if np.ndim(value) == 4 and name in self._images else value
            for name, value in inputs.items()
        }
        return _as_arrays(self._program.run(given, taps=self._taps), self._labels)


class CoremlSession:
    """A package in Core ML itself, on macOS."""

    def __init__(self, loaded: Any, artifact: Artifact, unit: str) -> None:
        self._loaded = loaded
        self._artifact = artifact
        self.signature = artifact.signature
        self.runtime = f"Core ML ({unit})"
        self._labels = _labels(dict(loaded.user_defined_metadata), artifact.path)

    def run(self, inputs: Tensors) -> dict[str, np.ndarray]:
        """One prediction."""
        from PIL import Image

        try:
            outputs = self._loaded.predict(
                {
                    name: Image.fromarray(value[0]) if value.dtype == np.uint8 else value
                    for name, value in inputs.items()
                }
            )
        except Exception as error:
            raise RuntimeFailedError(
                f"Core ML failed on {self._artifact.path.name}: {first_line(error)}",
                remedy="Try --compute-units cpu_only, or another --deployment-target.",
            ) from error
        return _as_arrays(outputs, self._labels)


def _convert(model: Prepared, options: ExportOptions) -> Any:
    """An ``MLModel`` in the precision that ``options`` ask for, float32 inputs and outputs."""
    ct = packages.coremltools()
    network = model.network
    if model.embedded.preprocessing:
        network = from_image(network)
    if options.classifier:
        network = to_probabilities(network)
    opset = getattr(ct.target, DEPLOYMENT_TARGETS[options.deployment_target])
    is_compressed = options.precision in GRIDS
    labels = model.info.labels if options.classifier else ()
    taken = _input(model.signature.inputs[0])

    def made(grids: Mapping[str, Range]) -> Any:
        half, keep = options.precision != "fp32", () if is_compressed else options.keep
        written = program(network, opset, half=half, keep=keep, grids=grids)
        return assembled(written, opset, [taken], labels)

    if not is_compressed:
        return made({})
    found = compressed.layers(network, options.keep)
    grids: dict[str, Range] = {}
    if options.precision == "int8":
        if options.calibration is None:
            raise ValueError("int8 is calibrated on images")
        chosen = precisions.with_grids(found)
        values = {layer.source for layer in chosen}
        ranges = precisions.observe(made({}), values, options.calibration.inputs)
        grids = {layer.name: ranges[layer.source] for layer in chosen}
    return precisions.compress_weights(made(grids), found, network, options.precision)


def _input(spec: TensorSpec) -> Any:
    """Normalised numbers as an array, raw pixels as an image."""
    ct = packages.coremltools()
    if spec.dtype != "uint8":
        return ct.TensorType(name=spec.name, shape=spec.shape, dtype=np.float32)
    batch, height, width, channels = spec.shape
    shape = (batch, channels, height, width)
    return ct.ImageType(name=spec.name, shape=shape, color_layout=ct.colorlayout.RGB)


def _refuse_early(options: ExportOptions) -> None:
    """Raise for a deployment target older than the precision's ops, unless it is the default.

    The default cannot be told from one that was asked for. The file gets a later one instead, and
    a note says so.
    """
    earliest = EARLIEST.get(options.precision, "iOS15")
    target = options.deployment_target
    is_default = target == ExportOptions().deployment_target
    if DEPLOYMENT_TARGETS[target] < earliest and not is_default:
        raise UsageError(
            f"the ops of Core ML's {options.precision} came with {earliest}, later than {target}",
            remedy=f"Leave out --deployment-target, or give {earliest} or later.",
        )


def _ops(specification: Any) -> str:
    """How many ops of which types a program has; constants are not counted."""
    (block,) = specification.mlProgram.functions["main"].block_specializations.values()
    counts = Counter(op.type for op in block.operations if op.type != "const")
    types = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
    return f"{counts.total()} ops: {types}"


@dataclass(frozen=True)
class Placement:
    """How many ops Core ML would place on ``ane``, ``gpu`` and ``cpu``, and the share of the
    estimated work of all of them that each device has; shares are empty where it estimates none.
    """

    counts: Mapping[str, int]
    shares: Mapping[str, float]


def placement(path: Path, unit: str) -> Placement:
    """Where Core ML would execute a package. macOS 14.4 or later.

    Constants are not counted: they have no device. The work of an op is the weight that
    ``MLComputePlan`` estimates for it.
    """
    ct = packages.coremltools()
    devices = packages.coremltools("models.compute_device")
    plans = packages.coremltools("models.compute_plan")
    kinds = {
        "ane": devices.MLNeuralEngineComputeDevice,
        "gpu": devices.MLGPUComputeDevice,
        "cpu": devices.MLCPUComputeDevice,
    }
    compiled = ct.models.utils.compile_model(str(path))
    try:
        plan = plans.MLComputePlan.load_from_path(compiled, ct.ComputeUnit[unit.upper()])
        counts, work = dict.fromkeys(kinds, 0), dict.fromkeys(kinds, 0.0)
        for op in plan.model_structure.program.functions["main"].block.operations:
            usage = plan.get_compute_device_usage_for_mlprogram_operation(op)
            if usage is None:
                continue
            cost = plan.get_estimated_cost_for_mlprogram_operation(op)
            for name, kind in kinds.items():
                is_there = isinstance(usage.preferred_compute_device, kind)
                counts[name] += is_there
                work[name] += cost.weight if is_there and cost is not None else 0.0
    finally:
        shutil.rmtree(compiled, ignore_errors=True)
    whole = sum(work.values())
    return Placement(counts, {name: part / whole for name, part in work.items()} if whole else {})


def ane_share(path: Path, unit: str) -> float:
    """The share of the estimated work that Core ML would place on the Neural Engine, 0 to 1.

    Raises ``NotRunError`` where this machine cannot say.
    """
    if not on_macos():
        raise NotRunError(
            "Core ML's plan is known on macOS only",
            remedy="Ask on a Mac with macOS 14.4 or later.",
        )
    try:
        shares = placement(path, unit).shares
    except Exception as error:
        raise NotRunError(
            f"Core ML gives no plan for {path.name} on {unit}: {first_line(error)}",
            remedy="Ask on a Mac with macOS 14.4 or later.",
        ) from error
    if not shares:
        raise NotRunError(
            f"Core ML gives no work estimate for {path.name} on {unit}",
            remedy="Leave out --min-ane.",
        )
    return shares["ane"]


def _load(path: Path, unit: str) -> Any:
    ct = packages.coremltools()

    try:
        return ct.models.MLModel(str(path), compute_units=ct.ComputeUnit[unit.upper()])
    except Exception as error:
        raise ArtifactError(
            f"Core ML cannot load {path}: {first_line(error)}",
            remedy="Try an earlier --deployment-target, or export anew.",
        ) from error


def _labels(said: Mapping[str, str], path: Path) -> tuple[str, ...]:
    import json

    try:
        labels = json.loads(said.get(PREFIX + "labels", "[]"))
    except ValueError:
        labels = None
    if not isinstance(labels, list):
        raise ArtifactError(
            f"{path} has labels that are not a JSON list: {said[PREFIX + 'labels'][:40]!r}",
            remedy="Export it anew.",
        )
    return tuple(map(str, labels))


def _as_arrays(outputs: Any, labels: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Tensor outputs as they are; a dictionary of probabilities as a row; the label dropped."""
    arrays = {}
    for name, value in outputs.items():
        if isinstance(value, dict):
            order = labels or tuple(value)
            if absent := [label for label in order if label not in value]:
                raise RuntimeFailedError(
                    f"the classifier gives no probability for {absent[0]!r}",
                    remedy="Its labels in the metadata and in the program differ; export anew.",
                )
            arrays[PROBABILITIES] = np.array([[value[label] for label in order]], np.float32)
        elif isinstance(value, np.ndarray):
            arrays[name] = value
    return arrays


def _signature(program: mil.Program) -> Signature:
    """Tensor inputs and outputs; a classifier's dictionary counts as probabilities.

    An image is given as red, green, blue whatever the package declares: Core ML reorders it.
    """
    outputs = tuple(
        TensorSpec(feature.name, feature.shape, feature.dtype)
        for feature in program.outputs
        if isinstance(feature, mil.ArrayFeature)
    )
    if not outputs:
        classes = len(_labels(program.metadata, program.path) or program.classes)
        outputs = (TensorSpec(PROBABILITIES, (1, classes)),)
    inputs = tuple(
        TensorSpec(feature.name, feature.shape, feature.dtype)
        if isinstance(feature, mil.ArrayFeature)
        else TensorSpec(feature.name, (1, feature.height, feature.width, 3), "uint8")
        for feature in program.inputs
        if isinstance(feature, mil.ArrayFeature)
        or (isinstance(feature, mil.ImageFeature) and feature.layout in ("RGB", "BGR"))
    )
    if not inputs:
        raise ArtifactError(
            f"{program.path} takes neither a tensor nor an RGB image",
            remedy="Export it with one of them.",
        )
    return Signature(inputs, outputs)
