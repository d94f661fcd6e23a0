"""Tensors from a file, without running anything that the file may ask for."""

from __future__ import annotations

import argparse
import hashlib
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch

from levit_export.errors import CheckpointError, UnsafeCheckpointError

Tensors = dict[str, torch.Tensor]

WRAPPERS = ("model_ema", "state_dict_ema", "model", "state_dict")
"""Keys under which training scripts put the weights, the averaged ones first."""


PREFIXES = ("module.", "_orig_mod.")
"""Of DistributedDataParallel and torch.compile."""


def sha256_of(path: Path) -> str:
    """Hex digest of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def read_tensors(path: Path) -> Tensors:
    """All tensors of a ``.safetensors`` file or a ``torch.save`` file.

    Raises ``CheckpointError`` when the file cannot be read as one, and ``UnsafeCheckpointError``
    when a pickle asks for more than tensors; nothing of it is executed then.
    """
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder", remedy="Give the checkpoint file inside it.")
    if not path.exists():
        raise CheckpointError(f"{path} does not exist", remedy="Check the path.")
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read: {error.strerror}", remedy="Check its permissions."
        ) from error
    if not head:
        raise CheckpointError(f"{path} is empty", remedy="Copy the checkpoint again.")
    if path.suffix == ".safetensors" or head[8:9] == b"{":
        return _read_safetensors(path)
    return unwrap(_read_pickle(path), path)


def _read_safetensors(path: Path) -> Tensors:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors: Tensors = load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{path} is not a whole safetensors file: {error}",
            remedy="Copy it again, or write it again with safetensors.torch.save_file.",
        ) from error
    return without_prefixes(tensors, path)


def _read_pickle(path: Path) -> object:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols; what matters raises
            # Training scripts keep their arguments beside the weights. A namespace holds values
            # and runs nothing.
            with torch.serialization.safe_globals([argparse.Namespace]):
                return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        if wanted is None:
            detail = re.search(r"WeightsUnpickler error:\s*(.+)", str(error))
            raise _unreadable(path, detail[1] if detail else "no pickle") from error
        raise UnsafeCheckpointError(
            f"{path} is a pickle that asks for more than tensors ({wanted[1]}); "
            "nothing of it was executed",
            remedy="Where it was trained, save the bare weights: "
            "safetensors.torch.save_file(model.state_dict(), 'model.safetensors').",
        ) from error
    except Exception as error:  # a damaged file raises whatever its bytes lead to
        raise _unreadable(path, str(error) or type(error).__name__) from error


def _unreadable(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{path} is not a whole PyTorch checkpoint: {reason.splitlines()[0][:200]}",
        remedy="Copy it again, or save the weights as safetensors.",
    )


def unwrap(content: object, path: Path) -> Tensors:
    """The state dict inside what a training script saved, ``module.`` prefixes removed."""
    while isinstance(content, Mapping):
        inner = next((key for key in WRAPPERS if _holds_something(content.get(key))), None)
        if inner is None:
            break
        content = content[inner]
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(
            f"{path} holds a {type(content).__name__}, not a dictionary of tensors",
            remedy="Save model.state_dict(), not the model.",
        )
    strangers = [str(k) for k, v in content.items() if not isinstance(v, torch.Tensor)]
    if strangers:
        raise CheckpointError(
            f"{path} holds {len(strangers)} entries that are no tensors, first {strangers[0]!r}",
            remedy="Save model.state_dict() alone, or under the key 'model'.",
        )
    return without_prefixes({str(name): tensor for name, tensor in content.items()}, path)


def _holds_something(value: object) -> bool:
    return isinstance(value, Mapping) and bool(value)


def without_prefixes(tensors: Tensors, path: Path) -> Tensors:
    """The tensors without the prefixes that wrappers of a model put before every name."""
    renamed: Tensors = {}
    for name, tensor in tensors.items():
        bare = name
        while bare.startswith(PREFIXES):
            bare = bare.split(".", 1)[1]
        if bare in renamed:
            raise CheckpointError(
                f"{path} holds {bare} twice, with and without a prefix",
                remedy="Save the state dict of one model.",
            )
        renamed[bare] = tensor
    return renamed


def refuse_unusable(tensors: Mapping[str, torch.Tensor], source: str) -> None:
    """Raise when a tensor cannot be a weight: its type, NaN, infinity, a negative variance."""
    odd = [k for k, t in tensors.items() if t.layout is not torch.strided or not _is_plain(t)]
    if odd:
        raise CheckpointError(
            f"{source} holds {odd[0]} as {tensors[odd[0]].dtype} ({tensors[odd[0]].layout})",
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
    return tensor.dtype in (
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.int64,
    )
