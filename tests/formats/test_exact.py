"""References in float64: ONNX files by the reference evaluator, programs of PyTorch in PyTorch."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from levit_export.core.errors import ArtifactError
from levit_export.core.values import Signature
from levit_export.formats import target
from levit_export.formats.onnx.exact import ExactSession, consumers
from levit_export.formats.pytorch import TorchFile, TorchFileSession

THIRD = np.float32(1 / 3)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A division by constants of each kind, with a cast to float32 on the way."""
    nodes = [
        helper.make_node("Constant", [], ["scalar"], value_float=float(THIRD)),
        helper.make_node("Constant", [], ["two"], value_ints=[2]),
        helper.make_node("ConstantOfShape", ["two"], ["zeros"]),
        helper.make_node("Div", ["x", "stored"], ["divided"]),
        helper.make_node("Cast", ["divided"], ["cast"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["cast", "scalar"], ["scaled"]),
        helper.make_node("Add", ["scaled", "zeros"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 2]) for n in "xy")
    stored = numpy_helper.from_array(np.array([7, 11], np.float32), "stored")
    graph = helper.make_graph(nodes, "division", [x], [y], [stored])
    opset = [helper.make_opsetid("", 18)]
    path = tmp_path / "division.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), path)
    return path


def test_an_onnx_file_is_computed_in_float64_throughout(file: Path) -> None:
    """No cast and no constant takes it back to float32; inner values come as well."""
    x = np.array([[1, 2], [3, 5]], np.float32)
    found = ExactSession(target("onnx").inspect(file), ["divided"]).run({"x": x})
    divided = x.astype(np.float64) / np.array([7.0, 11.0])
    assert found["divided"].dtype == found["y"].dtype == np.float64
    assert np.array_equal(found["divided"], divided)
    assert np.array_equal(found["y"], divided * np.float64(THIRD))


def test_an_onnx_file_says_what_is_made_of_each_value(file: Path) -> None:
    """What is made of each value is listed in the order of the file's nodes."""
    found = consumers(file)
    assert list(found) == ["scalar", "two", "zeros", "divided", "cast", "scaled", "y"]
    assert (found["divided"], found["scalar"], found["y"]) == (("cast",), ("scaled",), ())


def test_an_unknown_operator_is_refused(tmp_path: Path) -> None:
    """The evaluator has the operators of ONNX, and no vendor's."""
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 2]) for n in "xy")
    node = helper.make_node("BiasGelu", ["x", "x"], ["y"], domain="com.microsoft")
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    graph = helper.make_graph([node], "vendor", [x], [y])
    onnx.save(helper.make_model(graph, opset_imports=opsets), tmp_path / "vendor.onnx")
    artifact = target("onnx").inspect(tmp_path / "vendor.onnx")
    with pytest.raises(ArtifactError, match="cannot be computed in float64"):
        ExactSession(artifact)


class Narrow(nn.Module):
    """A division that insists on float32 on the way, by a constant that is no parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.divisor = torch.tensor([7.0, 11.0])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Divided, cast, and divided again."""
        return (x / self.divisor).to(torch.float32) / torch.full((2,), 3.0, dtype=torch.float32)


@pytest.mark.parametrize("name", ["narrow.pt2", "narrow.pt"])
def test_a_program_of_pytorch_is_computed_in_float64_throughout(tmp_path: Path, name: str) -> None:
    """Neither casts nor constants that the program holds take it back to float32."""
    x = torch.tensor([[1.0, 2.0]])
    if name.endswith("pt2"):
        torch.export.save(torch.export.export(Narrow(), (x,)), tmp_path / name)
    else:
        torch.jit.trace(Narrow(), x).save(tmp_path / name)
    file = TorchFile(tmp_path / name)
    session = TorchFileSession(file, Signature(file.inputs, file.outputs), "fp64")
    (found,) = session.run({"x": x.numpy()}).values()
    assert found.dtype == np.float64
    assert np.array_equal(found, x.numpy().astype(np.float64) / np.array([7.0, 11.0]) / 3.0)


class _Harmful:
    """Makes a folder when it is unpickled."""

    def __init__(self, place: Path) -> None:
        self.place = str(place)

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (self.place,)


def test_nothing_but_tensors_is_unpickled_from_a_program(tmp_path: Path) -> None:
    """A pickle inside a .pt2 that asks for a call is refused, and nothing is called."""
    sound, changed = tmp_path / "sound.pt2", tmp_path / "changed.pt2"
    torch.export.save(torch.export.export(Narrow(), (torch.ones(1, 2),)), sound)
    torch.save(_Harmful(tmp_path / "called"), tmp_path / "harmful")
    harmful = (tmp_path / "harmful").read_bytes()
    replaced = 0
    with zipfile.ZipFile(sound) as read, zipfile.ZipFile(changed, "w") as written:
        for name in read.namelist():
            content = read.read(name)
            replaced += content.startswith(b"PK")
            written.writestr(name, harmful if content.startswith(b"PK") else content)
    assert replaced
    with pytest.raises(ArtifactError, match=r"changed\.pt2 cannot be read"):
        TorchFile(changed)
    assert not (tmp_path / "called").exists()
