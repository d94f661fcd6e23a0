"""Linear layers over tokens as 1x1 convolutions, for OpenVINO's int8 kernels.

*Given* tokens ``X (B, N, C)``, ``W (O, C)`` and ``b (O,)``: ``Y = X Wᵀ + b``, and perhaps
``Hardswish(Y)``. *Result*: the same numbers as a convolution of ``Xᵀ (B, C, 1, N)``, its bias and
its activation inside the two transpositions.

OpenVINO keeps channels last, so the transpositions move nothing. Without VNNI its int8 matrix
products are slower than float32 ones, and its int8 convolutions faster: 1.2 and 0.6 of float32's
time for LeViT-256. With VNNI both take 0.4 of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import openvino

TO_CHANNELS_FIRST = [0, 3, 1, 2]
TO_CHANNELS_LAST = [0, 2, 3, 1]


def as_convolutions(graph: openvino.Model) -> int:
    """Rewrite, in place, every product of tokens with a constant; how many there were."""
    linear = [node for node in graph.get_ordered_ops() if _is_linear(node)]
    for node in linear:
        _rewrite(node)
    graph.validate_nodes_and_infer_types()
    return len(linear)


def _is_linear(node: openvino.Node) -> bool:
    return (
        node.get_type_name() == "MatMul"
        and _is_constant(node.input_value(1).get_node())
        and len(node.input_value(1).get_shape()) == 2
        and node.input_value(0).get_partial_shape().rank.get_length() == 3
    )


def _is_constant(node: openvino.Node) -> bool:
    return bool(node.get_type_name() == "Constant")


def _rewrite(node: openvino.Node) -> None:
    from openvino import opset13 as op

    images = _images(node)
    w = node.input_value(1).get_node().data
    w = w if node.get_attributes()["transpose_b"] else w.T
    kernel = op.constant(np.ascontiguousarray(w)[:, :, None, None])
    result = op.convolution(images, kernel, [1, 1], [0, 0], [0, 0], [1, 1])
    result.set_friendly_name(f"{_value(node)}/Convolution")
    last = node
    add = _only_reader(last, "Add")
    if add is not None and (b := _bias(add, len(w))) is not None:
        result = op.add(result, op.constant(b.reshape(1, -1, 1, 1)))
        result.set_friendly_name(f"{_value(add)}/Add")
        last = add
        activation = _only_reader(last, "HSwish")
        if activation is not None:
            result = op.hswish(result)
            result.set_friendly_name(f"{_value(activation)}/HSwish")
            last = activation
    _replace(last, result)


def _images(node: openvino.Node) -> Any:
    """What a linear layer takes, as images ``(B, C, 1, N)``."""
    from openvino import opset13 as op

    tokens = node.input_value(0)
    if node.get_attributes()["transpose_a"]:  # OpenVINO drew a transposition in: (B, C, N)
        rows = op.unsqueeze(tokens, op.constant([2]))
        rows.set_friendly_name(f"{_value(node)}/Unsqueeze")
        return rows
    rows = op.unsqueeze(tokens, op.constant([1]))
    rows.set_friendly_name(f"{_value(node)}/Unsqueeze")
    images = op.transpose(rows, op.constant(TO_CHANNELS_FIRST))
    images.set_friendly_name(f"{_value(node)}/ChannelsFirst")
    return images


def _replace(last: openvino.Node, result: openvino.Node) -> None:
    """Let the readers of ``last`` read ``result`` as tokens, under the name of ``last``."""
    from openvino import opset13 as op

    rows = op.transpose(result, op.constant(TO_CHANNELS_LAST))
    rows.set_friendly_name(f"{_value(last)}/ChannelsLast")
    tokens = op.squeeze(rows, op.constant([1]))
    names = last.output(0).get_tensor().get_names()
    for reader in list(last.output(0).get_target_inputs()):
        reader.replace_source_output(tokens.output(0))
    tokens.output(0).get_tensor().set_names(names)
    tokens.set_friendly_name(last.get_friendly_name())


def _value(node: openvino.Node) -> str:
    return str(node.get_friendly_name()).partition("/")[0]


def _only_reader(node: openvino.Node, kind: str) -> openvino.Node | None:
    """The one reader of a node when it is of that kind."""
    readers = [reader.get_node() for reader in node.output(0).get_target_inputs()]
    return readers[0] if len(readers) == 1 and readers[0].get_type_name() == kind else None


def _bias(add: openvino.Node, channels: int) -> np.ndarray | None:
    """The numbers ``(O,)`` that ``add`` adds to each token, or None if it adds something else."""
    for index in range(2):
        node = add.input_value(index).get_node()
        if _is_constant(node) and node.data.size == node.data.shape[-1] == channels:
            return np.array(node.data).reshape(-1)
    return None
