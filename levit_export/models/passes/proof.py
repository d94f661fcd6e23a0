"""Apply passes to a copy of a model and prove each one in float64.

Every place that a pass rewrites is proven on its own, on a few random inputs, so a fault names its
layer; the whole network is held against itself before and after each pass.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from levit_export.core.errors import PassError, PassProofError, UnknownNameError
from levit_export.core.values import PassRecord
from levit_export.models.passes.base import (
    NotApplicable,
    Pass,
    refuse_shared_weights,
    refuse_training,
)

PROOF_BOUND = 1e-12
"""Accepted ``max|after - before| / max|before|`` in float64.

A thousand times what the rewrites measure on the largest published model, and seven orders of
magnitude below what float32 can see.
"""
SENSITIVITIES = 16
"""Accepted multiple of what one rounding of every weight changes, where that is more.

A network without normalisation in its branches (vit-pytorch's) enlarges the rounding of float64
itself beyond ``PROOF_BOUND``. A rewrite rounds each weight a few times and sums in another order.
"""
PROOF_BATCH = 2


class _CountOperators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operators that run under it; views cost nothing and count all the same."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class _Run:
    """What a network answers, and its size: its parameters, the operators of a forward call."""

    outputs: tuple[torch.Tensor, ...]
    parameters: int
    operators: int


@torch.no_grad()
def _run(module: nn.Module, inputs: torch.Tensor) -> _Run:
    # Counted while it computes: on the meta device, which computes nothing, PyTorch takes half of
    # its operators apart in Python, which takes longer than computing them.
    with _CountOperators() as operators:
        outputs = module(inputs)
    return _Run(
        outputs if isinstance(outputs, tuple) else (outputs,),
        sum(parameter.numel() for parameter in module.parameters()),
        operators.count,
    )


def relative_error(after: torch.Tensor, before: torch.Tensor) -> float:
    """``max|after - before| / max|before|``; infinite where either is not finite."""
    difference = (after - before).abs().max() / before.abs().max()
    return float(difference) if torch.isfinite(difference) else float("inf")


def apply_passes(
    module: nn.Module,
    passes: tuple[Pass, ...],
    *,
    input_shape: tuple[int, ...],
    skip: Collection[str] = (),
    seed: int = 0,
) -> tuple[nn.Module, tuple[PassRecord, ...]]:
    """The rewritten copy of ``module`` in float32, and a line of the ledger for each pass.

    The copy is rewritten in float64 and rounded to float32 once, at the end. ``input_shape`` is
    that of one image, ``(3, H, W)``. Raises ``PassProofError`` when a pass changed a place, or the
    network, by more than ``PROOF_BOUND``; it names the pass and the place.
    """
    for name in skip:
        if name not in {p.name for p in passes}:
            raise UnknownNameError("pass", name, (p.name for p in passes))
    refuse_training(module)
    refuse_shared_weights(module)
    work = copy.deepcopy(module).double()
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(PROOF_BATCH, *input_shape, dtype=torch.float64, generator=generator)
    run = _run(work, inputs)
    records = []
    for each in passes:
        if each.name in skip:
            records.append(PassRecord(each.name, "skipped", "--skip-pass"))
        else:
            record, run = _apply_one(each, work, inputs, run, module)
            records.append(record)
    return work.float().requires_grad_(requires_grad=False), tuple(records)


def _is_rounding(error: float, original: nn.Module, inputs: torch.Tensor) -> bool:
    """Whether a network may differ by ``error`` from ``original``."""
    return error <= PROOF_BOUND or (
        math.isfinite(error) and error <= SENSITIVITIES * _sensitivity(original, inputs)
    )


def _refused(name: str, place: str, error: float) -> PassProofError:
    return PassProofError(
        f"{name} changed {place}: relative error {error:.1e} in float64, "
        f"at most {PROOF_BOUND:.0e} is rounding",
        remedy=f"Export with --skip-pass {name} and report the model.",
    )


@torch.no_grad()
def _sensitivity(module: nn.Module, inputs: torch.Tensor) -> float:
    """Relative error of ``module``'s outputs when every weight is off by one unit in float64.

    Of the network as it was before any rewrite, so that no rewrite can excuse itself.
    """
    exact, other = (copy.deepcopy(module).double() for _ in range(2))
    generator = torch.Generator().manual_seed(0)
    for parameter in other.parameters():
        signs = torch.randint(0, 2, parameter.shape, generator=generator).double() * 2 - 1
        parameter.mul_(1 + torch.finfo(torch.float64).eps * signs)
    before, after = (_run(each, inputs).outputs for each in (exact, other))
    return max(map(relative_error, after, before))


@torch.no_grad()
def _apply_one(
    each: Pass, work: nn.Module, inputs: torch.Tensor, before: _Run, original: nn.Module
) -> tuple[PassRecord, _Run]:
    """Rewrite ``work`` in place; prove every place that was rewritten, then the network."""
    probes = each.probes(work)
    expected = {place: probe(work) for place, probe in probes.items()}
    outcome = each.apply(work)
    if isinstance(outcome, NotApplicable):
        return PassRecord(each.name, "not-applicable", outcome.reason), before
    if outcome.count == 0:
        raise PassError(
            f"{each.name} matched nothing in {type(work).__name__}",
            remedy=f"Export with --skip-pass {each.name}, or report the architecture.",
        )
    errors = {place: _place_error(probes[place](work), expected[place]) for place in probes}
    if faults := [place for place, error in errors.items() if error > PROOF_BOUND]:
        others = f" and {len(faults) - 1} other places" if len(faults) > 1 else ""
        raise _refused(each.name, f"{faults[0]}{others}", errors[faults[0]])
    after = _run(work, inputs)
    error = max(map(relative_error, after.outputs, before.outputs))
    if not _is_rounding(error, original, inputs):
        raise _refused(each.name, "the model", error)
    record = PassRecord(
        each.name,
        "applied",
        matches=outcome.count,
        error=max(errors.values(), default=0.0),
        network_error=error,
        parameters=(before.parameters, after.parameters),
        nodes=(before.operators, after.operators),
        bytes_added=outcome.bytes_added,
    )
    return record, after


def _place_error(after: torch.Tensor, before: torch.Tensor) -> float:
    """The relative error; a layer that gives zeros may give zeros again."""
    if after.shape != before.shape:
        return math.inf
    return 0.0 if torch.equal(after, before) else relative_error(after, before)
