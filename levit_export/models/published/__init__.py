"""Published weights: what can be asked for by name, and how it gets onto this machine.

::

    parse("levit_256") ──▶ Published ──fetch──▶ a verified file in the cache
                               │
                               ├── HashedFile  the authors' file, SHA-256 in its name (download)
                               └── HubModel    a Hugging Face repository (hub)

Nothing is opened before its SHA-256 was checked, and a file in the cache is checked on each use.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from levit_export.core.errors import DownloadError, UnknownNameError, UsageError, WrongHashError
from levit_export.core.hashing import sha256_of
from levit_export.core.progress import Progress, Silent
from levit_export.models.published.download import KnownFile, Transfer, fetch_file
from levit_export.models.zoo import VARIANTS

__all__ = [
    "DownloadError",
    "HashedFile",
    "HubModel",
    "Published",
    "Transfer",
    "WrongHashError",
    "fetch",
    "known_names",
    "parse",
]

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


def fetch(
    published: Published,
    *,
    offline: bool = False,
    progress: Progress | None = None,
    transfer: Transfer | None = None,
) -> Path:
    """The weights' file on this machine, downloaded unless the cache has it.

    What comes from the Hub has its ``config.json`` beside it. ``offline`` never touches the
    network. ``transfer`` is taken from the environment when not given.

    Raises ``DownloadError`` when the weights cannot be had, ``WrongHashError`` when what was
    fetched is something else, ``OutputError`` when the cache cannot be written, and
    ``MissingDependencyError`` for a Hub id without the extra ``hub``.
    """
    progress = progress or Silent()
    transfer = transfer or Transfer.from_environment()
    source = published.source
    if isinstance(source, HubModel):
        from levit_export.models.published import hub

        return hub.fetch(source, offline=offline, progress=progress, transfer=transfer)
    file = KnownFile(
        url=transfer.url(source.name),
        path=transfer.cache / source.name,
        hash_of=sha256_of,
        expected=source.digits,
        by_hand="Fetch it by hand, on another machine if need be, and give it with "
        "--checkpoint FILE.",
        mirror="LEVIT_EXPORT_WEIGHTS_URL names a mirror.",
    )
    return fetch_file(file, offline=offline, progress=progress, transfer=transfer)


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
