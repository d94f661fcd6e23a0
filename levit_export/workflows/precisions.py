"""What ``--precision`` says: one precision for all formats, or some for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from levit_export.core.errors import UnknownNameError, UsageError
from levit_export.core.values import FORMAT_ALIASES, Layout

AUTO = "auto"
"""The precision that a search finds."""


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
    if precision.lower() not in (AUTO, *known):
        raise UsageError(
            f"{name} cannot be exported as {precision}",
            remedy=f"It can be: {', '.join((*known, AUTO))}.",
        )
    return precision.lower()


@dataclass(frozen=True)
class Recipe:
    """Formats, the precisions of each, the blocks that stay in float, and the layouts.

    ``layouts`` has one for each format and precision.
    """

    precisions: Mapping[str, tuple[str, ...]]
    keep: Mapping[str, tuple[str, ...]]
    layouts: Mapping[tuple[str, str], Layout]


def read_recipe(path: Path) -> Recipe:
    """What an earlier export was made with: its folder, or the manifest in it."""
    from levit_export.storage.export_directory import MANIFEST, read_manifest

    if not path.is_dir() and path.name != MANIFEST:
        raise UsageError(
            f"{path} is not an earlier export" if path.exists() else f"{path} does not exist",
            remedy=f"Give --recipe the folder of an export, or the {MANIFEST} in it.",
        )
    manifest = read_manifest(path if path.is_dir() else path.parent)
    wanted: dict[str, tuple[str, ...]] = {}
    keep: dict[str, tuple[str, ...]] = {}
    for entry in manifest.artifacts:
        if entry.format in keep and keep[entry.format] != entry.keep:
            raise UsageError(
                f"{path} holds two artifacts of {entry.format} with different blocks in float",
                remedy="Export them one after the other with --precision and --keep.",
            )
        wanted[entry.format] = (*wanted.get(entry.format, ()), entry.precision)
        keep[entry.format] = entry.keep
    layouts = {(entry.format, entry.precision): entry.layout for entry in manifest.artifacts}
    return Recipe(wanted, keep, layouts)
