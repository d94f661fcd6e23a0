"""Lower a captured program for a converter without tracing it once more.

Each converter asks ``torch.export`` to decompose the program into the operators that it knows,
which runs the whole network again with fake tensors: a second for LeViT-256, in each of three
formats. The operators of a LeViT are few, and what becomes of each follows from the operator
alone. Programs with others are decomposed as the converter asks.
"""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import Graph, GraphModule, Node

Rule = Callable[["Graph", "Node"], None]
"""Puts other operators in the place of one, in the graph."""

UNTOUCHED = (
    "add.Tensor",
    "hardswish.default",
    "linear.default",
    "mean.dim",
    "permute.default",
    "slice.Tensor",
    "split_with_sizes.default",
    "transpose.int",
)
"""What every converter takes as it is, as far as a LeViT uses it."""

REWRITTEN = (
    "conv2d.default",
    "flatten.using_ints",
    "matmul.default",
    "reshape.default",
    "softmax.int",
)
CONV2D_DEFAULTS = (None, [1, 1], [0, 0], [1, 1], 1)
"""Of ``conv2d(x, weight, bias, stride, padding, dilation, groups)``."""


def for_openvino(program: ExportedProgram) -> GraphModule | None:
    """``program`` as a module in the operators that OpenVINO knows; None when it has to lower it.

    Products have three axes and factors that were expanded, as ``torch.export`` leaves them: plain
    ones become OpenVINO's ``ScaledDotProductAttention``, which is as fast but has no values for
    scores and softmax, by which a fault is found.
    """
    if not _is_simple(program):
        return None
    aten = _aten()
    rules: dict[Any, Rule] = {
        aten.flatten.using_ints: _view,
        aten.reshape.default: _view,
        aten.conv2d.default: _convolution,
        aten.softmax.int: _softmax,
        aten.matmul.default: _bmm,
    }
    module: Any = _rewritten(program, rules).module()
    return module  # type: ignore[no-any-return]


@contextmanager
def as_captured() -> Iterator[None]:
    """Let ``torch.onnx``, which knows all these operators, take a program as it was captured."""
    from torch.export import ExportedProgram

    decompose = ExportedProgram.run_decompositions

    def unless_simple(program: ExportedProgram, *arguments: Any, **named: Any) -> ExportedProgram:
        return program if _is_simple(program) else decompose(program, *arguments, **named)

    ExportedProgram.run_decompositions = unless_simple  # type: ignore[method-assign]
    try:
        yield
    finally:
        ExportedProgram.run_decompositions = decompose  # type: ignore[method-assign]


@cache
def _aten() -> Any:
    import torch

    return torch.ops.aten


@cache
def _known() -> frozenset[Any]:
    found = {operator.getitem}
    for name in (*UNTOUCHED, *REWRITTEN):
        packet, overload = name.split(".")
        found.add(getattr(getattr(_aten(), packet), overload))
    return frozenset(found)


def _is_simple(program: ExportedProgram) -> bool:
    """Whether all operators are known here, and all shapes."""
    calls = [node for node in program.graph.nodes if node.op == "call_function"]
    return all(node.target in _known() and not node.kwargs for node in calls) and all(
        isinstance(side, int) for node in calls for value in _values(node) for side in value.shape
    )


def _values(node: Node) -> tuple[Any, ...]:
    value = node.meta["val"]
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def _rewritten(program: ExportedProgram, rules: dict[Any, Rule]) -> ExportedProgram:
    from torch._export.verifier import Verifier

    module = copy.deepcopy(program.graph_module)
    for before, after in zip(program.graph.nodes, module.graph.nodes, strict=True):
        after.name = before.name  # the copy calls an ``input`` otherwise, the signature does not
    for node in list(module.graph.nodes):
        if node.op == "call_function" and node.target in rules:
            rules[node.target](module.graph, node)
    module.recompile()
    return program._update(  # noqa: SLF001 - the public way traces
        module, copy.deepcopy(program.graph_signature), verifiers=[Verifier]
    )


def _shape(node: Node) -> list[int]:
    return list(node.meta["val"].shape)


def _view(graph: Graph, node: Node) -> None:
    shape = _shape(node)
    whole = _viewable(graph, node, node.args[0], shape)
    node.target, node.args = _aten().view.default, (whole, shape)


def _before(graph: Graph, node: Node, target: Any, *arguments: Any, **named: Any) -> Node:
    """A new call in front of ``node`` that belongs to the same place in the network."""
    with graph.inserting_before(node):
        made = graph.call_function(target, arguments, named)
    made.meta = dict(node.meta)
    return made


def _viewable(graph: Graph, node: Node, value: Any, shape: list[int]) -> Any:
    """``value``, or a copy of it where its order in memory has no view of that shape."""
    import torch

    with suppress(RuntimeError, ValueError):  # of tensors, and of fake ones
        value.meta["val"].view(shape)
        return value
    made = _before(
        graph, node, _aten().clone.default, value, memory_format=torch.contiguous_format
    )
    made.meta["val"] = value.meta["val"].contiguous()
    return made


def _convolution(_: Graph, node: Node) -> None:
    given: list[Any] = [*node.args[2:], *CONV2D_DEFAULTS[len(node.args) - 2 :]]
    bias, stride, padding, dilation, groups = given
    node.target = _aten().convolution.default
    plain = False, [0, 0]  # neither transposed nor with an output padding
    node.args = (*node.args[:2], bias, stride, padding, dilation, *plain, groups)


def _softmax(_: Graph, node: Node) -> None:
    node.target, node.args = _aten()._softmax.default, (*node.args[:2], False)  # noqa: SLF001


def _bmm(graph: Graph, node: Node) -> None:
    """``(…, N, D) (…, D, M)`` as a product of two batches of matrices."""
    aten = _aten()

    def flat(factor: Any) -> Node:
        *outer, rows, columns = shape = _shape(factor)
        three = [math.prod(outer), rows, columns]
        whole = _viewable(graph, node, factor, three)
        expanded = _before(graph, node, aten.expand.default, whole, shape)
        return _before(graph, node, aten.view.default, expanded, three)

    product = _before(graph, node, aten.bmm.default, *(flat(factor) for factor in node.args))
    node.target, node.args = aten.view.default, (product, _shape(node))
