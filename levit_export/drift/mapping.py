"""The whole map: chain, artifacts, precisions, findings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from levit_export.core import Artifact, Calibration, RunOptions
from levit_export.drift import artifacts, chain, verdict
from levit_export.drift.chain import Model
from levit_export.drift.values import DriftMap, Finding, Stage
from levit_export.drift.verdict import Circumstances
from levit_export.drift.yardstick import Exact, Yardstick
from levit_export.preparation import weights_of
from levit_export.targets import target

if TYPE_CHECKING:
    from torch.export import ExportedProgram

FLOAT = "fp32"


@dataclass
class Bench:
    """A model with all that artifacts of it are held against, each made once when needed."""

    model: Model
    calibration: Calibration | None = None
    exact: Exact = field(init=False)
    tensors: dict[str, np.ndarray] = field(init=False)
    _yardsticks: dict[str, Yardstick] = field(default_factory=dict)

    def __post_init__(self) -> None:
        module = chain.rewritten(self.model)
        self.tensors = {name: array.copy() for name, array in weights_of(module).items()}
        self.exact = self.model.exact(module)

    def yardstick(self, precision: str) -> Yardstick:
        """The tolerances of a precision."""
        if precision not in self._yardsticks:
            rounded = chain.rounded(self.model, precision, self.calibration)
            self._yardsticks[precision] = Yardstick(self.exact, rounded, precision)
        return self._yardsticks[precision]

    def stages(self, program: ExportedProgram) -> Iterator[Stage]:
        """(i) to (iii)."""
        yield chain.checkpoint_stage(self.model)
        yield from chain.pass_stages(self.model)
        yield chain.program_stage(self.model, program, self.exact, self.yardstick(FLOAT))

    def artifact(self, found: Artifact, run: RunOptions) -> Stage:
        """(iv) of one file."""
        yardstick = self.yardstick(found.precision)
        return artifacts.stage(found, run, self.exact, yardstick, self.tensors)

    def judge(self, found: Artifact, stage: Stage, before: Finding) -> Finding:
        """The verdict on one file."""
        yardstick = self.yardstick(found.precision)
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
    program: ExportedProgram,
    found: Sequence[tuple[Artifact, RunOptions]],
    tell: Callable[[str], object] = lambda _: None,
) -> DriftMap:
    """The map of a model and its artifacts. ``tell`` hears what is being done."""
    tell("tapping the checkpoint, the passes and the program")
    stages = list(bench.stages(program))
    before = verdict.of_chain(stages)
    findings = [before]
    for artifact, run in found:
        tell(f"tapping {artifact.path.name}")
        stage = bench.artifact(artifact, run)
        stages.append(stage)
        findings.append(bench.judge(artifact, stage, before))
    precisions = dict.fromkeys(artifact.precision for artifact, _ in found)
    stages += [chain.precision_stage(bench.exact, bench.yardstick(p)) for p in precisions]
    return DriftMap(
        bench.model.checkpoint.name,
        bench.model.samples.names,
        tuple(stages),
        tuple(findings),
    )
