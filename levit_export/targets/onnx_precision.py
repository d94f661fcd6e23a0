"""Which precisions an ONNX file can have, and what each does to the float32 graph."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from levit_export import samples
from levit_export.core import ExportOptions, Prepared, Tensors
from levit_export.targets import onnx_graph, onnx_half, onnx_int8, onnx_weights

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto

REMARKS = {
    "fp16": (
        "ONNX Runtime's CPU kernels compute most float16 operators in float32: this shows that "
        "the weights are right; a GPU also rounds every value",
    ),
    "w8": (
        "ONNX Runtime may round what goes into layers of 8-bit weights to 8 bits as well "
        "(session.qdq_matmulnbits_accuracy_level), depending on its version",
    ),
}
"""For each precision, what a reader of a check on this machine's CPU has to know."""

NOTES = {
    "fp16": ("fp16 is for GPUs: on a CPU, ONNX Runtime casts to float32 and back and is slower",),
    "w8": ("w8 makes the file smaller, not faster: weights are unpacked as the model runs",),
}
"""For each precision, what a user should know before shipping it."""


def apply(proto: ModelProto, model: Prepared, options: ExportOptions) -> tuple[str, ...]:
    """Bring the float32 graph ``proto`` to ``options.precision``, in place; notes for the user."""
    onnx_graph.lift_constants(proto.graph)
    owner = onnx_graph.owners(proto.graph, model.blocks)
    kept = onnx_graph.belonging(owner, options.keep)
    if options.precision == "fp16":
        onnx_graph.infer(proto)
        onnx_half.refuse_overflow(proto, _inputs(model, options), kept, owner)
        onnx_half.convert(proto, kept, owner)
    elif options.precision == "int8" and options.calibration is not None:
        heads = {block for block in owner.values() if block in onnx_graph.HEADS}
        kept |= onnx_graph.belonging(owner, heads)
        name = model.signature.inputs[0].name
        batches = _batches(options.calibration.inputs, model.signature.batch, name)
        onnx_int8.quantize(proto, batches, kept)
    elif options.precision == "w8":
        onnx_weights.quantize_weights(proto, kept)
        onnx_graph.infer(proto)
    return NOTES.get(options.precision, ())


def found(graph: GraphProto) -> str:
    """The precision of a file that does not say it."""
    import onnx

    operators = {node.op_type for node in graph.node}
    if "QuantizeLinear" in operators:
        return "int8"
    if "DequantizeLinear" in operators:
        return "w8"
    half = any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in graph.initializer)
    return "fp16" if half else "fp32"


def _inputs(model: Prepared, options: ExportOptions) -> Iterator[Tensors]:
    """What the model is tried on: the samples of a check, and real images where there are any."""
    tried = samples.make(model.info.preprocessing)
    inputs = tried.inputs
    if model.embedded.preprocessing:
        inputs = tried.raw(model.info.preprocessing)[0].inputs
    if options.calibration is not None:
        inputs = np.concatenate([inputs, options.calibration.inputs])
    yield from _batches(inputs, model.signature.batch, model.signature.inputs[0].name)


def _batches(inputs: np.ndarray, batch: int | None, name: str) -> Iterator[Tensors]:
    """``inputs`` in batches of the model's size, the last one filled up with its last image."""
    size = batch or 1
    for start in range(0, len(inputs), size):
        piece = inputs[start : start + size]
        missing = size - len(piece)
        yield {name: np.concatenate([piece, np.repeat(piece[-1:], missing, axis=0)])}
