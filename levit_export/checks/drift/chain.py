"""The stages before any file: the checkpoint's module, each pass, the captured network.

(i) the module that is exported against one built fresh from the checkpoint's tensors, (ii) each
pass against the module before it, both in float64, where a rewrite may differ by no more than
``passes.proof.PROOF_BOUND``; (iii) the captured network in float32 against the prepared module.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from levit_export.checks.drift import taps
from levit_export.checks.drift.comparing import Comparison
from levit_export.checks.drift.tolerances import Exact, Rounded, Yardstick
from levit_export.checks.drift.values import DriftRow, DriftStage
from levit_export.core.network import Network
from levit_export.core.values import Calibration, Layout, Prepared
from levit_export.inputs.samples import Samples
from levit_export.models.architectures.blocks import block_names
from levit_export.models.architectures.census import idle_attentions
from levit_export.models.passes import LAY_OUT_MAPS, PASSES
from levit_export.models.passes.base import NotApplicable, Pass
from levit_export.models.passes.proof import PROOF_BOUND

if TYPE_CHECKING:
    from torch import nn

    from levit_export.models.checkpoints import Checkpoint

THREADS = 1
"""Of PyTorch. One image at a time goes through layers of some hundred rows, for which threads wait
longer than they compute: levit_digits took 10 s with one thread, and with two, on two cores that
something else used as well, 101 s."""

CHECKPOINT = "checkpoint"
PROGRAM = "program"


@dataclass(frozen=True)
class Model:
    """What the chain is about. ``module`` is the live one that was exported, if there is one.

    ``answers`` are, for each precision and output, the relative distances that parity accepts of
    the samples, where they are known. Files that are not ``is_ours`` may hold the weights in
    another form, which are not looked for then. ``layouts`` are those that the files are in.
    """

    checkpoint: Checkpoint
    samples: Samples
    passes: tuple[Pass, ...] = PASSES
    skip: tuple[str, ...] = ()
    module: nn.Module | None = None
    answers: Mapping[str, Mapping[str, np.ndarray]] = field(default_factory=dict)
    is_ours: bool = True
    layouts: tuple[Layout, ...] = ("tokens",)

    @property
    def blocks(self) -> dict[str, str]:
        """Public block names by module path."""
        return block_names(self.checkpoint.config)

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of the outputs."""
        return tuple(name for name, _ in self.checkpoint.config.outputs)

    def exact(self, module: nn.Module) -> Exact:
        """``module`` in float64 on the samples."""
        return Exact(module, self.blocks, self.outputs, self.samples)


def rewritten(model: Model) -> nn.Module:
    """The prepared module in float32: the checkpoint's, with the passes applied and not proven."""
    work = copy.deepcopy(model.module or model.checkpoint.build()).double()
    for each in _applied(model):
        each.apply(work)
    return work.float().requires_grad_(requires_grad=False)


def _applied(model: Model) -> Iterator[Pass]:
    return (each for each in model.passes if each.name not in model.skip)


def checkpoint_stage(model: Model) -> DriftStage:
    """(i) Against a fresh build, in float64."""
    fresh = model.exact(model.checkpoint.build())
    live = model.exact(copy.deepcopy(model.module or model.checkpoint.build()))
    against = "a fresh build of the checkpoint"
    return DriftStage(CHECKPOINT, "checkpoint", against, _rows(CHECKPOINT, live, fresh))


def pass_stages(model: Model) -> Iterator[DriftStage]:
    """(ii) Each pass against what it was given, in float64."""
    work = copy.deepcopy(model.module or model.checkpoint.build()).double()
    before = model.exact(copy.deepcopy(work))
    against = "the checkpoint's module"
    laid_out = [LAY_OUT_MAPS] if "maps" in model.layouts else []
    for each in (*_applied(model), *laid_out):
        if isinstance(each.apply(work), NotApplicable):
            continue
        after = model.exact(copy.deepcopy(work))
        name = f"pass {each.name}"
        yield DriftStage(name, "pass", against, _rows(name, after, before))
        before, against = after, name


def _rows(stage: str, after: Exact, before: Exact) -> tuple[DriftRow, ...]:
    """The rows of one module in float64 against another."""
    # Of an attention over one key a pass leaves the values alone, and neither scores nor softmax.
    idle = idle_attentions(before.module, before.blocks)
    inner = {f"{block}.{tap}" for block in idle for tap in ("scores", "softmax")}
    comparison = Comparison(before, PROOF_BOUND, inner - set(after.names))
    for index in range(len(before.samples)):
        comparison.add(index, taps.arrays(after.free(index)))
    return comparison.rows(stage)


def program_stage(
    model: Model, network: Network, exact: Exact, yardstick: Yardstick, name: str = PROGRAM
) -> DriftStage:
    """(iii) The captured network in float32; ``exact`` is the prepared module."""
    size = network.inputs[0].shape[0] or 1
    comparison: Comparison | None = None
    for index in range(len(model.samples)):
        image = exact.image(index).float().expand(size, -1, -1, -1).numpy()
        values = {tap: value[:1] for tap, value in taps.of_network(network, image).items()}
        comparison = comparison or Comparison(exact, yardstick, set(exact.names) - set(values))
        comparison.add(index, values)
    rows = () if comparison is None else comparison.rows(name)
    return DriftStage(name, "program", "the prepared module", rows)


def precision_stage(exact: Exact, yardstick: Yardstick, keep: Collection[str] = ()) -> DriftStage:
    """(v) The prepared module as roughly computed as artifacts of a precision are, by PyTorch."""
    kept = f" but for {len(keep)} blocks in float32" if keep else ""
    name = f"{yardstick.precision} in PyTorch{kept}"
    rows = []
    before: float | None = None
    for tap in exact.names:
        accumulated = yardstick.accumulated[tap]
        introduced, seen = yardstick.introduced[tap], yardstick.ranges[tap]
        largest = accumulated.largest
        rows.append(
            DriftRow(
                tap=tap,
                block=taps.block_of_tap(tap, exact.blocks),
                stage=name,
                status="ok",
                accumulated=largest,
                introduced=introduced.largest,
                snr_db=accumulated.snr_db,
                introduced_snr_db=introduced.snr_db,
                growth=largest / before if largest is not None and before else None,
                peak=seen.peak,
                low=seen.low,
                high=seen.high,
                above_float16=seen.share_above,
            )
        )
        before = largest
    return DriftStage(name, "precision", "the prepared module in float64", tuple(rows))


def prepared(model: Model, layout: Layout = "tokens") -> Prepared:
    """The checkpoint as it is exported; the passes are followed in (ii), not proven once more."""
    from levit_export.models.preparation import Rewritten, capture

    fresh = rewritten(replace(model, module=None))
    if layout == "maps":
        LAY_OUT_MAPS.apply(fresh)
    return capture(Rewritten(model.checkpoint, fresh, (), layout), batch=1)


def rounded(
    model: Model,
    precision: str,
    calibration: Calibration | None = None,
    keep: Collection[str] = (),
) -> Rounded:
    """The prepared module as ``precision`` has it, the blocks ``keep`` left in float32.

    Without images, the samples calibrate it.
    """
    images = calibration or Calibration(model.samples.inputs, "the samples themselves")
    paths = [path for path, block in model.blocks.items() if block in keep]
    return Rounded(rewritten(model), precision, images, paths)
