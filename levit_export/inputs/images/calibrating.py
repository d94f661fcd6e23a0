"""The images that a quantiser looks at."""

from __future__ import annotations

from collections import deque

import numpy as np

from levit_export.core.values import Calibration, Preprocessing
from levit_export.inputs.images.image_set import ImageSet, Unreadable, listed
from levit_export.inputs.images.reading import batches, refuse_too_many


def calibration(images: ImageSet, recipe: Preprocessing, count: int, seed: int = 0) -> Calibration:
    """Up to ``count`` images, as evenly over the classes as they go, the same for each ``seed``.

    Unreadable images are replaced by the next ones, and named in ``source``. Raises ``DataError``
    when too many are.
    """
    queue = deque(balanced_order(images, seed))
    inputs: dict[int, np.ndarray] = {}
    unreadable: list[Unreadable] = []
    chosen: list[int] = []
    while queue and len(inputs) < count:
        taken = [queue.popleft() for _ in range(min(count - len(inputs), len(queue)))]
        chosen += taken
        for batch in batches(images, recipe, ([row] for row in sorted(taken))):
            inputs.update(zip(batch.rows, batch.inputs, strict=True))
            unreadable += [each for _, each in batch.unreadable]
    refuse_too_many(unreadable, len(chosen), images.source)
    source = (
        f"{len(inputs)} images of {images.source} (seed {seed}, list {images.fingerprint[:12]})"
    )
    source = "; ".join((source, *images.remarks))
    if unreadable:
        names = listed([str(each) for each in unreadable])
        source += f"; {len(unreadable)} could not be read: {names}"
    kept = [row for row in chosen if row in inputs]
    labels = np.array([images.entries[row].label for row in kept])
    return Calibration(np.stack([inputs[row] for row in kept]), source, labels)


def balanced_order(images: ImageSet, seed: int) -> list[int]:
    """Every place in ``images`` once: an image of each class, then a second of each, and so on.

    Within a class the order is shuffled, and so are the classes, for a small count takes but some.
    """
    generator = np.random.default_rng(seed)
    classes: dict[int, list[int]] = {}
    for row, entry in enumerate(images.entries):
        classes.setdefault(entry.label, []).append(row)
    shuffled = [generator.permutation(classes[label]).tolist() for label in sorted(classes)]
    order = [shuffled[place] for place in generator.permutation(len(shuffled))]
    longest = max(map(len, order), default=0)
    return [rows[turn] for turn in range(longest) for rows in order if turn < len(rows)]
