"""Tensors from a file, without running anything that the file may ask for."""

from __future__ import annotations

import argparse
import hashlib
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from levit_export.errors import CheckpointError, UnsafeCheckpointError

Tensors = dict[str, torch.Tensor]

WRAPPERS = ("model_ema", "state_dict_ema", "model", "state_dict")
"""Keys under which training scripts put the weights, the averaged ones first."""


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
    return tensors


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
        inner = next((key for key in WRAPPERS if isinstance(content.get(key), Mapping)), None)
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
    return {_without_prefix(str(name)): tensor for name, tensor in content.items()}


def _without_prefix(name: str) -> str:
    for prefix in ("module.", "_orig_mod."):
        name = name.removeprefix(prefix)
    return name


def refuse_not_finite(tensors: Mapping[str, Any], source: str) -> None:
    """Raise when a weight is NaN or infinite, naming the tensors."""
    bad = [k for k, t in tensors.items() if t.is_floating_point() and not t.isfinite().all()]
    if bad:
        raise CheckpointError(
            f"{source} holds NaN or infinite weights in {len(bad)} tensors, first {bad[0]}",
            remedy="The training diverged or the file is damaged; take an earlier checkpoint.",
        )
