"""An ONNX file computed in float64, by the reference evaluator of the onnx package.

The evaluator takes every operator's type from its inputs, so a graph whose constants and casts are
double, given inputs in double, is computed in double throughout. What the file's own rounding made
of its constants stays: the numbers are those of the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import GraphProto, NodeProto, TensorProto
from onnx.reference import ReferenceEvaluator

from levit_export.core.errors import ArtifactError, RuntimeFailedError
from levit_export.core.quiet import first_line
from levit_export.core.values import Artifact, Signature, Tensors


class ExactSession:
    """A file in float64 as :class:`levit_export.core.values.Session`; ``taps`` come as well.

    Raises ``ArtifactError`` for a file that the evaluator cannot compute in float64.
    """

    def __init__(self, artifact: Artifact, taps: Sequence[str] = ()) -> None:
        self.signature: Signature = artifact.signature
        self.runtime = f"onnx {onnx.__version__} reference evaluator (float64)"
        self._name = artifact.path.name
        try:
            proto = onnx.load(artifact.path)
            if proto.functions:
                proto = onnx.inliner.inline_local_functions(proto)
            _widen(proto.graph)
            for tap in taps:
                proto.graph.output.add(name=tap)
            self._evaluator = ReferenceEvaluator(proto)
        except Exception as error:
            raise ArtifactError(
                f"{self._name} cannot be computed in float64: {first_line(error)}",
                remedy="Give --rtol or --atol, or a .pt2 file as the reference.",
            ) from error
        self._outputs = [value.name for value in proto.graph.output]

    def run(self, inputs: Tensors) -> dict[str, np.ndarray]:
        """One evaluation; floating-point inputs of any type are taken."""
        given = {
            name: value.astype(np.float64) if value.dtype.kind == "f" else value
            for name, value in inputs.items()
        }
        try:
            results = self._evaluator.run(None, given)
        except Exception as error:
            raise RuntimeFailedError(
                f"{self._name} cannot be computed in float64: {first_line(error)}",
                remedy="Give --rtol or --atol, or a .pt2 file as the reference.",
            ) from error
        return {
            name: np.asarray(value) for name, value in zip(self._outputs, results, strict=True)
        }


def consumers(path: Path) -> dict[str, tuple[str, ...]]:
    """The values of a file in the order of its nodes, each with those that are made of it."""
    graph = onnx.load(path, load_external_data=False).graph
    found: dict[str, tuple[str, ...]] = {
        name: () for node in graph.node for name in node.output if name
    }
    for node in graph.node:
        for name in node.input:
            if name in found:
                found[name] += tuple(node.output)
    return found


def _widen(graph: GraphProto) -> None:
    """Make every number of ``graph`` and of its subgraphs a double, in place."""
    if graph.sparse_initializer:
        raise ValueError("it has sparse tensors")
    for tensor in graph.initializer:
        _widen_tensor(tensor)
    del graph.value_info[:]
    for node in graph.node:
        _widen_node(node)
        for attribute in node.attribute:
            for body in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                _widen(body)


def _widen_node(node: NodeProto) -> None:
    floats = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)
    names = {attribute.name for attribute in node.attribute}
    if node.op_type == "ConstantOfShape" and not names:  # which gives float32 zeros
        zero = onnx.numpy_helper.from_array(np.zeros(1))
        node.attribute.append(onnx.helper.make_attribute("value", zero))
    for attribute in node.attribute:
        if attribute.HasField("t"):
            _widen_tensor(attribute.t)
        elif attribute.name in ("to", "dtype") and attribute.i in floats:
            attribute.i = TensorProto.DOUBLE
        elif node.op_type == "Constant" and attribute.name in ("value_float", "value_floats"):
            numbers = np.array(onnx.helper.get_attribute_value(attribute), np.float64)
            tensor = onnx.numpy_helper.from_array(numbers)
            attribute.CopyFrom(onnx.helper.make_attribute("value", tensor))


def _widen_tensor(tensor: TensorProto) -> None:
    array = onnx.numpy_helper.to_array(tensor)
    if array.dtype.kind == "f" or array.dtype.name == "bfloat16":
        tensor.CopyFrom(onnx.numpy_helper.from_array(array.astype(np.float64), tensor.name))
