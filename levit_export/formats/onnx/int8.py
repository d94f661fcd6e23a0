"""int8: weights and activations in 8 bits, by ``onnxruntime.quantization``, as QDQ.

What is decided here, each by measurement (docs/precisions.md):

- Layers of tokens become ``Gemm``. ONNX Runtime turns ``MatMul`` and ``Add`` into Gemm before it
  looks for quantised operators, finds none then, and unpacks the weights at every call.
- Activations are uint8 and weights int8, per output channel; the ranges are the smallest and
  largest values that calibration saw.
- Weights use 7 of their 8 bits (``reduce_range``). Where a CPU has AVX2 but no VNNI, ONNX Runtime
  adds two products in 16 bits, which saturate, ``2 * 255 * 127 > 32767``, but
  ``2 * 255 * 64 < 32767``. So a check on one machine holds for another.
- The first convolution, the heads, the products of attentions, softmax and everything that is
  not a layer stay float. Attention-bias tables are stored in 8 bits and added in float.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from levit_export.core.errors import ExportFailedError
from levit_export.core.network import is_within
from levit_export.core.quiet import first_line, quiet
from levit_export.core.values import Tensors
from levit_export.formats.onnx.weights import quantize_weights
from levit_export.formats.onnx.write import Written

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto

LAYERS = ("Conv", "Gemm")
HEADS = ("head", "head_dist", "distill_head")
"""Blocks that end in an output, as users call them."""


def quantize(written: Written, inputs: Iterable[Tensors], keep: Collection[str]) -> ModelProto:
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
