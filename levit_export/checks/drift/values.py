"""What drift is described by: rows of a map, the verdict on it, and the whole as plain data.

NumPy and the standard library only, so that a report can be drawn where torch is not installed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from levit_export.core import serialisation

SCHEMA = 1

Status = Literal["ok", "exceeds", "not-finite", "inherited", "fused", "missing", "shape"]
"""``inherited``: not finite because of an earlier tap. ``fused``: the file has no such value."""

Cause = Literal[
    "none", "checkpoint", "pass", "program", "weights", "conversion", "precision", "accumulation"
]
"""What is at fault; ``accumulation`` where every block stays within its tolerance and the sum of
their errors is too much."""


@dataclass(frozen=True)
class DriftRow:
    """One tap in one stage of the chain, over all samples.

    ``accumulated`` is the largest ``max|c - r| / max|r|`` of a sample, with r what the stage
    before computes from the image; ``introduced`` the same with r computed from the values that
    this stage itself has at the taps before. ``sample`` is the one that uses most of what is
    allowed: ``introduced_rms`` is its ``rms(c - r) / max|r|``, ``tolerance`` and
    ``rms_tolerance`` are its two limits, and ``of_tolerance`` is the larger share used. ``snr_db``
    and ``introduced_snr_db`` are signal over noise in power; None where there is no noise.
    ``peak`` is the largest ``|c|``, ``low`` and ``high`` the range of c, ``above_float16`` the
    share of values beyond 65504. Figures that do not exist are None.
    """

    tap: str
    block: str
    stage: str
    status: Status
    accumulated: float | None = None
    introduced: float | None = None
    tolerance: float | None = None
    introduced_rms: float | None = None
    rms_tolerance: float | None = None
    of_tolerance: float | None = None
    snr_db: float | None = None
    introduced_snr_db: float | None = None
    accumulated_of_tolerance: float | None = None
    """The share of what ``accumulated`` may be; only of the outputs of files."""
    growth: float | None = None
    """``accumulated`` over that of the tap before."""
    peak: float | None = None
    low: float | None = None
    high: float | None = None
    above_float16: float = 0.0
    not_finite: int = 0
    sample: str = ""
    """The sample of ``of_tolerance``."""
    fused_before: tuple[str, ...] = ()
    """Taps just before this one that the file does not have: ``introduced`` spans them too."""

    @property
    def is_fault(self) -> bool:
        """Whether the error is introduced here and is more than rounding."""
        return self.status in ("exceeds", "not-finite", "missing", "shape")


@dataclass(frozen=True)
class DriftStage:
    """One step of the chain, its rows in the network's order, and what else was found of it.

    ``kind`` is ``checkpoint``, ``pass``, ``program``, ``artifact`` or ``precision``; ``against``
    is what it is compared with. ``wrong_weights`` are tensors that the stage does not hold as the
    checkpoint and the passes made them.
    """

    name: str
    kind: Literal["checkpoint", "pass", "program", "artifact", "precision"]
    against: str
    rows: tuple[DriftRow, ...] = ()
    runtime: str = ""
    wrong_weights: tuple[str, ...] = ()
    failure: str = ""
    """Why the stage could not be run, if so."""
    precision: str = ""
    """Of a file: by whose tolerances it is judged, which is its own or that of what its runtime
    computes in."""

    @property
    def first_fault(self) -> DriftRow | None:
        """The first row whose introduced error leaves its tolerance."""
        return next((row for row in self.rows if row.is_fault), None)


@dataclass(frozen=True)
class DriftFinding:
    """The verdict on an artifact, or on the stages before it: where, which stage, why, what to do.

    ``block`` is empty where no block is at fault.
    """

    subject: str
    cause: Cause
    stage: str = ""
    block: str = ""
    tap: str = ""
    sentence: str = ""

    @property
    def clean(self) -> bool:
        """Whether nothing is at fault."""
        return self.cause == "none"


@dataclass(frozen=True)
class DriftMap:
    """The whole chain of a model, from its checkpoint to its artifacts."""

    model: str
    samples: tuple[str, ...]
    stages: tuple[DriftStage, ...]
    findings: tuple[DriftFinding, ...]
    notes: tuple[str, ...] = ()

    @property
    def verdict(self) -> Literal["pass", "fail"]:
        """``fail`` when a finding is not clean."""
        return "pass" if self.findings and all(f.clean for f in self.findings) else "fail"

    def state(self, finding: DriftFinding) -> Literal["clean", "coarse", "fault"]:
        """``coarse`` where a finding is clean although taps of its file leave their tolerance.

        A quantiser's grid is coarser there than the simulated one, and the answers bear it.
        """
        if not finding.clean:
            return "fault"
        own = (stage for stage in self.stages if stage.name == finding.subject)
        return "coarse" if any(stage.first_fault for stage in own) else "clean"


def to_json(drift: DriftMap) -> dict[str, Any]:
    """The map as plain data; numbers that JSON cannot hold (NaN, infinity) become null."""
    return {"schema": SCHEMA, "verdict": drift.verdict, **serialisation.plain(drift)}
