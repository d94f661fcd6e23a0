"""The values that flow through the toolchain and the protocols that hold it together.

NumPy only. A model becomes a :class:`Prepared`, a target turns that into an :class:`Artifact` on
disk and opens it as a :class:`Session`; everything else compares and times sessions.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import numpy as np

from levit_export.core.errors import RuntimeFailedError

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from levit_export.core.network import Network

Tensors = Mapping[str, np.ndarray]
Verdict = Literal["pass", "fail", "inconclusive", "not-run"]
"""Inconclusive is a check that ran and decides nothing. Only a pass is a success."""
GRAVEST_FIRST: tuple[Verdict, ...] = ("fail", "inconclusive", "not-run", "pass")
Size = tuple[int, int]
"""Height and width, of an image in pixels or of a grid in tokens."""
Resize = Literal["shorter-side", "exact", "cover", "fit", "none"]
Interpolation = Literal["bicubic", "bilinear", "lanczos", "hamming", "box", "nearest"]
"""Pillow's filters by the names that timm gives them; all but ``nearest`` are antialiased."""
Centre = Literal["rounded", "floored", "truncated"]
LARGEST_SIDE = 2**14
"""Pixels of the longest side that a recipe may ask for."""
Layout = Literal["tokens", "maps"]
"""The form of a LeViT: ``(B, N, C)`` with linear layers, ``(B, C, H, W)`` with convolutions."""
LAID_OUT_AS_MAPS = "lay_out_maps"
"""The pass that makes maps of tokens; a file in maps names it among its passes."""

FLOAT16_MAX = 65504.0
"""The largest number that float16 holds; what is larger becomes infinite."""

PROBABILITIES = "probabilities"
"""The output of a model that ends in the activation of its task, ``logits`` of one that does not.
"""

Task = Literal["single-label", "multi-label", "regression", "unsaid"]
"""What the outputs of a model mean: one class of several (a softmax makes probabilities of them),
each label by itself (a sigmoid does), or numbers. One output of which nothing says whether it is a
class or a number is ``unsaid``."""

Fingerprints = Mapping[str, Mapping[str, str]]
"""For each precision, the digest that each weight tensor must have in a file (see ``weights``)."""

FORMAT_ALIASES = {
    "aimodel": "coreai",
    "mlpackage": "coreml",
    "mlprogram": "coreml",
    "ov": "openvino",
    "ort": "onnx",
}


def overall(verdicts: Iterable[Verdict]) -> Verdict:
    """The gravest of several verdicts; ``not-run`` where there are none."""
    found = set(verdicts)
    for verdict in GRAVEST_FIRST:
        if verdict in found:
            return verdict
    return "not-run"


@dataclass(frozen=True)
class TensorSpec:
    """Name, shape and element type of an input or output; ``None`` stands for any batch."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str = "float32"

    def admits(self, array: np.ndarray) -> bool:
        """Whether ``array`` has this element type and a shape that this one allows."""
        return (
            str(array.dtype) == self.dtype
            and array.ndim == len(self.shape)
            and all(
                want is None or want == have
                for want, have in zip(self.shape, array.shape, strict=True)
            )
        )


@dataclass(frozen=True)
class Signature:
    """What a model takes and gives."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def batch(self) -> int | None:
        """The batch size that the first input is fixed to, or None when any will do."""
        return self.inputs[0].shape[0]

    def refuse_absent(self, inputs: Tensors, taker: str) -> None:
        """Raise ``RuntimeFailedError`` where ``taker`` was not given an input that it needs."""
        absent = [spec.name for spec in self.inputs if spec.name not in inputs]
        if absent:
            raise RuntimeFailedError(
                f"{taker} was given no input {absent[0]!r}",
                remedy="Give every input by its name.",
            )


@dataclass(frozen=True)
class Preprocessing:
    """How pixels become the model's input: resize, centre crop, scale to [0, 1], normalise.

    ``resize`` and ``crop`` are (height, width). ``resize_mode`` says what ``resize`` is for:

    - ``shorter-side``: the image's shorter side gets this length, the same for both numbers, and
      the longer one is cut to whole pixels (torchvision, transformers);
    - ``cover`` and ``fit``: the image is scaled until it just covers that rectangle or just fits
      into it, sides rounded (timm);
    - ``exact``: both sides get these lengths, whatever becomes of the aspect ratio;
    - ``none``: the image keeps its size.

    A crop that reaches beyond the image shows ``fill``, RGB from 0 to 255. ``mean`` and ``std``
    are per RGB channel on the 0-1 scale. ``centre`` says how half a pixel of the crop's offset is
    settled: ``rounded`` to even inside the image and towards zero outside, as torchvision does it;
    ``floored`` or ``truncated``, as transformers' slow and fast processors do it.

    Raises ``ValueError`` for numbers that cannot be a recipe.
    """

    name: str
    resize: Size
    crop: Size
    resize_mode: Resize = "shorter-side"
    interpolation: Interpolation = "bicubic"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    centre: Centre = "rounded"
    fill: tuple[int, int, int] = (0, 0, 0)

    def __post_init__(self) -> None:
        for name, sides in (("resize", self.resize), ("crop", self.crop)):
            if not all(1 <= side <= LARGEST_SIDE for side in sides):
                raise ValueError(f"{name} {sides}: sides of 1 to {LARGEST_SIDE} pixels are needed")
        if self.resize_mode == "shorter-side" and self.resize[0] != self.resize[1]:
            raise ValueError(f"resize {self.resize}: the shorter side has one length")
        if not all(map(math.isfinite, (*self.mean, *self.std))):
            raise ValueError(f"mean {self.mean}, std {self.std}: finite numbers are needed")
        if min(self.std) <= 0:
            raise ValueError(f"std {self.std}: positive numbers are needed")
        if not all(0 <= level <= 255 for level in self.fill):
            raise ValueError(f"fill {self.fill}: levels of 0 to 255 are needed")

    def in_words(self, *, embedded: bool = False) -> str:
        """The recipe in one sentence, for the people who write the device's code.

        ``embedded`` says that the model itself normalises.
        """
        height, width = self.resize
        rectangle = f"{height}x{width} px (height x width)" if height != width else f"{height} px"
        sides = {
            "shorter-side": f"resize the shorter side to {height} px",
            "exact": f"resize to {height}x{width} px",
            "cover": f"resize, keeping the aspect ratio, until it just covers {rectangle}",
            "fit": f"resize, keeping the aspect ratio, until it just fits into {rectangle}",
            "none": "no resize",
        }[self.resize_mode]
        if self.resize_mode != "none":
            antialiased = "" if self.interpolation == "nearest" else ", antialiased"
            sides += f" ({self.interpolation}{antialiased})"
        height, width = self.crop
        crop = f"{height}x{width} px (height x width)" if height != width else f"{height} px"
        padded = self.resize_mode in ("fit", "none") or any(
            side < cut for side, cut in zip(self.resize, self.crop, strict=True)
        )
        filled = f", pixels outside the image are {list(self.fill)}" if padded else ""
        values = (
            "bytes 0 to 255 as they are: the model normalises by itself"
            if embedded
            else f"divide by 255; subtract {list(self.mean)}; divide by {list(self.std)}; NCHW"
        )
        return f"RGB; {sides}; centre crop {crop} (offset {self.centre}{filled}); {values}"


@dataclass(frozen=True)
class Embedded:
    """What a graph does beside the network, so that nobody does it a second time.

    With ``preprocessing`` it takes raw RGB bytes and normalises them; with ``softmax`` its first
    output is probabilities, by the activation that its task asks for.
    """

    preprocessing: bool = False
    softmax: bool = False


@dataclass(frozen=True)
class Availability:
    """Whether this machine can do something, and by what; if not, why and what would help."""

    ok: bool
    reason: str = ""
    fix: str = ""


@dataclass(frozen=True)
class ModelInfo:
    """What is known about a loaded model, all of it fit for metadata and manifests."""

    name: str
    dialect: str
    checkpoint: str
    checkpoint_sha256: str
    parameters: int
    macs: int
    heads: int
    config: Mapping[str, Any]
    labels: tuple[str, ...]
    preprocessing: Preprocessing
    licence: str = ""
    remarks: tuple[str, ...] = ()
    """What was found in the checkpoint, and which of several things in it was taken."""
    assumptions: tuple[str, ...] = ()
    """What was taken for granted because nothing was said, such as ImageNet's names."""
    doubt: str = ""
    """Why a parity check on these weights would prove little, or empty."""
    task: Task = "single-label"

    @property
    def kind(self) -> str:
        """What the model does, in words."""
        count = len(self.labels)
        return {
            "multi-label": f"multi-label image classifier, {count} labels",
            "regression": f"model of images, {count} numbers",
            "unsaid": f"model of images, {count} output",
        }.get(self.task, f"image classifier, {count} classes")


@dataclass(frozen=True)
class PassRecord:
    """One line of the ledger: what a pass matched, what it cost, how well it kept the function.

    ``error`` is the largest ``max|after - before| / max|before|`` of the places that it rewrote,
    in float64, and ``network_error`` that of the whole network. ``nodes`` are the operators that
    one forward call with a batch of two executes.
    """

    name: str
    status: Literal["applied", "skipped", "not-applicable"]
    reason: str = ""
    matches: int = 0
    error: float = 0.0
    parameters: tuple[int, int] = (0, 0)
    nodes: tuple[int, int] = (0, 0)
    bytes_added: int = 0
    network_error: float = 0.0


def applied(ledger: Iterable[PassRecord]) -> tuple[str, ...]:
    """The names of the passes that a ledger says were applied, in their order."""
    return tuple(record.name for record in ledger if record.status == "applied")


class Capture(Protocol):
    """A module, captured when it is first asked for."""

    def program(self) -> ExportedProgram:
        """What ``torch.export`` made of it."""

    def network(self) -> Network:
        """The captured module as a network."""


@dataclass(frozen=True)
class Prepared:
    """A model ready for every target: passes applied, shapes static but for the batch.

    ``blocks`` says what users call the block that a module, given by its path, is. ``weights`` are
    the tensors that artifacts must hold; where a pass was skipped, the network's constants.
    ``capture`` gives the network that targets write, always the same one.
    """

    info: ModelInfo
    signature: Signature
    passes: tuple[PassRecord, ...]
    fingerprints: Fingerprints
    blocks: Mapping[str, str]
    weights: Mapping[str, np.ndarray]
    capture: Capture
    embedded: Embedded = Embedded()
    layout: Layout = "tokens"

    @property
    def program(self) -> ExportedProgram:
        """The network as ``torch.export`` captured it."""
        return self.capture.program()

    @property
    def network(self) -> Network:
        """The network that writers write."""
        return self.capture.network()


@dataclass(frozen=True)
class Calibration:
    """Real inputs ``(n, 3, H, W)`` float32 that a quantiser may look at, and their source.

    ``labels`` are their classes ``(n,)``, -1 where one is not known.
    """

    inputs: np.ndarray
    source: str
    labels: np.ndarray | None = None


@dataclass(frozen=True)
class ExportOptions:
    """What a user may ask of an export. Each target reads what concerns it.

    ``batch`` None leaves the batch open. ``calibration`` is needed for the precisions of
    ``precisions.CALIBRATED``; blocks of ``keep``, by the names that users see, stay in the
    format's own float precision. ``embedded`` is what the graph does beside the network,
    ``layout`` the form of a LeViT or ``auto`` (see ``preparation.layout_of``). ``opset`` and
    ``simplify`` are ONNX's, ``deployment_target`` and ``classifier`` Core ML's.
    """

    precision: str = "fp32"
    batch: int | None = 1
    opset: int = 18
    simplify: bool = True
    deployment_target: str = "iOS16"
    classifier: bool = False
    calibration: Calibration | None = None
    keep: tuple[str, ...] = ()
    embedded: Embedded = Embedded()
    layout: str = "auto"


@dataclass(frozen=True)
class RunOptions:
    """How a runtime is to execute: CPU threads, OpenVINO's device, Core ML's compute units, and
    ONNX Runtime's execution providers.

    With ``by_default`` float32 is not asked for, and the runtime chooses what it computes in:
    OpenVINO takes bfloat16 on a processor with AMX or AVX512-BF16. ``also_by_default`` asks for
    both ways where they differ.
    """

    threads: int = 1
    device: str = "CPU"
    compute_units: tuple[str, ...] = ("cpu_only",)
    providers: tuple[str, ...] = ("cpu",)
    by_default: bool = False
    also_by_default: bool = False


@dataclass(frozen=True)
class Arithmetic:
    """What a runtime computes float32 numbers in: ``fp32``, or the coarser ``bf16`` or ``fp16``.

    Where ``is_accepted``, answers are judged by the tolerance of this type, otherwise by that of
    float32. ``exact`` are the options that force float32, and ``remedy`` tells a user how.
    """

    type: str = "fp32"
    is_accepted: bool = True
    exact: RunOptions | None = None
    remedy: str = ""


@dataclass(frozen=True)
class Artifact:
    """A model on disk in one format and precision. ``path`` is a file or a package folder.

    ``precision`` is measured in the graph of a file that was read. ``passes`` are those that the
    file says went into it; None when it says none. ``claims`` is all that a file's metadata says,
    None when it was not read or is not ours. ``keep`` are the blocks that were left in the
    format's own float precision, as the export, its manifest or the file says.
    """

    format: str
    precision: str
    path: Path
    signature: Signature
    notes: tuple[str, ...] = ()
    passes: tuple[str, ...] | None = None
    keep: tuple[str, ...] = ()
    claims: Mapping[str, str] | None = field(default=None, compare=False)
    classes: tuple[str, ...] = field(default=(), compare=False)
    """The names of a classifier's classes, in the order of its probabilities."""
    shares: Mapping[str, float] = field(default_factory=dict, compare=False)
    """The share of the weights that each precision has; see ``constants.shares_of``."""
    beside: tuple[Path, ...] = field(default=(), compare=False)
    """Files that hold part of it, such as an ONNX file's external data."""
    runs_on: str = field(default="", compare=False)
    """The oldest runtime that can read what was written, ``ONNX Runtime 1.14 and later``."""

    @property
    def layout(self) -> Layout:
        """The layout that the file's passes tell; one that is not ours counts as tokens."""
        return "maps" if LAID_OUT_AS_MAPS in (self.passes or ()) else "tokens"

    @property
    def id(self) -> str:
        """``onnx-fp32``: what reports and folders call it."""
        return f"{self.format}-{self.precision}"

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file that makes up the artifact: those of a package, or one and what is beside."""
        return (*files_of(self.path), *self.beside)


def files_of(path: Path) -> tuple[Path, ...]:
    """The files of the artifact at ``path``."""
    if path.is_dir():
        return tuple(sorted(p for p in path.rglob("*") if p.is_file()))
    twin = path.with_suffix(".bin")
    has_twin = path.suffix == ".xml" and twin.exists()
    return (path, twin) if has_twin else (path,)


@runtime_checkable
class Session(Protocol):
    """A loaded model; eager PyTorch is one too."""

    @property
    def signature(self) -> Signature:
        """What :meth:`run` takes and gives."""

    @property
    def runtime(self) -> str:
        """Runtime, version and device, such as ``onnxruntime 1.31.1 (CPU)``."""

    def run(self, inputs: Tensors) -> Tensors:
        """Execute once. Raises ``RuntimeFailedError`` when the runtime does."""


class Target(Protocol):
    """Everything the toolchain knows about one format."""

    @property
    def name(self) -> str:
        """What ``--format`` calls it."""

    @property
    def suffix(self) -> str:
        """File name ending of its artifacts, with the dot."""

    @property
    def precisions(self) -> tuple[str, ...]:
        """What ``--precision`` may ask of it; the first is its default."""

    def computes_in_half(self, precision: str) -> bool:
        """Whether an artifact of ``precision`` holds inner values as float16 somewhere."""

    def can_export(self) -> Availability:
        """Whether this machine can write the format."""

    def can_run(self) -> Availability:
        """Whether this machine can execute it."""

    def can_time(self) -> Availability:
        """Whether timing it here would mean anything."""

    def refuse(self, options: ExportOptions) -> None:
        """Raise ``UsageError`` for what the format cannot do, before anything heavy happens."""

    def export(self, model: Prepared, path: Path, options: ExportOptions) -> Artifact:
        """Write ``model`` to ``path``. Same inputs give the same bytes."""

    def inspect(self, path: Path) -> Artifact:
        """Read a file back: what it says of itself, and the precision, measured in its graph.

        Raises ``ArtifactError``.
        """

    def constants(self, artifact: Artifact) -> Iterable[np.ndarray]:
        """Every constant that the file holds, as stored."""

    def runs(self, options: RunOptions) -> tuple[RunOptions, ...]:
        """The ways to execute an artifact that ``options`` ask for, each a row of the report."""

    def arithmetic(self, options: RunOptions) -> Arithmetic:
        """What the runtime computes float32 in when it executes as one of :meth:`runs`."""

    def values(self, artifact: Artifact) -> Collection[str]:
        """The names of the inner values that :meth:`open` takes as taps."""

    def remarks(self, artifact: Artifact, options: RunOptions) -> tuple[str, ...]:
        """What a reader of a check on this machine has to know, a sentence each."""

    def open(
        self, artifact: Artifact, options: RunOptions, taps: Sequence[str] = ()
    ) -> AbstractContextManager[Session]:
        """Load an artifact from disk. ``taps`` are names of inner values to return as well."""


@dataclass(frozen=True)
class Tolerance:
    """How far a candidate may lie from the reference, and why.

    Row i of an output is accepted when ``max|candidate_i - reference_i| <= atol + rtol_i *
    max|reference_i|``. ``rtol`` has one number for each row, or a single one for all rows.
    """

    atol: float
    rtol: tuple[float, ...]
    origin: Literal["derived", "given"]
    derivation: Mapping[str, float | str] = field(default_factory=dict)

    def allowed(self, reference: np.ndarray) -> np.ndarray:
        """The accepted distance for each row of ``reference`` ``(rows, ...)``: ``(rows,)``."""
        rows = np.abs(reference.reshape(len(reference), -1).astype(np.float64))
        return self.for_scales(rows.max(axis=1))

    def for_scales(self, scales: np.ndarray) -> np.ndarray:
        """The accepted distance for rows whose largest ``|reference|`` is given: ``(rows,)``."""
        distances: np.ndarray = self.atol + np.array(self.rtol) * scales
        return distances

    def of_rows(self, rows: np.ndarray) -> Tolerance:
        """The tolerance of ``rows`` only, in that order."""
        if len(self.rtol) == 1:
            return self
        return replace(self, rtol=tuple(self.rtol[row] for row in rows))


Tolerances = Mapping[str, Tolerance]
"""One for each output, by name."""
