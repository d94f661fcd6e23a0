"""The models this toolchain knows by name: dimensions, published figures, weights.

Figures are those of the paper's table 3 (arXiv 2104.01136v2): top-1 on ImageNet in percent and
multiply-accumulates of one 224x224 image, which the paper calls FLOPs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import TYPE_CHECKING

from levit_export.core.errors import UnknownNameError, UsageError

if TYPE_CHECKING:
    from levit_export.core.values import Size

STEM_STRIDES = (16, 8)
ACTIVATIONS = ("hardswish", "silu", "gelu", "relu")
AUTO_LAYOUT = "auto"
LAYOUTS = (AUTO_LAYOUT, "tokens", "maps")
"""What may be asked for; see ``preparation.layout_of``."""

TASKS = ("single-label", "multi-label", "regression")
"""What the outputs of a model may mean; see ``core.values.Task``."""

LARGEST_GRID = 64 * 64
"""Tokens of a grid. An attention table has as many entries as the square of it."""

LOGITS = "logits"
DISTILL = "distill"
"""Names of a model's outputs."""


@dataclass(frozen=True)
class LevitConfig:
    """Everything that shapes a LeViT.

    ``dims``, ``heads`` and ``depths`` are per stage (the paper's C, N and depth), ``key_dim`` is
    the paper's D. Values have ``2 * key_dim`` channels per head (4 in the shrinking attention).
    ``image_size`` is (height, width). ``stem_stride`` 16 is the paper's stem of four convolutions,
    8 timm's of three. A ``fused`` model's layers carry their BatchNorm inside and are stored
    without it. ``linear_heads`` are heads that were replaced by a linear layer, which has no
    BatchNorm before it.
    """

    dims: tuple[int, ...]
    key_dim: int
    heads: tuple[int, ...]
    depths: tuple[int, ...]
    image_size: Size = (224, 224)
    classes: int = 1000
    two_heads: bool = True
    activation: str = "hardswish"
    stem_stride: int = 16
    fused: bool = False
    linear_heads: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.stem_stride not in STEM_STRIDES:
            raise UnknownNameError("stem stride", str(self.stem_stride), map(str, STEM_STRIDES))
        _refuse_image_size(self.image_size, self.stem_stride)
        if self.activation not in ACTIVATIONS:
            raise UnknownNameError("activation", self.activation, ACTIVATIONS)

    @property
    def grids(self) -> tuple[Size, ...]:
        """The token grid of each stage; a shrinking attention keeps every other row and column."""
        return halving(grid_of(self.image_size, self.stem_stride), len(self.dims))

    @property
    def outputs(self) -> tuple[tuple[str, int], ...]:
        """Name and width of each output; the two heads of the paper are averaged into one."""
        return ((LOGITS, self.classes),)

    @property
    def head_count(self) -> int:
        """How many classifier heads the model has."""
        return 1 + self.two_heads


@dataclass(frozen=True)
class VitPytorchConfig:
    """Everything that shapes the LeViT of ``vit-pytorch``, another network than the paper's.

    ``dims``, ``heads`` and ``depths`` are per stage; the shrinking blocks have twice the heads of
    the stage below them and an MLP of expansion 2, whatever ``mlp_ratio`` is. With
    ``distill_classes`` there is a second output.
    """

    dims: tuple[int, ...]
    heads: tuple[int, ...]
    depths: tuple[int, ...]
    key_dim: int = 32
    value_dim: int = 64
    mlp_ratio: int = 2
    image_size: Size = (224, 224)
    classes: int = 1000
    distill_classes: int | None = None

    def __post_init__(self) -> None:
        _refuse_image_size(self.image_size, 16)

    @property
    def grids(self) -> tuple[Size, ...]:
        """Height and width of the feature map of each stage."""
        return halving(grid_of(self.image_size, 16), len(self.dims))

    @property
    def outputs(self) -> tuple[tuple[str, int], ...]:
        """Name and width of each output."""
        distill = () if self.distill_classes is None else ((DISTILL, self.distill_classes),)
        return ((LOGITS, self.classes), *distill)

    @property
    def head_count(self) -> int:
        """How many classifier heads the model has."""
        return len(self.outputs)


@dataclass(frozen=True)
class GraftedConfig:
    """The paper's first experiment (table 1): the first stages of a ResNet-50 below a DeiT-S.

    ``stages`` 0 to 4 of the ResNet, ``layers`` of the DeiT; 0 stages is DeiT-S itself, and with 4
    stages and no layers it is ResNet-50 itself.
    """

    stages: int
    layers: int
    dim: int = 384
    heads: int = 6
    mlp_ratio: int = 4
    image_size: Size = (224, 224)
    classes: int = 1000

    def __post_init__(self) -> None:
        if not 0 <= self.stages <= 4 or (self.layers < 1) != (self.stages == 4):
            raise UsageError(
                f"{self.stages} ResNet-50 stages with {self.layers} DeiT-S layers are not a "
                "grafted network",
                remedy="The paper's pairs are 0+12, 1+9, 2+6, 3+3 and 4+0.",
            )
        if self.dim % self.heads:
            raise UsageError(
                f"{self.dim} channels do not divide among {self.heads} heads",
                remedy="DeiT has 64 channels a head.",
            )
        _refuse_image_size(self.image_size, 32 if self.stages == 4 else 16)

    @property
    def outputs(self) -> tuple[tuple[str, int], ...]:
        """Name and width of the output."""
        return ((LOGITS, self.classes),)

    @property
    def head_count(self) -> int:
        """How many classifier heads the model has."""
        return 1


Config = LevitConfig | VitPytorchConfig | GraftedConfig
"""What a module is built from; ``architectures.build`` does it."""


def grid_of(image_size: Size, stride: int) -> Size:
    """How many tokens a stem of this stride makes of an image, down and across."""
    height, width = image_size
    return height // stride, width // stride


def halving(grid: Size, count: int) -> tuple[Size, ...]:
    """``count`` grids, each keeping every other row and column of the one before."""
    grids = [grid]
    for _ in range(count - 1):
        rows, columns = grids[-1]
        grids.append(((rows - 1) // 2 + 1, (columns - 1) // 2 + 1))
    return tuple(grids)


def size_in_words(size: Size) -> str:
    """``224`` for a square, ``128x512`` (height x width) otherwise: what ``--imgsz`` takes."""
    height, width = size
    return str(height) if height == width else f"{height}x{width}"


def parse_size(text: str) -> Size:
    """What :func:`size_in_words` wrote. Raises ``ValueError`` for what it cannot have written."""
    found = re.fullmatch(r"(\d{1,6})(?:x(\d{1,6}))?", text.strip().lower())
    if not found or 0 in (sides := (int(found[1]), int(found[2] or found[1]))):
        raise ValueError(f"{text!r} is not a size")
    return sides


def _refuse_image_size(image_size: Size, stride: int) -> None:
    odd = [side for side in image_size if side < stride or side % stride]
    if odd:
        height, width = (max(stride, side // stride * stride) for side in image_size)
        raise UsageError(
            f"image size {size_in_words(image_size)} does not divide by the stem's stride "
            f"{stride}",
            remedy=f"Use multiples of {stride}, such as {size_in_words((height, width))}.",
        )
    rows, columns = grid_of(image_size, stride)
    if rows * columns > LARGEST_GRID:
        largest = isqrt(LARGEST_GRID)
        raise UsageError(
            f"image size {size_in_words(image_size)} makes a grid of {rows}x{columns} tokens; "
            "attention tables grow with the square of their number",
            remedy=f"{LARGEST_GRID} tokens are the most that are supported, "
            f"a square of {stride * largest} px.",
        )


@dataclass(frozen=True)
class Variant:
    """A model with a name. ``parameters`` and ``macs`` are published figures, never computed.

    ``top1`` is the published accuracy in percent, None where nobody trained the model.
    ``weights`` is the file name of the published checkpoint; its last eight hex digits are the
    start of the file's SHA-256 (torch.hub's convention). ``dialects`` are the forms in which its
    checkpoints are found.
    """

    name: str
    title: str
    config: Config
    parameters: str
    macs: str
    top1: float | None
    top1_on: str
    licence: str
    dialects: tuple[str, ...]
    weights: str = ""


LEVIT_DIALECTS = ("fair", "timm", "transformers")


def _paper(
    name: str, config: LevitConfig, *, parameters: str, macs: str, top1: float, weights: str
) -> Variant:
    return Variant(
        name=name,
        title=f"LeViT-{name.removeprefix('levit_').upper()}",
        config=config,
        parameters=parameters,
        macs=macs,
        top1=top1,
        top1_on="ImageNet (paper)",
        licence="Apache-2.0",
        dialects=LEVIT_DIALECTS,
        weights=weights,
    )


def _untrained(name: str, config: LevitConfig, *, parameters: str) -> Variant:
    """A size that timm defines and nobody published weights for; SiLU, one head unless said."""
    return Variant(
        name=name,
        title=f"LeViT-{name.removeprefix('levit_')} (timm, untrained)",
        config=config,
        parameters=parameters,
        macs="",
        top1=None,
        top1_on="",
        licence="Apache-2.0",
        dialects=("fair", "timm"),
    )


def _grafted(
    name: str, stages: int, layers: int, *, parameters: str, macs: str, top1: float
) -> Variant:
    titles, many = {0: "DeiT-S", 4: "ResNet-50"}, "stage" if stages == 1 else "stages"
    return Variant(
        name=name,
        title=titles.get(stages, f"{stages} ResNet-50 {many}, {layers} DeiT-S layers"),
        config=GraftedConfig(stages, layers),
        parameters=parameters,
        macs=macs,
        top1=top1,
        top1_on="ImageNet (paper, table 1)",
        licence="Apache-2.0" if stages < 4 else "BSD-3-Clause",
        dialects=("grafted",),
    )


VARIANTS: tuple[Variant, ...] = (
    Variant(
        name="levit_digits",
        title="LeViT for handwritten digits (bundled)",
        config=LevitConfig(
            (64, 96, 128), 16, (2, 3, 4), (2, 2, 2), image_size=(96, 96), classes=10
        ),
        parameters="0.71M",
        macs="",
        top1=99.2,
        top1_on="360 held-out UCI digits",
        licence="Apache-2.0",
        dialects=LEVIT_DIALECTS,
    ),
    _paper(
        "levit_128s",
        LevitConfig((128, 256, 384), 16, (4, 6, 8), (2, 3, 4)),
        parameters="7.8M",
        macs="305M",
        top1=76.6,
        weights="LeViT-128S-96703c44.pth",
    ),
    _paper(
        "levit_128",
        LevitConfig((128, 256, 384), 16, (4, 8, 12), (4, 4, 4)),
        parameters="9.2M",
        macs="406M",
        top1=78.6,
        weights="LeViT-128-b88c2750.pth",
    ),
    _paper(
        "levit_192",
        LevitConfig((192, 288, 384), 32, (3, 5, 6), (4, 4, 4)),
        parameters="10.9M",
        macs="658M",
        top1=80.0,
        weights="LeViT-192-92712e41.pth",
    ),
    _paper(
        "levit_256",
        LevitConfig((256, 384, 512), 32, (4, 6, 8), (4, 4, 4)),
        parameters="18.9M",
        macs="1120M",
        top1=81.6,
        weights="LeViT-256-13b5763e.pth",
    ),
    _paper(
        "levit_384",
        LevitConfig((384, 512, 768), 32, (6, 9, 12), (4, 4, 4)),
        parameters="39.1M",
        macs="2353M",
        top1=82.6,
        weights="LeViT-384-9bdaf2e2.pth",
    ),
    _untrained(
        "levit_256d",
        LevitConfig((256, 384, 512), 32, (4, 6, 8), (4, 8, 6), two_heads=False, activation="silu"),
        parameters="26.211M",
    ),
    _untrained(
        "levit_384_s8",
        LevitConfig((384, 512, 768), 32, (6, 9, 12), (4, 4, 4), activation="silu", stem_stride=8),
        parameters="39.119M",
    ),
    _untrained(
        "levit_512_s8",
        LevitConfig(
            (512, 640, 896),
            64,
            (8, 10, 14),
            (4, 4, 4),
            two_heads=False,
            activation="silu",
            stem_stride=8,
        ),
        parameters="74.047M",
    ),
    _untrained(
        "levit_512",
        LevitConfig(
            (512, 768, 1024), 64, (8, 12, 16), (4, 4, 4), two_heads=False, activation="silu"
        ),
        parameters="95.174M",
    ),
    _untrained(
        "levit_512d",
        LevitConfig(
            (512, 640, 768), 64, (8, 10, 12), (4, 8, 6), two_heads=False, activation="silu"
        ),
        parameters="92.498M",
    ),
    Variant(
        name="vit_pytorch_levit",
        title="LeViT of vit-pytorch (another network)",
        config=VitPytorchConfig((256, 384, 512), (4, 6, 8), (4, 4, 4)),
        parameters="17.348972M",
        macs="",
        top1=None,
        top1_on="",
        licence="MIT",
        dialects=("vit-pytorch",),
    ),
    _grafted("deit_s", 0, 12, parameters="22.0M", macs="4576M", top1=79.9),
    _grafted("resnet50_1_deit_9", 1, 9, parameters="17.1M", macs="4209M", top1=80.6),
    _grafted("resnet50_2_deit_6", 2, 6, parameters="13.1M", macs="4136M", top1=80.9),
    _grafted("resnet50_3_deit_3", 3, 3, parameters="15.1M", macs="4515M", top1=80.1),
    _grafted("resnet50", 4, 0, parameters="25.5M", macs="4119M", top1=78.4),
)


def bundled_weights() -> Path:
    """The file of ``levit_digits``, the model that travels with the package.

    Its licence is in ``LICENSE-levit_digits.md`` beside it.
    """
    # Not importlib.resources: its import would be a quarter of this module's, and safetensors
    # opens the file by its path in any case.
    return Path(__file__).with_name("levit_digits.safetensors")


def variant(name: str) -> Variant:
    """The variant called ``name``; ``LeViT-256`` and ``levit-256`` mean ``levit_256``."""
    wanted = name.lower().replace("-", "_")
    for known in VARIANTS:
        if known.name == wanted:
            return known
    raise UnknownNameError("model", name, (known.name for known in VARIANTS))


def variant_of(config: Config) -> Variant | None:
    """The named variant with these dimensions; classes, heads and image size may differ."""
    return next((known for known in VARIANTS if _body(known.config) == _body(config)), None)


def _body(config: Config) -> tuple[object, ...]:
    if isinstance(config, LevitConfig):
        sizes = (config.dims, config.key_dim, config.heads, config.depths, config.stem_stride)
        return ("levit", *sizes)
    if isinstance(config, GraftedConfig):
        return ("grafted", config.stages, config.layers, config.dim, config.mlp_ratio)
    values = (config.key_dim, config.value_dim, config.mlp_ratio)
    return ("vit-pytorch", config.dims, config.heads, config.depths, *values)


def usual_activation(config: LevitConfig) -> str:
    """The activation of the known size with these dimensions, Hardswish where there is none.

    No tensor tells it: timm's own sizes have SiLU, the paper's Hardswish.
    """
    known = variant_of(config)
    return (
        known.config.activation if known and isinstance(known.config, LevitConfig) else "hardswish"
    )
