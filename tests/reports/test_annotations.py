"""Checks as annotations of GitHub Actions."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

import pytest

from levit_export.reports import ci
from levit_export.reports.gate import Check

COMMAND = re.compile(r"::(?P<level>\w+)(?: (?P<properties>[^:]*))?::(?P<message>.*)", re.DOTALL)
HOSTILE = "100 %\r\n::error::a,b=c: %0A%25"


def parsed(line: str) -> tuple[str, dict[str, str], str]:
    """Level, properties and message as the runner reads them: the reverse of its escaping."""
    found = COMMAND.fullmatch(line)
    assert found is not None
    given = (found["properties"] or "").split(",") if found["properties"] else []
    properties = dict(pair.split("=", 1) for pair in given)
    return (
        found["level"],
        {name: unescaped(value, ":,") for name, value in properties.items()},
        unescaped(found["message"]),
    )


def unescaped(text: str, more: str = "") -> str:
    """The runner's replacements, percent last."""
    for character in "\r\n" + more:
        text = text.replace(f"%{ord(character):02X}", character)
    return text.replace("%25", "%")


def test_exact_lines() -> None:
    """Failures are errors, what was not run is a warning, and what passed is not mentioned."""
    checks = (
        Check("onnx-fp32", "a/m.onnx", "parity", "fail", "logits: too far"),
        Check("onnx-fp32", "a/m.onnx", "weights", "pass"),
        Check("coreml-fp16", "b/m.mlpackage", "parity", "not-run", "no Mac"),
        Check("coreml-fp16", "b/m.mlpackage", "presence", "pass", "new"),
    )
    assert list(ci.annotate(checks, PurePosixPath("out"))) == [
        "::error file=out/a/m.onnx,title=onnx-fp32%3A parity::logits: too far",
        "::warning file=out/b/m.mlpackage,title=coreml-fp16%3A parity::no Mac",
    ]
    assert next(ci.annotate(checks)).startswith("::error file=a/m.onnx,")


@pytest.mark.parametrize("text", [HOSTILE, "a\nb", "%0A", "::set-output name=x::y", "ä, 中"])
def test_escaping(text: str) -> None:
    """Any text arrives as it was, on one line, in a message and in a property."""
    line = ci.annotation("error", text, file=text, title=text)
    assert "\n" not in line
    assert "\r" not in line
    assert parsed(line) == ("error", {"file": text, "title": text}, text)


def test_escaped_characters() -> None:
    """Messages escape percent and line ends; properties colons and commas as well."""
    line = ci.annotation("error", "a%b:c,d\r\n", file="a%b:c,d\r\n")
    assert line == "::error file=a%25b%3Ac%2Cd%0D%0A::a%25b:c,d%0D%0A"


def test_without_properties() -> None:
    """A command without properties, or with empty ones, has no blank before its colons."""
    assert ci.annotation("error", "x") == "::error::x"
    assert ci.annotation("error", "x", file="") == "::error::x"
