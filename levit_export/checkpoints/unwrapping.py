"""The state dict inside what a training script saved, under the model's own names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from levit_export.checkpoints.limits import refuse_count, refuse_names, refuse_views
from levit_export.errors import CheckpointError

Tensors = dict[str, torch.Tensor]

AVERAGED = ("model_ema", "state_dict_ema")
WRAPPERS = (*AVERAGED, "model", "state_dict")
"""Keys under which training scripts put the weights, the averaged ones first."""

DEPTH = 8
"""Wrappers inside wrappers; a dictionary can also hold itself."""

PREFIXES = ("module.", "_orig_mod.")
"""Of DistributedDataParallel and torch.compile."""

SHARED_PREFIXES = ("model.", "net.")
"""Of Lightning modules; removed where every tensor has one, as a layer may be called so too."""

AVERAGE_COUNT = "n_averaged"
"""Counter of ``torch.optim.swa_utils.AveragedModel``, beside names that begin with module."""


def unwrap(content: object, path: Path) -> Tensors:
    """The state dict inside what a training script saved, wrappers' prefixes removed."""
    return unwrap_with_remarks(content, path)[0]


def unwrap_with_remarks(content: object, path: Path) -> tuple[Tensors, tuple[str, ...]]:
    """The same, and a sentence for each choice between several sets of weights."""
    remarks: list[str] = []
    for _ in range(DEPTH):
        found = _wrappers(content)
        if not found or not isinstance(content, Mapping):
            break
        if len(found) > 1:
            remarks.append(_remark(found))
        content = content[found[0]]
    else:
        raise CheckpointError(
            f"{path} holds wrappers in wrappers, more than {DEPTH} deep",
            remedy="Save model.state_dict().",
        )
    return without_prefixes(_state_dict(content, path), path), tuple(remarks)


def _wrappers(content: object) -> list[str]:
    """The keys of ``content`` that hold weights or what wraps them, the best first."""
    if not isinstance(content, Mapping):
        return []
    inner = {key: content.get(key) for key in WRAPPERS}
    return [key for key, value in inner.items() if isinstance(value, Mapping) and value]


def _remark(found: list[str]) -> str:
    taken, *others = found
    kind = "averaged weights" if taken in AVERAGED else "weights"
    also = " and ".join(repr(key) for key in others)
    return f"the {kind} under {taken!r} were taken; the file also holds {also}"


def _state_dict(content: object, path: Path) -> Tensors:
    if not isinstance(content, Mapping) or not content:
        kind = type(content).__name__
        empty = isinstance(content, Mapping)
        raise CheckpointError(
            f"{path} holds {'an empty dictionary' if empty else f'a {kind}'}, "
            "not a dictionary of tensors",
            remedy="Save model.state_dict(), not the model.",
        )
    strangers = [k for k, v in content.items() if not isinstance(v, torch.Tensor)]
    if strangers:
        raise CheckpointError(
            f"{path} holds {len(strangers)} entries that are no tensors, "
            f"first {ascii(strangers[0])[:80]}",
            remedy="Save model.state_dict() alone, or under the key 'model'.",
        )
    refuse_count(len(content), path)
    refuse_names(content, path)
    return {name: tensor.detach() for name, tensor in content.items()}


def without_prefixes(tensors: Mapping[str, torch.Tensor], path: Path) -> Tensors:
    """The tensors without the prefixes that wrappers of a model put before every name.

    ``module.`` and ``_orig_mod.`` go wherever they lead a name, ``_orig_mod.`` within one too;
    ``model.`` and ``net.`` where they lead every name.
    """
    names = {name: name for name in tensors}
    others = [name for name in names if name != AVERAGE_COUNT]
    if len(others) < len(names) and all(name.startswith("module.") for name in others):
        del names[AVERAGE_COUNT]
    before: list[str] = []
    while before != (before := list(names.values())):
        names = {name: _bare(bare) for name, bare in names.items()}
        for prefix in SHARED_PREFIXES:
            if names and all(bare.startswith(prefix) for bare in names.values()):
                names = {name: bare[len(prefix) :] for name, bare in names.items()}
    return _renamed(tensors, names, path)


def _bare(name: str) -> str:
    while name.startswith(PREFIXES):
        name = name.split(".", 1)[1]
    return name.replace("._orig_mod.", ".")


def _renamed(tensors: Mapping[str, torch.Tensor], names: Mapping[str, str], path: Path) -> Tensors:
    renamed: Tensors = {}
    for name, bare in names.items():
        if bare in renamed:
            raise CheckpointError(
                f"{path} holds {bare} twice, with and without a prefix",
                remedy="Save the state dict of one model.",
            )
        renamed[bare] = tensors[name]
    refuse_names(renamed, path)
    return renamed


def refuse_large(tensors: Mapping[str, Any], size: int, path: Path) -> None:
    """Raise when the tensors are together larger than files of ``size`` bytes may give."""
    refuse_views(sum(t.numel() * t.element_size() for t in tensors.values()), size, path)
