"""What a file is, told by its first bytes; files of other kinds are named and refused."""

from __future__ import annotations

import stat
import tarfile
from pathlib import Path
from typing import Literal

from levit_export.core import files
from levit_export.core.errors import CheckpointError
from levit_export.models.checkpoints.limits import FILE_BYTES

Kind = Literal["safetensors", "zip", "legacy"]

HEAD = 512
CONVERT = (
    "Load it where it was made and save the weights: "
    "safetensors.torch.save_file(model.state_dict(), 'model.safetensors')."
)
UNPACK = "Unpack it and give the checkpoint inside."
FETCH = "Fetch the file itself: git lfs pull."
EXPORTED = "Export starts from trained weights: give a .pth or .safetensors checkpoint."

SIGNATURES: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file (Keras, TensorFlow)", CONVERT),
    (0, b"GGUF", "a GGUF file (llama.cpp)", EXPORTED),
    (4, b"TFL3", "a TensorFlow Lite model", EXPORTED),
    (0, b"\x93NUMPY", "a NumPy array", CONVERT),
    (0, b"version https://git-lfs", "a Git LFS pointer, not the weights", FETCH),
    (0, b"<!DOCTYPE", "a web page: the download went wrong", "Download the file again."),
    (0, b"<html", "a web page: the download went wrong", "Download the file again."),
    (0, b"\x1f\x8b", "compressed with gzip", UNPACK),
    (0, b"BZh", "compressed with bzip2", UNPACK),
    (0, b"\xfd7zXZ", "compressed with xz", UNPACK),
    (0, b"\x28\xb5\x2f\xfd", "compressed with zstd", UNPACK),
    (0, b"7z\xbc\xaf", "a 7-Zip archive", UNPACK),
)
"""Offset, bytes, what such a file is, what to do."""

SUFFIXES = {
    ".onnx": ("an ONNX model", EXPORTED),
    ".h5": ("a Keras or TensorFlow file", CONVERT),
    ".keras": ("a Keras file", CONVERT),
    ".msgpack": ("a Flax file", CONVERT),
    ".gguf": ("a GGUF file (llama.cpp)", EXPORTED),
    ".tflite": ("a TensorFlow Lite model", EXPORTED),
}


def size_of(path: Path) -> int:
    """Bytes of a regular file within limits; a pipe or a device is refused and not opened."""
    try:
        status = path.stat()
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist", remedy="Check the path.") from error
    except (OSError, ValueError) as error:  # a loop of links, a path with a zero byte
        raise cannot_be_read(path, error) from error
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError(
            f"{path} is no regular file", remedy="Give a file; pipes and devices are not read."
        )
    if status.st_size == 0:
        raise CheckpointError(f"{path} is empty", remedy="Copy the checkpoint again.")
    if status.st_size > FILE_BYTES:
        raise CheckpointError(
            f"{path} has {status.st_size:,} bytes, more than any LeViT needs",
            remedy="Save model.state_dict() alone.",
        )
    return status.st_size


def cannot_be_read(path: Path, error: OSError | ValueError) -> CheckpointError:
    """The system's refusal to open ``path``."""
    reason = getattr(error, "strerror", None) or error
    return CheckpointError(
        f"{ascii(str(path)) if isinstance(error, ValueError) else path} cannot be read: {reason}",
        remedy="Check the path and its permissions.",
    )


def kind_of(path: Path) -> Kind:
    """How to read ``path``. Raises ``CheckpointError`` that names a file of another kind."""
    size_of(path)
    try:
        with files.open_regular(path) as file:
            head = file.read(HEAD)
    except OSError as error:
        raise cannot_be_read(path, error) from error
    if head[:4] == b"PK\x03\x04":
        return "zip"
    for offset, signature, kind, remedy in SIGNATURES:
        if head[offset : offset + len(signature)] == signature:
            raise _other(path, kind, remedy)
    if path.suffix == ".safetensors" or head[8:9] == b"{":
        return "safetensors"
    if _begins_tar(head):
        raise _other(
            path, "a tar archive (PyTorch's format before 2017, if a checkpoint)", CONVERT
        )
    if path.suffix.lower() in SUFFIXES:
        raise _other(path, *SUFFIXES[path.suffix.lower()])
    return "legacy"


def _other(path: Path, kind: str, remedy: str) -> CheckpointError:
    return CheckpointError(f"{path} is {kind}", remedy=remedy)


def _begins_tar(head: bytes) -> bool:
    """As ``tarfile`` decides it: by a checksum, so that a pickle can be a tar archive as well."""
    try:
        tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True
