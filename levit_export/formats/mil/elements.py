"""The element types of MIL tensors, and what each is held as while a program is evaluated.

Codes are those of ``DataType`` in ``MIL.proto`` (coremltools, ``mlmodel/format``).

Both float types are held in float32 arrays. A float16 value is a float32 number that float16 can
represent exactly: sums inside an op then need no conversion, and rounding happens once, where the
program declares it, at the op's output (see :mod:`levit_export.formats.mil.rounding`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

Array = npt.NDArray[Any]
"""A tensor under evaluation; its element type is known only when a program is read."""

MAX_ELEMENTS = 2**28
"""The most elements that one value may have: 1 GiB as float32, which no LeViT comes near."""


@dataclass(frozen=True)
class Element:
    """An element type: its MIL name, its width in a file, and the NumPy type that holds it."""

    name: str
    kind: str
    """``f`` float, ``i`` integer (signed or not), ``b`` boolean, ``s`` string."""
    bits: int
    held_as: str
    """NumPy type of arrays under evaluation (empty for strings)."""

    @property
    def is_half(self) -> bool:
        """True for float16, whose values are rounded at every op output."""
        return self.name == "float16"


FLOAT16 = Element("float16", "f", 16, "float32")
FLOAT32 = Element("float32", "f", 32, "float32")
STRING = Element("string", "s", 0, "")
BOOL = Element("bool", "b", 8, "bool")
INT32 = Element("int32", "i", 32, "int32")
INT64 = Element("int64", "i", 64, "int64")
INT8 = Element("int8", "i", 8, "int8")
UINT8 = Element("uint8", "i", 8, "uint8")
INT16 = Element("int16", "i", 16, "int16")
UINT16 = Element("uint16", "i", 16, "uint16")

BY_CODE = {
    1: BOOL,
    2: STRING,
    10: FLOAT16,
    11: FLOAT32,
    21: INT8,
    22: INT16,
    23: INT32,
    24: INT64,
    25: Element("int4", "i", 4, "int8"),
    31: UINT8,
    32: UINT16,
    33: Element("uint32", "i", 32, "uint32"),
    35: Element("uint4", "i", 4, "uint8"),
    36: Element("uint2", "i", 2, "uint8"),
    37: Element("uint1", "i", 1, "uint8"),
    38: Element("uint6", "i", 6, "uint8"),
    39: Element("uint3", "i", 3, "uint8"),
}

BY_SHORT_NAME = {
    "fp16": FLOAT16,
    "fp32": FLOAT32,
    "bool": BOOL,
    "int32": INT32,
    "int8": INT8,
    "uint8": UINT8,
    "int16": INT16,
    "uint16": UINT16,
}
"""What the ops ``cast`` and ``quantize`` call the types."""


UNKNOWN = -1
"""A size that only a run decides."""


@dataclass(frozen=True)
class TensorType:
    """Element type and shape that a program declares for a tensor."""

    element: Element
    shape: tuple[int, ...]
    """Sizes; :data:`UNKNOWN` where the program leaves one open."""
    any_rank: bool = False
    """Whether the program leaves the number of axes open too; then ``shape`` says nothing."""

    @property
    def is_fixed(self) -> bool:
        """Whether every tensor of this type has one and the same shape."""
        return not self.any_rank and UNKNOWN not in self.shape

    @property
    def size(self) -> int:
        """Number of elements (exact, whatever the declared shape) of a fixed type."""
        return math.prod(self.shape)

    def admits(self, shape: tuple[int, ...]) -> bool:
        """Whether a tensor of ``shape`` is of this type."""
        if self.any_rank:
            return True
        return len(shape) == len(self.shape) and all(
            declared in (UNKNOWN, n) for declared, n in zip(self.shape, shape, strict=True)
        )

    def __str__(self) -> str:
        sizes = ", ".join("?" if n == UNKNOWN else str(n) for n in self.shape)
        return f"{self.element.name}[{'...' if self.any_rank else sizes}]"


@dataclass(frozen=True)
class OpaqueType:
    """A list, dictionary or tuple: only ``classify`` takes or gives one."""

    kind: str

    def __str__(self) -> str:
        return self.kind


DeclaredType = TensorType | OpaqueType

Value = Array | str | list[Any] | dict[Any, float]
"""What a name is bound to: a tensor, an option, class labels, or class probabilities."""
