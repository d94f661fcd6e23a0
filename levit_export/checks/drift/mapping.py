"""The whole map: chain, artifacts, precisions, findings."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from levit_export.checks.drift import artifacts, chain, verdict
from levit_export.checks.drift.chain import Model
from levit_export.checks.drift.tolerances import Exact, Yardstick
from levit_export.checks.drift.values import DriftFinding, DriftMap, DriftStage
from levit_export.checks.drift.verdict import Circumstances
from levit_export.core.values import Artifact, Calibration, Layout, RunOptions
from levit_export.formats import target
from levit_export.models.preparation import weights_of

if TYPE_CHECKING:
    from levit_export.core.network import Network

FLOAT = "fp32"


@dataclass
class Bench:
    """A model with all that artifacts of it are held against, each made once when needed."""

    model: Model
    calibration: Calibration | None = None
    exact: Exact = field(init=False)
    tensors: dict[str, np.ndarray] = field(init=False)
    _yardsticks: dict[tuple[str, frozenset[str]], Yardstick] = field(default_factory=dict)

    def __post_init__(self) -> None:
        module = chain.rewritten(self.model)
        tensors = weights_of(module) if self.model.is_ours else {}
        self.tensors = {name: array.copy() for name, array in tensors.items()}
        self.exact = self.model.exact(module)

    def yardstick(self, precision: str, keep: Collection[str] = ()) -> Yardstick:
        """The tolerances of a precision where the blocks ``keep`` stay in float32."""
        key = precision, frozenset(keep)
        if key not in self._yardsticks:
            rounded = chain.rounded(self.model, precision, self.calibration, keep)
            answers = self.model.answers.get(precision)
            self._yardsticks[key] = Yardstick(self.exact, rounded, precision, answers)
        return self._yardsticks[key]

    def stages(self, known: Mapping[Layout, Network] | None = None) -> Iterator[DriftStage]:
        """(i) to (iii), the last for each layout. What is not ``known`` is captured."""
        yield chain.checkpoint_stage(self.model)
        yield from chain.pass_stages(self.model)
        for layout in self.model.layouts:
            network = (known or {}).get(layout) or chain.prepared(self.model, layout).network
            name = chain.PROGRAM if layout == "tokens" else f"{chain.PROGRAM} in {layout}"
            allowed = self.yardstick(FLOAT)
            yield chain.program_stage(self.model, network, self.exact, allowed, name)

    def artifact(self, found: Artifact, run: RunOptions) -> DriftStage:
        """(iv) of one file."""
        yardstick = self.yardstick(found.precision, found.keep)
        return artifacts.stage(found, run, self.exact, yardstick, self.tensors)

    def judge(self, found: Artifact, stage: DriftStage, before: DriftFinding) -> DriftFinding:
        """The verdict on one file."""
        yardstick = self.yardstick(found.precision, found.keep)
        overflowing = frozenset(
            tap for tap, distance in yardstick.introduced.items() if np.inf in distance.errors
        )
        about = Circumstances(
            format=found.format,
            precision=found.precision,
            half=target(found.format).computes_in_half(found.precision),
            overflowing=overflowing,
            blocks=self.model.blocks,
        )
        return verdict.of_artifact(stage, before, about)


def draw(
    bench: Bench,
    found: Sequence[tuple[Artifact, RunOptions]],
    tell: Callable[[str], object] = lambda _: None,
    known: Mapping[Layout, Network] | None = None,
) -> DriftMap:
    """The map of a model and its artifacts. ``tell`` hears what is being done.

    ``known`` are networks that need not be captured again.
    """
    tell("tapping the checkpoint, the passes and the program")
    stages = list(bench.stages(known))
    before = verdict.of_chain(stages)
    findings = [before]
    for artifact, run in found:
        tell(f"tapping {artifact.path.name}")
        stage = bench.artifact(artifact, run)
        stages.append(stage)
        findings.append(bench.judge(artifact, stage, before))
    for precision, keep in dict.fromkeys((a.precision, a.keep) for a, _ in found):
        yardstick = bench.yardstick(precision, keep)
        stages.append(chain.precision_stage(bench.exact, yardstick, keep))
    return DriftMap(
        bench.model.checkpoint.name,
        bench.model.samples.names,
        tuple(stages),
        tuple(findings),
    )
