"""Random changes of a package: whatever comes, only this package's errors come out."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mil_programs import MODEL, WEIGHTS, Saved, edit

from levit_export.core.errors import LevitExportError
from levit_export.formats import mil
from levit_export.formats.mil.listing import lines


@settings(max_examples=150, derandomize=True)
@given(data=st.data())
def test_mutated_bytes_raise_nothing_foreign(
    sound: Saved, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Whatever bytes change in whichever file, only errors of this package come out."""
    package = tmp_path_factory.mktemp("fuzz") / "copy.mlpackage"
    shutil.copytree(sound.path, package)
    path = package / data.draw(st.sampled_from([Path("Manifest.json"), MODEL, MODEL, WEIGHTS]))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        kind = data.draw(st.sampled_from(["set", "cut", "insert", "repeat"]))
        if kind == "set":
            content[place] = data.draw(st.integers(0, 255))
        elif kind == "cut":
            del content[place : place + data.draw(st.integers(1, 8))]
        elif kind == "insert":
            content[place:place] = data.draw(st.binary(min_size=1, max_size=8))
        else:
            content[place:place] = content[place : place + 32]
        if not content:
            break
    path.write_bytes(content)
    try:
        assert all(isinstance(line, str) for line in lines(package))
        program = mil.load(package)
        program.run({f.name: np.ones((1, 3, 8, 8), np.float32) for f in program.inputs})
    except LevitExportError as error:
        _check_message(error)
    finally:
        shutil.rmtree(package)


@pytest.mark.parametrize("program", ["sound", "rich", "whole"])
@settings(
    max_examples=150,
    derandomize=True,
    # The packages that the fixtures name are made once and copied for each example.
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_mutated_messages_raise_nothing_foreign(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    program: str,
    data: st.DataObject,
) -> None:
    """A specification that parses, with any number, name or part of it changed, is no trap."""
    original: Saved = request.getfixturevalue(program)
    package = tmp_path_factory.mktemp("fuzz") / "copy.mlpackage"
    shutil.copytree(original.path, package)

    def change(model: Any, block: Any) -> None:
        for _ in range(data.draw(st.integers(1, 3))):
            message = data.draw(st.sampled_from([model, *([block] * 8)]))
            _mutate(message, data)

    try:
        edit(package, change)
        assert all(isinstance(line, str) for line in lines(package))
        loaded = mil.load(package)
        loaded.run({f.name: np.ones((1, 3, 8, 8), np.float32) for f in loaded.inputs})
    except LevitExportError as error:
        _check_message(error)
    finally:
        shutil.rmtree(package)


def _check_message(error: LevitExportError) -> None:
    """An error says what happened and what to do."""
    assert error.what
    assert error.remedy


_NUMBERS = st.sampled_from([0, 1, 2, 3, 7, 10, 11, 23, 37, 64, 2**20, 2**31 - 1])
_NAMES = st.sampled_from(["", "x", "p", "active", "val", "custom", "CoreML8", "@model_path/a"])


def _mutate(message: Any, data: st.DataObject) -> None:
    """Walk to a random field that is set, and change, drop or repeat it."""
    fields = message.ListFields()
    if not fields:
        return
    descriptor, value = data.draw(st.sampled_from(fields))
    is_map = descriptor.message_type is not None and descriptor.message_type.GetOptions().map_entry
    if is_map:
        key = data.draw(st.sampled_from(sorted(value)))
        if data.draw(st.integers(0, 9)) == 0:
            del value[key]
        elif hasattr(value[key], "ListFields"):
            _mutate(value[key], data)
    elif not isinstance(value, str | bytes) and hasattr(value, "__len__"):
        _mutate_list(value, of_messages=descriptor.message_type is not None, data=data)
    elif descriptor.message_type is not None:
        if data.draw(st.integers(0, 9)) == 0:
            message.ClearField(descriptor.name)
        else:
            _mutate(value, data)
    else:
        setattr(message, descriptor.name, _other(value, data))


def _mutate_list(values: Any, *, of_messages: bool, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(values) - 1))
    action = data.draw(st.sampled_from(["drop", "repeat", "change", "change", "change"]))
    if action == "drop":
        del values[place]
    elif action == "repeat":
        values.append(values[place])
    elif of_messages:
        _mutate(values[place], data)
    else:
        values[place] = _other(values[place], data)


def _other(value: Any, data: st.DataObject) -> Any:
    """Another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, bytes):
        return data.draw(st.binary(max_size=16))
    if isinstance(value, str):
        return data.draw(_NAMES)
    return type(value)(data.draw(_NUMBERS))
