"""Which weights are published, under which names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from levit_export.core.errors import UnknownNameError, UsageError
from levit_export.models.zoo import VARIANTS

_HASHED_NAME = re.compile(r"[\w.][\w.-]*-(?P<digits>[0-9a-f]{8,64})\.\w+", re.ASCII)


@dataclass(frozen=True)
class HashedFile:
    """A file whose name ends in the first hex digits of its SHA-256 (torch.hub's convention)."""

    name: str

    def __post_init__(self) -> None:
        if not _HASHED_NAME.fullmatch(self.name):
            raise UsageError(
                f"{self.name!r} is not a file name with the start of its SHA-256 in it",
                remedy="Such a name looks like LeViT-256-13b5763e.pth.",
            )

    @property
    def digits(self) -> str:
        """The first hex digits of the content's SHA-256, eight at least."""
        return self.name.rpartition("-")[2].partition(".")[0]


@dataclass(frozen=True)
class HubModel:
    """A repository of the Hugging Face Hub; ``companions`` are files that belong to the weights.

    The weights themselves are ``model.safetensors``, or ``pytorch_model.bin`` where there is none.
    """

    id: str
    companions: tuple[str, ...] = ("config.json",)
    revision: str = "main"


@dataclass(frozen=True)
class Published:
    """Weights that can be fetched: ``name`` as the lists show it, ``variant`` as the zoo does."""

    name: str
    variant: str
    source: HashedFile | HubModel
    licence: str = ""


def parse(name: str) -> Published:
    """The weights called ``name``: a variant (the authors' file), or a Hub id.

    Case and ``-`` for ``_`` do not matter. Raises ``UnknownNameError`` with the nearest name, and
    ``UsageError`` for a variant whose weights nobody has published.
    """
    known = _published()
    found = known.get(_normal(name))
    if found is not None:
        return found
    for variant in VARIANTS:
        if _normal(variant.name) == _normal(name):
            raise UsageError(
                f"no weights are published for {variant.name}",
                remedy="Give weights with --checkpoint FILE, or leave out --pretrained. "
                f"Published are: {', '.join(known_names())}.",
            )
    raise UnknownNameError("published model", name, known_names())


def known_names() -> tuple[str, ...]:
    """Every name that :func:`parse` knows, as it is written."""
    return tuple(published.name for published in _published().values())


def _published() -> Mapping[str, Published]:
    """By their names without case: of each variant the authors' file and its copies on the Hub."""
    listed: dict[str, Published] = {}
    for variant in VARIANTS:
        if not variant.weights:
            continue
        hub_name = variant.weights.rpartition("-")[0].replace("LeViT", "levit")  # levit-128S
        tokens = HubModel(f"timm/{variant.name}.fb_dist_in1k")
        sources: tuple[HashedFile | HubModel, ...] = (
            HashedFile(variant.weights),
            HubModel(f"facebook/{hub_name}", ("config.json", "preprocessor_config.json")),
            tokens,
            HubModel(tokens.id.replace("levit_", "levit_conv_")),
        )
        for source in sources:
            name = source.id if isinstance(source, HubModel) else variant.name
            listed[_normal(name)] = Published(name, variant.name, source, variant.licence)
    return listed


def _normal(name: str) -> str:
    return name.strip().lower().replace("-", "_")
