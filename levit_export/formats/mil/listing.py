"""A package as text: what it takes and gives, its ops, and what of it cannot be evaluated.

``python -m levit_export.mil PACKAGE`` prints it. Nothing is evaluated, so that a program with ops
that the evaluator does not know is listed too.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from levit_export.core.errors import LevitExportError, UnsupportedOpError, UsageError
from levit_export.formats.mil.elements import TensorType, Value
from levit_export.formats.mil.features import Feature, read_features
from levit_export.formats.mil.package import open_package, read_model
from levit_export.formats.mil.program import load
from levit_export.formats.mil.table import LEFT_OUT, OPS
from levit_export.formats.mil.values import Reader

_SHOWN = 8
"""Constants of up to so many numbers are shown in place, others by their type."""
_SYSTEMS = {6: "iOS 15", 7: "iOS 16", 8: "iOS 17", 9: "iOS 18", 10: "iOS 26"}
_USAGE = "usage: python -m levit_export.mil PACKAGE"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the package that is named; 0 if it can be evaluated, else 2, with the reason."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given in (["-h"], ["--help"]):
        sys.stdout.write(f"{_USAGE}\n\n{__doc__}")
        return 0
    if len(given) != 1:
        sys.stderr.write(f"{_USAGE}\n")
        return UsageError.exit_status
    try:
        try:
            sys.stdout.writelines(f"{line}\n" for line in lines(Path(given[0])))
            sys.stdout.flush()
        except BrokenPipeError:
            # A reader such as head has enough. The status still says what becomes of the package,
            # and Python, which writes what is left at its end, must not fail then.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        load(given[0])
    except LevitExportError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_status
    return 0


def lines(path: Path) -> Iterator[str]:
    """The listing of the package at ``path``, line by line.

    Raises :class:`PackageError` for a damaged one, :class:`UnsupportedOpError` for a model that is
    not an ML Program.
    """
    package = open_package(path)
    model = read_model(package)
    reader = Reader(package)
    version = model.specificationVersion
    yield f"{path}: ML Program, specification version {version} ({_SYSTEMS[version]} and later)"
    for what, messages in (
        ("inputs", model.description.input),
        ("outputs", model.description.output),
    ):
        yield f"\n{what}:"
        yield from (f"  {_feature(each)}" for each in read_features(messages, package))
    blocks = [
        (name, opset, block)
        for name, function in sorted(model.mlProgram.functions.items())
        for opset, block in function.block_specializations.items()
    ]
    types = Counter(o.type for _, _, block in blocks for o in block.operations)
    yield "\nops:"
    for type_, count in types.most_common():
        if type_ == "const" or type_ in OPS:
            yield f"  {count:5} {type_}"
        else:
            yield f"  {count:5} {type_}: not evaluated, {LEFT_OUT.get(type_, 'not known')}"
    for name, opset, block in blocks:
        yield f"\n{name}, op set {opset}:"
        yield from _block(block, reader)


def _feature(feature: Feature) -> str:
    """``name: ArrayFeature shape (1, 3) dtype float32``, without what is left at its default."""
    found = {f.name: getattr(feature, f.name) for f in fields(feature) if f.name != "name"}
    said = " ".join(f"{key} {value}" for key, value in found.items() if value != ())
    return f"{feature.name}: {type(feature).__name__} {said}"


def _block(block: Any, reader: Reader) -> Iterator[str]:
    """One line an op, constants in the places where they are used."""
    constants: dict[str, str] = {}
    for operation in block.operations:
        outputs = [f"{o.name}: {_type(o.type, reader, o.name)}" for o in operation.outputs]
        if operation.type == "const" and len(operation.outputs) == 1:
            held = operation.attributes["val"]
            constants[operation.outputs[0].name] = _constant(held, reader, "val")
            continue
        parameters = {
            key: [
                constants.get(binding.name, f"%{binding.name}")
                if binding.WhichOneof("binding") == "name"
                else _constant(binding.value, reader, key)
                for binding in argument.arguments
            ]
            for key, argument in operation.inputs.items()
        }
        parameters |= {
            key: [_constant(value, reader, key)]
            for key, value in operation.attributes.items()
            if key != "name"
        }
        said = ", ".join(
            f"{key}={values[0] if len(values) == 1 else '(' + ', '.join(values) + ')'}"
            for key, values in sorted(parameters.items())
        )
        yield f"  {', '.join(outputs)} = {operation.type}({said})"
    yield f"  return {', '.join('%' + name for name in block.outputs)}"


def _type(message: Any, reader: Reader, where: str) -> str:
    try:
        return str(reader.declared(message, where))
    except UnsupportedOpError:
        return str(message.WhichOneof("type"))


def _constant(message: Any, reader: Reader, where: str) -> str:
    """A short constant's numbers, or the type of a long one."""
    declared = reader.declared(message.type, where)
    is_long = isinstance(declared, TensorType) and declared.size > _SHOWN
    if is_long or message.WhichOneof("value") != "immediateValue":
        return str(declared)
    value: Value = reader.constant(message, where)[0]
    return str(value.tolist()) if isinstance(value, np.ndarray) else repr(value)
