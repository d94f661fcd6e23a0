"""Values become JSON and come back; what is not the value that was expected is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from levit_export.core import hashing, serialisation
from levit_export.core.serialisation import MalformedError, OtherSchemaError


@dataclass(frozen=True)
class Inner:
    """A number, and a mixture."""

    share: float
    values: Mapping[str, float | str]


@dataclass(frozen=True)
class Outer:
    """Values in values."""

    name: str
    parts: tuple[Inner, ...]


VALUE = Outer("né", (Inner(0.5, {"a": 1.0, "b": "1.0"}),))


def test_a_value_comes_back() -> None:
    """Text and numbers of a mixture stay what they are, at any depth."""
    text = serialisation.to_text({"schema": 1, "value": VALUE})
    content = serialisation.parse(text, 1)["value"]
    assert serialisation.structure(content, Outer, strict=True) == VALUE


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_lacks(number: float) -> None:
    """They are null, which a lenient reader takes for NaN and a strict one refuses."""
    content = serialisation.plain(Inner(number, {"a": number}))
    assert content == {"share": None, "values": {"a": None}}
    found = serialisation.structure(content, Inner, strict=False)
    assert math.isnan(found.share)
    assert all(isinstance(v, float) and math.isnan(v) for v in found.values.values())
    with pytest.raises(MalformedError, match="share"):
        serialisation.structure(content, Inner, strict=True)


def test_further_keys() -> None:
    """A strict reader refuses what it does not know; a lenient one leaves it out."""
    content = {"share": 1.0, "values": {}, "more": 2}
    assert serialisation.structure(content, Inner, strict=False) == Inner(1.0, {})
    with pytest.raises(MalformedError, match="more"):
        serialisation.structure(content, Inner, strict=True)


def test_spelling() -> None:
    """Canonical text does not depend on the order of keys; other text is ASCII."""
    one = serialisation.to_text({"a": 1, "b": "é"}, canonical=True)
    assert one == serialisation.to_text({"b": "é", "a": 1}, canonical=True)
    assert json.loads(one) == {"a": 1, "b": "é"}
    assert serialisation.to_text(VALUE).isascii()


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "[" * 100_000, b"\xff"])
def test_what_is_not_a_json_object(text: str | bytes) -> None:
    """It is malformed, and not of another schema."""
    with pytest.raises(MalformedError) as caught:
        serialisation.parse(text, 1)
    assert not isinstance(caught.value, OtherSchemaError)


@pytest.mark.parametrize("schema", ["2", "true", '"1"', "1.0", "null"])
def test_another_schema(schema: str) -> None:
    """Only the number itself is the schema."""
    with pytest.raises(OtherSchemaError, match="this version reads 1"):
        serialisation.parse(f'{{"schema": {schema}}}', 1)


def test_a_file_larger_than_a_block(tmp_path: Path) -> None:
    """A file has the hash and the size of its content, however many blocks it is read in."""
    content = bytes(range(256)) * (hashing.BLOCK // 128)
    path = tmp_path / "large"
    path.write_bytes(content)
    assert hashing.file_entry(path) == hashing.file_entry(content)
    assert hashing.file_entry(path).bytes == len(content)
    assert hashing.sha256_of(path) == hashing.file_entry(path).sha256
