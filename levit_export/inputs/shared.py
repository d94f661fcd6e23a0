"""Inputs that several files of one network are given: the same numbers, each in its own form.

Nothing is known of the network but what its files declare. An input that is an image in one file
and a tensor in another is the same numbers, pixels from 0 to 255, in ``(H, W, 3)`` and in planes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from levit_export.core.errors import DataError, UsageError
from levit_export.core.values import Preprocessing, Tensors, TensorSpec
from levit_export.inputs import images as image_files
from levit_export.inputs import preprocessing

FLOATS = ("float16", "float32", "float64")
"""From the coarsest; every number of one is a number of those behind it."""

Taker = tuple[str, Mapping[str, TensorSpec]]
"""A file, and what it takes by the names that the reference has for it."""

Drawn = tuple[tuple[str, ...], dict[str, np.ndarray]]
"""Names of samples, and for each input of the reference the array ``(n, ...)``."""


def paired(
    ours: Sequence[TensorSpec], theirs: Sequence[TensorSpec], name: str
) -> list[tuple[TensorSpec, TensorSpec]]:
    """Inputs of the reference with those of a candidate: by name, the others by position."""
    if len(ours) != len(theirs):
        raise UsageError(
            f"{name} takes {len(theirs)} inputs ({', '.join(s.name for s in theirs)}), the "
            f"reference {len(ours)} ({', '.join(s.name for s in ours)})",
            remedy="Compare files of the same network, exported with the same inputs.",
        )
    named = {spec.name: spec for spec in theirs}
    known = {spec.name for spec in ours}
    rest = iter([spec for spec in theirs if spec.name not in known])
    return [(spec, named[spec.name] if spec.name in named else next(rest)) for spec in ours]


def is_image(spec: TensorSpec) -> bool:
    """Whether an input is an image, uint8 ``(batch, H, W, 3)``: of a package, or of bytes."""
    return spec.dtype == "uint8" and len(spec.shape) == 4 and spec.shape[3] == 3


def planes(spec: TensorSpec) -> TensorSpec:
    """An input as the network behind it sees it: planes in place of an image."""
    if not is_image(spec):
        return spec
    batch, height, width, channels = spec.shape
    return replace(spec, shape=(batch, channels, height, width))


def resolved(
    inputs: Sequence[TensorSpec], reference: str, others: Sequence[Taker]
) -> dict[str, TensorSpec]:
    """Each of a reference's ``inputs``, with sizes that it leaves open taken from the ``others``.

    Raises ``UsageError`` where two files take other ranks, sizes or kinds of number.
    """
    found = {}
    for spec in inputs:
        ours = planes(spec)
        if not ours.shape:
            raise UsageError(
                f"input {spec.name!r} of {reference} has no axes",
                remedy="Export the network with a batch axis in front of every input.",
            )
        shape = list(ours.shape)
        for file, names in others:
            theirs = planes(names[spec.name])
            fits = len(theirs.shape) == len(shape) and all(
                a is None or b is None or a == b
                for a, b in zip(shape[1:], theirs.shape[1:], strict=True)
            )
            is_alike = _family(ours.dtype) == _family(theirs.dtype)
            if not fits or not (is_alike or "uint8" in (ours.dtype, theirs.dtype)):
                raise _unlike(reference, ours, file, theirs)
            shape = [shape[0], *(a or b for a, b in zip(shape[1:], theirs.shape[1:], strict=True))]
        found[spec.name] = replace(ours, shape=tuple(shape))
    return found


def _family(dtype: str) -> str:
    return "bool" if dtype == "bool" else np.dtype(dtype).kind.replace("u", "i")


def _unlike(reference: str, ours: TensorSpec, file: str, theirs: TensorSpec) -> UsageError:
    """The error for two inputs that cannot be given the same numbers."""
    sides = [
        f"{name} takes {spec.name!r} as {spec.dtype} {_shown(spec.shape)}"
        for name, spec in ((file, theirs), (reference, ours))
    ]
    is_layout = sorted(map(str, ours.shape)) == sorted(map(str, theirs.shape))
    return UsageError(
        ", ".join(sides),
        remedy="They are in other layouts: export both in the same one."
        if is_layout and ours.shape != theirs.shape
        else "Export both with inputs of the same shape and kind of number.",
    )


def _shown(shape: Sequence[int | None]) -> str:
    return f"({', '.join('any' if side is None else str(side) for side in shape)})"


def drawn(
    specs: Mapping[str, TensorSpec], pixels: Collection[str], *, count: int, seed: int
) -> Drawn:
    """Seeded normal numbers, or bytes where one of the files takes an image or bytes."""
    generator = np.random.default_rng(seed)
    arrays: dict[str, np.ndarray] = {}
    for name, spec in specs.items():
        shape = (count, *_sides(spec))
        if name in pixels:
            arrays[name] = generator.integers(0, 256, shape, dtype=np.uint8)
        elif spec.dtype == "bool":
            arrays[name] = generator.integers(0, 2, shape).astype(bool)
        elif spec.dtype in FLOATS:
            arrays[name] = generator.standard_normal(shape)
        else:
            raise UsageError(
                f"input {name!r} is {spec.dtype}, and which whole numbers make sense for it is "
                "not known",
                remedy="Give --inputs FILE.npz with an array for each input.",
            )
    kind = "pixels" if pixels else "normal"
    return tuple(f"{kind}-{index}" for index in range(count)), arrays


def _sides(spec: TensorSpec) -> tuple[int, ...]:
    """The shape of one sample."""
    sides = tuple(side for side in spec.shape[1:] if side is not None)
    if len(sides) != len(spec.shape) - 1:
        raise UsageError(
            f"input {spec.name!r} is {_shown(spec.shape)}, and no file says which size to take",
            remedy="Give --inputs FILE.npz with arrays of the size that you mean.",
        )
    return sides


def read_arrays(path: Path, specs: Mapping[str, TensorSpec], pixels: Collection[str]) -> Drawn:
    """The arrays of an ``.npz``; an image may be uint8 ``(n, H, W, 3)`` or ``(n, 3, H, W)``."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, AttributeError, TypeError) as error:
        raise DataError(
            f"{path} cannot be read as arrays: {error}",
            remedy="Write it with numpy.savez(file, NAME=array, …).",
        ) from error
    except Exception as error:  # zipfile and zlib have errors of their own
        raise DataError(f"{path} is damaged: {error}", remedy="Write it again.") from error
    if set(arrays) != set(specs):
        raise DataError(
            f"{path} holds {sorted(arrays)}, the reference takes {sorted(specs)}",
            remedy="Give one array for each input, under its name in the reference.",
        )
    for name, spec in specs.items():
        array = arrays[name]
        if name in pixels and array.ndim == 4 and array.shape[3] == spec.shape[1]:
            array = array.transpose(0, 3, 1, 2)
        admitted = array.ndim == len(spec.shape) and all(
            want is None or want == have
            for want, have in zip(spec.shape[1:], array.shape[1:], strict=True)
        )
        if not admitted or not len(array):
            raise DataError(
                f"{name!r} of {path} has shape {array.shape}, the reference takes "
                f"{_shown((None, *spec.shape[1:]))}",
                remedy="The first axis counts the samples; the others are those of the input.",
            )
        if array.dtype.kind not in "fiub" or not np.isfinite(array).all():
            raise DataError(
                f"{name!r} of {path} holds {array.dtype} that are not all finite numbers",
                remedy="Give finite numbers.",
            )
        arrays[name] = array
    counts = {len(array) for array in arrays.values()}
    if len(counts) != 1:
        raise DataError(
            f"the arrays of {path} hold {sorted(counts)} samples",
            remedy="Give every input for each sample.",
        )
    return tuple(f"{path.stem}-{index}" for index in range(counts.pop())), arrays


def read_images(
    path: Path, specs: Mapping[str, TensorSpec], pixels: Collection[str], *, count: int
) -> Drawn:
    """Images resized to the input's size: as bytes, or normalised as ImageNet's are.

    Whatever was done to the training images, both files are given the same.
    """
    (name, spec), *others = specs.items()
    if others or len(spec.shape) != 4 or spec.shape[1] != 3:
        raise UsageError(
            f"--data gives pictures, and the network takes "
            f"{', '.join(f'{n} {_shown(s.shape)}' for n, s in specs.items())}",
            remedy="Give --inputs FILE.npz with an array for each input.",
        )
    _, height, width = _sides(spec)
    size = (height, width)
    recipe = Preprocessing("compare", resize=size, crop=size, resize_mode="exact")
    found = image_files.open_images(path, labels=()).limited(count)
    inputs, names = [], []
    for batch in image_files.batches(found, recipe, [range(len(found))]):
        inputs.append(batch.inputs)
        names += [found.entries[row].name for row in batch.rows]
        image_files.refuse_too_many(
            [each for _, each in batch.unreadable], len(found), found.source
        )
    array = np.concatenate(inputs)
    if name in pixels:
        array = preprocessing.pixels_of(recipe, array).transpose(0, 3, 1, 2)
    return tuple(names), {name: array}


def converted(
    arrays: Tensors, takers: Mapping[str, TensorSpec], file: str
) -> dict[str, np.ndarray]:
    """The samples as a file takes them, by its own names. Raises where a number would change."""
    found = {}
    for name, array in arrays.items():
        spec, given = takers[name], array
        if is_image(spec):
            given = array.transpose(0, 2, 3, 1)
        with np.errstate(over="ignore", invalid="ignore"):
            converted = given.astype(spec.dtype)
        if not np.array_equal(converted, given):
            raise DataError(
                f"{file} takes {spec.name!r} as {spec.dtype}, which cannot hold the numbers given "
                f"for {name!r} ({given.dtype})",
                remedy=f"Round the numbers to {spec.dtype} first, so that every file is given "
                "the same.",
            )
        found[spec.name] = np.ascontiguousarray(converted)
    return found
