"""From a TOML file to the cells of a sweep, every mistake named by its file and key."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from levit_export.core import files, machine
from levit_export.core.errors import UnknownNameError, UsageError
from levit_export.formats import TARGETS, target
from levit_export.inputs import preprocessing
from levit_export.models.loading import ModelChoice
from levit_export.models.zoo import parse_size, variant
from levit_export.workflows.sweep.cell import (
    DIGITS,
    Cell,
    Images,
    Settings,
    images_at,
    weights_identity,
)

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MODELS = "models"
WHICH = ("formats", "precisions", "data", "calibration")
"""Keys that stand at the top for all models, or with one model for that one."""

SETTINGS = {
    "opset": "opset",
    "seed": "seed",
    "threads": "threads",
    "limit": "limit",
    "calibration-images": "calibration_images",
    "max-drop": "max_drop",
    "warmup": "warmup",
    "iters": "iterations",
}
MOST = 1_000_000
LIMITS = {"seed": 2**64 - 1}
NATURAL = {"seed": 0, "warmup": 0}
"""Whole numbers that may be smaller than 1."""

CHOICE = {
    "model": ("model", str),
    "checkpoint": ("checkpoint", str),
    "pretrained": ("pretrained", bool),
    "offline": ("offline", bool),
    "random-weights": ("random_seed", int),
    "resize-bias": ("resize_bias", bool),
    "activation": ("activation", str),
    "task": ("task", str),
}
WORDS = {str: "text", bool: "true or false", int: "a whole number", float: "a number"}


@dataclass(frozen=True)
class Plan:
    """The cells of a sweep, in the order of the file, and the folder that it writes."""

    file: Path
    output: Path
    cells: tuple[Cell, ...]
    left_out: tuple[str, ...]
    """Precisions that a format does not have, a sentence each."""


@dataclass(frozen=True)
class _Table:
    """A table of the file, and what to call it in a message."""

    content: Mapping[str, Any]
    where: str
    root: Path

    def refuse_unknown(self, known: Sequence[str]) -> None:
        for key in self.content:
            if key not in known:
                raise UnknownNameError(f"key of {self.where}:", key, known)

    def value(self, key: str, kind: type) -> Any:
        """The value of ``key``, or None; raises where it is of another type."""
        found = self.content.get(key)
        is_number = kind is float and isinstance(found, int)
        exact = isinstance(found, kind) and not (kind is int and isinstance(found, bool))
        if found is None or exact or (is_number and not isinstance(found, bool)):
            return found
        raise self.wrong(key, WORDS[kind])

    def names(self, key: str) -> list[str] | None:
        """A list of texts, or None."""
        found = self.content.get(key)
        if found is None:
            return None
        if isinstance(found, list) and found and all(isinstance(each, str) for each in found):
            return found
        raise self.wrong(key, 'a list of names such as ["onnx"]')

    def path(self, key: str) -> Path | None:
        """A path, which is relative to the file's folder."""
        found = self.value(key, str)
        return None if found is None else self.root / found

    def wrong(self, key: str, wanted: str) -> UsageError:
        return UsageError(
            f"{self.where}: {key} is {self.content[key]!r}", remedy=f"Give {wanted}."
        )


def read(file: Path, *, output: Path | None = None, timed: bool = True) -> Plan:
    """The plan that ``file`` spells out. Raises ``UsageError`` and ``DataError``."""
    top = _Table(_parsed(file), str(file), file.absolute().parent)
    top.refuse_unknown((MODELS, "output", "batch", "bench", *SETTINGS, *WHICH))
    settings = _settings(top)
    timed = timed and top.value("bench", bool) is not False
    tables = top.content.get(MODELS)
    if not isinstance(tables, list) or not tables:
        raise UsageError(
            f"{file} names no model",
            remedy='Add [[models]] with model = "levit_128s" and weights.',
        )
    cells: list[Cell] = []
    left_out: list[str] = []
    for number, content in enumerate(tables, start=1):
        if not isinstance(content, dict):
            raise top.wrong(MODELS, "each model as a table: [[models]]")
        table = _Table(content, f"{file}, model {number}", top.root)
        table.refuse_unknown(("name", "labels", "imgsz", "preprocessing", *CHOICE, *WHICH))
        found, without = _cells(table, top, settings, timed=timed)
        cells += found
        left_out += without
    _refuse_same_names(cells, file)
    place = (output or top.path("output") or file.with_name(f"{file.stem}-sweep")).absolute()
    return Plan(file, place, tuple(cells), tuple(left_out))


def _parsed(file: Path) -> dict[str, Any]:
    try:
        with files.open_regular(file) as stream:
            content: dict[str, Any] = tomllib.load(stream)
    except OSError as error:
        raise UsageError(
            f"{file} cannot be read: {error.strerror or error}", remedy="Give a TOML file."
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{file} is not TOML: {error}", remedy="Correct that line.") from error
    return content


def _settings(top: _Table) -> Settings:
    given: dict[str, Any] = {}
    for key, name in SETTINGS.items():
        found = top.value(key, float if key == "max-drop" else int)
        if found is None:
            continue
        if key == "max-drop" and not 0 <= found <= 100:
            raise top.wrong(key, "points from 0 to 100")
        if key != "max-drop" and found < NATURAL.get(key, 1):
            raise top.wrong(key, f"a whole number from {NATURAL.get(key, 1)}")
        if key == "threads":
            machine.refuse_threads(found, key)
        elif key != "max-drop" and found > LIMITS.get(key, MOST):
            raise top.wrong(key, f"a whole number up to {LIMITS.get(key, MOST)}")
        given[name] = found
    batch = top.content.get("batch", 1)
    if batch == "dynamic":
        return Settings(**given, batch=None)
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
        raise top.wrong("batch", 'a whole number from 1, or "dynamic"')
    return Settings(**given, batch=batch)


def _cells(
    table: _Table, top: _Table, settings: Settings, *, timed: bool
) -> tuple[list[Cell], list[str]]:
    """The cells of one model, and what it leaves out."""
    choice = _choice(table)
    if choice.model is not None:  # of a checkpoint the size is known when its cell reads it
        size = choice.image_size or variant(choice.model).config.image_size
        machine.refuse_batch(settings.batch or 1, size)
    source = {key: table if key in table.content else top for key in WHICH}
    formats = _formats(source["formats"])
    wanted, left_out = _precisions(source["precisions"], formats)
    name = table.value("name", str)
    if not name:
        name = choice.checkpoint.stem if choice.checkpoint is not None else str(choice.model)
    data, calibration = (_images(source[key], key) for key in ("data", "calibration"))
    cells = [
        Cell(
            label=name,
            choice=choice,
            weights=weights_identity(choice),
            format=kind,
            precision=precision,
            settings=settings,
            data=data,
            calibration=calibration if precision == "int8" else None,
            timed=timed and target(kind).can_time().ok,
        )
        for kind, precisions in wanted.items()
        for precision in precisions
    ]
    return cells, [f"{name}: {text}" for text in left_out]


def _choice(table: _Table) -> ModelChoice:
    given = {name: table.value(key, kind) for key, (name, kind) in CHOICE.items()}
    choice = ModelChoice(**{name: value for name, value in given.items() if value is not None})
    if choice.checkpoint is not None:
        choice = replace(choice, checkpoint=table.path("checkpoint"))
        if not choice.checkpoint or not choice.checkpoint.exists():
            raise UsageError(
                f"{table.where}: checkpoint {choice.checkpoint} does not exist",
                remedy="Paths are relative to the folder of the sweep's file.",
            )
    if choice.is_default and "model" not in table.content:
        raise UsageError(
            f"{table.where} does not say which model",
            remedy='Give model = "levit_digits", or a checkpoint.',
        )
    recipe, image_size = table.path("preprocessing"), None
    if "imgsz" in table.content:
        try:
            image_size = parse_size(str(table.content["imgsz"]))
        except ValueError:
            raise table.wrong(
                "imgsz", 'a side such as 224, or height x width: "128x512"'
            ) from None
    return replace(
        choice,
        image_size=image_size,
        labels=tuple(table.names("labels") or ()),
        preprocessing=None if recipe is None else preprocessing.read(recipe),
    )


def _formats(table: _Table) -> list[str]:
    names = table.names("formats") or ["all"]
    if "all" in names:
        return [kind.name for kind in TARGETS]
    try:
        return list(dict.fromkeys(target(name).name for name in names))
    except UnknownNameError as error:
        raise UsageError(f"{table.where}: {error.what}", remedy=error.remedy) from error


def _precisions(
    table: _Table, formats: Sequence[str]
) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """The precisions of each format; a list means, for each format, those of it that it has."""
    given = table.content.get("precisions")
    if given is None:
        return {name: target(name).precisions[:1] for name in formats}, []
    if isinstance(given, dict):
        inner = _Table(given, f"{table.where}: precisions", table.root)
        inner.refuse_unknown(formats)
        by_format = {name: inner.names(name) or target(name).precisions[:1] for name in formats}
        for name, precisions in by_format.items():
            for precision in precisions:
                if precision not in target(name).precisions:
                    raise UnknownNameError(
                        f"precision of {name} in {table.where}:",
                        precision,
                        target(name).precisions,
                    )
        return {name: tuple(dict.fromkeys(each)) for name, each in by_format.items()}, []
    listed = list(dict.fromkeys(table.names("precisions") or ()))
    possible = {name: tuple(p for p in listed if p in target(name).precisions) for name in formats}
    known = {precision for name in formats for precision in target(name).precisions}
    for precision in listed:
        if precision not in known:
            raise UnknownNameError(f"precision in {table.where}:", precision, known)
    left_out = [
        f"{name} has no {precision}"
        for name in formats
        for precision in listed
        if precision not in possible[name]
    ]
    return possible, left_out


def _images(table: _Table, key: str) -> Images | None:
    found = table.value(key, str)
    if found is None:
        return None
    if found == DIGITS:
        return images_at(found)
    place = table.root / found
    if not place.exists():
        raise UsageError(
            f"{table.where}: {key} {place} does not exist",
            remedy="Paths are relative to the folder of the sweep's file.",
        )
    return images_at(str(place))


def _refuse_same_names(cells: Sequence[Cell], file: Path) -> None:
    """Raise where two rows of the report could not be told apart."""
    seen: set[tuple[str, str]] = set()
    for cell in cells:
        if (cell.label, cell.id) in seen:
            raise UsageError(
                f"{file} has two models called {cell.label!r}",
                remedy='Give one of them another name = "…".',
            )
        seen.add((cell.label, cell.id))
