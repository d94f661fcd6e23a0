"""Checks as JUnit XML."""

from __future__ import annotations

import os
from collections.abc import Iterable
from xml.etree import ElementTree as ET
from xml.sax import handler, parseString

import pytest

from levit_export.reports import ci
from levit_export.reports.gate import Check

CHECKS = (
    Check("onnx-fp32", "a/m.onnx", "parity", "pass"),
    Check("onnx-fp32", "a/m.onnx", "weights", "fail", 'bad: <head> & "bias"\nmore'),
    Check("coreml-fp16", "b/m.mlpackage", "parity", "not-run", "no Mac"),
    Check("openvino-fp32", "c/m.xml", "presence", "pass", "new"),
)

# What junit-10.xsd of Jenkins' xUnit plugin allows: attributes (required ones marked), children.
ALLOWED: dict[str, tuple[set[str], set[str], set[str]]] = {
    "testsuites": ({"name", "time", "tests", "failures", "errors"}, set(), {"testsuite"}),
    "testsuite": (
        {"name", "tests", "failures", "errors", "skipped", "time", "timestamp", "hostname", "id"},
        {"name", "tests", "failures", "errors"},
        {"testsuite", "properties", "testcase", "system-out", "system-err"},
    ),
    "testcase": (
        {"name", "time", "classname", "group"},
        {"name"},
        {"skipped", "errors", "failure", "system-out", "system-err"},
    ),
    "failure": ({"type", "message"}, set(), set()),
    "skipped": ({"type", "message"}, set(), set()),
    "system-out": (set(), set(), set()),
    "properties": (set(), set(), {"property"}),
    "property": ({"name", "value"}, {"name", "value"}, set()),
}


def violations(element: ET.Element) -> Iterable[str]:
    """What the schema does not allow below ``element``."""
    allowed, required, children = ALLOWED.get(element.tag, (set(), set(), set()))
    yield from (f"{element.tag} has {name}" for name in set(element.attrib) - allowed)
    yield from (f"{element.tag} lacks {name}" for name in required - set(element.attrib))
    for child in element:
        if child.tag not in children:
            yield f"{child.tag} in {element.tag}"
        yield from violations(child)


def test_every_check_is_a_case() -> None:
    """The file has a case for each check, with its verdict and its reason sentence."""
    root = ET.fromstring(ci.junit("levit_digits", CHECKS))
    cases = list(root.iter("testcase"))
    assert [(case.get("classname"), case.get("name")) for case in cases] == [
        (f"levit_digits.{check.artifact}", check.name) for check in CHECKS
    ]
    passed, failed, skipped, remarked = cases
    assert len(passed) == 0
    (failure,) = failed
    assert (failure.tag, failure.get("type")) == ("failure", "weights")
    assert failure.get("message") == CHECKS[1].reason
    assert failure.text == f"a/m.onnx: {CHECKS[1].reason}"
    assert [(child.tag, child.get("message")) for child in skipped] == [("skipped", "no Mac")]
    assert [(child.tag, child.text) for child in remarked] == [("system-out", "new")]


def test_counts() -> None:
    """The totals are those of the cases."""
    root = ET.fromstring(ci.junit("levit_digits", CHECKS))
    (suite,) = root
    for element in (root, suite):
        numbers = {name: element.get(name) for name in ("tests", "failures", "errors")}
        assert numbers == {"tests": "4", "failures": "1", "errors": "0"}
    assert suite.get("skipped") == "1"


def test_the_usual_schema() -> None:
    """Nothing is written that the schema of Jenkins' plugin does not allow."""
    assert list(violations(ET.fromstring(ci.junit("s", CHECKS)))) == []
    assert list(violations(ET.fromstring(ci.junit("s", ())))) == []
    assert list(violations(ET.fromstring(ci.junit("s", CHECKS, "itself")))) == []


def test_the_schema_itself() -> None:
    """The file is valid against the schema, where ``JUNIT_XSD`` names it (and xmlschema reads)."""
    schema = os.environ.get("JUNIT_XSD")
    if not schema:
        pytest.skip("JUNIT_XSD does not name a junit-10.xsd")
    xmlschema = pytest.importorskip("xmlschema", reason="xmlschema is not installed")
    xmlschema.XMLSchema(schema).validate(ci.junit("s", CHECKS, "itself"))


class _Texts(handler.ContentHandler):
    """Collects every attribute and all text."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def startElement(self, name: str, attrs: object) -> None:  # noqa: N802 - the parser's name
        del name
        self.found += dict(attrs).values()  # type: ignore[call-overload]

    def characters(self, content: str) -> None:
        self.found.append(content)


@pytest.mark.parametrize(
    "reason", ["]]>", "\x00\x1b[31m", "\ud800", "\ufffe", "ä 中 𝄞", "a\tb\r\nc"]
)
def test_any_reason_is_xml(reason: str) -> None:
    """Whatever a runtime says, another parser reads the file; what XML cannot hold is replaced."""
    check = Check(f"onnx{reason}", reason, reason, "fail", reason)
    text = ci.junit(reason, [check])
    texts = _Texts()
    parseString(text.encode("utf-8"), texts)  # noqa: S317 - it was written here
    (failure,) = ET.fromstring(text).iter("failure")
    kept = "".join("\ufffd" if c in "\x00\x1b\ud800\ufffe" else c for c in reason)
    assert failure.get("message") == kept
    assert kept in texts.found
