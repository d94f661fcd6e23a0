"""Tensors from a file or a folder, without running anything that it may ask for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from levit_export.core import hashing
from levit_export.core.errors import CheckpointError
from levit_export.models.checkpoints.folders import Folder, look_into
from levit_export.models.checkpoints.kinds import cannot_be_read, kind_of, size_of
from levit_export.models.checkpoints.limits import FILE_BYTES, refuse_count
from levit_export.models.checkpoints.safetensors_file import read_safetensors
from levit_export.models.checkpoints.torch_files import read_pickle
from levit_export.models.checkpoints.unwrapping import (
    Names,
    find_network,
    refuse_large,
    unwrap,
    unwrap_with_remarks,
    without_prefixes,
)

__all__ = [
    "Stored",
    "read",
    "read_tensors",
    "refuse_unusable",
    "sha256_of",
    "unwrap",
    "without_prefixes",
]

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Stored:
    """What a checkpoint holds, as it was stored; only wrappers and their prefixes are gone.

    ``config`` and ``preprocessor`` are ``config.json`` and ``preprocessor_config.json`` of a
    folder. ``file`` is the weight file, ``files`` all that hold weights: the index and its shards,
    where there are several. ``remarks`` are sentences on what was chosen among several.
    """

    tensors: Tensors
    config: Mapping[str, Any] | None
    preprocessor: Mapping[str, Any] | None
    file: Path
    files: tuple[Path, ...]
    remarks: tuple[str, ...]

    @property
    def sha256(self) -> str:
        """Hex digest of the weight file; of the index and its shards one after the other."""
        return sha256_of(*self.files)


def sha256_of(*paths: Path) -> str:
    """Hex digest of a file, or of several put together."""
    try:
        return hashing.sha256_of(*paths)
    except OSError as error:
        raise cannot_be_read(Path(error.filename or paths[0]), error) from error


def read(path: Path, forms: Sequence[Names] = ()) -> Stored:
    """What a checkpoint file, or a folder that ``save_pretrained`` wrote, holds.

    A network of one of ``forms`` is found whatever wraps it; what is none of them is unwrapped by
    the usual names, so that it can be said what it is.

    Raises ``CheckpointError`` when it cannot be read, declares more than it holds or leaves open
    which weights are meant, and ``UnsafeCheckpointError`` when a pickle asks for more than
    tensors; nothing of it is executed then.
    """
    try:
        is_folder = path.is_dir()
    except (OSError, ValueError) as error:
        raise cannot_be_read(path, error) from error
    if is_folder:
        return _read_folder(look_into(path), forms)
    tensors, remarks = _read_file(path, forms)
    return Stored(tensors, None, None, path, (path,), remarks)


def read_tensors(path: Path) -> Tensors:
    """The tensors that :func:`read` finds."""
    return read(path).tensors


def _read_folder(folder: Folder, forms: Sequence[Names]) -> Stored:
    if folder.shards:
        whole = _read_shards(folder)
        found = find_network(whole, folder.file, forms)
        tensors, chosen = found or (without_prefixes(whole, folder.file), ())
    else:
        tensors, chosen = _read_file(folder.file, forms)
    files, remarks = (folder.file, *folder.shards), folder.remarks + chosen
    return Stored(tensors, folder.config, folder.preprocessor, folder.file, files, remarks)


def _read_file(path: Path, forms: Sequence[Names]) -> tuple[Tensors, tuple[str, ...]]:
    content = _content(path)
    found = find_network(content, path, forms)
    tensors, remarks = found or unwrap_with_remarks(content, path)
    refuse_large(tensors, size_of(path), path)
    return tensors, remarks


def _content(path: Path) -> object:
    kind = kind_of(path)
    return read_safetensors(path) if kind == "safetensors" else read_pickle(path, kind)


def _read_shards(folder: Folder) -> Tensors:
    """All tensors of the shards, each with exactly those that the index places in it."""
    if sum(size_of(shard) for shard in folder.shards) > FILE_BYTES:
        raise CheckpointError(
            f"{folder.file} names more than {FILE_BYTES:,} bytes, more than any LeViT needs",
            remedy="Give the folder of a LeViT.",
        )
    tensors: Tensors = {}
    for shard, expected in folder.shards.items():
        content = _content(shard)
        found = content if isinstance(content, Mapping) else {}
        odd = sorted(map(ascii, _symmetric_difference(found, expected)))
        if odd:
            raise CheckpointError(
                f"{shard} and {folder.file.name} disagree on {len(odd)} tensors, first {odd[0]}",
                remedy="Copy the folder again; it mixes two saves.",
            )
        tensors |= {name: found[name] for name in expected}
    odd = [name for name, tensor in tensors.items() if not isinstance(tensor, torch.Tensor)]
    if odd:
        raise CheckpointError(
            f"{folder.file} names {odd[0]}, which is not a tensor", remedy="Copy the folder again."
        )
    refuse_count(len(tensors), folder.file)
    return tensors


def _symmetric_difference(one: Iterable[Any], other: Iterable[Any]) -> set[Any]:
    return set(one) ^ set(other)


def refuse_unusable(tensors: Mapping[str, torch.Tensor], source: str) -> None:
    """Raise when a tensor cannot be a weight: empty, its type, NaN, infinity, a bad variance."""
    if empty := [name for name, tensor in tensors.items() if not tensor.numel()]:
        raise CheckpointError(
            f"{source} holds {len(empty)} tensors without elements, first {empty[0]}",
            remedy="Save the whole model. Where DeepSpeed's ZeRO stage 3 left the weights on "
            "several ranks, the zero_to_fp32.py beside its checkpoint puts them together.",
        )
    odd = [k for k, t in tensors.items() if not _is_plain(t)]
    if odd:
        first = tensors[odd[0]]
        raise CheckpointError(
            f"{source} holds {odd[0]} as {first.dtype} ({first.layout}, {first.device})",
            remedy="Save dense float64, float32, float16 or bfloat16 weights.",
        )
    bad = [k for k, t in tensors.items() if not t.to(torch.float32).isfinite().all()]
    if bad:
        raise CheckpointError(
            f"{source} holds NaN or infinite weights in {len(bad)} tensors, first {bad[0]}",
            remedy="The training diverged or the file is damaged; take an earlier checkpoint.",
        )
    below = [k for k, t in tensors.items() if k.endswith("running_var") and (t < 0).any()]
    if below:
        raise CheckpointError(
            f"{source} holds negative variances in {len(below)} tensors, first {below[0]}",
            remedy="The file is damaged; take an earlier checkpoint.",
        )


def _is_plain(tensor: torch.Tensor) -> bool:
    return (
        tensor.layout is torch.strided
        and tensor.device.type == "cpu"
        and tensor.dtype
        in {torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64}
    )
