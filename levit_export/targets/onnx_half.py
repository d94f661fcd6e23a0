"""float16: weights and operators in half precision, inputs and outputs in float32.

The converters that come with ONNX Runtime do most of this, but raise weights below 6e-8 to 6e-8
and lower those above 65504 to that, and round between any two operators that are to stay in
float32. Here every weight is rounded once, what float16 cannot hold is an error, and a run of kept
operators stays in float32 from end to end.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from levit_export.core import Tensors
from levit_export.errors import ExportFailedError
from levit_export.targets.onnx_graph import infer, replace_nodes

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

LARGEST = float(np.finfo(np.float16).max)
TO_INFINITY = LARGEST + 16
"""Half a step above the largest number: what is as large or larger is rounded to infinity."""

TYPED = ("Cast", "ConstantOfShape")
"""Operators that name their own element type. A network has only the Cast of its pixels."""


def convert(proto: ModelProto, kept: Collection[str], owner: Mapping[str, str]) -> None:
    """Compute the graph in float16 but for the nodes ``kept``, in place.

    Given ``y = f(x, w)`` in float32. Result: ``y = f(Cast(x), w)`` in float16 with ``w`` rounded,
    and a Cast wherever float16 and float32 meet. ``owner`` gives each node's block, for messages.
    """
    writer = _Writer(proto.graph, kept, owner)
    for node in list(proto.graph.node):
        writer.write(node)
    replace_nodes(proto.graph, writer.nodes)
    writer.store_weights()
    infer(proto)


def refuse_overflow(
    proto: ModelProto, inputs: Iterable[Tensors], kept: Collection[str], owner: Mapping[str, str]
) -> None:
    """Raise where a value of the float32 graph ``proto`` lies beyond float16 on ``inputs``.

    ONNX Runtime's CPU kernels may compute such values in float32: a check there would not see it.
    """
    for name, largest in _largest_values(proto, inputs, kept).items():
        if not largest < TO_INFINITY:
            _refuse(f"the value {name} reaches {largest:.3g}", owner.get(name, ""))


def _refuse(what: str, block: str) -> None:
    keep = f"Keep {block} in float32 (--keep {block}), or export" if block else "Export"
    raise ExportFailedError(
        f"{what}, float16 ends at {LARGEST:.0f}", remedy=f"{keep} with --precision fp32."
    )


class _Writer:
    """Writes nodes anew, with a Cast in front where an input has the other type."""

    def __init__(self, graph: GraphProto, kept: Collection[str], owner: Mapping[str, str]) -> None:
        import onnx

        self.nodes: list[NodeProto] = []
        self._float, self._half = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16
        self._make_node = onnx.helper.make_node
        self._graph, self._kept, self._owner = graph, kept, owner
        values = (*graph.input, *graph.value_info, *graph.output)
        self._floats = {v.name for v in values if v.type.tensor_type.elem_type == self._float}
        self._types = {value.name: self._float for value in graph.input}
        self._weights = {t.name: t for t in graph.initializer if t.data_type == self._float}
        self._users: dict[tuple[str, int], str] = {}
        self._outputs = {value.name for value in graph.output}

    def write(self, node: NodeProto) -> None:
        """``node`` in the type that it is to have."""
        if node.op_type == "Cast" and node.input[0] not in self._floats:
            self.nodes.append(node)  # whole numbers, such as pixels, to float32
            self._types[node.output[0]] = self._float
            return
        if node.op_type in TYPED:
            raise ExportFailedError(
                f"{node.output[0]} is a {node.op_type}, which is not converted to float16",
                remedy="Export with --precision fp32.",
            )
        wanted = self._float if node.output[0] in self._kept else self._half
        node.input[:] = [self._as(name, wanted, node.output[0]) for name in node.input]
        self.nodes.append(node)
        for index, name in enumerate(node.output):
            self._types[name] = wanted
            if name in self._outputs and name in self._floats and wanted == self._half:
                node.output[index] = f"{name}_float16"
                node.name = f"node_{node.output[0]}"
                self.nodes.append(self._cast(node.output[index], name, self._float))

    def store_weights(self) -> None:
        """Round the weights of operators in float16; a kept operator gets one of its own."""
        import onnx

        for (name, wanted), user in self._users.items():
            array = onnx.numpy_helper.to_array(self._weights[name])
            if wanted == self._half:
                if not np.abs(array).max(initial=0) < TO_INFINITY:
                    largest = np.abs(array).max()
                    _refuse(f"the weight {name} holds {largest:.3g}", self._owner.get(user, ""))
                array = array.astype(np.float16)
            stored = onnx.numpy_helper.from_array(array, self._weight(name, wanted))
            self._graph.initializer.append(stored)
        for name, _ in dict(self._users):
            if self._weights[name] in self._graph.initializer:
                self._graph.initializer.remove(self._weights[name])

    def _as(self, name: str, wanted: int, user: str) -> str:
        """What ``name`` is called in the type ``wanted``; made where there is none yet."""
        if name in self._weights:
            self._users.setdefault((name, wanted), user)
            return self._weight(name, wanted)
        if name not in self._floats or self._types[name] == wanted:
            return name
        cast = f"{name}_as_{'float16' if wanted == self._half else 'float32'}"
        if cast not in self._types:
            self._types[cast] = wanted
            self.nodes.append(self._cast(name, cast, wanted))
        return cast

    def _weight(self, name: str, wanted: int) -> str:
        return name if wanted == self._half else f"{name}_float32"

    def _cast(self, source: str, result: str, wanted: int) -> NodeProto:
        return self._make_node("Cast", [source], [result], f"node_{result}", to=wanted)


def _largest_values(
    proto: ModelProto, inputs: Iterable[Tensors], kept: Collection[str]
) -> dict[str, float]:
    """The largest magnitude of every float value that is not of a kept node."""
    import onnx
    import onnxruntime

    tapped = onnx.ModelProto()
    tapped.CopyFrom(proto)
    del tapped.graph.output[:]
    floats = [
        value
        for value in (*proto.graph.value_info, *proto.graph.output)
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    ]
    made = {
        name for node in proto.graph.node if node.output[0] not in kept for name in node.output
    }
    tapped.graph.output.extend(value for value in floats if value.name in made)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        tapped.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    largest = dict.fromkeys(names, 0.0)
    for feed in inputs:
        for name, array in zip(names, session.run(None, dict(feed)), strict=True):
            found = float(np.abs(array).max(initial=0))
            largest[name] = found if not found <= largest[name] else largest[name]
    return largest
