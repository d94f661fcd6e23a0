"""Damaged and foreign packages: refused with an error that says what is wrong."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mil_programs import MODEL, WEIGHTS, Saved, edit

from levit_export.core.errors import PackageError, UnsupportedOpError
from levit_export.formats import mil
from levit_export.formats.mil.table import OPS

Save = Callable[..., Saved]


@pytest.fixture
def package(sound: Saved, tmp_path: Path) -> Path:
    """A copy of the sound package to damage."""
    mil.load(sound.path)
    return Path(shutil.copytree(sound.path, tmp_path / "copy.mlpackage"))


def _op(block: Any, type_: str) -> Any:
    return next(op for op in block.operations if op.type == type_)


def _blob(block: Any) -> Any:
    """The first constant in the weight file."""
    return next(
        op.attributes["val"]
        for op in block.operations
        if op.type == "const" and op.attributes["val"].WhichOneof("value") == "blobFileValue"
    )


def _manifest(package: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    manifest = json.loads((package / "Manifest.json").read_text())
    change(manifest)
    (package / "Manifest.json").write_text(json.dumps(manifest))


def _root(manifest: dict[str, Any]) -> dict[str, Any]:
    return manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]  # type: ignore[no-any-return]


FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing directory": (shutil.rmtree, "is missing"),
    "no manifest": (lambda p: (p / "Manifest.json").unlink(), "Manifest.json cannot be read"),
    "manifest is a list": (lambda p: (p / "Manifest.json").write_text("[]"), "holds a list"),
    "manifest is cut": (
        lambda p: (p / "Manifest.json").write_text('{"itemInfo'),
        "Manifest.json cannot be read",
    ),
    "manifest is deep": (
        lambda p: (p / "Manifest.json").write_text("[" * 200_000),
        "Manifest.json cannot be read",
    ),
    "manifest is binary": (
        lambda p: (p / "Manifest.json").write_bytes(b"\xff\xfe\x00"),
        "Manifest.json cannot be read",
    ),
    "no root": (lambda p: _manifest(p, lambda m: m.pop("rootModelIdentifier")), "lacks"),
    "unknown root": (
        lambda p: _manifest(p, lambda m: m.update(rootModelIdentifier="other")),
        "no path for its root model",
    ),
    "root outside": (
        lambda p: _manifest(p, lambda m: _root(m).update(path="../../x.mlmodel")),
        "leaves the package",
    ),
    "root by a detour": (
        lambda p: _manifest(p, lambda m: _root(m).update(path=f"../{MODEL}")),
        "leaves the package",
    ),
    "root absolute": (
        lambda p: _manifest(p, lambda m: _root(m).update(path="/etc/passwd")),
        "leaves the package",
    ),
    "no specification": (lambda p: (p / MODEL).unlink(), "specification .* is missing"),
    "specification is text": (
        lambda p: (p / MODEL).write_text("not a protocol buffer"),
        "cannot be parsed",
    ),
    "specification is empty": (lambda p: (p / MODEL).write_bytes(b""), "it holds no model"),
    "no weights": (lambda p: (p / WEIGHTS).unlink(), "weight file .* cannot be read"),
    "weights are cut": (
        lambda p: (p / WEIGHTS).write_bytes((p / WEIGHTS).read_bytes()[:-64]),
        "is said to hold",
    ),
    "weights are empty": (lambda p: (p / WEIGHTS).write_bytes(b""), "less than its header"),
}


@pytest.mark.parametrize("damage", FILES)
def test_damaged_files(package: Path, damage: str) -> None:
    """Missing, cut and foreign files are package errors that name the part."""
    harm, message = FILES[damage]
    harm(package)
    with pytest.raises(PackageError, match=message):
        mil.load(package)


def test_a_file_is_not_a_package(tmp_path: Path) -> None:
    """A file in place of the directory is told apart from a missing one."""
    (tmp_path / "m.mlpackage").write_text("")
    with pytest.raises(PackageError, match="it is a file"):
        mil.load(tmp_path / "m.mlpackage")


def test_a_link_out_of_the_package_is_refused(package: Path, tmp_path: Path) -> None:
    """A weight file that is a link to somewhere else is not followed."""
    shutil.move(package / WEIGHTS, tmp_path / "elsewhere.bin")
    (package / WEIGHTS).symlink_to(tmp_path / "elsewhere.bin")
    with pytest.raises(PackageError, match="through a link"):
        mil.load(package)


# name: (field of the metadata record at offset 64, struct format, value, message)
RECORDS = {
    "sentinel": (0, "<I", 0xBADC0DE, "where a record has 0xdeadbeef"),
    "unknown type": (4, "<I", 99, "unknown type 99"),
    "other type": (4, "<I", 1, "holds float16"),
    "size": (8, "<Q", 400, "takes 432"),
    "huge size": (8, "<Q", 2**62, "takes 432"),
    "offset beyond": (16, "<Q", 2**40, "is said to hold"),
    "offset overflow": (16, "<Q", 2**64 - 64, "is said to hold"),
    "offset unaligned": (16, "<Q", 130, "is said to hold"),
    "unused bits": (24, "<Q", 4, "takes 432"),
    "version": (-60, "<I", 1, "format version 1"),
}


@pytest.mark.parametrize("damage", RECORDS)
def test_damaged_records_of_the_weight_file(package: Path, damage: str) -> None:
    """Every field of a weight record is checked against the file and the program."""
    place, layout, value, message = RECORDS[damage]
    data = bytearray((package / WEIGHTS).read_bytes())
    struct.pack_into(layout, data, 64 + place, value)
    (package / WEIGHTS).write_bytes(data)
    with pytest.raises(PackageError, match=message):
        mil.load(package)


def _nest(_: Any, block: Any) -> None:
    _op(block, "relu").blocks.add()


def _grow(shape: list[int]) -> Callable[[Any, Any], None]:
    def change(_: Any, block: Any) -> None:
        op = next(o for o in block.operations if o.outputs[0].name == "active")
        dimensions = op.outputs[0].type.tensorType.dimensions
        for dimension, n in zip(dimensions, shape, strict=True):
            dimension.constant.size = n

    return change


def _second_function(model: Any, _: Any) -> None:
    model.mlProgram.functions["other"].CopyFrom(model.mlProgram.functions["main"])


def _rename_function(model: Any, _: Any) -> None:
    model.mlProgram.functions["other"].CopyFrom(model.mlProgram.functions["main"])
    del model.mlProgram.functions["main"]


def _describe_again(model: Any, _: Any) -> None:
    again = model.description.output.add()
    again.CopyFrom(model.description.output[0])
    again.type.multiArrayType.shape.append(7)


def _use(name: str) -> Callable[[Any, Any], None]:
    def change(_: Any, block: Any) -> None:
        _op(block, "relu").inputs["x"].arguments[0].name = name

    return change


def _string(block: Any, type_: str, parameter: str, value: str) -> None:
    name = _op(block, type_).inputs[parameter].arguments[0].name
    const = next(o for o in block.operations if o.outputs[0].name == name)
    const.attributes["val"].immediateValue.tensor.strings.values[0] = value


PROGRAMS: dict[str, tuple[Callable[[Any, Any], object], type[Exception], str]] = {
    "pipeline": (
        lambda m, _: m.pipeline.SetInParent(),
        UnsupportedOpError,
        "type pipeline, not an ML Program",
    ),
    "state": (
        lambda m, _: m.description.state.add(name="cache"),
        UnsupportedOpError,
        "keeps state between runs",
    ),
    "no function": (
        lambda m, _: m.mlProgram.functions.clear(),
        PackageError,
        "its program has no function",
    ),
    "neural network": (
        lambda m, _: m.neuralNetwork.SetInParent(),
        UnsupportedOpError,
        "neuralNetwork, not an ML Program",
    ),
    "too old": (
        lambda m, _: setattr(m, "specificationVersion", 5),
        UnsupportedOpError,
        "specification version 5",
    ),
    "too new": (
        lambda m, _: setattr(m, "specificationVersion", 12),
        UnsupportedOpError,
        "specification version 12",
    ),
    "two functions": (_second_function, UnsupportedOpError, "functions .'main', 'other'."),
    "no main": (_rename_function, UnsupportedOpError, "functions .'other'."),
    "op set": (
        lambda m, _: setattr(m.mlProgram.functions["main"], "opset", "CoreML42"),
        UnsupportedOpError,
        "op set 'CoreML42'",
    ),
    "code for another op set": (
        lambda m, _: setattr(m.mlProgram.functions["main"], "opset", "CoreML5"),
        PackageError,
        "not for 'CoreML5' alone",
    ),
    "control flow": (_nest, UnsupportedOpError, "nested blocks"),
    "unknown op": (
        lambda _, b: setattr(_op(b, "relu"), "type", "frobnicate"),
        UnsupportedOpError,
        "copy.mlpackage has 1 ops that .* does not know, 'frobnicate' -> 'active' the first",
    ),
    "unknown parameter": (
        lambda _, b: _op(b, "relu").inputs["slope"].CopyFrom(_op(b, "relu").inputs["x"]),
        UnsupportedOpError,
        "op 'relu' -> 'active' .*parameters that are not known: .'slope'.",
    ),
    "context as parameter": (
        lambda _, b: (
            _op(b, "reshape").inputs["specification"].CopyFrom(_op(b, "reshape").inputs["shape"])
        ),
        UnsupportedOpError,
        "not known: .'specification'.",
    ),
    "unknown option": (
        lambda _, b: _string(b, "conv", "pad_type", "circular"),
        UnsupportedOpError,
        "op 'conv' -> 'stem' .*pad_type 'circular'",
    ),
    "missing parameter": (
        lambda _, b: _op(b, "relu").inputs.pop("x"),
        PackageError,
        "op 'relu' -> 'active' .*lacks parameters .'x'.",
    ),
    "two values for one parameter": (
        lambda _, b: _op(b, "relu").inputs["x"].arguments.add(name="stem"),
        PackageError,
        "2 values for 'x'",
    ),
    "dangling name": (_use("nowhere"), PackageError, "'nowhere', which is never defined"),
    "cycle": (_use("active"), PackageError, "'active', which is only defined by a later op"),
    "order": (_use("mixed"), PackageError, "'mixed', which is only defined by a later op"),
    "string as tensor": (
        lambda _, b: setattr(
            _op(b, "relu").inputs["x"].arguments[0],
            "name",
            _op(b, "conv").inputs["pad_type"].arguments[0].name,
        ),
        PackageError,
        "'x' is a string",
    ),
    "name twice": (
        lambda _, b: setattr(_op(b, "reshape").outputs[0], "name", "active"),
        PackageError,
        "the name 'active' is empty or defined twice",
    ),
    "shape of an op": (_grow([1, 4, 4, 5]), PackageError, "declared as float32.1, 4, 4, 5."),
    "huge shape": (_grow([2**20, 2**20, 2**20, 1]), PackageError, "too big"),
    "overflowing shape": (_grow([2**63, 2, 1, 1]), PackageError, "too big"),
    "constant of open shape": (
        lambda _, b: _blob(b).type.tensorType.dimensions[0].unknown.SetInParent(),
        PackageError,
        "is a constant of type float32.., 3, 3, 3.",
    ),
    "element type": (
        lambda _, b: setattr(_op(b, "relu").outputs[0].type.tensorType, "dataType", 10),
        PackageError,
        "the op gives float32",
    ),
    "unknown element type": (
        lambda _, b: setattr(_op(b, "relu").outputs[0].type.tensorType, "dataType", 41),
        UnsupportedOpError,
        "element type 41",
    ),
    "weights of another shape": (
        lambda _, b: setattr(_blob(b).type.tensorType.dimensions[0].constant, "size", 5),
        PackageError,
        "declared as float32.4, 3, 3, 3. but holds|takes 540",
    ),
    "weights elsewhere": (
        lambda _, b: setattr(_blob(b).blobFileValue, "fileName", "@model_path/../../../w.bin"),
        PackageError,
        "leaves the package",
    ),
    "weights at an absolute path": (
        lambda _, b: setattr(_blob(b).blobFileValue, "fileName", "/etc/passwd"),
        PackageError,
        "not below @model_path",
    ),
    "weight offset": (
        lambda _, b: setattr(_blob(b).blobFileValue, "offset", 2**40),
        PackageError,
        "no record at offset",
    ),
    "weight offset unaligned": (
        lambda _, b: setattr(_blob(b).blobFileValue, "offset", 65),
        PackageError,
        "no record at offset",
    ),
    "description without input": (
        lambda m, _: m.description.ClearField("input"),
        PackageError,
        "describes the inputs .., but has .'x'.",
    ),
    "description of another shape": (
        lambda m, _: m.description.input[0].type.multiArrayType.shape.append(7),
        PackageError,
        "it describes ArrayFeature",
    ),
    "description of an output with two types": (
        _describe_again,
        PackageError,
        r"gives one two types, in .'p', 'p'.",
    ),
    "description of an input twice": (
        lambda m, _: m.description.input.add().CopyFrom(m.description.input[0]),
        PackageError,
        "describes the inputs .'x', 'x'., but has .'x'.",
    ),
    "description of another output": (
        lambda m, _: setattr(m.description.output[0], "name", "q"),
        PackageError,
        "describes the outputs .'q'., but has .'p'.",
    ),
}


@pytest.mark.parametrize("damage", PROGRAMS)
def test_damaged_and_foreign_programs(package: Path, damage: str) -> None:
    """What a program must not be is found when it is loaded, or at its first run for shapes."""
    change, error, message = PROGRAMS[damage]
    edit(package, change)
    with pytest.raises(error, match=message):
        mil.load(package).run({"x": np.ones((1, 3, 8, 8), np.float32)})


def test_an_unknown_op_is_found_when_loading(package: Path) -> None:
    """A program that cannot be evaluated to its end is refused before it starts."""
    edit(package, lambda _, b: setattr(_op(b, "softmax"), "type", "hardmax"))
    with pytest.raises(UnsupportedOpError, match="'hardmax' -> 'p'"):
        mil.load(package)


def test_all_unknown_ops_are_named_with_their_counts(package: Path) -> None:
    """Whoever has to change a model learns at once what all stands in the way, and why."""

    def change(_: Any, block: Any) -> None:
        for type_, other in (("relu", "lstm"), ("softmax", "hardmax"), ("linear", "hardmax")):
            _op(block, type_).type = other

    edit(package, change)
    with pytest.raises(
        UnsupportedOpError, match=r"3 ops .*: hardmax \(2\), lstm \(1: recurrent layers"
    ):
        mil.load(package)


BIG = np.array([1 << 21, 1 << 21], np.int32)
TALL = np.broadcast_to(np.float32(1), (1 << 21, 1))

GREEDY: dict[str, dict[str, Any]] = {
    "fill": {"shape": BIG, "value": np.float32(1)},
    "tile": {"x": TALL[:1], "reps": BIG},
    "pad": {"x": TALL[:1], "pad": np.array([1 << 21, 0, 1 << 21, 0])},
    "add": {"x": TALL, "y": TALL.T},
    "matmul": {"x": TALL, "y": TALL.T},
    "linear": {"x": TALL, "weight": TALL},
    "gather": {"x": TALL.T, "indices": np.broadcast_to(0, 1 << 21), "specification": 7},
    "conv": {
        "x": TALL[np.newaxis, np.newaxis, :1],
        "weight": np.ones((1, 1, 1, 1), np.float32),
        "pad_type": "custom",
        "pad": np.array([1 << 21, 0, 1 << 21, 0]),
    },
    "max_pool": {
        "x": TALL[np.newaxis, np.newaxis, :1],
        "kernel_sizes": np.array([1, 1]),
        "pad_type": "custom",
        "pad": np.array([1 << 21, 0, 1 << 21, 0]),
    },
}


@pytest.mark.parametrize("op", GREEDY)
def test_an_op_that_asks_for_terabytes_is_refused(op: str) -> None:
    """Ops that make more than they are given check the size before they take the memory."""
    with pytest.raises(ValueError, match="more than"):
        OPS[op].function(**GREEDY[op])
