"""What ``--precision`` may say, and recipes of earlier exports."""

from __future__ import annotations

from pathlib import Path

import pytest

from levit_export.core.errors import ManifestError, UnknownNameError, UsageError
from levit_export.workflows import export_plan

FORMATS = {"onnx": ("fp32", "int8"), "coreml": ("fp16", "int8", "w4")}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, {}),
        ("int8", {"onnx": ("int8",), "coreml": ("int8",)}),
        ("INT8", {"onnx": ("int8",), "coreml": ("int8",)}),
        ("auto", {"onnx": ("auto",), "coreml": ("auto",)}),
        ("onnx=int8", {"onnx": ("int8",)}),
        ("onnx=int8,coreml=w4", {"onnx": ("int8",), "coreml": ("w4",)}),
        ("onnx=int8, onnx=fp32, onnx=int8", {"onnx": ("int8", "fp32")}),
        ("mlpackage=fp16,ort=fp32", {"coreml": ("fp16",), "onnx": ("fp32",)}),
    ],
)
def test_parsed(text: str | None, expected: dict[str, tuple[str, ...]]) -> None:
    """One precision is for all formats; pairs are for those that they name, aliases included."""
    assert export_plan.parse_precisions(text, FORMATS) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("w4", r"onnx cannot be exported as w4.*It can be: fp32, int8, auto"),
        ("onnx=w4", "onnx cannot be exported as w4"),
        ("onnx=", "not of the form FORMAT=PRECISION"),
        ("onnx=int8,fp16", "'fp16' that is not of the form FORMAT=PRECISION"),
        ("int8,fp16", "'int8' that is not of the form FORMAT=PRECISION"),
    ],
)
def test_refused(text: str, message: str) -> None:
    """What a format cannot do is refused with what it can; half a pair is refused."""
    with pytest.raises(UsageError, match=message):
        export_plan.parse_precisions(text, FORMATS)


def test_unknown_format() -> None:
    """A format that is not exported, or a typo, is refused with the nearest."""
    with pytest.raises(UnknownNameError, match="Did you mean 'onnx'"):
        export_plan.parse_precisions("onx=int8", FORMATS)


def test_no_recipe(tmp_path: Path) -> None:
    """A folder that is no export directory is no recipe."""
    with pytest.raises(ManifestError):
        export_plan.read_earlier_settings(tmp_path)
