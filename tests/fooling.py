"""Ways to talk a check into a pass: copies of honest artifacts, spoilt by somebody who knows how.

Every function changes files in place and is drawn from a seed. ``scripts/fool-the-check`` tries
all of them with several seeds; the tests try some.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from mutations import PLACES, edit_asset, edit_specification, main_block

from levit_export.checks import execution
from levit_export.core import packages
from levit_export.core.values import Artifact
from levit_export.formats.coreai import program, write

PREFIX = "levit_export."
Said = Callable[[dict[str, str]], None]
"""Changes what a file says of itself, in place."""
Draw = np.random.Generator


def without_accuracy() -> AbstractContextManager[object]:
    """Count nothing on the labelled images, which are most of the time and part of no verdict."""
    return patch.object(execution, "_accuracy", lambda *_: None)


# --- reading and writing each format ---------------------------------------------------------


def _onnx(path: Path, change: Callable[[Any], None]) -> None:
    import onnx

    proto = onnx.load(path)
    change(proto)
    onnx.save(proto, path)


def _openvino(path: Path, change: Callable[[Any], None]) -> None:
    openvino = packages.openvino()
    graph = openvino.Core().read_model(path)
    change(graph)
    spoilt = path.with_name("spoilt.xml")
    openvino.save_model(graph, spoilt, compress_to_fp16=False)
    del graph
    shutil.move(spoilt, path)
    shutil.move(spoilt.with_suffix(".bin"), path.with_suffix(".bin"))


def say(artifact: Artifact, change: Said) -> None:
    """Let a file say something else of itself."""
    if artifact.format == "onnx":

        def in_onnx(proto: Any) -> None:
            said = {p.key: p.value for p in proto.metadata_props}
            change(said)
            del proto.metadata_props[:]
            for key, value in said.items():
                proto.metadata_props.add(key=key, value=value)

        _onnx(artifact.path, in_onnx)
        return
    if artifact.format == "coreml":

        def in_coreml(model: Any) -> None:
            said = dict(model.description.metadata.userDefined)
            change(said)
            model.description.metadata.userDefined.clear()
            model.description.metadata.userDefined.update(said)

        edit_specification(artifact.path, in_coreml)
        return
    if artifact.format == "coreai":
        place = artifact.path / program.METADATA
        content = json.loads(place.read_text("utf-8"))
        change(content[program.SAID])
        place.write_text(json.dumps(content), "utf-8")
        return
    _say_in_xml(artifact.path, change)


def _say_in_xml(path: Path, change: Said) -> None:
    from xml.etree import ElementTree as ET

    tree = ET.parse(path)
    section = tree.find(f"rt_info/{PREFIX.rstrip('.')}")
    assert section is not None
    said = {PREFIX + each.tag: each.get("value", "") for each in section}
    change(said)
    for each in list(section):
        section.remove(each)
    for key, value in said.items():
        ET.SubElement(section, key.removeprefix(PREFIX), value=value)
    tree.write(path)


def scale_weights(artifact: Artifact, draw: Draw, factor: float) -> None:
    """Multiply a weight tensor, or the scales of a quantised one, by ``factor``."""
    if artifact.format == "onnx":
        _scale_onnx(artifact.path, draw, factor)
    elif artifact.format == "openvino":
        _scale_openvino(artifact.path, draw, factor)
    else:
        places = [p for p in PLACES[artifact.format](artifact.path) if np.prod(p.shape) > 9]
        place = places[draw.integers(len(places))]
        place.change(lambda array: array * array.dtype.type(factor), place.shape)


def _scale_onnx(path: Path, draw: Draw, factor: float) -> None:
    import onnx

    def change(proto: Any) -> None:
        arrays = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
        names = [n for n, a in arrays.items() if a.dtype.kind == "f" and a.size > 9]
        name = names[draw.integers(len(names))]
        (tensor,) = (t for t in proto.graph.initializer if t.name == name)
        array = arrays[name]
        tensor.CopyFrom(onnx.numpy_helper.from_array(array * array.dtype.type(factor), name))

    _onnx(path, change)


def _scale_openvino(path: Path, draw: Draw, factor: float) -> None:
    openvino = packages.openvino()

    def change(graph: Any) -> None:
        nodes = [
            n
            for n in graph.get_ordered_ops()
            if n.get_type_name() == "Constant"
            and n.get_element_type().is_real()
            and np.array(n.data).size > 9
        ]
        node = nodes[draw.integers(len(nodes))]
        data = np.array(node.data)
        made = openvino.op.Constant((data * data.dtype.type(factor)).astype(data.dtype))
        for user in node.output(0).get_target_inputs():
            user.replace_source_output(made.output(0))

    _openvino(path, change)


# --- hidden constants ------------------------------------------------------------------------


def hide(artifact: Artifact, draw: Draw, way: str, factor: float) -> None:
    """Multiply an inner value by ``factor``, which is hidden in the ``way`` that is named."""
    hidden = {
        "onnx": _hide_onnx,
        "openvino": _hide_openvino,
        "coreml": _hide_coreml,
        "coreai": _hide_coreai,
    }
    hidden[artifact.format](artifact.path, draw, way, factor)


WAYS = ("scalar", "attribute", "integer", "subgraph", "list", "folded")


def _hide_onnx(path: Path, draw: Draw, way: str, factor: float) -> None:
    from onnx import helper

    def change(proto: Any) -> None:
        graph = proto.graph
        nodes = [i for i, n in enumerate(graph.node) if n.op_type in ("HardSwish", "Softmax")]
        at = nodes[draw.integers(len(nodes))]
        node = graph.node[at]
        name = node.output[0]
        node.output[0] = f"{name}_honest"
        kind = 10 if any(t.data_type == 10 for t in graph.initializer) else 1
        made: list[Any]
        if way == "subgraph":
            body = [
                helper.make_node("Constant", [], ["f"], value_float=factor),
                helper.make_node("Cast", ["f"], ["c"], to=kind),
                helper.make_node("Mul", [node.output[0], "c"], ["inner"]),
            ]
            value = helper.make_tensor_value_info("inner", kind, None)
            branch = helper.make_graph(body, "branch", [], [value])
            condition = helper.make_node("Constant", [], ["always"], value_int=1)
            boolean = helper.make_node("Cast", ["always"], ["condition"], to=9)
            chosen = helper.make_node(
                "If", ["condition"], [name], then_branch=branch, else_branch=branch
            )
            made = [condition, boolean, chosen]
        elif way == "attribute":
            made = [helper.make_node("LeakyRelu", [node.output[0]], [name], alpha=factor)]
        else:
            constants = {
                "scalar": {"value_float": factor},
                "integer": {"value_int": round(factor * 1000)},
                "list": {"value_floats": [factor]},
                "folded": {"value_floats": [factor / 2, factor / 2]},
            }[way]
            made = [helper.make_node("Constant", [], ["hidden"], **constants)]
            last = "hidden"
            if way == "folded":
                made.append(helper.make_node("ReduceSum", [last], ["summed"], keepdims=0))
                last = "summed"
            made.append(helper.make_node("Cast", [last], ["number"], to=kind))
            last = "number"
            if way == "integer":
                made += [
                    helper.make_node("Constant", [], ["t"], value_float=1000.0),
                    helper.make_node("Cast", ["t"], ["thousand"], to=kind),
                    helper.make_node("Div", [last, "thousand"], ["ratio"]),
                ]
                last = "ratio"
            made.append(helper.make_node("Mul", [node.output[0], last], [name]))
        whole = [*graph.node[: at + 1], *made, *graph.node[at + 1 :]]
        del graph.node[:]
        graph.node.extend(whole)

    _onnx(path, change)


def _hide_openvino(path: Path, draw: Draw, way: str, factor: float) -> None:
    openvino = packages.openvino()
    ops = openvino.opset13

    def change(graph: Any) -> None:
        nodes = [n for n in graph.get_ordered_ops() if n.get_type_name() in ("HSwish", "Softmax")]
        honest = nodes[draw.integers(len(nodes))]
        users = list(honest.output(0).get_target_inputs())
        number = openvino.op.Constant(np.array(factor, np.float32))
        if way == "subgraph":
            taken = ops.parameter(honest.output(0).get_partial_shape(), np.float32)
            body = openvino.Model([ops.multiply(taken, number)], [taken])
            chosen = ops.if_op(openvino.op.Constant(np.array(True)))
            chosen.set_then_body(body)
            chosen.set_else_body(body.clone())
            chosen.set_input(honest.output(0), taken, chosen.get_else_body().get_parameters()[0])
            made = chosen.set_output(body.results[0], chosen.get_else_body().results[0])
        elif way == "attribute":
            made = ops.elu(honest, factor).output(0)
        elif way == "integer":
            whole = ops.convert(
                openvino.op.Constant(np.array(round(factor * 1000), np.int32)), "f32"
            )
            thousand = openvino.op.Constant(np.array(1000, np.float32))
            made = ops.multiply(honest, ops.divide(whole, thousand)).output(0)
        elif way == "folded":
            halves = openvino.op.Constant(np.array([factor / 2] * 2, np.float32))
            axes = openvino.op.Constant(np.array([0]))
            made = ops.multiply(honest, ops.reduce_sum(halves, axes)).output(0)
        else:
            array = [factor] if way == "list" else factor
            constant = openvino.op.Constant(np.array(array, np.float32))
            made = ops.multiply(honest, constant).output(0)
        for user in users:
            user.replace_source_output(made)

    _openvino(path, change)


HALF, SINGLE, WHOLE, TEXT = 10, 11, 23, 2
"""Codes of MIL's element types."""


def _mil_constant(block: Any, label: str, number: float | str, code: int, *shape: int) -> Any:
    """Add a constant op; returns its type."""
    made = block.operations.add(type="const")
    output = made.outputs.add(name=label)
    output.type.tensorType.dataType = code
    output.type.tensorType.rank = len(shape)
    for side in shape:
        output.type.tensorType.dimensions.add().constant.size = side
    value = made.attributes["val"]
    value.type.CopyFrom(output.type)
    tensor = value.immediateValue.tensor
    if isinstance(number, str):
        tensor.strings.values.append(number)
    elif code == SINGLE:
        tensor.floats.values.append(number)
    elif code == WHOLE:
        tensor.ints.values.append(round(number))
    else:
        tensor.bytes.values = np.float16(number).tobytes()
    return output.type


def _mil_op(block: Any, kind: str, label: str, given: Mapping[str, str], like: Any) -> Any:
    """Add an op that takes named values; returns it."""
    made = block.operations.add(type=kind)
    for parameter, value in given.items():
        made.inputs[parameter].arguments.add().name = value
    made.outputs.add(name=label).type.CopyFrom(like)
    return made


def _hide_coreml(path: Path, draw: Draw, way: str, factor: float) -> None:
    def change(model: Any) -> None:
        block = main_block(model)
        at = [i for i, o in enumerate(block.operations) if o.type in ("softmax", "sigmoid_hard")]
        place = at[draw.integers(len(at))]
        before = list(block.operations)
        del block.operations[:]
        block.operations.extend(before[: place + 1])
        (output,) = block.operations[place].outputs
        name, like, code = output.name, output.type, output.type.tensorType.dataType
        output.name = honest = f"{name}_honest"
        if way == "attribute":
            _mil_constant(block, "hidden", factor, code)
            _mil_op(block, "leaky_relu", name, {"x": honest, "alpha": "hidden"}, like)
        elif way in ("integer", "folded"):
            _mil_constant(block, "whole", factor * 1000, WHOLE)
            scalar = _mil_constant(block, "thousandth", 0.001, code)
            _mil_constant(block, "kind", "fp16" if code == HALF else "fp32", TEXT)
            _mil_op(block, "cast", "number", {"x": "whole", "dtype": "kind"}, scalar)
            _mil_op(block, "mul", "ratio", {"x": "number", "y": "thousandth"}, scalar)
            _mil_op(block, "mul", name, {"x": honest, "y": "ratio"}, like)
        elif way == "subgraph":
            _mil_constant(block, "hidden", factor, code)
            _mil_op(block, "cond", name, {"pred": honest}, like).blocks.add()
        else:
            _mil_constant(block, "hidden", factor, code, *(1,) * (way == "list"))
            _mil_op(block, "mul", name, {"x": honest, "y": "hidden"}, like)
        block.operations.extend(before[place + 1 :])

    edit_specification(path, change)


def _hide_coreai(path: Path, draw: Draw, way: str, factor: float) -> None:
    edit_asset(path, _hide_in_asset, way, factor, float(draw.random()))


def _hide_in_asset(graph: Any, way: str, factor: float, share: float) -> None:
    """The value is the one that lies at ``share`` of all that may be taken."""
    from coreai._compiler import ir
    from coreai._compiler.dialects import coreai as dialect

    (block,) = graph.regions[0].blocks
    operations = list(block.operations)
    at = [
        i
        for i, op in enumerate(operations)
        if op.operation.name.endswith(("softmax", "broadcasting_mul"))
    ]
    place = at[int(share * len(at))]
    (value,) = operations[place].results
    users = [(use.owner, use.operand_number) for use in value.uses]
    with ir.InsertionPoint(operations[place + 1]), operations[place].location:
        if way == "subgraph":
            always = dialect.constant(np.array(True))
            made, branches = dialect.if_([value.type], always)
            for branch in branches:
                with branch:
                    number = _asset_number(value, "scalar", factor)
                    dialect.yield_([dialect.broadcasting_mul(value, number)])
        else:
            made = dialect.broadcasting_mul(value, _asset_number(value, way, factor))
    for user, operand in users:
        user.operands[operand] = made


def _asset_number(value: Any, way: str, factor: float) -> Any:
    """A number in the type of ``value``; no operation of Core AI has one among its attributes."""
    from coreai._compiler.dialects import coreai as dialect

    dtype = np.dtype(program.TYPES[str(value.type.element_type)])
    if way == "attribute":
        numbers = (
            write.constant(np.full((1, 1, 1, 1), number), kind)
            for number, kind in ((1, np.int8), (factor, dtype), (0, np.int8), (0, dtype))
        )
        return dialect.blockwise_shift_scale(*numbers)
    if way == "integer":
        whole = dialect.cast(write.constant(round(factor * 1000), np.int32), dtype.type)
        return dialect.broadcasting_divide(whole, write.constant(1000, dtype))
    if way == "folded":
        halves = write.constant([factor / 2] * 2, dtype)
        return dialect.reduce_sum(halves, write.constant([0], np.int32))
    return write.constant([factor] if way == "list" else factor, dtype)


# --- decoys ----------------------------------------------------------------------------------


def plant_decoys(artifact: Artifact, draw: Draw) -> None:
    """Dead quantised tensors and quantisers, of which no output is made."""
    size = int(draw.integers(1, 400_000))
    if artifact.format == "onnx":
        from onnx import helper, numpy_helper

        def change(proto: Any) -> None:
            graph = proto.graph
            tensors = {
                "decoy_q": np.ones((size, 2), np.int8),
                "decoy_s": np.float32(0.1),
                "decoy_z": np.int8(0),
                "decoy_half": np.ones((size, 2), np.float16),
            }
            graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in tensors.items())
            parts = ["decoy_q", "decoy_s", "decoy_z"]
            graph.node.append(helper.make_node("DequantizeLinear", parts, ["decoy_w"]))
            parts = ["decoy_w", "decoy_s", "decoy_z"]
            graph.node.append(helper.make_node("QuantizeLinear", parts, ["decoy_again"]))

        _onnx(artifact.path, change)
    elif artifact.format == "openvino":
        from xml.etree import ElementTree as ET

        tree = ET.parse(artifact.path)
        layers = tree.find("layers")
        assert layers is not None
        binary = artifact.path.with_suffix(".bin")
        offset = binary.stat().st_size
        binary.write_bytes(binary.read_bytes() + bytes(size))
        layer = ET.SubElement(
            layers, "layer", id="999999", name="decoy", type="Const", version="opset1"
        )
        ET.SubElement(
            layer, "data", element_type="i8", shape=str(size), offset=str(offset), size=str(size)
        )
        port = ET.SubElement(ET.SubElement(layer, "output"), "port", id="0", precision="I8")
        ET.SubElement(port, "dim").text = str(size)
        tree.write(artifact.path)
    elif artifact.format == "coreai":
        edit_asset(artifact.path, _decoy_in_asset)
    else:

        def in_program(model: Any) -> None:
            block = main_block(model)
            made = block.operations.add(type="const")
            output = made.outputs.add(name="decoy")
            output.type.tensorType.dataType = 21
            output.type.tensorType.rank = 1
            output.type.tensorType.dimensions.add().constant.size = size
            made.attributes["val"].type.CopyFrom(output.type)
            made.attributes["val"].immediateValue.tensor.bytes.values = bytes(size)

        edit_specification(artifact.path, in_program)


def _decoy_in_asset(graph: Any) -> None:
    """A second function, which holds what the first one does and which nothing calls.

    Operations that no output is made of are left out when a program is saved.
    """
    from coreai._compiler import ir

    with ir.InsertionPoint(graph), graph.location:
        copy = graph.operation.clone()
    copy.attributes["sym_name"] = ir.StringAttr.get("decoy")
