"""What artifacts are held against: samples, a checkpoint's answers to them, tolerances.

The reference is rebuilt fresh from the checkpoint's tensors, unfused, in float32. It is never the
module that was exported: a cache that went stale there would agree with itself
(pytorch-image-models#2795).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from levit_export.checks import parity, tolerance, weights
from levit_export.core.errors import DataError, UsageError
from levit_export.core.precisions import CALIBRATED, FLOATS, GRIDS, PRECISIONS
from levit_export.core.values import (
    PROBABILITIES,
    Artifact,
    Calibration,
    Fingerprints,
    ModelInfo,
    Preprocessing,
    Signature,
    Task,
    TensorSpec,
    Tolerance,
    Tolerances,
)
from levit_export.inputs import samples
from levit_export.models import loading
from levit_export.models.zoo import LOGITS

if TYPE_CHECKING:
    from torch import nn

    from levit_export.formats.pytorch import EagerSession
    from levit_export.inputs.samples import Samples
    from levit_export.models.checkpoints import Checkpoint

DIGITS = "held-out UCI digits"
REFERENCE_BATCH = 16
SHOWN_REAL = 16
"""Real images among the samples of a parity check; accuracy is measured on all of them."""


@dataclass(frozen=True)
class Reference:
    """What the artifacts are held against: samples, the answers to them, tolerances by precision.

    ``preprocessing`` is what made the samples of pixels, where that is known. ``images`` are
    labelled inputs for accuracy, with the reference's own predictions.
    """

    signature: Signature
    samples: Samples
    outputs: Mapping[str, np.ndarray]
    tolerances: Mapping[str, Tolerances]
    weights: Fingerprints = field(default_factory=dict)
    doubt: str = ""
    images: Samples | None = None
    dataset: str = ""
    predictions: np.ndarray | None = None
    preprocessing: Preprocessing | None = None
    task: Task = "single-label"

    def matching(self, signature: Signature) -> Reference:
        """This reference for a model that takes and gives what ``signature`` says.

        Pixels in place of normalised inputs, and probabilities in place of logits.
        """
        taken, names = signature.inputs[0], {spec.name for spec in signature.outputs}
        expected = self
        if taken.dtype == "uint8" and self.samples.inputs.dtype != np.uint8:
            expected = as_pixels(expected, taken)
        if PROBABILITIES in names and names != set(expected.outputs):
            expected = as_probabilities(expected, names)
        return expected


def as_pixels(reference: Reference, taken: TensorSpec) -> Reference:
    """The reference of a model that normalises by itself: the samples that are images, raw.

    What is expected for them stays; their tolerances are those of their rows.
    """
    recipe = reference.preprocessing
    if recipe is None:
        raise DataError(
            "the model takes raw pixels, and it is not known how its samples were normalised",
            remedy="Add --checkpoint FILE, from which the samples are made anew.",
        )
    samples, rows = reference.samples.raw(recipe)
    images = reference.images
    return replace(
        reference,
        signature=Signature((taken,), reference.signature.outputs),
        samples=samples,
        outputs={name: values[rows] for name, values in reference.outputs.items()},
        tolerances={
            precision: {name: tolerance.of_rows(rows) for name, tolerance in of_output.items()}
            for precision, of_output in reference.tolerances.items()
        },
        images=None if images is None else images.raw(recipe)[0],
    )


def as_probabilities(reference: Reference, names: Collection[str]) -> Reference:
    """The reference of a model with an activation behind its logits; of other outputs, ``names``.

    With p = softmax(z), ``|dp_i| <= 2 p_i (1 - p_i) max|dz| <= max|dz| / 2``; with the sigmoid of
    a multi-label model, ``|dp_i| <= p_i (1 - p_i) |dz_i| <= max|dz| / 4``. Rounding p itself adds
    one unit roundoff; that turns the allowance for logits into one for probabilities.
    """
    if LOGITS not in reference.outputs:  # a classifier of two heads gives its probabilities alone
        return _only(reference, names)
    logits = reference.outputs[LOGITS]
    if reference.task == "multi-label":
        p, slope = 1 / (1 + np.exp(-logits.astype(np.float64))), 1 / 4
    else:
        z = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
        p, slope = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True), 1 / 2
    tolerances = {}
    for precision, of_output in reference.tolerances.items():
        given = of_output[LOGITS]
        allowed = given.allowed(logits) * slope / p.max(axis=1) + tolerance.roundoff_of(precision)
        bound = replace(given, atol=0.0, rtol=tuple(allowed.tolist()))
        tolerances[precision] = {**of_output, PROBABILITIES: bound}
    outputs = tuple(
        replace(spec, name=PROBABILITIES) if spec.name == LOGITS else spec
        for spec in reference.signature.outputs
    )
    found = replace(
        reference,
        signature=Signature(reference.signature.inputs, outputs),
        outputs={**reference.outputs, PROBABILITIES: p},
        tolerances=tolerances,
    )
    return _only(found, names)


def _only(reference: Reference, names: Collection[str]) -> Reference:
    """``reference`` with those of its outputs that are called ``names``."""
    kept = tuple(spec for spec in reference.signature.outputs if spec.name in names)
    return replace(
        reference,
        signature=Signature(reference.signature.inputs, kept),
        outputs={spec.name: reference.outputs[spec.name] for spec in kept},
        tolerances={
            precision: {spec.name: of_output[spec.name] for spec in kept}
            for precision, of_output in reference.tolerances.items()
        },
    )


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
    images = loading.held_out(checkpoint)
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

    Float artifacts that keep no block hold what every file of their precision holds.
    """
    found = {
        artifact.id: stored_weights(artifact, weights_of_model, blocks)
        for artifact in artifacts
        if weights_of_model and (artifact.keep or artifact.precision not in FLOATS)
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
    from levit_export.formats import target

    exact = weights.tensors_of(tensors, blocks, artifact.keep)
    if artifact.precision not in GRIDS:
        return weights.mixed(tensors, exact, artifact.precision)
    stored = target(artifact.format).constants(artifact)
    return weights.settled(tensors, stored, PRECISIONS[artifact.precision].bits, exact)


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
    if precision not in GRIDS:
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
