"""Which model is meant, and what its artifacts are held against.

The reference is rebuilt fresh from the checkpoint's tensors, unfused, in float32. It is never the
module that was exported: a cache that went stale there would agree with itself
(pytorch-image-models#2795).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from levit_export.checks import parity, tolerance, weights
from levit_export.checks.execution import Reference
from levit_export.core import hashing
from levit_export.core.constants import ROUNDED
from levit_export.core.errors import UsageError
from levit_export.core.progress import Progress, Silent
from levit_export.core.values import (
    CALIBRATED,
    Artifact,
    Calibration,
    Fingerprints,
    ModelInfo,
    Preprocessing,
    Task,
    Tolerance,
    Tolerances,
)
from levit_export.inputs import samples
from levit_export.models.zoo import LOGITS, bundled_weights

if TYPE_CHECKING:
    from torch import nn

    from levit_export.core.values import Size
    from levit_export.formats.pytorch import EagerSession
    from levit_export.inputs.samples import Samples
    from levit_export.models.checkpoints import Checkpoint, Choices
    from levit_export.models.zoo import Variant

DIGITS = "held-out UCI digits"
REFERENCE_BATCH = 16
SHOWN_REAL = 16
"""Real images among the samples of a parity check; accuracy is measured on all of them."""


@dataclass(frozen=True)
class ModelChoice:
    """Which weights: the bundled digits model, a checkpoint, published ones, or random ones.

    ``pretrained`` fetches those published for ``model``, from the cache alone when ``offline``.
    The rest settles what a checkpoint leaves open; see ``checkpoints.Choices``.
    """

    model: str | None = None
    checkpoint: Path | None = None
    pretrained: bool = False
    offline: bool = False
    random_seed: int | None = None
    image_size: Size | None = None
    resize_bias: bool = False
    activation: str | None = None
    labels: tuple[str, ...] = ()
    preprocessing: Preprocessing | None = None
    task: Task | None = None

    @property
    def is_default(self) -> bool:
        """Whether nothing was chosen, so that the bundled model is meant."""
        sources = (self.model, self.checkpoint, self.random_seed)
        return not self.pretrained and sources == (None, None, None)

    @property
    def is_digits(self) -> bool:
        """Whether the weights are those of the bundled model, which brings its own images."""
        named = (self.model or "levit_digits").lower().replace("-", "_")
        others = (self.checkpoint, self.random_seed)
        return named == "levit_digits" and not self.pretrained and others == (None, None)


@dataclass(frozen=True)
class Overrides:
    """Tolerances that a user gave in place of the derived ones."""

    atol: float | None = None
    rtol: float | None = None

    def apply(self, derived: Tolerances) -> Tolerances:
        """``derived``, or what was given; the record says which."""
        if self.atol is None and self.rtol is None:
            return derived
        given = Tolerance(self.atol or 0.0, (self.rtol or 0.0,), "given")
        return dict.fromkeys(derived, given)


def load(choice: ModelChoice, progress: Progress | None = None) -> Checkpoint:
    """The checkpoint that a choice stands for."""
    from levit_export.models import checkpoints
    from levit_export.models.zoo import VARIANTS, variant

    _refuse_contradictions(choice)
    if choice.pretrained:
        return _published(choice, progress or Silent())
    wanted = None if choice.model is None else variant(choice.model)
    choices = _choices(choice, wanted)
    if choice.checkpoint is not None:
        return checkpoints.load(choice.checkpoint, choices)
    if choice.random_seed is not None:
        return checkpoints.randomised(wanted or VARIANTS[0], choice.random_seed, choices)
    if wanted not in (None, VARIANTS[0]):
        raise UsageError(
            f"--model {choice.model} names an architecture, but no weights were given",
            remedy="Add --pretrained, --checkpoint FILE, or --random-weights 0 for a dry run.",
        )
    return checkpoints.bundled(choices)


def _refuse_contradictions(choice: ModelChoice) -> None:
    given = {
        "--checkpoint": choice.checkpoint is not None,
        "--random-weights": choice.random_seed is not None,
        "--pretrained": choice.pretrained,
    }
    named = [name for name, is_given in given.items() if is_given]
    if len(named) > 1:
        raise UsageError(
            f"{' and '.join(named)} contradict each other", remedy="Give one of them."
        )
    if choice.pretrained and choice.model is None:
        raise UsageError(
            "--pretrained does not say which model",
            remedy="Add --model levit_256, or another of levit-export models.",
        )
    if choice.offline and not choice.pretrained:
        raise UsageError(
            "--offline is about --pretrained weights", remedy="Add --pretrained, or leave it out."
        )


def _published(choice: ModelChoice, progress: Progress) -> Checkpoint:
    from levit_export.models import checkpoints, published
    from levit_export.models.zoo import variant

    wanted = published.parse(choice.model or "")
    path = published.fetch(wanted, offline=choice.offline, progress=progress)
    # A repository's config.json and preprocessor_config.json stand beside the weights.
    is_folder = isinstance(wanted.source, published.HubModel)
    choices = _choices(choice, variant(wanted.variant))
    checkpoint = checkpoints.load(path.parent if is_folder else path, choices)
    return replace(
        checkpoint,
        source=wanted.name,
        licence=wanted.licence or checkpoint.licence,
        # What is assumed of a bare file of the authors' form is known of the authors' own files.
        assumptions=checkpoint.assumptions if is_folder else (),
    )


def _choices(choice: ModelChoice, wanted: Variant | None) -> Choices:
    from levit_export.models.checkpoints import Choices

    return Choices(
        model=wanted,
        image_size=choice.image_size,
        resize_bias=choice.resize_bias,
        activation=choice.activation,
        labels=choice.labels,
        preprocessing=choice.preprocessing,
        task=choice.task,
    )


def eager_session(
    checkpoint: Checkpoint,
    *,
    arithmetic: str = "fp32",
    threads: int | None = None,
    keep: Collection[str] = (),
) -> EagerSession:
    """A fresh build of the checkpoint as a session; ``keep`` are modules left in float32."""
    from levit_export.formats.pytorch import EagerSession
    from levit_export.models.preparation import signature_of

    return EagerSession(
        checkpoint.build(),
        signature_of(checkpoint.config, None),
        arithmetic=arithmetic,  # type: ignore[arg-type]
        threads=threads,
        keep=keep,
    )


def session_of(
    checkpoint: Checkpoint, module: nn.Module, *, threads: int | None = None
) -> EagerSession:
    """A module of this checkpoint's network, whatever was done to it, as a session."""
    from levit_export.formats.pytorch import EagerSession
    from levit_export.models.preparation import signature_of

    return EagerSession(module, signature_of(checkpoint.config, None), threads=threads)


def calibration(
    checkpoint: Checkpoint, data: Path | None, *, count: int, seed: int = 0
) -> Calibration | None:
    """Real inputs for a quantiser: of ``data``, or the bundled model's own; None without either.

    The bundled model's are from the side it was trained on, never the images it is judged by.
    """
    from levit_export.inputs import images

    if data is None:
        if checkpoint.sha256 != bundled_sha256():
            return None
        pixels, labels = samples.calibration_digits()
        chosen = samples.from_images(checkpoint.preprocessing, pixels, labels).first(count)
        source = f"{len(chosen)} UCI digits of the training side"
        return Calibration(chosen.inputs, source, chosen.labels)
    found = images.open_images(data, labels=checkpoint.labels, purpose="calibration")
    return images.calibration(found, checkpoint.preprocessing, count, seed)


def make(
    checkpoint: Checkpoint,
    info: ModelInfo,
    precisions: Collection[str],
    *,
    fingerprints: Fingerprints | None = None,
    seed: int = 0,
    threads: int | None = None,
    overrides: Overrides | None = None,
    calibration: Calibration | None = None,
    keep: Mapping[str, Collection[str]] | None = None,
) -> Reference:
    """:func:`answered`, :func:`with_tolerances` and :func:`completed` in one.

    ``fingerprints`` are those of the weights that the artifacts must hold, if they must.
    """
    made = with_tolerances(
        answered(checkpoint, seed=seed, threads=threads),
        precisions,
        threads=threads,
        overrides=overrides,
        calibration=calibration,
        keep=keep,
    )
    return completed(made, info, fingerprints)


def completed(
    made: Reference, info: ModelInfo, fingerprints: Fingerprints | None = None
) -> Reference:
    """``made`` with the model's doubt and the digests for each of its precisions."""
    weights = {p: d for p, d in (fingerprints or {}).items() if p in made.tolerances}
    return replace(made, weights=weights, doubt=info.doubt)


@dataclass(frozen=True)
class Answered:
    """A checkpoint's answers to its samples: in float32, ``exact`` ones in float64.

    A model that comes with real images is held against them as well; ``predictions`` are its own.
    """

    checkpoint: Checkpoint
    samples: Samples
    outputs: Mapping[str, np.ndarray]
    exact: Mapping[str, np.ndarray]
    images: Samples | None
    predictions: np.ndarray | None


def answered(checkpoint: Checkpoint, *, seed: int = 0, threads: int | None = None) -> Answered:
    """What a fresh build of the checkpoint answers."""
    images = held_out(checkpoint)
    inputs = samples.make(checkpoint.preprocessing, seed=seed)
    if images is not None:
        inputs = inputs.joined(images.first(SHOWN_REAL))
    session = eager_session(checkpoint, threads=threads)
    return Answered(
        checkpoint=checkpoint,
        samples=inputs,
        outputs=_answers(session, inputs),
        exact=_answers(eager_session(checkpoint, arithmetic="fp64", threads=threads), inputs),
        images=images,
        predictions=None if images is None else _answers(session, images)[LOGITS].argmax(1),
    )


def with_tolerances(
    plain: Answered,
    precisions: Collection[str],
    *,
    threads: int | None = None,
    overrides: Overrides | None = None,
    calibration: Calibration | None = None,
    keep: Mapping[str, Collection[str]] | None = None,
) -> Reference:
    """The answers with the tolerance for each of ``precisions``.

    ``calibration`` is what activations were quantised by, if they were; ``keep`` the blocks that
    every artifact of a precision leaves in float.
    """
    from levit_export.models.preparation import signature_of

    tolerances = {}
    for precision in sorted(precisions):
        rounded = plain.outputs  # float32 is itself the rounded form of float64
        if precision != "fp32":
            kept = (keep or {}).get(precision, ())
            other = rounded_session(
                plain.checkpoint, precision, calibration, keep=kept, threads=threads
            )
            rounded = _answers(other, plain.samples)
        derived = {
            name: tolerance.derive(rounded[name], values, precision=precision)
            for name, values in plain.exact.items()
        }
        tolerances[precision] = (overrides or Overrides()).apply(derived)
    return Reference(
        signature=signature_of(plain.checkpoint.config, None),
        samples=plain.samples,
        outputs=plain.outputs,
        tolerances=tolerances,
        images=plain.images,
        dataset=DIGITS if plain.images is not None else "",
        predictions=plain.predictions,
        preprocessing=plain.checkpoint.preprocessing,
        task=plain.checkpoint.task,
    )


def with_stored_weights(
    expected: Reference,
    weights_of_model: Mapping[str, np.ndarray],
    artifacts: Iterable[Artifact],
    blocks: Mapping[str, str],
) -> Reference:
    """``expected`` with the digests of what each artifact holds, by its id.

    Those whose precision says it all need none of their own.
    """
    found = {
        artifact.id: stored_weights(artifact, weights_of_model, blocks)
        for artifact in artifacts
        if weights_of_model and (artifact.keep or artifact.precision not in ROUNDED)
    }
    return replace(expected, weights={**expected.weights, **found})


def stored_weights(
    artifact: Artifact, tensors: Mapping[str, np.ndarray], blocks: Mapping[str, str]
) -> dict[str, str]:
    """The digests of what an artifact holds for each of the model's ``tensors``.

    In a quantised file only what lies near enough to the tensor is taken for it, so an audit by
    these digests fails where it must. ``blocks`` says by its path which block a module is: tensors
    of blocks that the artifact keeps in float must be there bit for bit.
    """
    from levit_export.formats import simulated_quantisation as simulated
    from levit_export.formats import target

    exact = weights.tensors_of(tensors, blocks, artifact.keep)
    if artifact.precision not in simulated.BITS:
        return weights.mixed(tensors, exact, artifact.precision)
    stored = target(artifact.format).constants(artifact)
    return weights.settled(tensors, stored, simulated.BITS[artifact.precision], exact)


def rounded_session(
    checkpoint: Checkpoint,
    precision: str,
    calibration: Calibration | None,
    *,
    keep: Collection[str] = (),
    threads: int | None = None,
) -> EagerSession:
    """A fresh build that computes as roughly as an artifact of ``precision`` does.

    The blocks ``keep`` are computed as they are.
    """
    from levit_export.formats import simulated_quantisation as simulated
    from levit_export.models.architectures.blocks import block_names

    paths = [path for path, block in block_names(checkpoint.config).items() if block in keep]
    if precision not in simulated.BITS:
        return eager_session(checkpoint, arithmetic=precision, threads=threads, keep=paths)
    if precision in CALIBRATED and calibration is None:
        raise UsageError(
            f"the tolerance of {precision} follows from the images that calibrated it",
            remedy="Give them with --data.",
        )
    module = simulated.quantise_all_but_(checkpoint.build(), precision, calibration, paths)
    return session_of(checkpoint, module, threads=threads)


def _answers(session: EagerSession, inputs: Samples) -> dict[str, np.ndarray]:
    return parity.collect(session, inputs, batch=REFERENCE_BATCH)


def held_out(checkpoint: Checkpoint) -> Samples | None:
    """The real images that belong to the model, or None."""
    if checkpoint.sha256 != bundled_sha256():
        return None
    pixels, labels = samples.held_out_digits()
    return samples.from_images(checkpoint.preprocessing, pixels, labels)


@cache
def bundled_sha256() -> str:
    """Hash of the bundled weights. Its images belong to them, and to no others of their shape."""
    return hashing.sha256_of(bundled_weights())
