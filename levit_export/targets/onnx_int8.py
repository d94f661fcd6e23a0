"""int8: weights and activations in 8 bits, by ``onnxruntime.quantization``, as QDQ.

What is decided here, each by measurement (docs/targets.md):

- Layers of tokens become ``Gemm``. ONNX Runtime turns ``MatMul`` and ``Add`` into Gemm before it
  looks for quantised operators, finds none then, and unpacks the weights at every call.
- Activations are uint8 and weights int8, per output channel; the ranges are the smallest and
  largest values that calibration saw.
- Weights use 7 of their 8 bits (``reduce_range``). Where a CPU has AVX2 but no VNNI, ONNX Runtime
  adds two products in 16 bits, which saturate, ``2 * 255 * 127 > 32767``, but
  ``2 * 255 * 64 < 32767``. So a check on one machine holds for another.
- Float stay the first convolution, the heads, the products of attentions, softmax and everything
  that is not a layer. Attention-bias tables are stored in 8 bits and added in float.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from levit_export.core import Tensors
from levit_export.errors import ExportFailedError
from levit_export.targets.onnx_graph import infer, replace_nodes
from levit_export.targets.onnx_weights import quantize_weights
from levit_export.targets.quiet import first_line, quiet

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

LAYERS = ("Conv", "Gemm")


def quantize(proto: ModelProto, inputs: Iterable[Tensors], kept: Collection[str]) -> None:
    """Quantise the layers of ``proto`` that are not ``kept``, in place, calibrated on ``inputs``.

    Given ``y = Gemm(x, w, b)``. Result: ``y = Gemm(DQ(Q(x)), DQ(q), DQ(b))`` with q int8 and b
    int32. ``kept`` are to include the heads.
    """
    kept = {*kept, *_reading_the_input(proto.graph)}
    infer(proto)
    _tokens_to_rows(proto.graph, kept)
    infer(proto)
    if layers := _layers(proto.graph, kept):
        proto.graph.CopyFrom(_quantize_static(proto, inputs, layers).graph)
    quantize_weights(proto, kept)
    infer(proto)


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


def _reading_the_input(graph: GraphProto) -> set[str]:
    """The first layer: nodes that read an input of the network."""
    inputs = {value.name for value in graph.input}
    return {node.output[0] for node in graph.node if inputs & set(node.input)}


def _layers(graph: GraphProto, kept: Collection[str]) -> list[str]:
    """Names of the nodes to quantise: layers whose weights are constants."""
    weights = {tensor.name for tensor in graph.initializer}
    return [
        node.name
        for node in graph.node
        if node.op_type in LAYERS and node.output[0] not in kept and node.input[1] in weights
    ]


def _tokens_to_rows(graph: GraphProto, kept: Collection[str]) -> None:
    """Write every layer of tokens as one product of matrices.

    Given ``y = Add(MatMul(x, w), b)`` with ``x (B, N, C)``, ``w (C, D)`` and ``b (D,)``.
    Result: ``y = Reshape(Gemm(Reshape(x, (B*N, C)), w, b), (B, N, D))``.
    """
    layers = _token_layers(graph, kept)
    by_part = {part.output[0]: layer for layer in layers for part in (layer.product, layer.total)}
    writer = _RowWriter(graph)
    nodes: list[NodeProto] = []
    for node in graph.node:
        layer = by_part.get(node.output[0])
        if layer is None:
            nodes.append(node)
        elif node.output[0] == layer.total.output[0]:
            nodes.extend(writer.written(layer))
    replace_nodes(graph, nodes)


@dataclass(frozen=True)
class _TokenLayer:
    """A product with a matrix and the sum with a bias; ``shape`` is the sum's, (B, N, D)."""

    product: NodeProto
    total: NodeProto
    bias: str
    shape: tuple[int, ...]


def _token_layers(graph: GraphProto, kept: Collection[str]) -> list[_TokenLayer]:
    ranks = {tensor.name: len(tensor.dims) for tensor in graph.initializer}
    uses = Counter(name for node in graph.node for name in node.input)
    products = {
        node.output[0]: node
        for node in graph.node
        if node.op_type == "MatMul" and ranks.get(node.input[1]) == 2 and uses[node.output[0]] == 1
    }
    shapes = {
        value.name: tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
        for value in (*graph.value_info, *graph.output)
    }
    found = []
    for node in graph.node:
        total = node.output[0]
        if node.op_type != "Add" or total in kept or not all(shapes.get(total, (0, 0))[1:]):
            continue
        found += [
            _TokenLayer(products[product], node, bias, shapes[total])
            for product, bias in (tuple(node.input), tuple(node.input)[::-1])
            if product in products and ranks.get(bias) == 1
        ]
    return found


class _RowWriter:
    """Writes layers of tokens; what two layers read is reshaped once."""

    def __init__(self, graph: GraphProto) -> None:
        self._graph = graph
        self._widths = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
        self._written: set[str] = set()

    def written(self, layer: _TokenLayer) -> Iterator[NodeProto]:
        """Reshape, Gemm, Reshape."""
        from onnx.helper import make_node

        (x, w), y = layer.product.input, layer.total.output[0]
        if (rows := f"{x}_rows") not in self._written:
            self._written.add(rows)
            matrix = self._constant("rows", -1, self._widths[w][0])
            yield make_node("Reshape", [x, matrix], [rows], f"node_{rows}")
        yield make_node("Gemm", [rows, w, layer.bias], [f"{y}_gemm"], f"node_{y}_gemm")
        tokens = self._constant("tokens", -1, *layer.shape[1:])
        yield make_node("Reshape", [f"{y}_gemm", tokens], [y], f"node_{y}")

    def _constant(self, kind: str, *shape: int) -> str:
        """The name of a constant that holds ``shape``; made where there is none yet."""
        from onnx import numpy_helper

        name = "_".join((kind, *map(str, shape[1:])))
        if name not in self._written:
            self._written.add(name)
            tensor = numpy_helper.from_array(np.array(shape, np.int64), name)
            self._graph.initializer.append(tensor)
        return name
