"""Which model is meant, and the checkpoint that it stands for.

The bundled model comes with images of its own: some to calibrate a quantiser, others to judge by.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from levit_export.core import hashing
from levit_export.core.errors import UsageError
from levit_export.core.progress import Progress, Silent
from levit_export.core.values import Calibration, Preprocessing, Task
from levit_export.inputs import samples
from levit_export.models.zoo import bundled_weights

if TYPE_CHECKING:
    from levit_export.core.values import Size
    from levit_export.inputs.samples import Samples
    from levit_export.models.checkpoints import Checkpoint


@dataclass(frozen=True)
class ModelChoice:
    """Which weights: the bundled digits model, a checkpoint, published ones, or random ones.

    ``pretrained`` fetches those published for ``model``, from the cache alone when ``offline``.
    The rest settles what a file leaves open. ``image_size`` (height, width) other than the trained
    one is refused unless ``resize_bias`` allows interpolation. ``activation`` overrides what the
    size of the model suggests, ``task`` what the folder says.
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


def load(choice: ModelChoice, progress: Progress | None = None) -> Checkpoint:
    """The checkpoint that a choice stands for."""
    from levit_export.models import checkpoints
    from levit_export.models.zoo import VARIANTS, variant

    _refuse_contradictions(choice)
    if choice.pretrained:
        return _published(choice, progress or Silent())
    wanted = None if choice.model is None else variant(choice.model)
    if choice.checkpoint is not None:
        return checkpoints.load(choice.checkpoint, choice)
    if choice.random_seed is not None:
        return checkpoints.randomised(wanted or VARIANTS[0], choice.random_seed, choice)
    if wanted not in (None, VARIANTS[0]):
        raise UsageError(
            f"--model {choice.model} names an architecture, but no weights were given",
            remedy="Add --pretrained, --checkpoint FILE, or --random-weights 0 for a dry run.",
        )
    return checkpoints.bundled(choice)


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

    wanted = published.parse(choice.model or "")
    path = published.fetch(wanted, offline=choice.offline, progress=progress)
    # A repository's config.json and preprocessor_config.json stand beside the weights.
    is_folder = isinstance(wanted.source, published.HubModel)
    named = replace(choice, model=wanted.variant)
    checkpoint = checkpoints.load(path.parent if is_folder else path, named)
    return replace(
        checkpoint,
        source=wanted.name,
        licence=wanted.licence or checkpoint.licence,
        # What is assumed of a bare file of the authors' form is known of the authors' own files.
        assumptions=checkpoint.assumptions if is_folder else (),
    )


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
