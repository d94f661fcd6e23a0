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

import torch

from levit_export.core.errors import CheckpointError
from levit_export.models.checkpoints.dialect import Names
from levit_export.models.checkpoints.limits import refuse_count, refuse_names

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

INNER = re.compile(r"(^|(?<=\.))(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""What torch.compile, FSDP and activation checkpointing put into the names of single layers."""

COUNTERS = ("total_ops", "total_params")
"""What thop's ``profile`` leaves in every layer."""
OF_TRAINING = re.compile(
    r"\w*(criterion|loss|metric|accuracy)\w*|(train|val|valid|test)_acc\w*"
    # The counter of torch.optim.swa_utils.AveragedModel, and those of EMA libraries.
    r"|n_averaged|initted|steps?|num_updates|decay"
)
"""A part of a name that shows that a tensor beside the network plays no part in its answers."""


@dataclass(frozen=True)
class _Network:
    """One that was recognised: the keys and the prefix that lead to it, and what is beside it."""

    keys: tuple[str, ...]
    prefix: str
    tensors: Tensors
    beside: tuple[str, ...]

    @property
    def place(self) -> str:
        """The keys and the prefix, as a message names them."""
        return ".".join((*self.keys, *self.prefix.split("."))).strip(".")

    @property
    def rank(self) -> int:
        """Averages come first, then the usual keys in their order, then any other place."""
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
    remarks = []
    if others:
        kind = "averaged weights" if taken.rank == 0 else "weights"
        also = " and ".join(repr(other.place) for other in others)
        remarks.append(f"the {kind} under {taken.place!r} were taken; the file also holds {also}")
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
        # Without a prefix the training script's own tensors have names like those of layers.
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
        seen.add(id(value))  # a dictionary may hold itself
        inner = {name: each for name, each in value.items() if isinstance(name, str)}
        tensors = {n: t.detach() for n, t in inner.items() if isinstance(t, torch.Tensor)}
        yield from _named(tensors, keys, forms)
        waiting += [
            ((*keys, name), each)
            for name, each in inner.items()
            # An optimizer's state holds tensors of the same shapes, under numbers.
            if isinstance(each, Mapping) and not name.startswith("optim")
        ]


def _named(tensors: Tensors, keys: tuple[str, ...], forms: Sequence[Names]) -> Iterator[_Network]:
    """The networks among the tensors of one dictionary, each under a prefix of its own."""
    bare = {INNER.sub("", name): tensor for name, tensor in tensors.items()}
    if len(bare) < len(tensors):  # two names became one, so this is not how they were wrapped
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
    """The tensors of a file in which no network was recognised, so that it can be said what it is.

    Raises ``CheckpointError`` for what is not a dictionary of tensors, wrapped or not.
    """
    for _ in range(DEPTH):
        inner = [content.get(key) for key in WRAPPERS] if isinstance(content, Mapping) else []
        content = next((each for each in inner if isinstance(each, Mapping) and each), content)
    if not isinstance(content, Mapping) or not content:
        is_empty = isinstance(content, Mapping)
        held = "an empty dictionary" if is_empty else f"a {type(content).__name__}"
        raise CheckpointError(
            f"{path} holds {held}, not a dictionary of tensors",
            remedy="Save model.state_dict(), not the model.",
        )
    strangers = [key for key, value in content.items() if not isinstance(value, torch.Tensor)]
    if strangers:
        raise CheckpointError(
            f"{path} holds {len(strangers)} entries that are not tensors, "
            f"first {ascii(strangers[0])[:80]}",
            remedy="Save model.state_dict() alone, or under the key 'model'.",
        )
    refuse_count(len(content), path)
    refuse_names(content, path)
    return {name: tensor.detach() for name, tensor in content.items()}
