"""What a benchmark measures: raw seconds and their circumstances. Statistics are computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from levit_export.checks import timing
from levit_export.core import machine
from levit_export.core.machine import Machine

OURS = "ours"
EAGER = "PyTorch, fused"
COMPILED = "torch.compile"
OPTIMUM = {"onnx": "optimum-onnx", "openvino": "optimum-intel"}


@dataclass(frozen=True)
class Circumstances:
    """When, where and with what a record was made.

    ``packages`` are the versions of our environment, ``alternatives`` those of the other one.
    """

    date: str
    machine: Machine
    packages: dict[str, str]
    alternatives: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """One way to execute the model: raw seconds of its calls, or why there are none.

    ``format`` is empty for PyTorch. ``bytes`` are those of the files, ``load_s`` is the time that
    the runtime took to open them.
    """

    name: str
    format: str = ""
    precision: str = "fp32"
    runtime: str = ""
    bytes: int = 0
    load_s: float = 0.0
    seconds: tuple[float, ...] = ()
    reason: str = ""

    @property
    def median_ms(self) -> float:
        """Median latency of a call in milliseconds."""
        return 1e3 * float(np.median(self.seconds))

    @property
    def interval_ms(self) -> tuple[float, float]:
        """Its 95 % percentile-bootstrap interval in milliseconds."""
        return timing.TimingReport("pass", seconds=self.seconds).interval_ms()

    @property
    def noise(self) -> float:
        """Interquartile range over median."""
        low, median, high = np.quantile(self.seconds, (0.25, 0.5, 0.75))
        return float((high - low) / median)


@dataclass(frozen=True)
class Cell:
    """Rows that were measured round robin in one process, and this machine's GEMM meanwhile."""

    batch: int
    threads: int
    gemm_seconds: tuple[float, ...]
    rows: tuple[Row, ...]

    @property
    def gemm_rate(self) -> float:
        """Floating-point operations a second of a float32 matrix product on these threads."""
        return machine.gemm_operations() / float(np.median(self.gemm_seconds))

    def row(self, name: str, form: str = "", precision: str = "fp32") -> Row | None:
        """The row of that name that was measured, or None."""
        for row in self.rows:
            if (row.name, row.format, row.precision) == (name, form, precision) and row.seconds:
                return row
        return None

    def group(self, form: str, precision: str) -> list[Row]:
        """What a user of that format and precision can choose from: its rows and PyTorch's."""
        return [row for row in self.rows if row.format == "" or is_of(row, form, precision)]

    def efficiency(self, row: Row, macs: int) -> float:
        """``(2 * MACs * batch / GEMM rate) / latency``; 1 is as fast as matrix products are."""
        return 2 * macs * self.batch / self.gemm_rate / (row.median_ms / 1e3)


def is_of(row: Row, form: str, precision: str) -> bool:
    """Whether the row is of that format and precision."""
    return (row.format, row.precision) == (form, precision)


def is_alternative(row: Row) -> bool:
    """Whether it is what a user could run in place of ours."""
    return row.name in (EAGER, COMPILED, *OPTIMUM.values())


def ratio(row: Row, base: Row) -> tuple[float, float, float]:
    """Median of ``row`` over that of ``base``, measured in the same rounds, and its interval."""
    return timing.ratio_interval(row.seconds, base.seconds)


@dataclass(frozen=True)
class LatencyRecord:
    """Latency of one model in every cell. ``macs`` are those of one image."""

    circumstances: Circumstances
    model: str
    macs: int
    parameters: int
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class HeadlineRecord:
    """Speed of several networks: a row of a cell is called as its network is.

    ``model`` is where it is kept among the records of models.
    """

    circumstances: Circumstances
    model: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Run:
    """One finished process and its children.

    Seconds of wall clock and processor; ``peak_bytes`` is the largest sum of resident sets.
    """

    wall_s: float
    cpu_s: float
    peak_bytes: int
    status: int


@dataclass(frozen=True)
class Command:
    """All runs of one command line, or why there are none."""

    name: str
    runs: tuple[Run, ...] = ()
    reason: str = ""

    @property
    def wall_s(self) -> float:
        """Median wall clock in seconds."""
        return float(np.median([run.wall_s for run in self.runs]))

    @property
    def cpu_s(self) -> float:
        """Median processor time in seconds."""
        return float(np.median([run.cpu_s for run in self.runs]))

    @property
    def peak_bytes(self) -> int:
        """Largest peak."""
        return max(run.peak_bytes for run in self.runs)

    @property
    def failures(self) -> list[int]:
        """Exit statuses other than 0."""
        return sorted({run.status for run in self.runs} - {0})


@dataclass(frozen=True)
class Stage:
    """A part of a run and its seconds."""

    name: str
    seconds: float


@dataclass(frozen=True)
class ToolRecord:
    """Whole commands on one model, and where the time goes.

    ``as_run`` are the stages of ``--format all`` as they follow one another, formats side by side;
    ``one_by_one`` is the work of each part alone.
    """

    circumstances: Circumstances
    model: str
    parameters: int
    commands: tuple[Command, ...]
    as_run: tuple[Stage, ...] = ()
    one_by_one: tuple[Stage, ...] = ()


@dataclass(frozen=True)
class StartupRecord:
    """What it takes to be asked for help."""

    circumstances: Circumstances
    model: str
    commands: tuple[Command, ...]


@dataclass(frozen=True)
class Point:
    """Seconds that something took for so many samples."""

    name: str
    samples: int
    seconds: float


@dataclass(frozen=True)
class GrowthRecord:
    """Time over the number of samples."""

    circumstances: Circumstances
    model: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class EvaluatorRecord:
    """The Core ML reference evaluator (``fp32``, ``fp16``) beside eager PyTorch."""

    circumstances: Circumstances
    model: str
    threads: int
    rows: tuple[Row, ...]


ModelRecord = LatencyRecord | ToolRecord | StartupRecord | GrowthRecord | EvaluatorRecord
Record = ModelRecord | HeadlineRecord
SECTIONS: dict[str, type[Record]] = {
    "latency": LatencyRecord,
    "headline": HeadlineRecord,
    "tool": ToolRecord,
    "startup": StartupRecord,
    "growth": GrowthRecord,
    "evaluator": EvaluatorRecord,
}


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, smallest and largest."""
    return float(np.median(values)), min(values), max(values)
