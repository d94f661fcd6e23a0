"""What an artifact, its manifest and its name say, held against what is known from elsewhere.

Claims decide nothing in a file's favour: its precision is measured in its graph, the model's
labels and recipe come from the checkpoint or from the golden vectors' manifest. A claim that
differs is a failure by itself, for whoever reads it is misled. Pure; values in, sentences out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from levit_export.checks import weights
from levit_export.core import constants
from levit_export.core.precisions import PRECISIONS
from levit_export.core.values import (
    FORMAT_ALIASES,
    PROBABILITIES,
    Artifact,
    Embedded,
    Preprocessing,
    Signature,
)

SHOWN = 60
"""Characters of a claim that a message repeats."""


@dataclass(frozen=True)
class Known:
    """What is known of the model that an artifact has to be; None where it is not known.

    ``source`` says from where. ``precisions`` are those that somebody expects, by who does.
    ``are_assumed`` says that nobody named the classes: only their order can be wrong then.
    """

    source: str
    labels: tuple[str, ...] | None = None
    preprocessing: Preprocessing | None = None
    embedded: Embedded | None = None
    signature: Signature | None = None
    precisions: Mapping[str, str] = field(default_factory=dict)
    keep: tuple[str, ...] | None = None
    are_assumed: bool = False


def contradictions(found: Artifact, known: Known, *, kept: float = 0.0) -> tuple[str, ...]:
    """Everything that ``found``, as it was read from its file, and what is known disagree about.

    ``kept`` is the share of the weights that are said to stay in float.
    """
    return (
        *_precision(found, known, kept=kept),
        *_keep(found, known),
        *_labels(found, known),
        *_pictures(found, known),
        *_interface(found, known),
    )


def differing(one: Known, other: Known) -> Iterator[str]:
    """What two sources say of one model that cannot both be true."""
    if one.labels is not None and _is_wrong(one.labels, other):
        yield f"labels: {one.source} differs from {other.source}: " + (
            _where(one.labels, other.labels)
        )
    mine, theirs = one.preprocessing, other.preprocessing
    if mine is not None and theirs is not None and mine != theirs:
        yield f"preprocessing: {one.source} differs from {other.source}: {_where(mine, theirs)}"


def _precision(found: Artifact, known: Known, *, kept: float) -> Iterator[str]:
    said = {**known.precisions}
    if found.claims is not None and "precision" in found.claims:
        said["its metadata"] = found.claims["precision"]
    said |= _in_name(found)
    for who, precision in said.items():
        if precision != found.precision and not is_but_for(found, precision, kept):
            yield f"{who} says {precision}, its graph is in {found.precision}"
    if len(set(said.values())) > 1 and kept:
        yield "it is " + ", ".join(f"{p} by {who}" for who, p in said.items())


def is_but_for(found: Artifact, precision: str, kept: float) -> bool:
    """Whether ``found`` is of ``precision`` but for a share ``kept`` of its weights.

    At least half of the other weights have to be as coarse as that, and some at all. A claim
    that blocks stay in float never loosens the tolerance: it is derived with those blocks exact,
    which makes it finer, and their tensors must be in the file bit for bit.
    """
    coarse = found.shares.get(precision, 0.0)
    return kept > 0 and coarse > 0 and coarse >= constants.HALF_OF_WEIGHTS * (1 - kept)


def kept_share(
    artifact: Artifact, tensors: Mapping[str, np.ndarray], blocks: Mapping[str, str]
) -> float:
    """The share of the layers' weights in blocks which are said to stay in float."""
    layers = {name: t for name, t in tensors.items() if t.ndim > 1 and name.endswith(".weight")}
    total = sum(t.size for t in layers.values())
    kept = weights.tensors_of(layers, blocks, artifact.keep)
    return sum(t.size for t in kept.values()) / max(total, 1)


def but_for(artifact: Artifact, kept: float) -> Artifact:
    """A bare file in the precision that it claims, where that holds but for blocks in float."""
    said = (artifact.claims or {}).get("precision", artifact.precision)
    return replace(artifact, precision=said) if is_but_for(artifact, said, kept) else artifact


def _keep(found: Artifact, known: Known) -> Iterator[str]:
    if found.keep and known.keep is not None and set(found.keep) != set(known.keep):
        yield (
            f"its metadata says that {_shown(found.keep)} stay in float, "
            f"{known.source} says {_shown(known.keep)}"
        )


def _in_name(found: Artifact) -> dict[str, str]:
    """The precision that a file's name, or that of its folder in an export, speaks of."""
    formats = "|".join((*FORMAT_ALIASES.values(), *FORMAT_ALIASES))
    said = {}
    precisions = "|".join(PRECISIONS)
    folder = re.fullmatch(rf"({formats})-({precisions})", found.path.absolute().parent.name)
    if folder:
        said["the name of its folder"] = folder[2]
    parts = {part for part in re.split(r"[-_.]", found.path.stem.lower()) if part in PRECISIONS}
    if len(parts) == 1:
        said["its name"] = parts.pop()
    return said


def _labels(found: Artifact, known: Known) -> Iterator[str]:
    for who, labels in (
        ("its metadata", _parsed(found, "labels")),
        ("its program", list(found.classes) or None),
    ):
        if labels is not None and _is_wrong(labels, known):
            yield f"labels: {who} differs from {known.source}: {_where(labels, known.labels)}"


def _is_wrong(labels: Any, known: Known) -> bool:
    """Whether labels are not those that are known; assumed ones may have got names since."""
    if known.labels is None or labels is None:
        return False
    if not isinstance(labels, list | tuple) or len(labels) != len(known.labels):
        return True
    is_same = list(labels) == list(known.labels)
    return not is_same and (not known.are_assumed or set(labels) == set(known.labels))


def _pictures(found: Artifact, known: Known) -> Iterator[str]:
    """The recipe that the file passes on to whoever feeds it pictures."""
    said = _parsed(found, "preprocessing")
    if said is None or known.preprocessing is None:
        return
    wanted = json.loads(json.dumps(asdict(known.preprocessing)))
    if said != wanted:
        yield f"preprocessing: its metadata differs from {known.source}: {_where(said, wanted)}"


def _interface(found: Artifact, known: Known) -> Iterator[str]:
    """Names, shapes and types, and what the graph is said to do beside the network."""
    taken = found.signature.inputs[0]
    is_raw = taken.dtype == "uint8"
    gives = any(spec.name == PROBABILITIES for spec in found.signature.outputs)
    said = _parsed(found, "embedded")
    if isinstance(said, dict):
        if said.get("preprocessing") != is_raw:
            yield f"its metadata says {_shown(said)}, its input is {taken.dtype}"
        if said.get("softmax") and not gives:
            yield f"its metadata says {_shown(said)}, it gives no {PROBABILITIES}"
    if known.embedded is not None and known.embedded.preprocessing != is_raw:
        yield f"{known.source} says {_shown(asdict(known.embedded))}, its input is {taken.dtype}"
    if known.signature is None:
        return
    for have, want in zip(found.signature.inputs, known.signature.inputs, strict=False):
        if (have.name, have.shape[1:], have.dtype) != (want.name, want.shape[1:], want.dtype):
            yield (
                f"its input is {have.name} {list(have.shape)} {have.dtype}, {known.source} has "
                f"{want.name} {list(want.shape)} {want.dtype}"
            )


def _parsed(found: Artifact, key: str) -> Any:
    """A claim in JSON; what is not JSON is given as it stands, and equals nothing."""
    text = (found.claims or {}).get(key)
    if text is None:
        return None
    try:
        return json.loads(text)
    except ValueError:
        return text


def _where(said: Any, known: Any) -> str:
    """The first place at which two claims differ."""
    if isinstance(known, Preprocessing):
        known = asdict(known)
    if isinstance(said, Preprocessing):
        said = asdict(said)
    if isinstance(said, dict) and isinstance(known, dict):
        key = next(k for k in {**known, **said} if said.get(k) != known.get(k))
        return f"{key} {_shown(said.get(key))} against {_shown(known.get(key))}"
    if isinstance(said, Sequence) and not isinstance(said, str) and len(said) == len(known):
        at = next(i for i, (s, k) in enumerate(zip(said, known, strict=True)) if s != k)
        return f"class {at} is {_shown(said[at])} against {_shown(known[at])}"
    if isinstance(said, Sequence) and not isinstance(said, str):
        return f"{len(said)} classes against {len(known)}"
    return f"{_shown(said)} is not what it should be"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
