"""Which precisions an ONNX file can have, and how each is written."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from levit_export.core.network import is_within
from levit_export.core.values import ExportOptions, Prepared, Tensors
from levit_export.formats.onnx import int8 as onnx_int8
from levit_export.formats.onnx import weights as onnx_weights
from levit_export.formats.onnx import write as onnx_write
from levit_export.formats.onnx.write import Written
from levit_export.inputs import samples

if TYPE_CHECKING:
    from onnx import ModelProto

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


def write(model: Prepared, options: ExportOptions) -> Written:
    """The float graph of ``model``: what the file holds, or what its quantiser begins with.

    Raises ``UsageError`` for unknown blocks to keep, and ``ExportFailedError`` where float16
    cannot hold a weight or a value.
    """
    network, name = model.network, model.info.name
    network.refuse_unknown(options.keep)
    half, in_rows = options.precision == "fp16", options.precision == "int8"
    if half:
        plain = onnx_write.write(network, opset=options.opset, name=name)
        refuse_overflow(plain, _inputs(model, options), options.keep)
    return onnx_write.write(
        network, opset=options.opset, name=name, keep=options.keep, half=half, in_rows=in_rows
    )


def quantize(written: Written, model: Prepared, options: ExportOptions) -> ModelProto:
    """The graph in the precision of ``options``; the graph itself where that is a float one."""
    if options.precision == "int8" and options.calibration is not None:
        name = model.signature.inputs[0].name
        batches = _batches(options.calibration.inputs, model.signature.batch, name)
        return onnx_int8.quantize(written, batches, options.keep)
    if options.precision == "w8":
        kept = (name for name, op in written.ops.items() if is_within(op.block, options.keep))
        return onnx_weights.quantize_weights(written.model, frozenset(kept))
    return written.model


def refuse_overflow(plain: Written, inputs: Iterable[Tensors], keep: Collection[str]) -> None:
    """Raise where a value of the float32 graph lies beyond float16 on ``inputs``.

    ONNX Runtime's CPU kernels may compute such values in float32: a check there would not see it.
    """
    import onnxruntime

    graph = plain.model.graph
    blocks = {name: plain.ops[node.name].block for node in graph.node for name in node.output}
    floats = {v.name for v in graph.value_info if v.type.tensor_type.elem_type == 1}
    rounded = [name for name in blocks if name in floats and not is_within(blocks[name], keep)]
    for name in rounded:
        graph.output.add(name=name)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        plain.model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    largest: dict[str, float] = {}
    names = [value.name for value in session.get_outputs()]
    for feed in inputs:
        for name, array in zip(names, session.run(None, dict(feed)), strict=True):
            largest[name] = float(np.maximum(largest.get(name, 0), np.abs(array).max()))
    for name, reached in largest.items():
        onnx_write.refuse_infinity(f"the value {name} reaches", reached, blocks[name])


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
