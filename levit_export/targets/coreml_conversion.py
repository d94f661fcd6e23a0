"""From a prepared model to what coremltools makes of it, before it is written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from levit_export import lean, naming
from levit_export.core import PROBABILITIES, ExportOptions, Prepared, TensorSpec
from levit_export.targets import lowering
from levit_export.targets.coreml_compression import COMPRESSED, compress
from levit_export.targets.coreml_names import is_within, settle, visiting
from levit_export.zoo import DISTILL, LOGITS

if TYPE_CHECKING:
    from torch.export import ExportedProgram

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
    converted, owners = _convert(model, options)
    if options.precision not in COMPRESSED:
        return converted
    return compress(converted, options.precision, owners, options.keep, options.calibration)


def _convert(model: Prepared, options: ExportOptions) -> tuple[Any, dict[str, str]]:
    """The model in float16 or float32, and the block that each op is of."""
    ct = lean.coremltools()
    (taken,) = model.signature.inputs
    lowered = lowering.for_coreml(model.program)
    naming.rename(lowered, model.blocks)
    if model.embedded.preprocessing:
        _begin_with_image(lowered)
    settings: dict[str, Any] = {"outputs": [_output(spec) for spec in model.signature.outputs]}
    if options.classifier:
        _end_in_softmax(lowered, has_softmax=model.embedded.softmax)
        settings = {"classifier_config": ct.ClassifierConfig(list(model.info.labels))}
    inner = lowered.graph_signature.user_outputs
    given = {spec.name: name for spec, name in zip(model.signature.outputs, inner, strict=False)}
    owners: dict[str, str] = {}
    # Names are numbered by a counter of the process that ct.convert empties when it ends, not when
    # it begins: whatever built a program before would show in the file.
    lean.coremltools("converters.mil").Builder.name_count.clear()
    with _unvalidated():
        converted = ct.convert(
            lowered,
            inputs=[_input(taken)],
            convert_to="mlprogram",
            compute_precision=_arithmetic(options, owners),
            minimum_deployment_target=getattr(
                ct.target, DEPLOYMENT_TARGETS[options.deployment_target]
            ),
            pass_pipeline=visiting(
                lambda operations: owners.update(settle(operations, model.blocks.values(), given))
            ),
            skip_model_load=True,
            **settings,
        )
    converted._mil_program.validate()  # noqa: SLF001
    return converted, owners


@contextmanager
def _unvalidated() -> Iterator[None]:
    """Without the validation of the whole program after each of a hundred passes."""
    program = lean.coremltools("converters.mil.mil").Program
    validate = program.validate
    program.validate = lambda *_, **__: None
    try:
        yield
    finally:
        program.validate = validate


def _arithmetic(options: ExportOptions, owners: Mapping[str, str]) -> Any:
    """What ops compute in: in ``fp16`` kept blocks compute in float32.

    ``owners`` has the ops' blocks by the time that coremltools asks.
    """
    ct = lean.coremltools()
    if options.precision == "fp32":
        return ct.precision.FLOAT32
    if options.precision in COMPRESSED or not options.keep:
        return ct.precision.FLOAT16
    return ct.transform.FP16ComputePrecision(
        op_selector=lambda op: not is_within(owners.get(op.name, ""), options.keep)
    )


def _input(spec: TensorSpec) -> Any:
    """Normalised numbers as an array, raw pixels as an image."""
    ct = lean.coremltools()
    if spec.dtype != "uint8":
        return ct.TensorType(name=spec.name, shape=spec.shape, dtype=np.float32)
    batch, height, width, channels = spec.shape
    shape = (batch, channels, height, width)
    return ct.ImageType(name=spec.name, shape=shape, color_layout=ct.colorlayout.RGB)


def _begin_with_image(program: ExportedProgram) -> None:
    """Let a program of bytes ``(1, H, W, 3)`` begin with float32 ``(1, 3, H, W)``, in place.

    That is how Core ML hands over an image; its numbers go from 0 to 255 as well.
    """
    graph = program.graph
    names = program.graph_signature.user_inputs
    (taken,) = (node for node in graph.nodes if node.name in names)
    calls = [node for node in graph.nodes if node.op == "call_function"]
    values = [node.meta.get("val") for node in calls]
    turned = next(i for i, x in enumerate(values) if x is not None and x.is_floating_point())
    calls[turned].replace_all_uses_with(taken)
    taken.meta["val"] = values[turned].contiguous()  # the image is in this order
    for node in reversed(calls[: turned + 1]):  # a check of the bytes' type is among them
        graph.erase_node(node)
    program.graph_module.recompile()


def _output(spec: TensorSpec) -> Any:
    ct = lean.coremltools()

    return ct.TensorType(name=spec.name, dtype=np.float32)


def _end_in_softmax(program: ExportedProgram, *, has_softmax: bool) -> None:
    """Put a softmax behind the logits, in place: all that a classifier gives is their labels.

    A distillation head's own output is left out. There may be a softmax already.
    """
    import torch

    graph = program.graph
    (end,) = (node for node in graph.nodes if node.op == "output")
    softmax = logits = end.args[0][0]
    if not has_softmax:
        with graph.inserting_before(end):
            softmax = graph.call_function(torch.ops.aten.softmax.int, (logits, -1))
        kept = ("val", "stack_trace")
        softmax.meta = {key: logits.meta[key] for key in kept if key in logits.meta}
    end.args = ((softmax,),)
    del program.graph_signature.output_specs[1:]
    argument: Any = program.graph_signature.output_specs[0].arg
    argument.name = softmax.name
    graph.eliminate_dead_code()
    program.graph_module.recompile()


def describe(specification: Any, model: Prepared, options: ExportOptions) -> None:
    """What Xcode shows of the model."""
    info = model.info
    description = specification.description
    description.metadata.shortDescription = (
        f"{info.name}: image classifier, {len(info.labels)} classes"
    )
    description.metadata.author = "levit-export"
    description.metadata.license = info.licence
    description.metadata.versionString = info.checkpoint_sha256[:12]
    description.input[0].shortDescription = info.preprocessing.in_words(
        embedded=model.embedded.preprocessing
    )
    if not options.classifier:
        for output in description.output:
            output.shortDescription = SAID_OF_OUTPUTS[output.name]
