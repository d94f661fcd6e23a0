"""Read a PyTorch module as a :class:`~levit_export.core.network.Network`.

``torch.export`` captures the module, and ``models.aten`` knows its operators. Where a network may
be said in two ways it is said in one: slices of several axes are one, and a transposition of the
last two axes is part of the product that reads it. So the writers have nothing to tidy. Then every
value is called after its block.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from threading import Lock
from typing import TYPE_CHECKING

import torch
from torch import nn

from levit_export.core.errors import ExportFailedError
from levit_export.core.network import Network, Op, value_of_tap
from levit_export.core.values import Signature
from levit_export.models.aten import LARGEST_BATCH, operators_of

if TYPE_CHECKING:
    from torch.export import ExportedProgram

ONE_AT_A_TIME = Lock()
"""Held while PyTorch captures, and while it computes a reference.

``torch.export`` turns oneDNN off for the whole process meanwhile (``_ignore_backend_decomps`` in
torch/export/_trace.py), and the kernels that take its place round otherwise: golden vectors would
differ in their last bits from one export to the next.
"""

QUERY_LAYERS = ("qkv", "kv", "q", "k", "v")
"""Layers of an attention that are told apart in the names of their values."""


def read(
    program: ExportedProgram, signature: Signature, blocks: Mapping[str, str], name: str
) -> Network:
    """A captured program as a network of this signature.

    ``blocks`` are public names by module path, ``name`` is what errors call the model. Raises
    ``ExportFailedError`` for an operator that is not known here.
    """
    captured = operators_of(program, blocks, name)
    network = captured.network
    ops = _joined_slices(_absorbed_transposes(network.ops, network.outputs), network.outputs)
    tidied = replace(network, ops=tuple(ops))
    return _named(tidied, captured.paths, signature)


def exported(module: nn.Module, signature: Signature, name: str) -> ExportedProgram:
    """What ``torch.export`` makes of ``module``. Raises ``ExportFailedError`` where it fails."""
    (taken,) = signature.inputs
    # An example of 1 would be taken for a dimension that broadcasts.
    shape = [signature.batch or 2, *(side or 1 for side in taken.shape[1:])]
    example = torch.zeros(shape, dtype=getattr(torch, taken.dtype))
    is_open = signature.batch is None
    shapes = ({0: torch.export.Dim("batch", min=1, max=LARGEST_BATCH)},) if is_open else None
    try:
        with ONE_AT_A_TIME, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.export(module, (example,), dynamic_shapes=shapes)
    except Exception as error:
        raise ExportFailedError(
            f"torch.export could not capture {name}: {error}",
            remedy="Report the model; without passes it may work (--skip-pass …).",
        ) from error


def _absorbed_transposes(ops: Sequence[Op], outputs: Sequence[str]) -> list[Op]:
    """Let products transpose their factors.

    Given ``matmul(transpose(a), b)``, the last two axes swapped. Result ``matmul(a, b)`` with
    ``transpose_a``.
    """
    uses = Counter([*outputs, *(name for op in ops for name in op.inputs)])
    swaps = {
        op.output.name: op.inputs[0]
        for op in ops
        if op.kind == "transpose" and _swaps_last_two(op.attributes["axes"])
    }
    swaps = {name: source for name, source in swaps.items() if uses[name] == 1}
    taken: set[str] = set()
    result = []
    for op in ops:
        if op.kind == "matmul":
            a, b = op.inputs
            taken |= {a, b} & set(swaps)
            attributes = {"transpose_a": a in swaps, "transpose_b": b in swaps}
            op = replace(op, inputs=(swaps.get(a, a), swaps.get(b, b)), attributes=attributes)  # noqa: PLW2901
        result.append(op)
    return [op for op in result if op.outputs[0].name not in taken]


def _swaps_last_two(axes: tuple[int, ...]) -> bool:
    rank = len(axes)
    return axes == (*range(rank - 2), rank - 1, rank - 2)


def _joined_slices(ops: Sequence[Op], outputs: Sequence[str]) -> list[Op]:
    """Given slices of slices along different axes, result one slice of them all."""
    uses = Counter([*outputs, *(name for op in ops for name in op.inputs)])
    result: list[Op] = []
    made: dict[str, Op] = {}
    for op in ops:
        if op.kind == "slice":
            below = made.get(op.inputs[0])
            if (
                below is not None
                and uses[op.inputs[0]] == 1
                and not set(below.attributes["axes"]) & set(op.attributes["axes"])
            ):
                result.remove(below)
                joined = {key: below.attributes[key] + op.attributes[key] for key in op.attributes}
                op = replace(op, inputs=below.inputs, attributes=joined)  # noqa: PLW2901
            made[op.output.name] = op
        result.append(op)
    return result


def _named(
    network: Network, paths: Mapping[str, tuple[str, ...]], signature: Signature
) -> Network:
    """The network with its values called after their blocks, and the taps among them.

    Of each block there is ``out``, what it hands on, and of attentions ``scores``, what goes into
    the softmax (scale and bias included), and ``softmax``. The stem's convolutions are ``stem.0``
    and so on, and ``pool`` is what the head gets.
    """
    last = {op.block: op for op in network.ops}
    names = {
        value.name: spec.name for value, spec in zip(network.inputs, signature.inputs, strict=True)
    }
    names |= {
        name: spec.name for name, spec in zip(network.outputs, signature.outputs, strict=True)
    }
    used = {*names.values(), *network.constants}
    taps: dict[str, str] = {}
    for op in network.ops:
        tap, label = _label(op, network, paths, is_last=op is last[op.block])
        for value in op.outputs:
            if value.name not in names:
                names[value.name] = _free(value_of_tap(label), used)
                if tap:
                    taps[tap] = names[value.name]
    return Network(
        tuple(replace(value, name=names[value.name]) for value in network.inputs),
        tuple(names[name] for name in network.outputs),
        tuple(
            replace(
                op,
                inputs=tuple(names.get(name, name) for name in op.inputs),
                outputs=tuple(replace(value, name=names[value.name]) for value in op.outputs),
            )
            for op in network.ops
        ),
        network.constants,
        taps,
    )


def _label(
    op: Op, network: Network, paths: Mapping[str, tuple[str, ...]], *, is_last: bool
) -> tuple[str, str]:
    """The tap that an operator's value is, or an empty name, and what the value is called."""
    if not op.block:
        return ("pool", "pool") if op.kind == "mean" else ("", f"model.{op.kind}")
    readers = network.readers.get(op.outputs[0].name, ())
    if is_last:
        tap = op.block if op.block.startswith("stem.") else f"{op.block}.out"
    elif op.kind == "softmax":
        tap = f"{op.block}.softmax"
    elif any(reader.kind == "softmax" for reader in readers):
        tap = f"{op.block}.scores"
    else:
        leaf = paths[op.outputs[0].name][-1].rpartition(".")[2]
        return "", f"{op.block}.{f'{leaf}_' if leaf in QUERY_LAYERS else ''}{op.kind}"
    return tap, tap


def _free(wanted: str, used: set[str]) -> str:
    """``wanted``, or with a number behind it where something is called that already."""
    name, number = wanted, 1
    while name in used:
        name, number = f"{wanted}_{number}", number + 1
    used.add(name)
    return name
