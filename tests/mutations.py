"""Change artifacts where they lie on disk: weights by their offsets, graphs by their text."""

from __future__ import annotations

import copy
import hashlib
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


# --- numbers ----------------------------------------------------------------------------------


def rolled(array: np.ndarray) -> np.ndarray:
    """Rows in another order."""
    return np.roll(array, 1, axis=0)


def exchanged(array: np.ndarray) -> np.ndarray:
    """The first two rows exchanged."""
    return array[[1, 0, *range(2, len(array))]]


def other_channels(kernel: np.ndarray) -> np.ndarray:
    """A convolution that sees blue for red."""
    return kernel[:, ::-1]


def with_nan(array: np.ndarray) -> np.ndarray:
    """One number replaced by NaN."""
    array.flat[array.size // 2] = np.nan
    return array


def one_percent(array: np.ndarray) -> np.ndarray:
    """Every number one percent larger."""
    return array * array.dtype.type(1.01)


def transposed_grid(table: np.ndarray) -> np.ndarray:
    """A table of attention biases with the rows and columns of the key's grid exchanged.

    Exchanging queries and keys would change nothing: offsets are symmetric.
    """
    heads, queries, keys = table.shape
    side = round(keys**0.5)
    return table.reshape(heads, queries, side, side).swapaxes(2, 3).reshape(table.shape)


def permuted(heads: int) -> Change:
    """A projection that takes the attention heads in another order."""

    def change(weight: np.ndarray) -> np.ndarray:
        return np.roll(weight.reshape(len(weight), heads, -1), 1, axis=1).reshape(weight.shape)

    return change


# --- places -----------------------------------------------------------------------------------


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


def value(block: str, operator: str) -> str:
    """What a block's operator is called in files."""
    return f"{block.replace('.', '_')}_{operator}"


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


def onnx_graph(artifact: Artifact, change: Callable[[Any], None]) -> None:
    """Change the graph of an ONNX file."""
    import onnx

    proto = onnx.load(artifact.path)
    change(proto.graph)
    artifact.path.write_bytes(proto.SerializeToString(deterministic=True))


def onnx_axis(artifact: Artifact, name: str) -> None:
    """A softmax over the queries."""

    def change(graph: Any) -> None:
        (node,) = (n for n in graph.node if n.output[0] == name)
        (attribute,) = (a for a in node.attribute if a.name == "axis")
        attribute.i = -2

    onnx_graph(artifact, change)


def onnx_silu(artifact: Artifact, name: str) -> None:
    """SiLU in the place of Hardswish."""
    import onnx

    def change(graph: Any) -> None:
        nodes = list(graph.node)
        (index,) = (i for i, n in enumerate(nodes) if n.output[0] == name)
        (x,) = nodes[index].input
        nodes[index : index + 1] = [
            onnx.helper.make_node("Sigmoid", [x], [f"{name}_sigmoid"]),
            onnx.helper.make_node("Mul", [x, f"{name}_sigmoid"], [name]),
        ]
        del graph.node[:]
        graph.node.extend(nodes)

    onnx_graph(artifact, change)


def onnx_renamed(artifact: Artifact) -> None:
    """The output under another name."""

    def change(graph: Any) -> None:
        graph.output[0].name = "scores"
        (node,) = (n for n in graph.node if n.output[0] == "logits")
        node.output[0] = "scores"

    onnx_graph(artifact, change)


def onnx_forgotten(artifact: Artifact) -> None:
    """The last layer without its bias."""

    def change(graph: Any) -> None:
        (node,) = (n for n in graph.node if n.output[0] == "logits")
        assert node.op_type == "Gemm"
        del node.input[2]

    onnx_graph(artifact, change)


def xml_replaced(artifact: Artifact, before: str, after: str, *, behind: str = "") -> None:
    """The first ``before`` that stands behind ``behind`` replaced, in an IR."""
    text = artifact.path.read_text("utf-8")
    start = text.index(before, text.index(behind))
    text = text[:start] + after + text[start + len(before) :]
    artifact.path.write_text(text, "utf-8")


def openvino_axis(artifact: Artifact, name: str) -> None:
    """A softmax over the queries."""
    xml_replaced(artifact, 'axis="3"', 'axis="2"', behind=f'name="{name}" type="SoftMax"')


def openvino_silu(artifact: Artifact, name: str) -> None:
    """SiLU in the place of Hardswish."""
    xml_replaced(artifact, f'name="{name}" type="HSwish"', f'name="{name}" type="Swish"')


def openvino_renamed(artifact: Artifact) -> None:
    """The output under another name."""
    xml_replaced(artifact, 'output_names="logits"', 'output_names="scores"')


def openvino_forgotten(artifact: Artifact) -> None:
    """The last addition takes its product twice, in place of product and bias."""
    text = artifact.path.read_text("utf-8")
    edges = [line for line in text.splitlines() if "<edge " in line]
    add = edges[-1].split('from-layer="')[1].split('"')[0]
    product, bias = (
        next(edge for edge in reversed(edges) if f'to-layer="{add}" to-port="{port}"' in edge)
        for port in (0, 1)
    )
    artifact.path.write_text(text.replace(bias, product.replace('"0" />', '"1" />')), "utf-8")


def _named(block: Any, name: str) -> Any:
    (op,) = (op for op in block.operations if op.outputs and op.outputs[0].name == name)
    return op


def coreml_axis(artifact: Artifact, name: str) -> None:
    """A softmax over the queries: its axis becomes a constant of its own."""

    def change(model: Any) -> None:
        block = main_block(model)
        softmax = _named(block, name)
        constant = copy.deepcopy(_named(block, softmax.inputs["axis"].arguments[0].name))
        constant.outputs[0].name = f"{name}_other_axis"
        constant.attributes["val"].immediateValue.tensor.ints.values[0] = -2
        softmax.inputs["axis"].arguments[0].name = f"{name}_other_axis"
        operations = [constant, *map(copy.deepcopy, block.operations)]
        del block.operations[:]
        block.operations.extend(operations)

    edit_specification(artifact.path, change)


def coreml_silu(artifact: Artifact, name: str) -> None:
    """SiLU in the place of Hardswish: ``x * sigmoid(x)`` for ``x * sigmoid_hard(x)``."""

    def change(model: Any) -> None:
        block = main_block(model)
        product = _named(block, name)
        gate = _named(block, product.inputs["y"].arguments[0].name)
        assert gate.type == "sigmoid_hard"
        gate.type = "sigmoid"
        del gate.inputs["alpha"], gate.inputs["beta"]

    edit_specification(artifact.path, change)


def coreml_renamed(artifact: Artifact) -> None:
    """The output under another name."""

    def change(model: Any) -> None:
        model.description.output[0].name = "scores"
        block = main_block(model)
        block.outputs[0] = "scores"
        (output,) = (o for op in block.operations for o in op.outputs if o.name == "logits")
        output.name = "scores"

    edit_specification(artifact.path, change)


def coreml_forgotten(artifact: Artifact) -> None:
    """The last layer without its bias."""

    def change(model: Any) -> None:
        layer = operations(model, "linear")[-1]
        del layer.inputs["bias"]

    edit_specification(artifact.path, change)


@dataclass(frozen=True)
class Edits:
    """Faults of a graph in one format: ``axis`` and ``silu`` of the value that is named.

    A softmax runs over the queries, SiLU stands in the place of Hardswish, the output has another
    name, and the logits lack the last bias.
    """

    axis: Callable[[Artifact, str], None]
    silu: Callable[[Artifact, str], None]
    renamed: Callable[[Artifact], None]
    forgotten: Callable[[Artifact], None]


EDITS = {
    "onnx": Edits(onnx_axis, onnx_silu, onnx_renamed, onnx_forgotten),
    "openvino": Edits(openvino_axis, openvino_silu, openvino_renamed, openvino_forgotten),
    "coreml": Edits(coreml_axis, coreml_silu, coreml_renamed, coreml_forgotten),
    "coreai": Edits(
        lambda artifact, name: edit_asset(artifact.path, axis_in_asset, name),
        lambda artifact, name: edit_asset(artifact.path, silu_in_asset, name),
        lambda artifact: edit_asset(artifact.path, rename_in_asset),
        lambda artifact: edit_asset(artifact.path, forget_bias_in_asset, "logits"),
    ),
}
