"""Weights in 8 bits with a ``DequantizeLinear`` in front of the operator that uses them.

ONNX Runtime's quantisers have this only together with quantised activations, or as operators of
their own that other runtimes lack. Per channel c of a tensor w, symmetric:

    s_c = max|w_c| / 127
    q_c = round(w_c / s_c)
    w'_c = s_c * q_c,  |w'_c - w_c| <= s_c / 2
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto

LEVELS = 127
SMALLEST = 1024
"""Bytes in float32 from which a tensor is worth a scale for each channel."""


def quantize_weights(proto: ModelProto, kept: Collection[str]) -> ModelProto:
    """The graph with every large float32 constant in 8 bits, but for those of the nodes ``kept``.

    Given ``f(x, w)``. Result: ``f(x, DequantizeLinear(q, s))``, whose output has the name of
    ``w``. Large are those of two axes or more and ``SMALLEST`` bytes: matrices, kernels and
    attention-bias tables. ``kept`` are names of nodes.
    """
    import onnx

    users = _users(proto.graph)
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


def _users(graph: GraphProto) -> dict[str, list[NodeProto]]:
    users: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    return users


def _is_large(tensor: TensorProto) -> bool:
    size = 4 * int(np.prod(tensor.dims, dtype=np.int64))
    return tensor.data_type == tensor.FLOAT and len(tensor.dims) >= 2 and size >= SMALLEST
