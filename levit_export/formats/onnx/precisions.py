"""The precisions of an ONNX file: float16 as it is written, int8 and w8 by quantising.

int8 has weights and activations in 8 bits, by ``onnxruntime.quantization``, as QDQ. What is
decided here, each by measurement (docs/precisions.md):

- Layers of tokens become ``Gemm``. ONNX Runtime turns ``MatMul`` and ``Add`` into Gemm before it
  looks for quantised operators, finds none then, and unpacks the weights at every call.
- Activations are uint8 and weights int8, per output channel; the ranges are the smallest and
  largest values that calibration saw.
- Weights use 7 of their 8 bits (``reduce_range``). Where a CPU has AVX2 but no VNNI, ONNX Runtime
  adds two products in 16 bits, which saturate, ``2 * 255 * 127 > 32767``, but
  ``2 * 255 * 64 < 32767``. So a check on one machine holds for another.
- The first convolution, the heads, the products of attentions, softmax and everything that is
  not a layer stay float. Attention-bias tables are stored in 8 bits and added in float.

w8 has weights in 8 bits with a ``DequantizeLinear`` in front of the operator that uses them.
ONNX Runtime's quantisers have this only together with quantised activations, or as operators of
their own that other runtimes lack. Per channel c of a tensor w, symmetric:

    s_c = max|w_c| / 127
    q_c = round(w_c / s_c)
    w'_c = s_c * q_c,  |w'_c - w_c| <= s_c / 2
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from levit_export.core.errors import ExportFailedError
from levit_export.core.network import is_within
from levit_export.core.quiet import first_line, quiet
from levit_export.core.values import ExportOptions, Prepared, Tensors
from levit_export.formats.onnx import write as onnx_write
from levit_export.formats.onnx.write import Written
from levit_export.inputs import samples
from levit_export.inputs.samples import in_batches

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto

LAYERS = ("Conv", "Gemm")
HEADS = ("head", "head_dist", "distill_head")
"""Blocks that end in an output, as users call them."""
LEVELS = 127
SMALLEST = 1024
"""Bytes in float32 from which a tensor is worth a scale for each channel."""

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
        size = model.signature.batch or 1
        batches = ({name: piece} for piece in in_batches(options.calibration.inputs, size))
        return _in_8_bits(written, batches, options.keep)
    if options.precision == "w8":
        kept = (name for name, op in written.ops.items() if is_within(op.block, options.keep))
        return quantize_weights(written.model, frozenset(kept))
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
    for piece in in_batches(inputs, model.signature.batch or 1):
        yield {model.signature.inputs[0].name: piece}


def _in_8_bits(written: Written, inputs: Iterable[Tensors], keep: Collection[str]) -> ModelProto:
    """A graph with its layers quantised, but for those of the blocks ``keep``.

    Given ``y = Gemm(x, w, b)``. Result: ``y = Gemm(DQ(Q(x)), DQ(q), DQ(b))`` with q int8 and b
    int32, calibrated on ``inputs``. The layers of tokens have to be written as Gemm already.
    """
    import onnx

    first = next(op for op in written.ops.values() if op.kind in ("convolution", "linear"))
    kept = {
        name
        for name, op in written.ops.items()
        if op is first or is_within(op.block, (*keep, *HEADS))
    }
    proto = onnx.ModelProto()
    proto.CopyFrom(written.model)  # the quantiser changes what it is given
    if layers := _layers(proto.graph, kept):
        quantised = _quantize_static(proto, inputs, layers)
        proto.CopyFrom(written.model)
        proto.graph.CopyFrom(quantised.graph)
    return quantize_weights(proto, kept)


def _quantize_static(
    proto: ModelProto, inputs: Iterable[Tensors], layers: list[str]
) -> ModelProto:
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    with tempfile.TemporaryDirectory(prefix="levit-export-") as folder:
        path = Path(folder, "int8.onnx")
        try:
            with quiet("root"):
                quantize_static(
                    proto,
                    path,
                    _Reader(inputs),
                    quant_format=QuantFormat.QDQ,
                    op_types_to_quantize=list(LAYERS),
                    nodes_to_quantize=layers,
                    per_channel=True,
                    reduce_range=True,
                    activation_type=QuantType.QUInt8,
                    weight_type=QuantType.QInt8,
                    calibrate_method=CalibrationMethod.MinMax,
                    calibration_providers=["CPUExecutionProvider"],
                    # What follows a layer of tokens is float: it need not be rounded twice.
                    extra_options={"OpTypesToExcludeOutputQuantization": ["Gemm"]},
                )
            return onnx.load(path)
        except Exception as error:
            raise ExportFailedError(
                f"onnxruntime.quantization failed: {first_line(error)}",
                remedy="Try --precision w8, or report the model.",
            ) from error


class _Reader:
    """Calibration inputs as ``onnxruntime.quantization`` asks for them, one call at a time."""

    def __init__(self, inputs: Iterable[Tensors]) -> None:
        self._inputs: Iterator[Tensors] = iter(inputs)

    def __iter__(self) -> Iterator[Tensors]:
        return self._inputs

    def get_next(self) -> Any:
        """The next batch, or None at the end."""
        return next(self._inputs, None)


def _layers(graph: GraphProto, kept: Collection[str]) -> list[str]:
    """Names of the nodes to quantise: layers whose weights are constants."""
    weights = {tensor.name for tensor in graph.initializer}
    return [
        node.name
        for node in graph.node
        if node.op_type in LAYERS and node.name not in kept and node.input[1] in weights
    ]


def quantize_weights(proto: ModelProto, kept: Collection[str]) -> ModelProto:
    """The graph with every large float32 constant in 8 bits, but for those of the nodes ``kept``.

    Given ``f(x, w)``. Result: ``f(x, DequantizeLinear(q, s))``, whose output has the name of
    ``w``. Large are those of two axes or more and ``SMALLEST`` bytes: matrices, kernels and
    attention-bias tables. ``kept`` are names of nodes.
    """
    import onnx

    users: dict[str, list[NodeProto]] = {}
    for node in proto.graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    graph = result.graph
    del graph.node[:], graph.initializer[:]
    for tensor in proto.graph.initializer:
        readers = users.get(tensor.name, [])
        if not _is_large(tensor) or not readers or any(node.name in kept for node in readers):
            graph.initializer.append(tensor)
            continue
        array = onnx.numpy_helper.to_array(tensor)
        axis = channel_axis(readers[0], tensor.name, array)
        q, s = rounded(array, axis)
        inputs = [f"{tensor.name}_quantized", f"{tensor.name}_scale"]
        graph.node.append(
            onnx.helper.make_node(
                "DequantizeLinear", inputs, [tensor.name], f"node_{tensor.name}", axis=axis
            )
        )
        graph.initializer.extend(map(onnx.numpy_helper.from_array, (q, s), inputs))
    graph.node.extend(proto.graph.node)
    return result


def rounded(array: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """``q`` int8 and ``s`` float32 ``(channels,)`` of the module's formula."""
    others = tuple(a for a in range(array.ndim) if a != axis)
    largest = np.abs(array).max(axis=others, keepdims=True)
    s = np.where(largest > 0, largest / LEVELS, 1).astype(np.float32)
    q = np.clip(np.rint(array / s), -LEVELS, LEVELS).astype(np.int8)
    return q, s.reshape(-1)


def channel_axis(node: NodeProto, name: str, array: np.ndarray) -> int:
    """The axis of a constant along which the operator's outputs do not mix.

    The outputs of a matrix or a kernel; of tables that are added, the heads or tokens.
    """
    if node.op_type == "Gemm" and name == node.input[1]:
        is_transposed = any(a.name == "transB" and a.i for a in node.attribute)
        return 0 if is_transposed else 1
    if node.op_type == "MatMul":
        return int(array.ndim - 1)
    return next((a for a, length in enumerate(array.shape) if length > 1), 0)


def _is_large(tensor: TensorProto) -> bool:
    size = 4 * int(np.prod(tensor.dims, dtype=np.int64))
    return tensor.data_type == tensor.FLOAT and len(tensor.dims) >= 2 and size >= SMALLEST
