"""What ``--precision`` says: one precision for all formats, or some for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from levit_export.core import FORMAT_ALIASES
from levit_export.errors import UnknownNameError, UsageError


def parse(text: str | None, formats: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """The precisions asked of each format.

    ``text`` is ``int8`` or ``onnx=int8,coreml=fp16``; a format may be named several times.
    ``formats`` are those that are exported, each with what it can be exported in.
    """
    if not text:
        return {}
    given: dict[str, list[str]] = {}
    parts = [part.strip() for part in text.split(",")]
    if len(parts) == 1 and "=" not in text:
        return {name: (_known(parts[0], name, formats[name]),) for name in formats}
    for part in parts:
        name, equals, precision = (piece.strip().lower() for piece in part.partition("="))
        if not equals or not precision:
            raise UsageError(
                f"--precision {text} has a part {part!r} that is no FORMAT=PRECISION",
                remedy="Give one precision, or pairs such as onnx=int8,coreml=fp16.",
            )
        name = FORMAT_ALIASES.get(name, name)
        if name not in formats:
            raise UnknownNameError("format of --precision", name, formats)
        wanted = _known(precision, name, formats[name])
        if wanted not in given.setdefault(name, []):
            given[name].append(wanted)
    return {name: tuple(precisions) for name, precisions in given.items()}


def _known(precision: str, name: str, known: Sequence[str]) -> str:
    if precision.lower() not in known:
        raise UsageError(
            f"{name} cannot be exported as {precision}",
            remedy=f"It can be: {', '.join(known)}.",
        )
    return precision.lower()
