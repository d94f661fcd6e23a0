"""Which model is meant, and what its artifacts are held against.

The reference is rebuilt fresh from the checkpoint's tensors, unfused, in float32. It is never the
module that was exported: a cache that went stale there would agree with itself
(pytorch-image-models#2795).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from levit_export import parity, samples, tolerance
from levit_export.checking import Reference
from levit_export.core import Fingerprints, ModelInfo, Tolerance
from levit_export.errors import UsageError

if TYPE_CHECKING:
    from levit_export.checkpoints import Checkpoint
    from levit_export.samples import Samples
    from levit_export.targets.eager import EagerSession

DIGITS = "held-out UCI digits"
REFERENCE_BATCH = 16
SHOWN_REAL = 16
"""Real images among the samples of a parity check; accuracy is measured on all of them."""


@dataclass(frozen=True)
class ModelChoice:
    """Which weights: the bundled digits model, a checkpoint file, or a variant with a seed."""

    model: str | None = None
    checkpoint: Path | None = None
    random_seed: int | None = None
    image_size: int | None = None
    labels: tuple[str, ...] = ()

    @property
    def is_default(self) -> bool:
        """Whether nothing was chosen, so that the bundled model is meant."""
        return self.model is None and self.checkpoint is None and self.random_seed is None


@dataclass(frozen=True)
class Overrides:
    """Tolerances that a user gave in place of the derived ones."""

    atol: float | None = None
    rtol: float | None = None

    def apply(self, derived: Tolerance) -> Tolerance:
        """``derived``, or what was given; the record says which."""
        if self.atol is None and self.rtol is None:
            return derived
        return Tolerance(self.atol or 0.0, (self.rtol or 0.0,), "given")


def load(choice: ModelChoice) -> Checkpoint:
    """The checkpoint that a choice stands for."""
    from levit_export import checkpoints
    from levit_export.zoo import VARIANTS, variant

    wanted = None if choice.model is None else variant(choice.model)
    if choice.checkpoint is not None and choice.random_seed is not None:
        raise UsageError(
            "--checkpoint and --random-weights contradict each other", remedy="Give one of them."
        )
    if choice.checkpoint is not None:
        return checkpoints.load(
            choice.checkpoint, model=wanted, image_size=choice.image_size, labels=choice.labels
        )
    if choice.random_seed is not None:
        return checkpoints.randomised(
            wanted or VARIANTS[0],
            choice.random_seed,
            image_size=choice.image_size,
            labels=choice.labels,
        )
    if wanted not in (None, VARIANTS[0]):
        raise UsageError(
            f"--model {choice.model} names an architecture, but no weights were given",
            remedy="Add --checkpoint FILE, or --random-weights 0 for a dry run.",
        )
    return checkpoints.bundled(image_size=choice.image_size, labels=choice.labels)


def eager_session(
    checkpoint: Checkpoint, *, arithmetic: str = "fp32", threads: int | None = None
) -> EagerSession:
    """A fresh build of the checkpoint as a session."""
    from levit_export.targets.eager import EagerSession, signature_of

    config = checkpoint.config
    return EagerSession(
        checkpoint.build(),
        signature_of(config.image_size, config.classes, None),
        arithmetic=arithmetic,  # type: ignore[arg-type]
        threads=threads,
    )


def make(
    checkpoint: Checkpoint,
    info: ModelInfo,
    precisions: Collection[str],
    *,
    fingerprints: Fingerprints | None = None,
    seed: int = 0,
    threads: int | None = None,
    overrides: Overrides | None = None,
) -> Reference:
    """Samples, the fresh model's answers to them, and the tolerance for each of ``precisions``.

    ``fingerprints`` are those of the weights that the artifacts must hold, if they must.

    A model that comes with real images is held against them as well.
    """
    images = _held_out(checkpoint)
    inputs = samples.make(checkpoint.preprocessing, seed=seed)
    if images is not None:
        inputs = inputs.joined(images.first(SHOWN_REAL))
    session = eager_session(checkpoint, threads=threads)
    outputs = _answers(session, inputs)
    exact = _answers(eager_session(checkpoint, arithmetic="fp64", threads=threads), inputs)
    tolerances = {}
    for precision in sorted(precisions):
        rounded = (
            outputs
            if precision == "fp32"
            else _answers(eager_session(checkpoint, arithmetic=precision, threads=threads), inputs)
        )
        derived = tolerance.derive(_only(rounded), _only(exact), precision=precision)
        tolerances[precision] = (overrides or Overrides()).apply(derived)
    return Reference(
        signature=session.signature,
        samples=inputs,
        outputs=outputs,
        tolerances=tolerances,
        weights={p: d for p, d in (fingerprints or {}).items() if p in precisions},
        doubt=info.doubt,
        images=images,
        dataset=DIGITS if images is not None else "",
        predictions=None if images is None else _only(_answers(session, images)).argmax(1),
    )


def _answers(session: EagerSession, inputs: Samples) -> dict[str, np.ndarray]:
    return parity.collect(session, inputs, batch=REFERENCE_BATCH)


def _only(outputs: Mapping[str, np.ndarray]) -> np.ndarray:
    """The value of a mapping that has one."""
    (value,) = outputs.values()
    return value


def _held_out(checkpoint: Checkpoint) -> Samples | None:
    """The real images that belong to the model, or None."""
    if checkpoint.preprocessing.name != "digits":
        return None
    pixels, labels = samples.held_out_digits()
    return samples.from_images(checkpoint.preprocessing, pixels, labels)
