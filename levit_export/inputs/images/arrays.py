"""Images in an ``.npz``: ``images`` uint8 ``(N, H, W[, 3])`` and perhaps ``labels`` ``(N,)``.

Nothing is unpickled, sizes are compared before anything is allocated, and images are read one at
a time from the archive, so that it may be larger than memory.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO

import numpy as np

from levit_export.core import files
from levit_export.core.errors import DataError
from levit_export.inputs.images.decoding import refuse_large
from levit_export.inputs.images.image_set import (
    UNKNOWN,
    Entry,
    ImageSet,
    Read,
    UnreadableImageError,
)

IMAGES, LABELS = "images", "labels"
LARGEST_COUNT = 2**24
"""Images that one file may hold."""

REMEDY = (
    "Save it with numpy.savez_compressed(file, images=…, labels=…): images uint8 (n, height, "
    "width) or (n, height, width, 3), labels integers (n,)."
)


@dataclass(frozen=True)
class _Header:
    """What the first bytes of an array say, and how many bytes they are."""

    shape: tuple[int, ...]
    dtype: np.dtype
    offset: int


@dataclass(frozen=True)
class Archive:
    """The images of an ``.npz``, read as a stream; going back starts it anew."""

    path: Path
    member: str
    shape: tuple[int, ...]
    offset: int

    @contextmanager
    def open(self) -> Iterator[Read]:
        """Read single images; see :class:`levit_export.inputs.images.image_set.Store`."""
        size = prod(self.shape)
        with ExitStack() as stack:
            try:
                file = stack.enter_context(files.open_regular(self.path))
                archive = stack.enter_context(zipfile.ZipFile(file))
                stream = stack.enter_context(archive.open(self.member))
            except Exception as error:
                raise _damaged(self.path, error) from error

            def read(entry: Entry) -> np.ndarray:
                try:
                    stream.seek(self.offset + entry.position * size)
                    content = _exactly(stream, size)
                except Exception as error:
                    raise _damaged(self.path, error) from error
                return np.frombuffer(content, np.uint8).reshape(self.shape)

            yield read


def open_archive(
    path: Path, classes: int, *, images: str = IMAGES, labels: str = LABELS
) -> ImageSet:
    """The images of ``path`` under the names ``images`` and ``labels``.

    Raises ``DataError`` for everything that is not as the module says.
    """
    try:
        with files.open_regular(path) as file, zipfile.ZipFile(file) as archive:
            header = _header(archive, images, path)
            shape = _image_shape(header, path)
            count = header.shape[0]
            known = f"{labels}.npy" in archive.namelist()
            numbers = (
                _labels(archive, labels, count, classes, path) if known else [UNKNOWN] * count
            )
            checksum = archive.getinfo(f"{images}.npy").CRC
    except (OSError, RuntimeError, NotImplementedError, zipfile.BadZipFile) as error:
        raise _damaged(path, error) from error
    # The archive's own checksum of the pixels: gigabytes need not be read for it.
    fingerprint = hashlib.sha256(f"{checksum} {header.shape} {numbers}".encode())
    return ImageSet(
        source=str(path),
        entries=tuple(Entry(f"image {i}", label, i) for i, label in enumerate(numbers)),
        store=Archive(path, f"{images}.npy", shape, header.offset),
        fingerprint=fingerprint.hexdigest(),
    )


def _header(archive: zipfile.ZipFile, name: str, path: Path) -> _Header:
    """The header of an array whose declared size is the size that it has."""
    if f"{name}.npy" not in archive.namelist():
        held = ", ".join(archive.namelist()[:5]) or "nothing"
        raise DataError(f"{path} does not hold an array {name!r}; it holds {held}", remedy=REMEDY)
    with archive.open(f"{name}.npy") as stream:
        try:
            # np.load would allocate what the header declares, and unpickle objects.
            version = np.lib.format.read_magic(stream)  # type: ignore[no-untyped-call]
            read = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }[version]
            shape, fortran, dtype = read(stream)  # type: ignore[no-untyped-call]
        except Exception as error:
            raise DataError(
                f"array {name!r} of {path} has no valid header: {error}", remedy=REMEDY
            ) from error
        offset = stream.tell()
    if dtype.hasobject:
        raise DataError(
            f"array {name!r} of {path} holds Python objects, which are not unpickled",
            remedy=REMEDY,
        )
    if fortran and len(shape) > 1:
        raise DataError(f"array {name!r} of {path} is in Fortran's order", remedy=REMEDY)
    declared = prod(shape) * dtype.itemsize
    present = archive.getinfo(f"{name}.npy").file_size - offset
    if declared != present:
        raise DataError(
            f"array {name!r} of {path} declares {declared} bytes and holds {present}",
            remedy="Save it again; the file is damaged.",
        )
    return _Header(shape, dtype, offset)


def _image_shape(header: _Header, path: Path) -> tuple[int, ...]:
    """The shape of one image."""
    shape = header.shape
    is_image = len(shape) == 3 or (len(shape) == 4 and shape[3] == 3)
    if header.dtype != np.uint8 or not is_image:
        raise DataError(
            f"array {IMAGES!r} of {path} is {header.dtype} {shape}, not uint8 (n, height, width) "
            "or (n, height, width, 3)",
            remedy=REMEDY,
        )
    if not 0 < shape[0] <= LARGEST_COUNT:
        raise DataError(
            f"{path} holds {shape[0]} images; 1 to {LARGEST_COUNT} can be used", remedy=REMEDY
        )
    try:
        refuse_large(shape[1], shape[2])
    except UnreadableImageError as error:
        raise DataError(f"images of {path} have {error}", remedy=REMEDY) from error
    return shape[1:]


def _labels(
    archive: zipfile.ZipFile, name: str, count: int, classes: int, path: Path
) -> list[int]:
    header = _header(archive, name, path)
    if header.shape != (count,) or not np.issubdtype(header.dtype, np.integer):
        raise DataError(
            f"array {name!r} of {path} is {header.dtype} {header.shape}, not integers ({count},)",
            remedy=REMEDY,
        )
    with archive.open(f"{name}.npy") as stream:
        stream.seek(header.offset)
        content = _exactly(stream, count * header.dtype.itemsize)
    labels: list[int] = np.frombuffer(content, header.dtype).tolist()
    for position, label in enumerate(labels):
        refuse_out_of_range(label, classes, f"label {position} of {path}")
    return labels


def refuse_out_of_range(label: int, classes: int, what: str) -> None:
    """Raise when the model has no such class."""
    if not 0 <= label < classes:
        raise DataError(
            f"{what} is {label}, and the model has the classes 0 to {classes - 1}",
            remedy="Number the classes from 0, as the model does; is it the right model?",
        )


def _exactly(stream: IO[bytes], size: int) -> bytes:
    content = stream.read(size)
    if len(content) != size:
        raise EOFError(f"it ends {size - len(content)} bytes too early")
    return content


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(f"{path} cannot be read: {error}", remedy=REMEDY)
