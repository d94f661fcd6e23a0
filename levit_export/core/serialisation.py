"""Values as JSON and back. Every file with a schema number is written and read through here.

Such files are the manifest of an export, its report, the description of a bundle, the cells of a
sweep, and what drift and sweep write for other programs. Their readers differ in what they demand,
which is an argument of :func:`structure`, and in the typed error that they raise.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

T = TypeVar("T")

SHOWN = 3
"""Deviations from a type that a message lists."""


class MalformedError(ValueError):
    """Text that is not JSON, or JSON that does not spell the value that was expected.

    A reader turns it into an error of its own, which names the file and the remedy.
    """


class OtherSchemaError(MalformedError):
    """JSON of another schema, or of none."""


def plain(value: Any) -> Any:
    """``value`` as dictionaries, lists, text and numbers.

    Dataclasses become dictionaries. Numbers that JSON does not have (NaN, infinity) become null.
    """
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return value


def to_text(value: Any, *, canonical: bool = False) -> str:
    """``value`` as indented JSON with a line end.

    It is ASCII, since it may go to a terminal, in the order of the fields. With ``canonical`` it
    is Unicode with sorted keys, so that equal values have equal bytes.
    """
    content = json.dumps(
        plain(value), indent=1, sort_keys=canonical, ensure_ascii=not canonical, allow_nan=False
    )
    return content + "\n"


def parse(text: str | bytes, schema: int) -> dict[str, Any]:
    """The JSON object in ``text``, whose ``schema`` has to be the number given.

    Raises ``MalformedError``, and of that ``OtherSchemaError`` with the words that fit behind the
    name of the file.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise MalformedError(f"is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise MalformedError("is not a JSON object")
    found = content.get("schema")
    # True equals 1 in Python, and is not a number in JSON.
    if type(found) is not int or found != schema:
        raise OtherSchemaError(f"has schema {str(found)[:40]}, this version reads {schema}")
    return content


def structure(
    content: Any,
    kind: type[T],
    *,
    strict: bool,
    hooks: Mapping[type, Callable[[Any, Any], Any]] | None = None,
) -> T:
    """The value of type ``kind`` that ``plain`` made ``content`` of.

    With ``strict`` a further key is an error, and so is null where a number is expected; without,
    null is NaN again. ``hooks`` make a type of JSON in another way. Raises ``MalformedError``.
    """
    import cattrs

    def number(value: Any, _: Any) -> float:
        return math.nan if value is None and not strict else float(value)

    def number_or_text(value: Any, _: Any) -> float | str:
        # cattrs cannot tell the two apart by itself.
        return value if isinstance(value, str) else number(value, float)

    converter = cattrs.Converter(forbid_extra_keys=strict)
    converter.register_structure_hook(float | str, number_or_text)
    converter.register_structure_hook(float, number)
    for each, hook in (hooks or {}).items():
        converter.register_structure_hook(each, hook)
    try:
        return converter.structure(content, kind)
    except Exception as error:
        raise MalformedError("; ".join(cattrs.transform_error(error)[:SHOWN])) from error
