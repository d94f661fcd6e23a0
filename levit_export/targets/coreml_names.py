"""Values of an ML Program by the block of the network that they belong to.

coremltools keeps the names of :mod:`levit_export.naming` with suffixes of its own. Where it makes
several ops of one value, and where values stand between blocks, the names say nothing; such an op
belongs to the block whose values it reads.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from levit_export import lean

HALF_SUFFIX = "_cast_fp16"
"""What coremltools adds to the name of an op that it makes compute in float16."""

VISIT = "levit_export::visit"
"""Our pass in coremltools' registry."""

BEFORE_ROUNDING = "common::add_fp16_cast"


def block_of(value: str, blocks: Iterable[str]) -> str:
    """The block that a value belongs to by its name, the innermost; empty if it says none.

    ``head_dist_linear`` is of ``head_dist`` and not of ``head``.
    """
    prefixes = {block.replace(".", "_"): block for block in blocks}
    found = [p for p in prefixes if value == p or value.startswith(f"{p}_")]
    return prefixes[max(found, key=len)] if found else ""


def is_within(block: str, kept: Collection[str]) -> bool:
    """Whether ``block`` is one of ``kept``, or inside one (``layer0.mlp`` of ``layer0``)."""
    return any(block == name or block.startswith(f"{name}.") for name in kept)


def resolve(values: Collection[str], taps: Mapping[str, str]) -> dict[str, str | None]:
    """For each tap, given with the name of its value, what the value is called in a package."""
    known = set(values)
    return {
        tap: next((n for n in (value, value + HALF_SUFFIX) if n in known), None)
        for tap, value in taps.items()
    }


def settle(
    operations: Iterable[Any], blocks: Collection[str], outputs: Mapping[str, str]
) -> dict[str, str]:
    """Name ops after their values, and say of which block each is, by the op's name.

    A pass that rewrites an op goes by the op's name, which the frontend leaves numbered where it
    makes a linear layer (``linear_7``). ``outputs`` are the names within the network of values
    that bear the name of a model's output.
    """
    owners: dict[str, str] = {}
    for op in operations:
        if op.op_type != "const" and len(op.outputs) == 1:
            op.name = op.outputs[0].name
        name = outputs.get(op.name, op.name)
        owners[op.name] = block_of(name, blocks) or next(
            (owners[source] for source in _sources(op) if source in owners), ""
        )
    return owners


def _sources(op: Any) -> Iterable[str]:
    """The ops whose results ``op`` reads, constants left out."""
    for given in op.inputs.values():
        for value in given if isinstance(given, list | tuple) else (given,):
            if value is not None and value.op is not None and value.op.op_type != "const":
                yield value.op.name


def visiting(visit: Callable[[list[Any]], None]) -> Any:
    """The pipeline of coremltools, with ``visit`` called with the ops before they are rounded."""
    pipeline = lean.coremltools().PassPipeline.DEFAULT
    pipeline.insert_pass(pipeline.passes.index(BEFORE_ROUNDING), _visit_pass())
    pipeline.set_options(VISIT, {"visit": visit})
    return pipeline


@functools.cache
def _visit_pass() -> str:
    """Register the pass; its name."""
    passes = "converters.mil.mil.passes."
    base: Any = lean.coremltools(passes + "graph_pass").AbstractGraphPass
    register = lean.coremltools(passes + "pass_registry").register_pass

    @register(namespace=VISIT.partition("::")[0])
    class visit(base):  # type: ignore[misc]  # noqa: N801 - the registry goes by the class's name
        """Shows the ops of each function to ``visit``."""

        visit: Callable[[list[Any]], None] | None = None

        def apply(self, prog: Any) -> None:
            for function in prog.functions.values():
                if self.visit is not None:
                    self.visit(list(function.operations))

    return VISIT
