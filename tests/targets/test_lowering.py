"""Programs lowered by rules: the same function and files as by the converters' own way."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import subjects
import torch
from torch.export import ExportedProgram

from levit_export.core import Artifact, ExportOptions, Layout, Prepared
from levit_export.preparation import prepare
from levit_export.targets import lowering, target

LAYOUTS: tuple[Layout, ...] = ("tokens", "maps")


@pytest.fixture(scope="module", params=LAYOUTS)
def model(request: pytest.FixtureRequest) -> Prepared:
    """The small model in one layout."""
    return prepare(subjects.tiny_checkpoint(), layout=request.param)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("batch", [1, 2])
def test_the_same_function(layout: Layout, batch: int) -> None:
    """What is handed to converters computes bit for bit what was captured."""
    program = prepare(subjects.tiny_checkpoint(), layout=layout, batch=batch).program
    lowered = lowering.for_openvino(program)
    assert lowered is not None
    images = torch.randn(batch, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    expected = program.module()(images)
    assert torch.equal(lowered(images), expected)


def test_no_operator_is_left_that_converters_lower(model: Prepared) -> None:
    """Nothing is left of what OpenVINO does not know."""
    lowered = lowering.for_openvino(model.program)
    assert lowered is not None
    left = {str(node.target) for node in lowered.graph.nodes}
    assert left.isdisjoint(f"aten.{name}" for name in lowering.REWRITTEN)
    assert {"aten.convolution.default", "aten.bmm.default", "aten._softmax.default"} <= left


def test_the_captured_program_stays_as_it_was(model: Prepared, tmp_path: Path) -> None:
    """Lowering works on copies, and ``torch.onnx`` changes nothing of what it takes as it is."""
    before = str(model.program.graph), model.program.dialect
    lowering.for_openvino(model.program)
    subjects.export(model, tmp_path / "onnx", "onnx", ExportOptions(simplify=False))
    assert (str(model.program.graph), model.program.dialect) == before


def refused(*_: Any) -> Any:
    """In place of a trace that must not be made."""
    raise AssertionError("the program was traced once more")


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_the_same_operators_as_the_converters_way(
    kind: str, model: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file computes what it does when the converter lowers; nothing is traced again.

    OpenVINO leaves broadcasts of its own in maps, which rules spare it.
    """
    options = ExportOptions(precision=target(kind).precisions[0])
    with monkeypatch.context() as patch:
        patch.setattr(ExportedProgram, "run_decompositions", refused)
        ours = subjects.export(model, tmp_path / "ours", kind, options)
    monkeypatch.setattr(lowering, "_is_simple", lambda _: False)
    theirs = subjects.export(model, tmp_path / "theirs", kind, options)
    assert operators(ours) == operators(theirs)


def operators(artifact: Artifact) -> Counter[str]:
    """How many there are in a file of each kind that computes something."""
    return Counter(kind for kind in _kinds(artifact) if kind.lower() not in MOVES)


MOVES = {"constant", "const", "transpose", "reshape", "broadcast", "cast"}


def _kinds(artifact: Artifact) -> list[str]:
    if artifact.format == "onnx":
        import onnx

        return [node.op_type for node in onnx.load(artifact.path).graph.node]
    import openvino

    graph = openvino.Core().read_model(artifact.path)
    return [node.get_type_name() for node in graph.get_ops()]


@pytest.mark.parametrize("setting", [{"skip": ("bake_attention_bias",)}, {"batch": None}], ids=str)
def test_other_programs_are_left_to_the_converters(
    setting: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program with another operator, or without fixed shapes, goes the converter's way."""
    program = prepare(subjects.tiny_checkpoint(), **setting).program
    assert lowering.for_openvino(program) is None
    asked: list[Any] = []
    monkeypatch.setattr(ExportedProgram, "run_decompositions", lambda *given: asked.append(given))
    with lowering.as_captured():
        program.run_decompositions("table")
    assert asked == [(program, "table")]


def test_torch_is_as_it_was_afterwards() -> None:
    """Also where ``torch.onnx`` fails, programs decompose as before."""
    before = ExportedProgram.run_decompositions
    with pytest.raises(ValueError, match="failed"), lowering.as_captured():
        raise ValueError("failed")
    assert ExportedProgram.run_decompositions is before
