"""The models this toolchain knows by name: dimensions, published figures, weights.

Figures are those of the paper's table 3 (arXiv 2104.01136v2): top-1 on ImageNet in percent and
multiply-accumulates of one 224x224 image, which the paper calls FLOPs.
"""

from __future__ import annotations

from dataclasses import dataclass

from levit_export.errors import UnknownNameError, UsageError

STEM_STRIDE = 16
ACTIVATIONS = ("hardswish", "silu", "gelu", "relu")


@dataclass(frozen=True)
class LevitConfig:
    """Everything that shapes a LeViT.

    ``dims``, ``heads`` and ``depths`` are per stage (the paper's C, N and depth), ``key_dim`` is
    the paper's D. Values have ``2 * key_dim`` channels per head (4 in the shrinking attention).
    """

    dims: tuple[int, ...]
    key_dim: int
    heads: tuple[int, ...]
    depths: tuple[int, ...]
    image_size: int = 224
    classes: int = 1000
    two_heads: bool = True
    activation: str = "hardswish"

    def __post_init__(self) -> None:
        if self.image_size < STEM_STRIDE or self.image_size % STEM_STRIDE:
            below = max(STEM_STRIDE, self.image_size // STEM_STRIDE * STEM_STRIDE)
            raise UsageError(
                f"image size {self.image_size} does not divide by the stem's stride {STEM_STRIDE}",
                remedy=f"Use a multiple of {STEM_STRIDE}, such as {below}.",
            )
        if self.activation not in ACTIVATIONS:
            raise UnknownNameError("activation", self.activation, ACTIVATIONS)

    @property
    def resolutions(self) -> tuple[int, ...]:
        """Side of the square token grid of each stage; a shrinking attention keeps every other."""
        sides = [self.image_size // STEM_STRIDE]
        for _ in self.dims[1:]:
            sides.append((sides[-1] - 1) // 2 + 1)
        return tuple(sides)


@dataclass(frozen=True)
class Variant:
    """A model with a name. ``parameters`` and ``macs`` are published figures, never computed.

    ``weights`` is the file name of the published checkpoint; its last eight hex digits are the
    start of the file's SHA-256 (torch.hub's convention).
    """

    name: str
    title: str
    config: LevitConfig
    parameters: str
    macs: str
    top1: float
    top1_on: str
    licence: str
    weights: str = ""


def _imagenet(
    name: str,
    config: LevitConfig,
    *,
    parameters: str,
    macs: str,
    top1: float,
    weights: str,
) -> Variant:
    return Variant(
        name=name,
        title=name.replace("levit_", "LeViT-").upper().replace("LEVIT", "LeViT"),
        config=config,
        parameters=parameters,
        macs=macs,
        top1=top1,
        top1_on="ImageNet (paper)",
        licence="Apache-2.0",
        weights=weights,
    )


VARIANTS: tuple[Variant, ...] = (
    Variant(
        name="levit_digits",
        title="LeViT for handwritten digits (bundled)",
        config=LevitConfig((64, 96, 128), 16, (2, 3, 4), (2, 2, 2), image_size=96, classes=10),
        parameters="0.71M",
        macs="",
        top1=99.2,
        top1_on="360 held-out UCI digits",
        licence="Apache-2.0",
    ),
    _imagenet(
        "levit_128s",
        LevitConfig((128, 256, 384), 16, (4, 6, 8), (2, 3, 4)),
        parameters="7.8M",
        macs="305M",
        top1=76.6,
        weights="LeViT-128S-96703c44.pth",
    ),
    _imagenet(
        "levit_128",
        LevitConfig((128, 256, 384), 16, (4, 8, 12), (4, 4, 4)),
        parameters="9.2M",
        macs="406M",
        top1=78.6,
        weights="LeViT-128-b88c2750.pth",
    ),
    _imagenet(
        "levit_192",
        LevitConfig((192, 288, 384), 32, (3, 5, 6), (4, 4, 4)),
        parameters="10.9M",
        macs="658M",
        top1=80.0,
        weights="LeViT-192-92712e41.pth",
    ),
    _imagenet(
        "levit_256",
        LevitConfig((256, 384, 512), 32, (4, 6, 8), (4, 4, 4)),
        parameters="18.9M",
        macs="1120M",
        top1=81.6,
        weights="LeViT-256-13b5763e.pth",
    ),
    _imagenet(
        "levit_384",
        LevitConfig((384, 512, 768), 32, (6, 9, 12), (4, 4, 4)),
        parameters="39.1M",
        macs="2353M",
        top1=82.6,
        weights="LeViT-384-9bdaf2e2.pth",
    ),
)


def variant(name: str) -> Variant:
    """The variant called ``name``; ``LeViT-256`` and ``levit-256`` mean ``levit_256``."""
    wanted = name.lower().replace("-", "_")
    for known in VARIANTS:
        if known.name == wanted:
            return known
    raise UnknownNameError("model", name, (known.name for known in VARIANTS))
