"""The state dict inside what a training script saved, under the model's own names.

Scripts and libraries put weights under a key of a dictionary (``state_dict``,
``model_state_dict``, DeepSpeed's ``module``, BasicSR's ``params_ema``), and wrap the model in one
that puts a prefix before its names (DistributedDataParallel's ``module.``, a LightningModule's
``model.``, transformers' ``timm_model.``). There is no end of such names, so they are not listed:
a network is recognised by what its own layers are called, wherever it is. Where there are several,
an average is taken before what it is an average of, then the keys of ``WRAPPERS`` in their order,
and a remark says so; others are refused, as nobody said which is meant.

What lies beside a network may belong to training (a loss, a metric, a counter) or change its
answers (a layer behind it). The first is left out with a remark, everything else is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from levit_export.core.errors import CheckpointError
from levit_export.models.checkpoints.limits import refuse_count, refuse_names, refuse_views

Tensors = dict[str, torch.Tensor]

AVERAGED = (
    "model_ema",
    "state_dict_ema",
    "ema_state_dict",
    "params_ema",
    "ema_model",
    "ema",
    "averaged_model",
    "swa_model",
)
WRAPPERS = (*AVERAGED, "model", "state_dict", "model_state_dict", "module", "params", "net")
"""Keys under which training scripts put the weights, the averaged ones first."""

DEPTH = 8
"""Wrappers inside wrappers; a dictionary can also hold itself."""
MAPPINGS = 10_000

PREFIXES = ("module.", "_orig_mod.")
"""What DistributedDataParallel and torch.compile put before every name."""
INNER = re.compile(r"(^|(?<=\.))(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""What torch.compile, FSDP and activation checkpointing put into the names of single layers."""

SHARED_PREFIXES = ("model.", "net.")
"""What Lightning modules put before names; removed only where every tensor has it, because a
layer may have that name too."""

AVERAGE_COUNT = "n_averaged"
"""Counter of ``torch.optim.swa_utils.AveragedModel``, beside names that begin with module."""
COUNTERS = ("total_ops", "total_params")
"""What thop's ``profile`` leaves in every layer."""
OF_TRAINING = re.compile(
    r"\w*(criterion|loss|metric|accuracy)\w*|(train|val|valid|test)_acc\w*"
    rf"|{AVERAGE_COUNT}|initted|steps?|num_updates|decay"
)
"""A part of a name that shows that a tensor beside the network plays no part in its answers."""


class Names(Protocol):
    """A form of checkpoint, known by the names of its layers."""

    @property
    def STEMS(self) -> tuple[str, ...]:  # noqa: N802 - modules have these as constants
        """Names of first layers; a network of this form has one of them."""

    def recognises(self, tensors: Mapping[str, torch.Tensor]) -> bool:
        """Whether the tensors have these names."""


@dataclass(frozen=True)
class _Network:
    """One that was recognised: the keys and the prefix that lead to it, and what is beside it."""

    keys: tuple[str, ...]
    prefix: str
    tensors: Tensors
    beside: tuple[str, ...]

    @property
    def place(self) -> str:
        return ".".join((*self.keys, *self.prefix.split("."))).strip(".")

    @property
    def rank(self) -> int:
        parts = (*self.keys, *self.prefix.split("."))
        if any(part in AVERAGED for part in parts):
            return 0
        last = self.keys[-1] if self.keys else ""
        return 1 + (WRAPPERS.index(last) if last in WRAPPERS else len(WRAPPERS))


def find_network(
    content: object, path: Path, forms: Sequence[Names]
) -> tuple[Tensors, tuple[str, ...]] | None:
    """The one network in ``content`` that is meant, and a sentence for each choice.

    None where no form recognises any. Raises ``CheckpointError`` where several may be meant, and
    where the network stands beside tensors that may change its answers.
    """
    found = sorted(_networks(content, forms), key=lambda network: network.rank)
    if not found:
        return None
    taken, *others = found
    if rivals := [other for other in others if other.rank == taken.rank]:
        places = " and ".join(repr(n.place or "no prefix") for n in (taken, *rivals))
        raise CheckpointError(
            f"{path} holds {1 + len(rivals)} networks, under {places}",
            remedy="Save the state dict of the one that is meant alone.",
        )
    remarks = [_chosen(taken, others)] if others else []
    strange = [name for name in taken.beside if not _is_of_training(name)]
    if strange:
        where = f"under {taken.prefix[:-1]!r} "
        raise CheckpointError(
            f"{path} holds a network {where}and {len(strange)} tensors beside it, first "
            f"{strange[0]}, which may change what it answers",
            remedy=f"Save the network alone: your_model.{taken.prefix[:-1]}.state_dict().",
        )
    own, dropped = {}, list(taken.beside)
    for name, tensor in taken.tensors.items():
        is_counter = name.rpartition(".")[2] in COUNTERS
        if is_counter or (not taken.prefix and _is_of_training(name)):
            dropped.append(name)
        else:
            own[name] = tensor
    if dropped:
        more = f" and {len(dropped) - 1} more" if len(dropped) > 1 else ""
        remarks.append(f"left out, as they belong to training: {dropped[0]}{more}")
    refuse_count(len(own), path)
    refuse_names(own, path)
    return own, tuple(remarks)


def _chosen(taken: _Network, others: Sequence[_Network]) -> str:
    kind = "averaged weights" if taken.rank == 0 else "weights"
    also = " and ".join(repr(other.place) for other in others)
    return f"the {kind} under {taken.place!r} were taken; the file also holds {also}"


def _is_of_training(name: str) -> bool:
    parts = name.split(".")
    return parts[-1] in COUNTERS or any(OF_TRAINING.fullmatch(part) for part in parts)


def _networks(content: object, forms: Sequence[Names]) -> Iterator[_Network]:
    """Every network in ``content``, whatever leads to it; each dictionary is looked at once."""
    seen: set[int] = set()
    waiting: list[tuple[tuple[str, ...], object]] = [((), content)]
    while waiting and len(seen) < MAPPINGS:
        keys, value = waiting.pop(0)
        if not isinstance(value, Mapping) or id(value) in seen or len(keys) > DEPTH:
            continue
        seen.add(id(value))
        inner = {name: each for name, each in value.items() if isinstance(name, str)}
        tensors = {n: t.detach() for n, t in inner.items() if isinstance(t, torch.Tensor)}
        yield from _named(tensors, keys, forms)
        waiting += [
            ((*keys, name), each)
            for name, each in inner.items()
            if isinstance(each, Mapping) and not name.startswith("optim")
        ]


def _named(tensors: Tensors, keys: tuple[str, ...], forms: Sequence[Names]) -> Iterator[_Network]:
    """The networks among the tensors of one dictionary, each under a prefix of its own."""
    bare = {INNER.sub("", name): tensor for name, tensor in tensors.items()}
    if len(bare) < len(tensors):
        return
    stems = [stem for form in forms for stem in form.STEMS]
    leads = {
        name.removesuffix(stem)
        for name in bare
        for stem in stems
        if name == stem or name.endswith(f".{stem}")
    }
    own = {
        lead: {n.removeprefix(lead): t for n, t in bare.items() if n.startswith(lead)}
        for lead in sorted(leads)
    }
    known = {lead: own[lead] for lead in own if any(form.recognises(own[lead]) for form in forms)}
    for lead, network in known.items():
        beside = [n for n in bare if not any(n.startswith(other) for other in known)]
        yield _Network(keys, lead, network, tuple(beside) if lead else ())


def unwrap(content: object, path: Path) -> Tensors:
    """The state dict inside what a training script saved, wrappers' prefixes removed."""
    return unwrap_with_remarks(content, path)[0]


def unwrap_with_remarks(content: object, path: Path) -> tuple[Tensors, tuple[str, ...]]:
    """The unwrapped tensors, and a sentence for each choice between several sets of weights."""
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
