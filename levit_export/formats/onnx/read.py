"""What an ONNX graph computes with, followed backwards from its outputs.

A file holds more than its answers depend on, and says more than is true. Here nothing counts but
what an output is made of: dead nodes and initializers are left out, subgraphs are entered, and
what is computed from constants alone is computed, so that a number is seen as the operator sees it
that first joins it with the input, however it is stored: as an initializer, a sparse one, a
``Constant``'s tensor, list or scalar, an attribute, or integers that are cast or dequantised.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from levit_export.core.constants import Constant
from levit_export.core.errors import ArtifactError
from levit_export.core.quiet import first_line

if TYPE_CHECKING:
    from onnx import AttributeProto, GraphProto, ModelProto, NodeProto

LAYERS = ("Conv", "ConvTranspose", "MatMul", "Gemm", "Einsum")
"""Operators whose constants of two axes and more are weights."""
INTEGER_LAYERS = ("ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul")
"""Layers that compute in whole numbers."""
PASSIVE = ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Slice", "Split")
"""Operators that move numbers and change none."""
STRUCTURAL = (
    *PASSIVE,
    *("Gather", "GatherElements", "GatherND", "Expand", "Tile", "Pad", "Resize", "TopK", "Range"),
    *("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL2", "ReduceL1"),
    *("ConstantOfShape", "OneHot", "ScatterElements", "ScatterND", "Concat", "Loop", "CumSum"),
)
"""Operators whose whole numbers are shapes, axes and indices."""
RANDOM = ("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial")


@dataclass
class _Reading:
    """What is known of a graph while its live nodes are read in order."""

    opset: int
    found: list[Constant] = field(default_factory=list)
    makers: dict[str, NodeProto] = field(default_factory=dict)

    def read(self, graph: GraphProto, outer: Mapping[str, Constant]) -> None:
        """Everything that the outputs of ``graph`` depend on; ``outer`` is seen from within."""
        known = dict(outer)
        for tensor in graph.initializer:
            known[tensor.name] = _stored(tensor)
        for sparse in graph.sparse_initializer:
            known[sparse.values.name] = _sparse(sparse)
        for taken in graph.input:
            known.pop(taken.name, None)  # which whoever runs the file may replace
        for node in _live(graph):
            self.makers.update(dict.fromkeys(node.output, node))
            bodies = [body for each in node.attribute for body in _bodies(each)]
            inputs = [name for name in node.input if name]
            is_constant = not bodies and node.op_type not in RANDOM
            if is_constant and all(name in known for name in inputs):
                known |= self._computed(node, [known[n] for n in inputs])
                continue
            for body in bodies:
                self.read(body, known)
            self._joined(node, known)
        for value in graph.output:
            if value.name in known:
                self._add(known[value.name], is_weight=False)

    def _computed(self, node: NodeProto, inputs: Sequence[Constant]) -> dict[str, Constant]:
        """The outputs of a node that depends on no input."""
        values = _evaluated(node, [each.numbers for each in inputs], self.opset)
        spent = sum(each.bits * each.numbers.size for each in inputs)
        bits = [spent / max(value.size, 1) for value in values]
        if not inputs:  # a Constant
            bits = [8.0 * value.itemsize for value in values]
        return {
            name: Constant(value, each)
            for name, value, each in zip(node.output, values, bits, strict=False)
            if name
        }

    def _joined(self, node: NodeProto, known: Mapping[str, Constant]) -> None:
        """The constants that ``node`` joins with what depends on the input."""
        self.found += _attributes(node)
        if self._keeps_a_grid(node, known):
            return
        is_layer = node.op_type in (*LAYERS, *INTEGER_LAYERS)
        on_grid = node.op_type in INTEGER_LAYERS or any(
            self._is_on_grid(name) for name in node.input if name not in known
        )
        for name in node.input:
            if name not in known:
                continue
            value = known[name]
            if value.numbers.dtype.kind in "biu" and node.op_type in STRUCTURAL:
                continue
            is_weight = is_layer and value.numbers.ndim > 1
            self._add(value, is_weight=is_weight, on_grid=on_grid)

    def _add(self, value: Constant, *, is_weight: bool, on_grid: bool = False) -> None:
        if value.numbers.dtype.kind in "fbiu" or value.numbers.dtype.name == "bfloat16":
            self.found.append(replace(value, is_weight=is_weight, on_grid=on_grid))

    def _behind(self, name: str) -> NodeProto | None:
        """What made a value, behind operators that only move numbers."""
        node = self.makers.get(name)
        while node is not None and node.op_type in PASSIVE:
            node = self.makers.get(node.input[0])
        return node

    def _is_on_grid(self, name: str) -> bool:
        node = self._behind(name)
        return node is not None and node.op_type == "DequantizeLinear"

    def _keeps_a_grid(self, node: NodeProto, known: Mapping[str, Constant]) -> bool:
        """Whether ``node`` rounds a value to 8 bits, or takes it back with the same scale.

        The scales and offsets of such a pair are not numbers of the network: they cancel out.
        """
        if node.op_type == "QuantizeLinear":
            return True  # judged where it is taken back
        if node.op_type != "DequantizeLinear":
            return False
        rounding = self._behind(node.input[0])
        if rounding is None or rounding.op_type != "QuantizeLinear":
            return False
        there, here = ([known.get(n) for n in each.input[1:] if n] for each in (rounding, node))
        return len(there) == len(here) and all(
            one is not None and other is not None and np.array_equal(one.numbers, other.numbers)
            for one, other in zip(there, here, strict=True)
        )


def contents(proto: ModelProto) -> tuple[Constant, ...]:
    """The numbers that the outputs of a model depend on.

    Raises ``ArtifactError`` where what is computed from constants alone cannot be computed here.
    """
    import onnx

    if proto.functions:
        proto = onnx.inliner.inline_local_functions(proto)
    opset = max((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), default=1)
    reading = _Reading(opset)
    reading.read(proto.graph, {})
    return tuple(reading.found)


def _live(graph: GraphProto) -> list[NodeProto]:
    """The nodes that the outputs depend on, in order."""
    needed = {value.name for value in graph.output}
    live = []
    for node in reversed(graph.node):
        if needed.isdisjoint(node.output):
            continue
        live.append(node)
        needed.update(node.input)
        for attribute in node.attribute:
            for body in _bodies(attribute):
                needed |= _free(body)
    return live[::-1]


def _free(graph: GraphProto) -> set[str]:
    """The names that a subgraph may take from around it."""
    used = {value.name for value in graph.output}
    for node in graph.node:
        used.update(node.input)
        for attribute in node.attribute:
            for body in _bodies(attribute):
                used |= _free(body)
    return used


def _bodies(attribute: AttributeProto) -> Iterator[GraphProto]:
    if attribute.HasField("g"):
        yield attribute.g
    yield from attribute.graphs


def _stored(tensor: Any) -> Constant:
    import onnx

    array = onnx.numpy_helper.to_array(tensor)
    four = {"INT4", "UINT4", "FLOAT4E2M1"}
    name = onnx.TensorProto.DataType.Name(tensor.data_type)
    return Constant(array, 4.0 if name in four else 8.0 * array.itemsize)


def _sparse(tensor: Any) -> Constant:
    """A sparse tensor in full; ``indices`` are flat, or one row for each number."""
    import onnx

    values = onnx.numpy_helper.to_array(tensor.values)
    indices = onnx.numpy_helper.to_array(tensor.indices)
    full = np.zeros(tuple(tensor.dims), values.dtype)
    if indices.ndim == 1:
        full.reshape(-1)[indices] = values
    else:
        full[tuple(indices.T)] = values
    return Constant(full, 8.0 * full.itemsize)


def _attributes(node: NodeProto) -> Iterator[Constant]:
    """The numbers that an operator carries itself, such as the slope of an activation."""
    import onnx

    for attribute in node.attribute:
        kind = attribute.type
        if kind == onnx.AttributeProto.FLOAT:
            yield Constant(np.array(attribute.f, np.float32), 32)
        elif kind == onnx.AttributeProto.FLOATS:
            yield Constant(np.array(attribute.floats, np.float32), 32)
        elif kind == onnx.AttributeProto.TENSOR:
            yield _stored(attribute.t)
        elif kind == onnx.AttributeProto.TENSORS:
            yield from map(_stored, attribute.tensors)
        elif kind == onnx.AttributeProto.SPARSE_TENSOR:
            yield _sparse(attribute.sparse_tensor)


def _evaluated(node: NodeProto, inputs: Sequence[np.ndarray], opset: int) -> list[np.ndarray]:
    """The outputs of a node whose inputs are all known."""
    if node.op_type == "Constant":
        return [_constant(node.attribute[0])]
    is_blocked = any(each.name == "block_size" and each.i for each in node.attribute)
    if node.op_type == "DequantizeLinear" and not is_blocked:
        return [_dequantised(node, inputs)]
    from onnx.reference import ReferenceEvaluator

    names = [name for name in node.input if name]
    try:
        evaluator = ReferenceEvaluator(node, opsets={node.domain: opset, "": opset})
        results = evaluator.run(None, dict(zip(names, inputs, strict=True)))
    except Exception as error:
        raise ArtifactError(
            f"what {node.op_type} {node.output[0]!r} makes of constants cannot be computed: "
            f"{first_line(error)}",
            remedy="Fold constants when the file is written.",
        ) from error
    return [np.asarray(result) for result in results]


def _constant(attribute: AttributeProto) -> np.ndarray:
    """The value of a Constant, in whichever attribute it stands."""
    import onnx

    if attribute.name == "value":
        return _stored(attribute.t).numbers
    if attribute.name == "sparse_value":
        return _sparse(attribute.sparse_tensor).numbers
    value = onnx.helper.get_attribute_value(attribute)
    if attribute.name in ("value_float", "value_floats"):
        return np.array(value, np.float32)
    return np.array(value)


def _dequantised(node: NodeProto, inputs: Sequence[np.ndarray]) -> np.ndarray:
    """``(q - zero_point) * scale`` along the node's axis."""
    q, s, *zero = (array.astype(np.float32) for array in inputs)
    axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
    shape = [-1 if a == axis % q.ndim else 1 for a in range(q.ndim)] if s.size > 1 else []
    offset = zero[0].reshape(shape) if zero else np.float32(0)
    result: np.ndarray = (q - offset) * s.reshape(shape)
    return result
