"""The chain of stages, from the checkpoint's module to the files on disk, and the map of them all.

(i) compares the module that is exported with one built fresh from the checkpoint's tensors, and
(ii) each pass with the module before it. Both run in float64, where a rewrite may differ by no
more than ``passes.proof.PROOF_BOUND``. (iii) compares the captured network, in float32, with the
prepared module, and (iv) each file, in its own runtime, with the prepared module as well, because
(iii) has found the two to be the same. (v) shows what a precision costs in PyTorch alone.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from levit_export.checks import reference, weights
from levit_export.checks.drift import taps, verdict
from levit_export.checks.drift.rows import Comparison
from levit_export.checks.drift.tolerances import Exact, Rounded, Yardstick
from levit_export.checks.drift.values import DriftFinding, DriftMap, DriftRow, DriftStage
from levit_export.checks.drift.verdict import Circumstances
from levit_export.checks.execution import coarser_of
from levit_export.checks.results import Place, names_of
from levit_export.core.errors import LevitExportError
from levit_export.core.network import Network, value_of_tap
from levit_export.core.progress import Progress, Silent
from levit_export.core.values import (
    Artifact,
    Calibration,
    Layout,
    Prepared,
    RunOptions,
)
from levit_export.formats import target
from levit_export.inputs.samples import Samples
from levit_export.models.architectures.blocks import block_names
from levit_export.models.architectures.census import idle_attentions
from levit_export.models.passes import LAY_OUT_MAPS, PASSES
from levit_export.models.passes.base import NotApplicable, Pass
from levit_export.models.passes.proof import PROOF_BOUND
from levit_export.models.preparation import Rewritten, capture, weights_of

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
    # ``Exact`` converts what it is given to float64, and the live module is somebody else's.
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
        # A copy, for the next pass rewrites ``work`` in place.
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
        comparison.add(index, taps.arrays(after.from_image(index)))
    return comparison.rows(stage)


def prepared(model: Model, layout: Layout = "tokens") -> Prepared:
    """The checkpoint as it is exported; the passes are followed in (ii), not proven once more."""
    fresh = rewritten(replace(model, module=None))
    if layout == "maps":
        LAY_OUT_MAPS.apply(fresh)
    return capture(Rewritten(model.checkpoint, fresh, (), layout), batch=1)


@dataclass
class DriftReference:
    """A model with all that artifacts of it are held against, each made once when needed."""

    model: Model
    calibration: Calibration | None = None
    exact: Exact = field(init=False)
    tensors: dict[str, np.ndarray] = field(init=False)
    _yardsticks: dict[tuple[str, frozenset[str]], Yardstick] = field(default_factory=dict)

    def __post_init__(self) -> None:
        module = rewritten(self.model)
        tensors: Mapping[str, np.ndarray] = {}
        if self.model.is_ours:  # after some passes the module's tensors are what a file holds
            tensors = weights_of(module) or prepared(self.model).weights
        # Copies, for ``Exact`` converts the module, whose memory these arrays share, to float64.
        self.tensors = {name: array.copy() for name, array in tensors.items()}
        self.exact = self.model.exact(module)

    def yardstick(self, precision: str, keep: Collection[str] = ()) -> Yardstick:
        """The tolerances of a precision where the blocks ``keep`` stay in float32.

        Without images, the samples calibrate it.
        """
        key = precision, frozenset(keep)
        if key not in self._yardsticks:
            model = self.model
            images = self.calibration or Calibration(
                model.samples.inputs, "the samples themselves"
            )
            paths = [path for path, block in model.blocks.items() if block in keep]
            network = Rounded(rewritten(model), precision, images, paths)
            answers = model.answers.get(precision)
            self._yardsticks[key] = Yardstick(self.exact, network, precision, answers)
        return self._yardsticks[key]

    def stages(self, known: Mapping[Layout, Network] | None = None) -> Iterator[DriftStage]:
        """(i) to (iii), the last for each layout. What is not ``known`` is captured."""
        yield checkpoint_stage(self.model)
        yield from pass_stages(self.model)
        for layout in self.model.layouts:
            network = (known or {}).get(layout) or prepared(self.model, layout).network
            yield self._program(
                network, PROGRAM if layout == "tokens" else f"{PROGRAM} in {layout}"
            )

    def _program(self, network: Network, name: str) -> DriftStage:
        """(iii) The captured network in float32."""
        exact, size = self.exact, network.inputs[0].shape[0] or 1
        comparison: Comparison | None = None
        for index in range(len(self.model.samples)):
            # A network of a fixed batch takes the sample several times, and its first row counts.
            image = exact.image(index).float().expand(size, -1, -1, -1).numpy()
            values = {tap: value[:1] for tap, value in taps.of_network(network, image).items()}
            fused = set(exact.names) - set(values)
            comparison = comparison or Comparison(exact, self.yardstick("fp32"), fused)
            comparison.add(index, values)
        rows = () if comparison is None else comparison.rows(name)
        return DriftStage(name, "program", "the prepared module", rows)

    def artifact(self, found: Artifact, run: RunOptions) -> DriftStage:
        """(iv) A file on disk, run by its own runtime with its taps as further outputs.

        It is held against what that runtime computes in, where that is coarser than the file. The
        stage also names those of the weights that the file does not hold: bit for bit, or on
        its grid where quantised. A file that cannot be read or run is a stage with a ``failure``
        and not an error: the chain goes on with the others.
        """
        name, against, exact = found.id, "the prepared module", self.exact
        precision = computed_in(found, run)
        yardstick = self.yardstick(precision, found.keep)
        try:
            kind = target(found.format)
            wrong: tuple[str, ...] = ()
            if self.tensors:
                digests = reference.stored_weights(found, self.tensors, self.model.blocks)
                wrong = weights.audit(digests, kind.constants(found), found.precision).missing
            known = set(kind.values(found))
            inner = {tap: value_of_tap(tap) for tap in exact.names if tap not in exact.outputs}
            values = {tap: value for tap, value in inner.items() if value in known}
            absent = set(inner) - set(values)
            with kind.open(found, run, tuple(values.values())) as session:
                comparison = Comparison(exact, yardstick, absent)
                values |= {output: output for output in exact.outputs}
                taken, index = session.signature.inputs[0].name, 0
                for inputs, rows in exact.samples.batches(session.signature.batch or 1):
                    answers = session.run({taken: inputs})
                    for row in range(rows):
                        present = {
                            tap: np.asarray(answers[value])[row : row + 1]
                            for tap, value in values.items()
                            if value in answers and len(answers[value]) == len(inputs)
                        }
                        comparison.add(index, present)
                        index += 1
        except LevitExportError as error:
            return DriftStage(name, "artifact", against, failure=str(error), precision=precision)
        seen = comparison.rows(name)
        return DriftStage(
            name, "artifact", against, seen, session.runtime, wrong, precision=precision
        )

    def precision(self, precision: str, keep: Collection[str]) -> DriftStage:
        """(v) The prepared module as roughly computed as such artifacts are, by PyTorch."""
        yardstick = self.yardstick(precision, keep)
        kept = f" but for {len(keep)} blocks in float32" if keep else ""
        name = f"{precision} in PyTorch{kept}"
        rows = []
        before: float | None = None
        for tap in self.exact.names:
            accumulated = yardstick.accumulated[tap]
            introduced, seen = yardstick.introduced[tap], yardstick.ranges[tap]
            largest = accumulated.largest
            rows.append(
                DriftRow(
                    tap=tap,
                    block=taps.block_of_tap(tap, self.exact.blocks),
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

    def judge(
        self, found: Artifact, run: RunOptions, stage: DriftStage, before: DriftFinding
    ) -> DriftFinding:
        """The verdict on one file."""
        precision, kind = computed_in(found, run), target(found.format)
        yardstick = self.yardstick(precision, found.keep)
        overflowing = frozenset(
            tap for tap, distance in yardstick.introduced.items() if np.inf in distance.errors
        )
        is_as_asked = precision == found.precision
        computed = kind.arithmetic(run)
        about = Circumstances(
            format=found.format,
            precision=precision,
            half=kind.computes_in_half(precision) if is_as_asked else precision == "fp16",
            overflowing=overflowing,
            blocks=self.model.blocks,
            remedy="" if is_as_asked else computed.remedy,
            is_accepted=is_as_asked or computed.is_accepted,
        )
        return verdict.of_artifact(stage, before, about)


def computed_in(found: Artifact, run: RunOptions) -> str:
    """The file's precision, or the type that its runtime computes in where that is coarser."""
    return coarser_of(found.precision, target(found.format).arithmetic(run).type)


def told_apart(
    found: Sequence[tuple[Artifact, RunOptions]], stages: Sequence[DriftStage]
) -> list[DriftStage]:
    """Stages of files under names of which no two are the same."""
    ways = [stage.runtime.partition("(")[2].partition(")")[0] for stage in stages]
    places = [
        Place(artifact.id, str(artifact.path), way)
        for (artifact, _), way in zip(found, ways, strict=True)
    ]
    return [
        replace(stage, name=name, rows=tuple(replace(row, stage=name) for row in stage.rows))
        for stage, name in zip(stages, names_of(places), strict=True)
    ]


def draw(
    against: DriftReference,
    found: Sequence[tuple[Artifact, RunOptions]],
    progress: Progress | None = None,
    known: Mapping[Layout, Network] | None = None,
) -> DriftMap:
    """The map of a model and its artifacts; networks that are ``known`` are not captured again."""
    progress = progress or Silent()
    progress.stage("tapping the checkpoint, the passes and the program")
    stages = list(against.stages(known))
    before = verdict.of_chain(stages)
    of_files = []
    for artifact, run in found:
        progress.stage(f"tapping {artifact.path.name}")
        of_files.append(against.artifact(artifact, run))
    of_files = told_apart(found, of_files)
    judged = [
        against.judge(artifact, run, stage, before)
        for (artifact, run), stage in zip(found, of_files, strict=True)
    ]
    seen = dict.fromkeys((computed_in(a, run), a.keep) for a, run in found)
    costs = [against.precision(precision, keep) for precision, keep in seen]
    return DriftMap(
        against.model.checkpoint.name,
        against.model.samples.names,
        (*stages, *of_files, *costs),
        (before, *judged),
    )
