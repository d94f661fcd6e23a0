"""Let ``torch.onnx`` take a captured program without tracing it once more.

It asks ``torch.export`` to decompose the program into the operators that it knows, which runs the
whole network again with fake tensors: a second for LeViT-256. Those of a LeViT it knows already.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import Node

KNOWN = (
    "add.Tensor",
    "conv2d.default",
    "flatten.using_ints",
    "hardswish.default",
    "linear.default",
    "matmul.default",
    "mean.dim",
    "permute.default",
    "reshape.default",
    "slice.Tensor",
    "softmax.int",
    "split_with_sizes.default",
    "transpose.int",
)
"""What ``torch.onnx`` takes as it is, as far as a LeViT uses it."""


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
    for name in KNOWN:
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
