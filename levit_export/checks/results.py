"""What the checks of one artifact found: parity, timing, accuracy, and where it diverges."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from levit_export.checks.parity import ParityReport
from levit_export.checks.timing import TimingReport
from levit_export.core.statistics import wilson


@dataclass(frozen=True)
class Accuracy:
    """How an artifact classifies images, and whether as the reference does.

    ``correct`` (and ``top5_correct``, where there are more than 5 classes) are counts of
    ``images``, None without labels; what concerns the reference is None where there was none.
    ``agreement`` is the share of images with the reference's top-1, ``flips`` the number of the
    others, of which ``lost`` only the reference has right and ``gained`` only the artifact.
    ``mcnemar_p`` is the p of that split, ``drop`` what the gate compares with ``max_drop``: points
    of top-1 below the reference, or without labels 100 less the agreement in percent. ``skipped``
    images could not be read, of which the first are named.
    """

    dataset: str
    images: int
    correct: int | None
    reference_correct: int | None
    agreement: float | None
    top5_correct: int | None = None
    flips: int | None = None
    lost: int | None = None
    gained: int | None = None
    mcnemar_p: float | None = None
    drop: float | None = None
    max_drop: float | None = None
    skipped: int = 0
    skipped_names: tuple[str, ...] = ()
    fingerprint: str = ""
    runtime: str = ""
    remarks: tuple[str, ...] = ()

    @property
    def top1(self) -> float | None:
        """Percent of images classified correctly."""
        return None if self.correct is None else 100 * self.correct / self.images

    @property
    def top5(self) -> float | None:
        """Percent of images whose class is among the five best."""
        return None if self.top5_correct is None else 100 * self.top5_correct / self.images

    @property
    def top1_interval(self) -> tuple[float, float] | None:
        """The 95 % interval of :attr:`top1`, in percent."""
        if self.correct is None:
            return None
        low, high = wilson(self.correct, self.images)
        return 100 * low, 100 * high

    @property
    def agreement_interval(self) -> tuple[float, float] | None:
        """The 95 % interval of ``agreement``, as shares."""
        return None if self.flips is None else wilson(self.images - self.flips, self.images)

    @property
    def exceeded(self) -> bool:
        """Whether the drop is larger than was allowed."""
        gated = self.drop is not None and self.max_drop is not None
        return gated and self.drop > self.max_drop  # type: ignore[operator]


@dataclass(frozen=True)
class Explanation:
    """Where an artifact that failed diverges from its checkpoint, or why nobody could say.

    ``sentence`` has all of it, with what to do. ``cause``, ``stage``, ``block`` and ``tap`` are
    those of a finding of drift, empty where it names none.
    """

    sentence: str
    cause: str = ""
    stage: str = ""
    block: str = ""
    tap: str = ""


@dataclass(frozen=True)
class ArtifactReport:
    """Everything found out about one artifact; None where it was not asked for.

    ``drift`` is there for failures only. ``device`` is where it ran, if that is not this machine
    with the runtime installed here: ``iPhone 17 Pro, cpu_and_ne`` or ``onnxruntime 1.20``.
    """

    format: str
    precision: str
    path: str
    bytes: int
    sha256: str
    parity: ParityReport
    timing: TimingReport | None = None
    accuracy: Accuracy | None = None
    notes: tuple[str, ...] = ()
    drift: Explanation | None = None
    device: str = ""

    @property
    def id(self) -> str:
        """``onnx-fp32``."""
        return f"{self.format}-{self.precision}"


@dataclass(frozen=True)
class Place:
    """What tells one row of a report from another: its id, its path, and the way it was executed.

    The way of another device always counts.
    """

    id: str
    path: str
    way: str = ""
    is_elsewhere: bool = False


def names_of(places: Sequence[Place]) -> tuple[str, ...]:
    """A name for each row: its id, with path and way where the id is not enough.

    ``onnx-fp32 (OpenVINO)`` of a file that was executed in several ways.
    """
    paths: dict[str, set[str]] = {}
    for place in places:
        paths.setdefault(place.id, set()).add(place.path)
    ways = Counter((place.id, place.path) for place in places)
    names = []
    for place in places:
        parts = [place.id, *([place.path] if len(paths[place.id]) > 1 else [])]
        if place.way and (place.is_elsewhere or ways[place.id, place.path] > 1):
            parts.append(f"({place.way})")
        names.append(" ".join(parts))
    return tuple(names)
