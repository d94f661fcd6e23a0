"""Which checkpoint and which passes files were made of, by what is said of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from levit_export.core.errors import LevitExportError, UsageError
from levit_export.core.values import LAID_OUT_AS_MAPS, PROBABILITIES, Artifact, Layout
from levit_export.formats import target
from levit_export.models.loading import ModelChoice
from levit_export.models.zoo import LOGITS
from levit_export.storage import export_directory

if TYPE_CHECKING:
    from levit_export.core.values import ModelInfo
    from levit_export.models.checkpoints import Checkpoint
    from levit_export.storage.located import Located


def choice_of(choice: ModelChoice, found: Sequence[Located]) -> ModelChoice:
    """``choice`` where one was made, else what the directories say of their weights.

    The bundled model and seeded random weights can be made again; others have to be given.
    """
    if not choice.is_default:
        return choice
    for each in found:
        if each.manifest is None:
            raise UsageError(
                f"{each.artifacts[0].path} does not say which checkpoint it is an export of",
                remedy="Add --checkpoint FILE (or --model levit_digits for the bundled model).",
            )
    manifest = found[0].manifest
    return choice if manifest is None else _said(manifest.model)


def _said(info: ModelInfo) -> ModelChoice:
    # What ``checkpoints.randomised`` writes as the source of weights that it makes.
    seeded = re.fullmatch(r"random weights, seed (\d+)", info.checkpoint)
    if seeded:
        height, width = info.config["image_size"]
        return ModelChoice(info.name, random_seed=int(seeded[1]), image_size=(height, width))
    return ModelChoice()


def refuse_another(found: Sequence[Located], checkpoint: Checkpoint) -> None:
    """Raise where a directory was made of other weights than ``checkpoint``."""
    for each in found:
        info = None if each.manifest is None else each.manifest.model
        made_of = "" if info is None else info.checkpoint_sha256
        if info is not None and made_of and made_of != checkpoint.sha256:
            raise UsageError(
                f"{each.folder} was made of {info.checkpoint} with SHA-256 "
                f"{made_of}, {checkpoint.source} has {checkpoint.sha256}",
                remedy="Give the one that was exported with --checkpoint.",
            )


def refuse_embedded(artifact: Artifact) -> None:
    """Raise where the file does more than the network, whose values are compared."""
    names = {spec.name for spec in artifact.signature.outputs}
    embedded = ""
    if artifact.signature.inputs[0].dtype == "uint8":
        embedded = "normalises by itself"
    elif PROBABILITIES in names and LOGITS not in names:
        embedded = "gives probabilities, not logits"
    if embedded:
        raise UsageError(
            f"{artifact.path.name} {embedded}, and drift compares the network alone",
            remedy="Look at an export without --embed-preprocessing, --softmax, --classifier.",
        )


def damage(found: Sequence[Located]) -> list[str]:
    """What was altered since an export; the files are looked at all the same, as they are."""
    return [
        f"{each.folder} was altered after it was written: {damage}"
        for each in found
        if each.manifest is not None
        for damage in export_directory.damage(each.folder, each.manifest)[:3]
    ]


def skipped(found: Sequence[Located]) -> tuple[str, ...]:
    """The passes that all of the files were made without. Raises where they differ in that."""
    left_out = set()
    for each in found:
        if each.manifest is not None:
            records = (record for record in each.manifest.passes if record.status == "skipped")
            left_out.add(tuple(record.name for record in records))
        else:
            left_out |= {without(a.passes) for a in each.artifacts if a.passes is not None}
    if len(left_out) > 1:
        raise UsageError(
            "the artifacts were made with different passes", remedy="Look at them one by one."
        )
    return left_out.pop() if left_out else ()


def without(passes: Sequence[str]) -> tuple[str, ...]:
    """The passes that a file does not name; one with nothing to do changes nothing either way."""
    from levit_export.models.passes import PASSES

    return tuple(each.name for each in PASSES if each.name not in passes)


def layouts(artifacts: Sequence[Artifact]) -> tuple[Layout, ...]:
    """The layouts that the files say they are in; tokens where they cannot be read."""
    found: dict[Layout, None] = {}
    for artifact in artifacts:
        passes: tuple[str, ...] | None = None
        with suppress(LevitExportError):  # of a damaged file the stage that runs it tells
            passes = target(artifact.format).inspect(artifact.path).passes
        found["maps" if LAID_OUT_AS_MAPS in (passes or ()) else "tokens"] = None
    return tuple(sorted(found, reverse=True)) or ("tokens",)


def are_ours(found: Sequence[Located]) -> bool:
    """Whether it is known with which passes every file was made, and so which tensors it holds."""
    return all(
        each.manifest is not None or artifact.passes is not None
        for each in found
        for artifact in each.artifacts
    )
