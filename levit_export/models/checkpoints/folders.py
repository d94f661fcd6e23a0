"""Folders that ``save_pretrained`` and timm's Hub push write: weights beside their JSON files."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from levit_export.core import files
from levit_export.core.errors import CheckpointError
from levit_export.models.checkpoints.kinds import cannot_be_read, size_of
from levit_export.models.checkpoints.limits import JSON_BYTES, refuse_count, refuse_names

STANDARD = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""Names of weight files as Hugging Face's libraries look for them, in their order."""

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
NOT_WEIGHTS = re.compile(
    r"training_args\.bin|(optimizer|scheduler|scaler|rng_state.*)\.(pt|pth|bin)"
    r"|.*_optim_states\.pt"
)
"""What a Trainer, accelerate and DeepSpeed leave beside the weights."""
DISTRIBUTED = ".distcp"
"""Files of ``torch.distributed.checkpoint``, which FSDP and accelerate write."""

SHARDS = 1_000
LISTED = 8


@dataclass(frozen=True)
class Folder:
    """What a folder holds. ``shards`` maps a weight file to the tensors that it must have.

    It is empty where ``file`` is the weight file itself; otherwise ``file`` is the index.
    """

    file: Path
    shards: Mapping[Path, tuple[str, ...]]
    config: Mapping[str, Any] | None
    preprocessor: Mapping[str, Any] | None
    remarks: tuple[str, ...]


def look_into(folder: Path) -> Folder:
    """Find the weight file of ``folder`` and read its JSON files.

    Raises ``CheckpointError`` when there is no weight file, when there are several without a
    standard name, and when a JSON file cannot be read.
    """
    try:
        names = sorted(entry.name for entry in folder.iterdir())
    except OSError as error:
        raise cannot_be_read(folder, error) from error
    file, remarks = _weight_file(folder, names)
    return Folder(
        file=file,
        shards=_shards(file) if file.name.endswith(".json") else {},
        config=_optional(folder / "config.json", names),
        preprocessor=_preprocessor(folder, names),
        remarks=remarks,
    )


def _weight_file(folder: Path, names: list[str]) -> tuple[Path, tuple[str, ...]]:
    standard = [name for name in STANDARD if name in names]
    if standard:
        taken, *others = standard
        also = ", ".join(others)
        remark = (f"{taken} was taken; the folder also holds {also}",) if others else ()
        return folder / taken, remark
    candidates = [n for n in names if n.endswith(SUFFIXES) and not NOT_WEIGHTS.fullmatch(n)]
    if len(candidates) == 1:
        return folder / candidates[0], ()
    if candidates:
        raise CheckpointError(
            f"{folder} is a folder with {len(candidates)} weight files: {_listed(candidates)}",
            remedy="Give one of these files.",
        )
    if any(name.endswith(DISTRIBUTED) for name in names):
        raise CheckpointError(
            f"{folder} is a sharded checkpoint of torch.distributed, which PyTorch alone reads",
            remedy="Put it together: python -m torch.distributed.checkpoint.format_utils "
            f"dcp_to_torch {folder} model.pth",
        )
    raise CheckpointError(
        f"{folder} is a folder without a weight file; it holds {_listed(names) or 'nothing'}",
        remedy="Give a checkpoint file, or a folder that save_pretrained wrote.",
    )


def _listed(names: list[str]) -> str:
    shown = ", ".join(n if n.isprintable() else ascii(n) for n in names[:LISTED])
    return shown + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")


def _shards(index: Path) -> Mapping[Path, tuple[str, ...]]:
    """For each shard that an index names, the tensors that it is to hold."""
    placed = read_object(index).get("weight_map")
    if not isinstance(placed, dict) or not placed:
        raise CheckpointError(
            f"{index} has no 'weight_map' of tensors to files", remedy="Copy the folder again."
        )
    refuse_count(len(placed), index)
    refuse_names(placed, index)
    shards: dict[Path, list[str]] = {}
    for name, shard in placed.items():
        if not isinstance(shard, str) or not re.fullmatch(r"\w[\w.-]{0,200}", shard, re.ASCII):
            raise CheckpointError(
                f"{index} places {name} in {ascii(shard)[:80]}, which is no file beside it",
                remedy="Shards lie in the folder of their index, under plain file names.",
            )
        shards.setdefault(index.parent / shard, []).append(name)
    if len(shards) > SHARDS:
        raise CheckpointError(f"{index} names {len(shards):,} files", remedy="Merge the shards.")
    return {path: tuple(names) for path, names in shards.items()}


def _preprocessor(folder: Path, names: list[str]) -> Mapping[str, Any] | None:
    """The settings of the image processor; version 5 may keep them in ``processor_config.json``.

    Raises ``CheckpointError`` where both files have some, and not the same.
    """
    alone = _optional(folder / "preprocessor_config.json", names)
    inner = (_optional(folder / "processor_config.json", names) or {}).get("image_processor")
    if not isinstance(inner, Mapping):
        return alone
    if alone is not None and alone != inner:
        raise CheckpointError(
            f"preprocessor_config.json and processor_config.json of {folder} differ",
            remedy="Remove the one that is not meant, or state the recipe with "
            "--preprocessing FILE and give the weight file alone.",
        )
    return inner


def _optional(path: Path, names: list[str]) -> Mapping[str, Any] | None:
    return read_object(path) if path.name in names else None


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``. Raises ``CheckpointError``."""
    size = size_of(path)
    if size > JSON_BYTES:
        raise CheckpointError(
            f"{path} has {size:,} bytes, more than {JSON_BYTES:,}", remedy="Shorten or remove it."
        )
    try:
        content = json.loads(files.read_text(path))
    except OSError as error:
        raise cannot_be_read(path, error) from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is no JSON: {str(error)[:200]}", remedy="Copy it again, or remove it."
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path} holds a JSON {type(content).__name__}, not an object",
            remedy="Copy it again, or remove it.",
        )
    return content
