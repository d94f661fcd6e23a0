"""Core ML packages, run by Core ML on macOS and by the reference evaluator elsewhere.

The evaluator (:mod:`levit_export.mil`) reads the saved package and computes it with the types that
it declares. It cannot show what the Neural Engine's and the GPU's own kernels do.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from levit_export import lean, mil, naming
from levit_export.core import (
    PROBABILITIES,
    Artifact,
    Availability,
    ExportOptions,
    Prepared,
    RunOptions,
    Signature,
    Tensors,
    TensorSpec,
)
from levit_export.errors import (
    ArtifactError,
    ExportFailedError,
    LevitExportError,
    RuntimeFailedError,
    UnknownNameError,
    UsageError,
)
from levit_export.targets.availability import needs
from levit_export.targets.coreml_package import write_package
from levit_export.targets.metadata import PREFIX, metadata, passes_in, refuse_precision
from levit_export.targets.quiet import first_line, quiet
from levit_export.zoo import DISTILL, LOGITS

if TYPE_CHECKING:
    from torch.export import ExportedProgram

EVALUATOR = "MIL reference evaluator"
EVALUATOR_NOTE = (
    "checked by the reference evaluator: it computes the saved package op by op with its declared "
    "types; it cannot show what the Neural Engine's and the GPU's own kernels do"
)
COMPUTE_UNITS = ("cpu_only", "cpu_and_ne", "cpu_and_gpu", "all")
DEPLOYMENT_TARGETS = {
    "iOS15": "iOS15",
    "iOS16": "iOS16",
    "iOS17": "iOS17",
    "iOS18": "iOS18",
    "macOS12": "iOS15",
    "macOS13": "iOS16",
    "macOS14": "iOS17",
    "macOS15": "iOS18",
}
"""What ``--deployment-target`` takes, and the iOS release of the same specification version."""

SAID_OF_OUTPUTS = {
    LOGITS: "Logits, one for each class",
    DISTILL: "Logits of the distillation head",
}

PREVIEW = "com.apple.coreml.model.preview.type"
LOGGERS = ("coremltools", "torch.onnx")


def on_macos() -> bool:
    """Whether Core ML itself is here."""
    return sys.platform == "darwin"


class CoremlTarget:
    """See :class:`levit_export.core.Target`."""

    name = "coreml"
    suffix = ".mlpackage"
    precisions = ("fp16", "fp32")

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
        """An open batch, an unknown deployment target, a classifier of several images."""
        if options.batch is None:
            raise UsageError(
                "a Core ML model with an open batch loses the Neural Engine (coremltools#1764)",
                remedy="Leave out --dynamic, or export --format onnx,openvino with it.",
            )
        if options.deployment_target not in DEPLOYMENT_TARGETS:
            raise UnknownNameError(
                "deployment target", options.deployment_target, DEPLOYMENT_TARGETS
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
        try:
            with quiet(*LOGGERS):
                converted = _convert(model, options)
                specification = converted.get_spec()
                _describe(specification, model, options)
                said = metadata(model, options.precision, ("coremltools",))
                if options.classifier:
                    said[PREVIEW] = "imageClassifier"
                write_package(path, specification, Path(converted.weights_dir), said)
        except (LevitExportError, OSError):
            raise
        except Exception as error:
            raise ExportFailedError(
                f"coremltools could not convert {model.info.name}: {first_line(error)}",
                remedy="Try another --deployment-target, or report the model.",
            ) from error
        signature = _classifier_signature(model) if options.classifier else model.signature
        return Artifact(self.name, options.precision, path, signature)

    def inspect(self, path: Path) -> Artifact:
        """Signature and precision of a package."""
        with quiet(*LOGGERS):
            program = mil.load(path)
        precision = program.metadata.get(PREFIX + "precision", "fp16")
        refuse_precision(precision, self.precisions, path)
        passes = passes_in(program.metadata)
        return Artifact(self.name, precision, path, _signature(program), passes=passes)

    def constants(self, artifact: Artifact) -> Iterator[np.ndarray]:
        """The program's constants, decompressed where they are stored compressed."""
        with quiet(*LOGGERS):
            program = mil.load(artifact.path)
        yield from program.constants.values()

    def remarks(self, artifact: Artifact, options: RunOptions) -> tuple[str, ...]:
        """Which ops Core ML would place where; elsewhere, what the evaluator cannot show."""
        if not on_macos():
            return (EVALUATOR_NOTE,)
        unit = options.compute_units[0]
        try:
            counts = placement(artifact.path, unit)
        except Exception as error:
            return (f"op placement on {unit} unknown: {first_line(error)}",)
        placed = ", ".join(f"{count} on {device}" for device, count in counts.items())
        return (f"op placement on {unit}: {placed}",)

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
    """A package in the reference evaluator as :class:`levit_export.core.Session`."""

    runtime = EVALUATOR

    def __init__(self, program: mil.Program, taps: Sequence[str] = ()) -> None:
        self._program = program
        self._taps = tuple(taps)
        self._labels = _labels(program.metadata, program.path)
        self._signature = _signature(program)

    @property
    def signature(self) -> Signature:
        """As the package describes itself."""
        return self._signature

    def run(self, inputs: Tensors) -> dict[str, np.ndarray]:
        """One evaluation; a classifier's probabilities come in the order of its labels."""
        return _as_arrays(self._program.run(inputs, taps=self._taps), self._labels)


class CoremlSession:
    """A package in Core ML itself, on macOS."""

    def __init__(self, loaded: Any, artifact: Artifact, unit: str) -> None:
        self._loaded = loaded
        self._artifact = artifact
        self._unit = unit
        self._labels = _labels(dict(loaded.user_defined_metadata), artifact.path)

    @property
    def signature(self) -> Signature:
        """As the package describes itself."""
        return self._artifact.signature

    @property
    def runtime(self) -> str:
        """``Core ML (cpu_and_ne)``."""
        return f"Core ML ({self._unit})"

    def run(self, inputs: Tensors) -> dict[str, np.ndarray]:
        """One prediction."""
        try:
            outputs = self._loaded.predict(dict(inputs))
        except Exception as error:
            raise RuntimeFailedError(
                f"Core ML failed on {self._artifact.path.name}: {first_line(error)}",
                remedy="Try --compute-units cpu_only, or another --deployment-target.",
            ) from error
        return _as_arrays(outputs, self._labels)


def placement(path: Path, unit: str) -> dict[str, int]:
    """How many ops Core ML would place on ``ane``, ``gpu`` and ``cpu``. macOS 14.4 or later.

    Constants are not counted: they have no device.
    """
    ct = lean.coremltools()
    devices = lean.coremltools("models.compute_device")
    plans = lean.coremltools("models.compute_plan")
    kinds = {
        "ane": devices.MLNeuralEngineComputeDevice,
        "gpu": devices.MLGPUComputeDevice,
        "cpu": devices.MLCPUComputeDevice,
    }
    compiled = ct.models.utils.compile_model(str(path))
    try:
        plan = plans.MLComputePlan.load_from_path(compiled, _compute_unit(unit))
        counts = dict.fromkeys(kinds, 0)
        for op in plan.model_structure.program.functions["main"].block.operations:
            usage = plan.get_compute_device_usage_for_mlprogram_operation(op)
            if usage is None:
                continue
            for name, kind in kinds.items():
                counts[name] += isinstance(usage.preferred_compute_device, kind)
    finally:
        shutil.rmtree(compiled, ignore_errors=True)
    return counts


def _compute_unit(unit: str) -> Any:
    ct = lean.coremltools()

    return ct.ComputeUnit[unit.upper()]


def _load(path: Path, unit: str) -> Any:
    ct = lean.coremltools()

    try:
        return ct.models.MLModel(str(path), compute_units=_compute_unit(unit))
    except Exception as error:
        raise ArtifactError(
            f"Core ML cannot load {path}: {first_line(error)}",
            remedy="Try an earlier --deployment-target, or export anew.",
        ) from error


def _convert(model: Prepared, options: ExportOptions) -> Any:
    ct = lean.coremltools()

    (taken,) = model.signature.inputs
    precision = {"fp16": ct.precision.FLOAT16, "fp32": ct.precision.FLOAT32}[options.precision]
    settings: dict[str, Any] = {"outputs": [_output(spec) for spec in model.signature.outputs]}
    program = model.program
    if options.classifier:
        program = _with_softmax(program, taken)
        settings = {"classifier_config": ct.ClassifierConfig(list(model.info.labels))}
    # Names are numbered by a counter of the process that ct.convert empties when it ends, not when
    # it begins: whatever built a program before would show in the file.
    lean.coremltools("converters.mil").Builder.name_count.clear()
    lowered = program.run_decompositions({})
    naming.rename(lowered, model.blocks)
    return ct.convert(
        lowered,
        inputs=[ct.TensorType(name=taken.name, shape=taken.shape, dtype=np.float32)],
        convert_to="mlprogram",
        compute_precision=precision,
        minimum_deployment_target=getattr(
            ct.target, DEPLOYMENT_TARGETS[options.deployment_target]
        ),
        skip_model_load=True,
        **settings,
    )


def _output(spec: TensorSpec) -> Any:
    ct = lean.coremltools()

    return ct.TensorType(name=spec.name, dtype=np.float32)


def _with_softmax(program: ExportedProgram, taken: TensorSpec) -> ExportedProgram:
    """The program with a softmax behind its logits: all that a classifier gives is their labels.

    A distillation head's own output is left out.
    """
    import torch

    class Probabilities(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.logits = program.module()

        def forward(self, input: torch.Tensor) -> torch.Tensor:
            outputs = self.logits(input)
            logits: torch.Tensor = outputs[0] if isinstance(outputs, tuple) else outputs
            return logits.softmax(dim=-1)

    return torch.export.export(Probabilities(), (torch.zeros([d or 1 for d in taken.shape]),))


def _describe(specification: Any, model: Prepared, options: ExportOptions) -> None:
    """What Xcode shows of the model."""
    info = model.info
    description = specification.description
    description.metadata.shortDescription = (
        f"{info.name}: image classifier, {len(info.labels)} classes"
    )
    description.metadata.author = "levit-export"
    description.metadata.license = info.licence
    description.metadata.versionString = info.checkpoint_sha256[:12]
    description.input[0].shortDescription = info.preprocessing.in_words()
    if not options.classifier:
        for output in description.output:
            output.shortDescription = SAID_OF_OUTPUTS[output.name]


def _labels(said: Mapping[str, str], path: Path) -> tuple[str, ...]:
    import json

    try:
        labels = json.loads(said.get(PREFIX + "labels", "[]"))
    except ValueError:
        labels = None
    if not isinstance(labels, list):
        raise ArtifactError(
            f"{path} has labels that are no JSON list: {said[PREFIX + 'labels'][:40]!r}",
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


def _classifier_signature(model: Prepared) -> Signature:
    logits = model.signature.outputs[0]
    return Signature(model.signature.inputs, (TensorSpec(PROBABILITIES, logits.shape),))


def _signature(program: mil.Program) -> Signature:
    """Tensor inputs and outputs; a classifier's dictionary counts as probabilities."""
    outputs = tuple(
        TensorSpec(feature.name, feature.shape, feature.dtype)
        for feature in program.outputs
        if isinstance(feature, mil.ArrayFeature)
    )
    if not outputs:
        classes = len(_labels(program.metadata, program.path))
        outputs = (TensorSpec(PROBABILITIES, (1, classes)),)
    inputs = tuple(
        TensorSpec(feature.name, feature.shape, "float32")
        for feature in program.inputs
        if isinstance(feature, mil.ArrayFeature)
    )
    if not inputs:
        raise ArtifactError(
            f"{program.path} takes no tensor", remedy="Export it with a tensor input."
        )
    return Signature(inputs, outputs)
