"""From a prepared model to an ``MLModel`` in memory, in its precision, before it is saved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from levit_export.core import heavy_imports
from levit_export.core.values import PROBABILITIES, ExportOptions, Prepared, TensorSpec
from levit_export.formats.coreml.compression import COMPRESSED, compress
from levit_export.formats.coreml.write import from_image, program, to_probabilities
from levit_export.models.zoo import DISTILL, LOGITS

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
    PROBABILITIES: "Probabilities, one for each class",
    DISTILL: "Logits of the distillation head",
}


def convert(model: Prepared, options: ExportOptions) -> Any:
    """An ``MLModel`` in the precision that ``options`` ask for, float32 inputs and outputs."""
    network = model.network
    if model.embedded.preprocessing:
        network = from_image(network)
    if options.classifier:
        network = to_probabilities(network)
    is_compressed = options.precision in COMPRESSED
    target = getattr(
        heavy_imports.coremltools().target, DEPLOYMENT_TARGETS[options.deployment_target]
    )
    written = program(
        network,
        target,
        half=options.precision != "fp32",
        keep=() if is_compressed else options.keep,
    )
    labels = model.info.labels if options.classifier else ()
    converted = assembled(written, target, [_input(model.signature.inputs[0])], labels)
    if not is_compressed:
        return converted
    owners = {value.name: op.block for op in network.ops for value in op.outputs}
    return compress(converted, options.precision, owners, options.keep, options.calibration)


def assembled(written: Any, target: Any, inputs: Sequence[Any], labels: Sequence[str] = ()) -> Any:
    """A MIL program as an ``MLModel`` that classifies if there are ``labels``.

    coremltools adds what an image or labels need, and leaves the rest as it was written.
    """
    ct = heavy_imports.coremltools()
    return ct.convert(
        written,
        inputs=list(inputs),
        convert_to="mlprogram",
        minimum_deployment_target=target,
        pass_pipeline=ct.PassPipeline.EMPTY,
        skip_model_load=True,
        classifier_config=ct.ClassifierConfig(list(labels)) if labels else None,
    )


def _input(spec: TensorSpec) -> Any:
    """Normalised numbers as an array, raw pixels as an image."""
    ct = heavy_imports.coremltools()
    if spec.dtype != "uint8":
        return ct.TensorType(name=spec.name, shape=spec.shape, dtype=np.float32)
    batch, height, width, channels = spec.shape
    shape = (batch, channels, height, width)
    return ct.ImageType(name=spec.name, shape=shape, color_layout=ct.colorlayout.RGB)


def describe(specification: Any, model: Prepared, options: ExportOptions) -> None:
    """What Xcode shows of the model."""
    info = model.info
    description = specification.description
    description.metadata.shortDescription = f"{info.name}: {info.kind}"
    description.metadata.author = "levit-export"
    description.metadata.license = info.licence
    description.metadata.versionString = info.checkpoint_sha256[:12]
    description.input[0].shortDescription = info.preprocessing.in_words(
        embedded=model.embedded.preprocessing
    )
    if not options.classifier:
        for output in description.output:
            output.shortDescription = SAID_OF_OUTPUTS[output.name]
