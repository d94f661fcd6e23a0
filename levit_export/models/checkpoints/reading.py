"""Tensors from a file or a folder, without running anything that it may ask for.

A file is what its first bytes say, whatever its name; a folder is one that ``save_pretrained`` or
timm's Hub push wrote, weights beside their JSON files. What ``torch.save`` wrote is read by
:mod:`~levit_export.models.checkpoints.torch_files`, and wrappers around the network are taken off
by :mod:`~levit_export.models.checkpoints.unwrapping`.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import torch

from levit_export.core import files
from levit_export.core.errors import CheckpointError
from levit_export.models.checkpoints.dialect import Names, Stored
from levit_export.models.checkpoints.limits import (
    FILE_BYTES,
    RANK,
    cannot_be_read,
    refuse_count,
    refuse_long_text,
    refuse_names,
    refuse_views,
    size_of,
)
from levit_export.models.checkpoints.torch_files import read_torch_file
from levit_export.models.checkpoints.unwrapping import find_network, unwrap

Kind = Literal["safetensors", "zip", "legacy"]
"""A safetensors file, or one of the two forms that ``torch.save`` writes."""

HEAD = 512
CONVERT = (
    "Load it where it was made and save the weights: "
    "safetensors.torch.save_file(model.state_dict(), 'model.safetensors')."
)
UNPACK = "Unpack it and give the checkpoint inside."
FETCH = "Fetch the file itself: git lfs pull."
EXPORTED = "Export starts from trained weights: give a .pth or .safetensors checkpoint."

SIGNATURES: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file (Keras, TensorFlow)", CONVERT),
    (0, b"GGUF", "a GGUF file (llama.cpp)", EXPORTED),
    (4, b"TFL3", "a TensorFlow Lite model", EXPORTED),
    (0, b"\x93NUMPY", "a NumPy array", CONVERT),
    (0, b"version https://git-lfs", "a Git LFS pointer, not the weights", FETCH),
    (0, b"<!DOCTYPE", "a web page: the download went wrong", "Download the file again."),
    (0, b"<html", "a web page: the download went wrong", "Download the file again."),
    (0, b"\x1f\x8b", "compressed with gzip", UNPACK),
    (0, b"BZh", "compressed with bzip2", UNPACK),
    (0, b"\xfd7zXZ", "compressed with xz", UNPACK),
    (0, b"\x28\xb5\x2f\xfd", "compressed with zstd", UNPACK),
    (0, b"7z\xbc\xaf", "a 7-Zip archive", UNPACK),
)
"""Offset, bytes, what such a file is, what to do."""

OTHER_SUFFIXES = {
    ".onnx": ("an ONNX model", EXPORTED),
    ".h5": ("a Keras or TensorFlow file", CONVERT),
    ".keras": ("a Keras file", CONVERT),
    ".msgpack": ("a Flax file", CONVERT),
    ".gguf": ("a GGUF file (llama.cpp)", EXPORTED),
    ".tflite": ("a TensorFlow Lite model", EXPORTED),
}

STANDARD = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""Names of weight files as Hugging Face's libraries look for them, in their order."""

WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
NOT_WEIGHTS = re.compile(
    r"training_args\.bin|(optimizer|scheduler|scaler|rng_state.*)\.(pt|pth|bin)"
    r"|.*_optim_states\.pt"
)
"""What a Trainer, accelerate and DeepSpeed leave beside the weights."""
DISTRIBUTED = ".distcp"
"""Files of ``torch.distributed.checkpoint``, which FSDP and accelerate write."""

SHARDS = 1_000
LISTED = 8


def read(path: Path, forms: Sequence[Names] = ()) -> Stored:
    """What a checkpoint file, or a folder that ``save_pretrained`` wrote, holds.

    A network of one of ``forms`` is found whatever wraps it. Anything else is unwrapped by the
    usual keys, so that it can be said what it is.

    Raises ``CheckpointError`` when it cannot be read, declares more than it holds or leaves open
    which weights are meant, and ``UnsafeCheckpointError`` when a pickle asks for more than
    tensors; nothing of it is executed then.
    """
    file, config, preprocessor = path, None, None
    shards: Mapping[Path, tuple[str, ...]] = {}
    remarks: tuple[str, ...] = ()
    try:
        names = sorted(entry.name for entry in path.iterdir()) if path.is_dir() else None
    except (OSError, ValueError) as error:  # a path with a zero byte is a ValueError
        raise cannot_be_read(path, error) from error
    if names is not None:
        file, remarks = _weight_file(path, names)
        shards = _shards(file) if file.name.endswith(".json") else {}
        config = _json(path / "config.json") if "config.json" in names else None
        preprocessor = _preprocessor(path, names)
    # Pipes and files that are too large are refused here, before anything is opened.
    size = sum(size_of(each) for each in (shards or (file,)))
    if size > FILE_BYTES:
        raise CheckpointError(
            f"{file} names more than {FILE_BYTES:,} bytes, more than any LeViT needs",
            remedy="Give the folder of a LeViT.",
        )
    content = _read_shards(file, shards) if shards else _content(file)
    found = find_network(content, file, forms)
    tensors, chosen = found or (unwrap(content, file), ())
    refuse_views(sum(t.numel() * t.element_size() for t in tensors.values()), size, file)
    return Stored(tensors, config, preprocessor, file, (file, *shards), remarks + chosen)


def _content(path: Path) -> object:
    kind = _kind_of(path)
    return _read_safetensors(path) if kind == "safetensors" else read_torch_file(path, kind)


def _kind_of(path: Path) -> Kind:
    """How to read ``path``. Raises ``CheckpointError`` that names a file of another kind."""
    size_of(path)
    try:
        with files.open_regular(path) as file:
            head = file.read(HEAD)
    except OSError as error:
        raise cannot_be_read(path, error) from error
    if head[:4] == b"PK\x03\x04":
        return "zip"
    for offset, signature, kind, remedy in SIGNATURES:
        if head[offset : offset + len(signature)] == signature:
            raise CheckpointError(f"{path} is {kind}", remedy=remedy)
    if path.suffix == ".safetensors" or head[8:9] == b"{":
        return "safetensors"
    with suppress(tarfile.HeaderError):
        # Decided by a checksum: a file can begin like a pickle and be a tar archive as well.
        tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
        raise CheckpointError(
            f"{path} is a tar archive (PyTorch's format before 2017, if a checkpoint)",
            remedy=CONVERT,
        )
    if path.suffix.lower() in OTHER_SUFFIXES:
        kind, remedy = OTHER_SUFFIXES[path.suffix.lower()]
        raise CheckpointError(f"{path} is {kind}", remedy=remedy)
    return "legacy"


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of ``path``, in memory of their own.

    The library holds every shape and offset against the file. It also reads headers of 100 MB,
    which take ten times as much memory, and names of any length.
    """
    from safetensors import SafetensorError, safe_open

    tensors: dict[str, torch.Tensor] = {}
    try:
        with files.open_regular(path) as file:
            refuse_long_text(int.from_bytes(file.read(8), "little"), path)
        with safe_open(path, framework="pt", device="cpu") as content:
            names = list(content.keys())
            refuse_count(len(names), path)
            refuse_names(names, path)
            for name in names:
                # What the library returns is a view of the mapped file: who overwrites the file
                # would change it, and who shortens the file would kill this process.
                tensors[name] = content.get_tensor(name).clone()
    except (SafetensorError, OSError, ValueError, RuntimeError, MemoryError) as error:
        reason = (str(error) or type(error).__name__).split("\n", maxsplit=1)[0]
        line = "".join(c if c.isprintable() else "?" for c in reason)
        raise CheckpointError(
            f"{path} is not a whole safetensors file: {line[:200]}",
            remedy="Copy it again, or write it again with safetensors.torch.save_file.",
        ) from error
    return tensors


# --- folders --------------------------------------------------------------------------------


def _weight_file(folder: Path, names: list[str]) -> tuple[Path, tuple[str, ...]]:
    standard = [name for name in STANDARD if name in names]
    if standard:
        taken, *others = standard
        also = ", ".join(others)
        remark = (f"{taken} was taken; the folder also holds {also}",) if others else ()
        return folder / taken, remark
    candidates = [n for n in names if n.endswith(WEIGHT_SUFFIXES) and not NOT_WEIGHTS.fullmatch(n)]
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
    placed = _json(index).get("weight_map")
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
                f"{index} places {name} in {ascii(shard)[:80]}, which is not a file beside it",
                remedy="Shards lie in the folder of their index, under plain file names.",
            )
        shards.setdefault(index.parent / shard, []).append(name)
    if len(shards) > SHARDS:
        raise CheckpointError(f"{index} names {len(shards):,} files", remedy="Merge the shards.")
    return {path: tuple(names) for path, names in shards.items()}


def _read_shards(index: Path, shards: Mapping[Path, tuple[str, ...]]) -> dict[str, torch.Tensor]:
    """All tensors of the shards, each with exactly those that the index places in it."""
    tensors: dict[str, torch.Tensor] = {}
    for shard, expected in shards.items():
        content = _content(shard)
        found = content if isinstance(content, Mapping) else {}
        if odd := sorted(map(ascii, found.keys() ^ set(expected))):
            raise CheckpointError(
                f"{shard} and {index.name} disagree on {len(odd)} tensors, first {odd[0]}",
                remedy="Copy the folder again; it mixes two saves.",
            )
        for name in expected:
            if not isinstance(found[name], torch.Tensor):
                raise CheckpointError(
                    f"{index} names {name}, which is not a tensor", remedy="Copy the folder again."
                )
            tensors[name] = found[name]
    refuse_count(len(tensors), index)
    return tensors


def _preprocessor(folder: Path, names: list[str]) -> Mapping[str, Any] | None:
    """The settings of the image processor; version 5 may keep them in ``processor_config.json``.

    Raises ``CheckpointError`` where both files have some, and not the same.
    """
    alone_name, shared_name = "preprocessor_config.json", "processor_config.json"
    alone = _json(folder / alone_name) if alone_name in names else None
    shared = _json(folder / shared_name) if shared_name in names else {}
    inner = shared.get("image_processor")
    if not isinstance(inner, Mapping):
        return alone
    if alone is not None and alone != inner:
        raise CheckpointError(
            f"preprocessor_config.json and processor_config.json of {folder} differ",
            remedy="Remove the one that is not meant, or state the recipe with "
            "--preprocessing FILE and give the weight file alone.",
        )
    return inner


def _json(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``. Raises ``CheckpointError``."""
    refuse_long_text(size_of(path), path)
    try:
        content = json.loads(files.read_text(path))
    except OSError as error:
        raise cannot_be_read(path, error) from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is not JSON: {str(error)[:200]}", remedy="Copy it again, or remove it."
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path} holds a JSON {type(content).__name__}, not an object",
            remedy="Copy it again, or remove it.",
        )
    return content


# --- weights --------------------------------------------------------------------------------


WEIGHTS = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64)
"""Types of weights, and that of BatchNorm's counter and of the index of biases."""


def refuse_unusable(tensors: Mapping[str, torch.Tensor], source: str) -> None:
    """Raise when a tensor cannot be a weight: empty, its type, NaN, infinity, a bad variance."""
    if empty := [name for name, tensor in tensors.items() if not tensor.numel()]:
        raise CheckpointError(
            f"{source} holds {len(empty)} tensors without elements, first {empty[0]}",
            remedy="Save the whole model. Where DeepSpeed's ZeRO stage 3 left the weights on "
            "several ranks, the zero_to_fp32.py beside its checkpoint puts them together.",
        )
    if deep := [name for name, tensor in tensors.items() if tensor.dim() > RANK]:
        raise CheckpointError(  # PyTorch computes nothing with more than 64
            f"{source} holds {deep[0]} with {tensors[deep[0]].dim()} dimensions",
            remedy="Save model.state_dict() of a LeViT.",
        )
    odd = [
        name
        for name, tensor in tensors.items()
        if tensor.layout is not torch.strided
        or tensor.device.type != "cpu"
        or tensor.dtype not in WEIGHTS
    ]
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
