"""Names of a model's classes."""

from __future__ import annotations

from levit_export.errors import UsageError
from levit_export.labels import imagenet_labels
from levit_export.zoo import Config, variant_of

IMAGENET_CLASSES = 1000


def labels_for(config: Config, given: tuple[str, ...]) -> tuple[str, ...]:
    """``given``, which must be one for each class; without them ImageNet's, or numbers.

    ImageNet's are taken for models of the zoo with 1000 classes, all of which were made for it.
    """
    if given and len(given) != config.classes:
        raise UsageError(
            f"{len(given)} labels for {config.classes} classes",
            remedy="Give one label on each line, in the order of the classes.",
        )
    if given:
        return given
    if config.classes == IMAGENET_CLASSES and variant_of(config) is not None:
        return imagenet_labels()
    return tuple(str(index) for index in range(config.classes))
