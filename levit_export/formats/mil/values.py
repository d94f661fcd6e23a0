"""Constants: from the protocol buffer ``MIL.Value`` to arrays, strings and lists.

The messages come from coremltools' ``MIL_pb2``, which has no type information; they are ``Any``
here and nowhere else than in this file, :mod:`graph` and :mod:`features`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from levit_export.core.errors import PackageError, UnsupportedOpError
from levit_export.formats.mil.blob import decode
from levit_export.formats.mil.elements import (
    BY_CODE,
    MAX_ELEMENTS,
    UNKNOWN,
    Array,
    DeclaredType,
    OpaqueType,
    TensorType,
    Value,
)
from levit_export.formats.mil.package import Package, damaged

_FIELDS = {
    "bool": "bools",
    "int16": "ints",
    "uint16": "ints",
    "int32": "ints",
    "int64": "longInts",
    "float32": "floats",
}
"""Repeated field of ``TensorValue`` that holds an element type; all others are raw bytes."""


@dataclass(frozen=True)
class Reader:
    """Reads types and constants of one package; ``where`` arguments say whose, for messages."""

    package: Package

    def declared(self, message: Any, where: str) -> DeclaredType:
        """A ``ValueType``; raises :class:`PackageError` or :class:`UnsupportedOpError`."""
        kind = message.WhichOneof("type")
        if kind == "tensorType":
            return self.tensor_type(message.tensorType, where)
        if kind in ("listType", "dictionaryType"):
            return OpaqueType(kind.removesuffix("Type"))
        raise UnsupportedOpError(
            f"{self.package.root}: {where} has a type that is not evaluated ({kind})",
            remedy="Export a model without states and tuples.",
        )

    def tensor_type(self, message: Any, where: str) -> TensorType:
        """A ``TensorType`` of known element type; sizes may be left open."""
        element = BY_CODE.get(message.dataType)
        if element is None:
            raise UnsupportedOpError(
                f"{self.package.root}: {where} has element type {message.dataType}, which is not "
                "evaluated",
                remedy=f"Known are {', '.join(e.name for e in BY_CODE.values())}.",
            )
        kinds = [d.WhichOneof("dimension") for d in message.dimensions]
        if not set(kinds) <= {"constant", "unknown"}:
            raise damaged(self.package.root, f"{where} has a dimension without a size")
        shape = tuple(
            d.constant.size if kind == "constant" else UNKNOWN
            for d, kind in zip(message.dimensions, kinds, strict=True)
        )
        any_rank = any(
            kind == "unknown" and d.unknown.variadic
            for d, kind in zip(message.dimensions, kinds, strict=True)
        )
        if message.rank != len(shape):
            raise damaged(
                self.package.root, f"{where} has rank {message.rank} but shape {list(shape)}"
            )
        declared = TensorType(element, shape, any_rank)
        if declared.is_fixed and declared.size > MAX_ELEMENTS:
            raise damaged(self.package.root, f"{where} is declared as {declared}, too big")
        return declared

    def constant(self, message: Any, where: str) -> tuple[Value, DeclaredType]:
        """A ``Value`` and its type; raises :class:`PackageError`."""
        declared = self.declared(message.type, where)
        held = message.WhichOneof("value")
        if isinstance(declared, TensorType) and not declared.is_fixed:
            raise damaged(self.package.root, f"{where} is a constant of type {declared}")
        if held == "blobFileValue" and isinstance(declared, TensorType):
            return self._stored(message.blobFileValue, declared, where), declared
        kind = message.immediateValue.WhichOneof("value") if held == "immediateValue" else None
        if kind == "tensor" and isinstance(declared, TensorType):
            return self._immediate(message.immediateValue.tensor, declared, where), declared
        if kind == "list" and declared == OpaqueType("list"):
            return self._labels(message.immediateValue.list.values, where), declared
        raise damaged(self.package.root, f"{where} declares {declared} but holds {kind or held}")

    def _stored(self, reference: Any, declared: TensorType, where: str) -> Array:
        if declared.element.kind == "s":
            raise damaged(self.package.root, f"{where} keeps a string in a weight file")
        try:
            return self.package.weight(reference.fileName, reference.offset, declared)
        except PackageError as error:
            raise PackageError(f"{where}: {error.what}", remedy=error.remedy) from error

    def _immediate(self, message: Any, declared: TensorType, where: str) -> Array | str:
        found = message.WhichOneof("value")
        if declared.element.kind == "s":
            if found != "strings" or declared.shape or len(message.strings.values) != 1:
                raise damaged(self.package.root, f"{where} should hold one string")
            return str(message.strings.values[0])
        expected = _FIELDS.get(declared.element.name, "bytes")
        if found != expected:
            raise damaged(self.package.root, f"{where} keeps {declared} in {found}")
        values = getattr(message, expected).values
        try:
            if expected == "bytes":
                return decode(values, declared)
            # NumPy raises ValueError if the number of elements is not the declared one.
            return np.array(values, dtype=declared.element.held_as).reshape(declared.shape)
        except (ValueError, OverflowError) as error:
            raise damaged(self.package.root, f"{where}: {error}") from error

    def _labels(self, messages: Any, where: str) -> list[Any]:
        labels = [self.constant(message, where)[0] for message in messages]
        if all(isinstance(label, str) for label in labels):
            return labels
        numbers = [label for label in labels if isinstance(label, np.ndarray) and label.ndim == 0]
        if len(numbers) != len(labels) or any(n.dtype.kind != "i" for n in numbers):
            raise damaged(self.package.root, f"{where} mixes class labels of several types")
        return [int(n) for n in numbers]
