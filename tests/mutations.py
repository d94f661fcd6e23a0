"""Change artifacts where they lie on disk: weights by their offsets, graphs by their text."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np

from levit_export.core import packages
from levit_export.core.quiet import quiet
from levit_export.core.values import Artifact, Prepared

SPECIFICATION = Path("Data/com.apple.CoreML/model.mlmodel")
RECORD = struct.Struct("<IIQQQ32x")
"""A record of a Core ML weight file: sentinel, type, bytes, offset, unused bits."""

Change = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Place:
    """Where the bytes of a constant are: ``offset`` in ``file``."""

    file: Path
    offset: int
    dtype: str
    shape: tuple[int, ...]

    def read(self) -> np.ndarray:
        """The constant as it is stored."""
        count = int(np.prod(self.shape))
        flat = np.fromfile(self.file, self.dtype, count, offset=self.offset)
        return flat.reshape(self.shape)

    def change(self, change: Change, shape: tuple[int, ...]) -> None:
        """Replace the constant by ``change`` of it, both in the model's ``shape``."""
        after = change(self.read().reshape(shape))
        assert after.shape == shape
        data = np.ascontiguousarray(after, self.dtype).tobytes()
        with self.file.open("r+b") as file:
            file.seek(self.offset)
            file.write(data)


def openvino_places(path: Path) -> Iterator[Place]:
    """The floating-point constants of an IR."""
    for layer in ET.parse(path).iter("layer"):
        data = layer.find("data")
        if layer.get("type") == "Const" and data is not None and data.get("element_type") == "f32":
            shape = tuple(int(d) for d in (data.get("shape") or "").split(",") if d.strip())
            yield Place(path.with_suffix(".bin"), int(data.get("offset") or 0), "<f4", shape)


def coreml_places(path: Path) -> Iterator[Place]:
    """The floating-point constants of a package.

    Those of fewer than ten numbers are not in the weight file but inside the specification.
    """
    specification = path / SPECIFICATION
    content = specification.read_bytes()
    for op in operations(read_specification(path), "const"):
        value = op.attributes["val"]
        kind = value.type.tensorType
        dtype = {10: "<f2", 11: "<f4"}.get(kind.dataType)
        shape = tuple(d.constant.size for d in kind.dimensions)
        if dtype is None or not shape:
            continue
        if value.WhichOneof("value") == "blobFileValue":
            file = specification.parent / value.blobFileValue.fileName.removeprefix("@model_path/")
            record = file.read_bytes()[value.blobFileValue.offset :][: RECORD.size]
            yield Place(file, RECORD.unpack(record)[3], dtype, shape)
            continue
        tensor = value.immediateValue.tensor
        data = (
            tensor.bytes.values
            if tensor.WhichOneof("value") == "bytes"
            else np.array(tensor.floats.values, "<f4").tobytes()
        )
        if content.count(data) == 1:
            yield Place(specification, content.index(data), dtype, shape)


@dataclass(frozen=True)
class Weights:
    """The model's trained tensors in a file, by their names in the model."""

    places: Mapping[str, Place]
    shapes: Mapping[str, tuple[int, ...]]

    def change(self, name: str, change: Change) -> None:
        """Replace one tensor by ``change`` of it, in its shape in the model."""
        self.places[name].change(change, self.shapes[name])


def find_weights(artifact: Artifact, model: Prepared) -> Weights:
    """Where in an unchanged file each tensor of ``model`` is, found by comparing numbers."""
    read = openvino_places if artifact.format == "openvino" else coreml_places
    stored = [(place, place.read()) for place in read(artifact.path)]
    tensors = {
        name: tensor
        for name, tensor in model.network.constants.items()
        if tensor.dtype == np.float32
    }
    found: dict[str, Place] = {}
    for name, tensor in tensors.items():
        (found[name],) = (
            place
            for place, array in stored
            if np.array_equal(array.squeeze(), tensor.astype(place.dtype).squeeze())
        )
    return Weights(found, {name: tensor.shape for name, tensor in tensors.items()})


# --- graphs -----------------------------------------------------------------------------------


def edit_xml(path: Path, pattern: str, replacement: str, *, count: int = 1) -> None:
    """Replace the first ``count`` matches of ``pattern`` in a text file, of which there are."""
    text, done = re.subn(pattern, replacement, path.read_text("utf-8"), count=count)
    assert done == count
    path.write_text(text, "utf-8")


def read_specification(package: Path) -> Any:
    """The ``Model`` message of a package."""
    with quiet("coremltools"):
        model = packages.coremltools("proto.Model_pb2").Model()
    model.ParseFromString((package / SPECIFICATION).read_bytes())
    return model


def edit_specification(package: Path, change: Callable[[Any], object]) -> None:
    """Change the ``Model`` message of a package in place."""
    model = read_specification(package)
    before = model.SerializeToString(deterministic=True)
    change(model)
    after = model.SerializeToString(deterministic=True)
    assert after != before
    (package / SPECIFICATION).write_bytes(after)


def main_block(model: Any) -> Any:
    """The one block of a ``Model`` message's main function."""
    function = model.mlProgram.functions["main"]
    return function.block_specializations[function.opset]


def operations(model: Any, kind: str) -> list[Any]:
    """The operations of one kind, in order."""
    return [op for op in main_block(model).operations if op.type == kind]


def constant(model: Any, name: str) -> Any:
    """The immediate tensor value of the constant called ``name``."""
    (op,) = (op for op in operations(model, "const") if op.outputs[0].name == name)
    return op.attributes["val"].immediateValue.tensor
