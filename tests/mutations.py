"""Change artifacts where they lie on disk: weights by their offsets, graphs by their text."""

from __future__ import annotations

import hashlib
import re
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np

from levit_export.core import packages
from levit_export.core.quiet import quiet
from levit_export.core.values import Artifact
from levit_export.formats.coreai import program, write

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
        vouch(self.file)


def vouch(file: Path) -> None:
    """Give a Core AI asset, if ``file`` is its program, the digest of the program as it is now."""
    if file.name == program.PROGRAM:
        digest = hashlib.sha256(file.read_bytes()).digest()
        (file.parent / program.DIGEST).write_bytes(digest)


def onnx_places(path: Path) -> Iterator[Place]:
    """The floating-point initializers of an ONNX file."""
    import onnx

    content = path.read_bytes()
    for tensor in onnx.load(path).graph.initializer:
        kind = {onnx.TensorProto.FLOAT: "<f4", onnx.TensorProto.FLOAT16: "<f2"}.get(
            tensor.data_type
        )
        if kind is not None and tensor.raw_data and tensor.dims:
            yield Place(path, content.index(tensor.raw_data), kind, tuple(tensor.dims))


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


def coreai_places(path: Path) -> Iterator[Place]:
    """The floating-point constants of an asset, those that compressed weights are made of too.

    A single number is not stored as such.
    """
    file = path / program.PROGRAM
    content = file.read_bytes()
    for numbers in program.ask(_stored, path):
        data = numbers.tobytes()
        if numbers.dtype.kind == "f" and numbers.shape and content.count(data) == 1:
            yield Place(file, content.index(data), numbers.dtype.str, numbers.shape)


def _stored(asset: Path) -> list[np.ndarray]:
    """The constants of an asset as they are stored."""
    loaded = program._load(asset)
    resources = program._resources(loaded)
    return [
        program._numbers(op, resources)
        for op in program._operations(program._graph(loaded, asset))
        if program._kind(op) == "constant"
    ]


PLACES = {
    "onnx": onnx_places,
    "openvino": openvino_places,
    "coreml": coreml_places,
    "coreai": coreai_places,
}


@dataclass(frozen=True)
class Weight:
    """A trained tensor of the model in a file. ``shape`` is its shape in the model."""

    place: Place
    shape: tuple[int, ...]
    is_transposed: bool

    def read(self) -> np.ndarray:
        """As the model has it."""
        stored = self.place.read()
        return (
            stored.squeeze().T.reshape(self.shape)
            if self.is_transposed
            else stored.reshape(self.shape)
        )

    def write(self, array: np.ndarray) -> None:
        """Replace it."""
        assert array.shape == self.shape
        stored = array.T if self.is_transposed else array
        with np.errstate(over="ignore"):
            self.place.change(
                lambda _: np.ascontiguousarray(stored.reshape(self.place.shape)), self.place.shape
            )

    def change(self, change: Change) -> None:
        """Replace it by ``change`` of it."""
        self.write(change(self.read().copy()))


def find_weights(artifact: Artifact, tensors: Mapping[str, np.ndarray]) -> dict[str, Weight]:
    """Where in an unchanged file each tensor of the prepared model is, by comparing numbers."""
    stored = [(place, place.read().squeeze()) for place in PLACES[artifact.format](artifact.path)]
    found = {}
    for name, tensor in tensors.items():
        for place, array in stored:
            plain = tensor.astype(place.dtype).squeeze()
            if np.array_equal(array, plain):
                found[name] = Weight(place, tensor.shape, is_transposed=False)
            elif plain.ndim == 2 and np.array_equal(array, plain.T):
                found[name] = Weight(place, tensor.shape, is_transposed=True)
    assert found.keys() == tensors.keys(), sorted(tensors.keys() - found.keys())
    return found


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


def edit_asset(asset: Path, change: Callable[..., None], *arguments: Any) -> None:
    """Change the program of a Core AI asset in place: ``change(graph, *arguments)``.

    ``change`` is called in Core AI's process, so it has to be a function of a module.
    """
    before = (asset / program.PROGRAM).read_bytes()
    program.ask(_edit_asset, asset, change, arguments)
    assert (asset / program.PROGRAM).read_bytes() != before


def _edit_asset(asset: Path, change: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    from coreai.authoring import AIModelAsset

    loaded = AIModelAsset.load(asset).program
    # https://apple.github.io/coreai-torch/main/coreai-core/tutorials/construct-a-graph.html
    (graph,) = loaded._module._mlir_module.body.operations
    with graph.context:
        change(graph, *arguments)
    with tempfile.TemporaryDirectory() as place:
        loaded.save_asset(Path(place, "changed.aimodel"))
        for name in (program.PROGRAM, program.DIGEST):
            shutil.copy(Path(place, "changed.aimodel", name), asset)


def operations_of(graph: Any, name: str) -> list[Any]:
    """The operations of a Core AI program that compute the value called ``name``, in order."""
    (block,) = graph.regions[0].blocks
    return [op for op in block.operations if f'<"{name}": unit>' in str(op.location)]


def axis_in_asset(graph: Any, name: str) -> None:
    """Let the softmax called ``name`` run over the last axis but one."""
    from coreai._compiler import ir

    (softmax,) = (op for op in operations_of(graph, name) if "softmax" in op.operation.name)
    with ir.InsertionPoint(softmax), softmax.location:
        softmax.operands[1] = write.constant(2, np.int32)


def silu_in_asset(graph: Any, name: str) -> None:
    """SiLU in the place of the Hardswish called ``name``."""
    from coreai._compiler import ir
    from coreai._compiler.dialects import coreai as dialect

    *_, product = operations_of(graph, name)
    with ir.InsertionPoint(product), product.location:
        product.result.replace_all_uses_with(dialect.silu(product.operands[0]))
    product.operation.erase()


def rename_in_asset(graph: Any) -> None:
    """Call the output something else."""
    (block,) = graph.regions[0].blocks
    *_, last = block.operations
    (value,) = last.operands
    with graph.location:
        graph.outputs_spec = [("scores", value)]


def forget_bias_in_asset(graph: Any, name: str) -> None:
    """Leave out the last addition to the value called ``name``."""
    *_, sum_ = (op for op in operations_of(graph, name) if "add" in op.operation.name)
    sum_.result.replace_all_uses_with(sum_.operands[0])
    sum_.operation.erase()
