"""What the precisions of the ONNX target need to know of a graph: blocks, constants, shapes.

A node is called by its first output here; that name is unique, and says where in the network the
node is (``naming``).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from levit_export.errors import UsageError
from levit_export.naming import tap_value

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

HEADS = ("head", "head_dist", "distill_head")
"""Blocks that end in an output, as users call them."""


def owners(graph: GraphProto, blocks: Mapping[str, str]) -> dict[str, str]:
    """For each node the block that it belongs to, as users call it, or empty.

    That is the longest one that begins the node's name. Outputs are called as the signature says:
    there the parameters tell, which are named after the modules of ``blocks``.
    """
    prefixes = {tap_value(block): block for block in blocks.values()}
    outputs = {output.name for output in graph.output}
    found = {}
    for node in graph.node:
        name = node.output[0]
        begins = [p for p in prefixes if name == p or name.startswith(f"{p}_")]
        block = prefixes[max(begins, key=len)] if begins else ""
        found[name] = _block_of_parameters(node, blocks) if name in outputs else block
    return found


def _block_of_parameters(node: NodeProto, blocks: Mapping[str, str]) -> str:
    paths = [path for path in blocks if any(name.startswith(f"{path}.") for name in node.input)]
    return blocks[max(paths, key=len)] if paths else ""


def belonging(owner: Mapping[str, str], wanted: Collection[str]) -> frozenset[str]:
    """The nodes of the blocks ``wanted`` and of the blocks within them.

    Raises ``UsageError`` for a block that has no node.
    """
    found = set()
    for block in wanted:
        inside = {name for name, of in owner.items() if of == block or of.startswith(f"{block}.")}
        if not inside:
            raise UsageError(
                f"no operator belongs to the block {block!r}",
                remedy=f"Blocks are {', '.join(dict.fromkeys(filter(None, owner.values())))}.",
            )
        found |= inside
    return frozenset(found)


def lift_constants(graph: GraphProto) -> None:
    """Given ``Constant`` nodes of tensors. Result: initializers of the same names."""
    lifted = [n for n in graph.node if n.op_type == "Constant" and n.attribute[0].name == "value"]
    for node in lifted:
        tensor = graph.initializer.add()
        tensor.CopyFrom(node.attribute[0].t)
        tensor.name = node.output[0]
        graph.node.remove(node)


def infer(proto: ModelProto) -> None:
    """Replace the graph's record of inner types and shapes by what follows from its nodes."""
    import onnx

    del proto.graph.value_info[:]
    inferred = onnx.shape_inference.infer_shapes(proto, check_type=True, data_prop=True)
    proto.graph.value_info.extend(inferred.graph.value_info)


def replace_nodes(graph: GraphProto, nodes: Collection[NodeProto]) -> None:
    """Make ``nodes`` the graph's, in this order. Some may be the graph's own."""
    import onnx

    copies = []
    for node in nodes:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copies.append(copy)
    del graph.node[:]
    graph.node.extend(copies)
