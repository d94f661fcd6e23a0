"""Give the values of a captured program names that say where in the network they are.

``torch.export`` numbers what it captures, ``linear_17``, and each converter lowers the program
once more and numbers anew. Here every value gets a name of its block, such as
``stage2_block0_attention_softmax``, from the modules that it came from. That is how a block is
found again in a file of any format: to leave it in float32, or to look at what it computes.

A *tap* is such a value under the name that users see, ``stage2.block0.attention.softmax``. Of each
block there is ``out``, what it hands on, and of attentions ``scores``, what goes into the softmax
(scale and bias included), and ``softmax``. The stem's convolutions are ``stem.0`` and so on, and
``pool`` is what the head gets.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import Node

SOFTMAX = ("softmax", "_softmax")
POOL = "mean"
QUERY_LAYERS = ("qkv", "kv", "q", "k", "v")


@dataclass(frozen=True)
class Names:
    """For each value of a program its new name; and those of the taps, by what users call them."""

    values: Mapping[str, str]
    taps: Mapping[str, str]


def tap_value(tap: str) -> str:
    """What the value of a tap is called in files: ``stem.0`` is ``stem_0``."""
    return tap.replace(".", "_")


def names(nodes: Iterable[Node], blocks: Mapping[str, str]) -> Names:
    """The names of a lowered program's values. ``blocks`` are its blocks by module path."""
    calls = [node for node in nodes if node.op == "call_function"]
    owners = {node: block_of(node, blocks) for node in calls}
    last = {block: node for node, block in owners.items()}
    values: dict[str, str] = {}
    taps: dict[str, str] = {}
    used: set[str] = set()
    for node in calls:
        block = owners[node]
        label, is_tap = _label(node, block, is_last=node is last[block])
        values[node.name] = _free(tap_value(label), used)
        if is_tap:
            taps[label] = values[node.name]
    return Names(values, taps)


def rename(program: ExportedProgram, blocks: Mapping[str, str]) -> None:
    """Give the values of ``program`` their names, in place."""
    found = names(program.graph.nodes, blocks).values
    nodes = {node.name: node for node in program.graph.nodes if node.name in found}
    for number, node in enumerate(nodes.values()):  # out of the way first: names may be exchanged
        node._rename(f"levit_export_{number}")  # noqa: SLF001 - the public way copies the node
    for before, node in nodes.items():
        node._rename(found[before])  # noqa: SLF001
    for spec in program.graph_signature.output_specs:  # which knows its outputs by name
        argument: Any = spec.arg
        if argument.name in nodes:
            argument.name = nodes[argument.name].name
    program.graph_module.recompile()


def _free(wanted: str, used: set[str]) -> str:
    """``wanted``, or with a number behind it where something is called that already."""
    name, number = wanted, 1
    while name in used:
        name, number = f"{wanted}_{number}", number + 1
    used.add(name)
    return name


def _paths(node: Node) -> list[str]:
    """The paths of the modules that a value came from, the outermost first."""
    stack: Mapping[str, Any] = node.meta.get("nn_module_stack") or {}
    return [path for path, _ in stack.values()]


def block_of(node: Node, blocks: Mapping[str, str]) -> str:
    """The block that a value belongs to: that of the innermost module that is one, or empty."""
    return next((blocks[path] for path in reversed(_paths(node)) if path in blocks), "")


def _label(node: Node, block: str, *, is_last: bool) -> tuple[str, bool]:
    """What a value is called, and whether it is a tap."""
    operator = _operator(node)
    if not block:
        return ("pool", True) if operator == POOL else (f"model.{operator}", False)
    if is_last:
        is_inner = all(user.op != "output" for user in node.users)
        return (block if block.startswith("stem.") else f"{block}.out"), is_inner
    if operator in SOFTMAX:
        return f"{block}.softmax", True
    if any(_operator(user) in SOFTMAX for user in node.users):
        return f"{block}.scores", True
    paths = _paths(node)
    leaf = paths[-1].rpartition(".")[2] if paths else ""
    return f"{block}.{f'{leaf}_' if leaf in QUERY_LAYERS else ''}{operator}", False


def _operator(node: Node) -> str:
    return str(getattr(node.target, "__name__", node.target)).split(".")[0]
