"""Programs that ``torch.onnx`` takes as they are: the same files as by its own way."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import onnx
import pytest
import subjects
from torch.export import ExportedProgram

from levit_export.core import Artifact, ExportOptions, Layout, Prepared
from levit_export.preparation import prepare
from levit_export.targets import lowering

LAYOUTS: tuple[Layout, ...] = ("tokens", "maps")


@pytest.fixture(scope="module", params=LAYOUTS)
def model(request: pytest.FixtureRequest) -> Prepared:
    """The small model in one layout."""
    return prepare(subjects.tiny_checkpoint(), layout=request.param)


def test_the_captured_program_stays_as_it_was(model: Prepared, tmp_path: Path) -> None:
    """``torch.onnx`` changes nothing of what it takes as it is."""
    before = str(model.program.graph), model.program.dialect
    subjects.export(model, tmp_path / "onnx", "onnx", ExportOptions(simplify=False))
    assert (str(model.program.graph), model.program.dialect) == before


def refused(*_: Any) -> Any:
    """In place of a trace that must not be made."""
    raise AssertionError("the program was traced once more")


def test_the_same_operators_as_the_converters_way(
    model: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file computes what it does when the converter lowers; nothing is traced again."""
    options = ExportOptions()
    with monkeypatch.context() as patch:
        patch.setattr(ExportedProgram, "run_decompositions", refused)
        ours = subjects.export(model, tmp_path / "ours", "onnx", options)
    monkeypatch.setattr(lowering, "_is_simple", lambda _: False)
    theirs = subjects.export(model, tmp_path / "theirs", "onnx", options)
    assert operators(ours) == operators(theirs)


def operators(artifact: Artifact) -> Counter[str]:
    """How many there are in a file of each kind that computes something."""
    kinds = [node.op_type for node in onnx.load(artifact.path).graph.node]
    return Counter(kind for kind in kinds if kind not in MOVES)


MOVES = ("Constant", "Transpose", "Reshape", "Cast")


@pytest.mark.parametrize("setting", [{"skip": ("bake_attention_bias",)}, {"batch": None}], ids=str)
def test_other_programs_are_left_to_the_converters(
    setting: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program with another operator, or without fixed shapes, goes the converter's way."""
    program = prepare(subjects.tiny_checkpoint(), **setting).program
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
