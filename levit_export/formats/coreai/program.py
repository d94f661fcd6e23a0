"""What is done with Core AI's compiler and runtime: always in a process of its own.

Their readers trust what they read: a damaged program may end the process that opens it. Whoever
wants something of a program has it done by :func:`read`, which then says that the file is damaged.
"""

from __future__ import annotations

import asyncio
import atexit
import hashlib
import json
import math
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from levit_export.core import files
from levit_export.core.constants import Constant
from levit_export.core.errors import (
    ArtifactError,
    LevitExportError,
    RuntimeFailedError,
    UsageError,
)
from levit_export.core.network import Network
from levit_export.core.processes import Worker
from levit_export.core.quiet import first_line
from levit_export.core.values import Signature, Tensors, TensorSpec
from levit_export.formats.coreai.write import MAIN, write

PROGRAM, METADATA, DIGEST = "main.mlirb", "metadata.json", "main.hash"
"""The files of an asset: the program, what is said of it, and the program's SHA-256."""
CREATED = "creationDate"
SAID = "creatorDefinedMetadata"

BROADCASTING = "decomposable.broadcasting_"
LAYERS = {"conv2d": (1,), f"{BROADCASTING}batch_matmul": (0, 1)}
"""Operations whose constants of two axes and more are weights, and the places of these."""
STRUCTURAL = (
    *("conv2d", "pad", "transpose", "reshape", "expand_dims", "shrink_dims", "slice", "split"),
    *("concat", "softmax", "reduce_mean", "maxpool2d", "sumpool2d", "gather_nd"),
)
"""Operations whose whole numbers are shapes, axes and places."""
PAIRS = ("add", "sub", "mul", "divide", "maximum", "minimum", "batch_matmul")
COMPUTING = (
    *(f"{BROADCASTING}{kind}" for kind in PAIRS),
    *("cast", "relu", "silu", "sigmoid", "gelu", "sqrt", "rsqrt"),
)
"""The other operations that are written here. A program with any other one is not looked into."""
COMPRESSED = ("blockwise_shift_scale", "lut_to_dense")
"""Operations that make a weight of what is stored for it."""
PREFIX = "coreai."
TYPES = {
    "f32": "float32",
    "f16": "float16",
    "ui8": "uint8",
    "si8": "int8",
    "si32": "int32",
}
PACKED = {"ui6": 6, "ui4": 4}
"""Whole numbers of less than a byte, and their bits, which lie one after the other."""

Result = TypeVar("Result")


@cache
def _worker() -> Worker:
    stack = ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(Worker())


def ask(function: Callable[..., Result], *arguments: Any) -> Result:
    """``function(*arguments)``, called in the process that Core AI lives in."""
    return _worker().submit(function, *arguments).result()


def read(path: Path, function: Callable[..., Result], *arguments: Any) -> Result:
    """``function(path, *arguments)``, which reads an asset, called there."""
    try:
        return ask(function, path, *arguments)
    except RuntimeFailedError as error:
        raise ArtifactError(
            f"Core AI cannot read {path}: {error.what}",
            remedy="Copy it again, or export it anew.",
        ) from error


# --- written --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wanted:
    """What is to be written: ``about`` are author, licence and description, ``said`` the rest."""

    network: Network
    precision: str
    keep: tuple[str, ...]
    about: Mapping[str, str]
    said: Mapping[str, str]


def export(path: Path, wanted: Wanted) -> dict[str, int]:
    """Write the asset ``path``; how many operations of each type it has.

    The date is left out, and what is said is sorted: it would come in another order in each
    process.
    """
    from coreai.runtime import AIModelAssetMetadata

    program = write(wanted.network, wanted.precision, wanted.keep)
    metadata = AIModelAssetMetadata()
    for name, text in wanted.about.items():
        setattr(metadata, name, text)
    for key, text in wanted.said.items():
        metadata.set_custom(key, text)
    program.save_asset(path, metadata=metadata)
    place = path / METADATA
    written = json.loads(place.read_text("utf-8"))
    written.pop(CREATED, None)
    text = json.dumps(written, indent=1, sort_keys=True, ensure_ascii=False)
    place.write_text(text + "\n", "utf-8")
    graph = _graph(program, path)
    kinds = (_kind(op).removeprefix(BROADCASTING) for op in _operations(graph)[:-1])
    return dict(Counter(kind for kind in kinds if kind != "constant"))


# --- read -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Described:
    """What a program on disk is.

    ``contents`` are the numbers that its outputs depend on, ``values`` the names of its inner
    values. ``strange`` is an operation that is not written here, or not of constants alone, if
    there is one: then ``contents`` need not be all.
    """

    signature: Signature
    said: Mapping[str, str]
    contents: tuple[Constant, ...]
    values: tuple[str, ...]
    strange: str = ""


def described(path: Path) -> Described:
    """Read the asset ``path``. A check asks several times, and the last one read is remembered."""
    return _described(path, _digest(path), _read(path, METADATA))


@lru_cache(maxsize=1)
def _described(path: Path, digest: bytes, metadata: bytes) -> Described:
    """Read the asset ``path``, whose program has the SHA-256 ``digest``."""
    del digest  # what was read is remembered by it
    program = _load(path)
    graph = _graph(program, path)
    contents, strange = _contents(graph, _resources(program))
    return Described(
        Signature(
            _specs(graph.arg_attrs, graph.type.inputs), _specs(graph.res_attrs, graph.type.results)
        ),
        _said(path, metadata),
        contents,
        tuple(_values(graph)),
        strange,
    )


def _digest(path: Path) -> bytes:
    """The SHA-256 of the program, which has to be the one that the asset says."""
    digest = hashlib.sha256(_read(path, PROGRAM)).digest()
    if digest != _read(path, DIGEST):
        raise ArtifactError(
            f"{path / PROGRAM} is not the program whose SHA-256 is in {DIGEST}",
            remedy="Copy the asset again, or export it anew.",
        )
    return digest


def _load(path: Path) -> Any:
    """The program of an asset whose digest was looked at."""
    from coreai.authoring import AIModelAsset

    try:
        return AIModelAsset.load(path).program
    except Exception as error:
        raise ArtifactError(
            f"Core AI cannot read {path}: {first_line(error)}",
            remedy="Copy it again, or export it anew.",
        ) from error


def _read(path: Path, name: str) -> bytes:
    """A file of the asset."""
    try:
        with files.open_regular(path / name) as file:
            return file.read()
    except OSError as error:
        raise ArtifactError(
            f"{path} is not a Core AI asset: its {name} cannot be read ({error.strerror})",
            remedy="Give the whole .aimodel folder.",
        ) from error


def _said(path: Path, metadata: bytes) -> dict[str, str]:
    """What the asset says of itself in its own words."""
    try:
        said = json.loads(metadata).get(SAID) or {}
        return {str(key): str(text) for key, text in said.items()}
    except (ValueError, AttributeError, RecursionError) as error:
        raise ArtifactError(
            f"{path / METADATA} is not what an asset says of itself: {first_line(error)}",
            remedy="Copy the asset again, or export it anew.",
        ) from error


def _graph(program: Any, path: Path) -> Any:
    """The function of a program that has one."""
    # https://apple.github.io/coreai-torch/main/coreai-core/tutorials/construct-a-graph.html
    body = program._module._mlir_module.body  # noqa: SLF001 - see the page above
    found = [op for op in body.operations if op.operation.name == "coreai.graph"]
    if len(found) != 1 or found[0].sym_name.value != MAIN:
        names = ", ".join(op.sym_name.value for op in found) or "none"
        raise ArtifactError(
            f"{path} has the functions {names}, and one called {MAIN} is looked into",
            remedy="Export the network as one function.",
        )
    return found[0]


def _operations(graph: Any) -> list[Any]:
    (block,) = graph.regions[0].blocks
    return list(block.operations)


def _kind(op: Any) -> str:
    return str(op.operation.name).removeprefix(PREFIX)


def _specs(attributes: Any, types: Sequence[Any]) -> tuple[TensorSpec, ...]:
    from coreai._compiler import ir

    return tuple(
        TensorSpec(
            ir.StringAttr(each["coreai.name"]).value,
            tuple(None if side < 0 else side for side in _tensor(kind).shape),
            TYPES.get(str(_tensor(kind).element_type), str(_tensor(kind).element_type)),
        )
        for each, kind in zip(attributes, types, strict=True)
    )


def _tensor(kind: Any) -> Any:
    from coreai._compiler import ir

    return ir.RankedTensorType(kind)


def _values(graph: Any) -> dict[str, Any]:
    """The inner values by name; the last operation of a name gives its value."""
    found: dict[str, Any] = {}
    for op in _operations(graph):
        # The values of the network that an operation gives are in its location.
        names = re.findall(r'<"([^"]+)": unit>', str(op.location))
        if _kind(op) != "constant" and len(names) == len(op.results):
            found |= dict(zip(names, op.results, strict=True))
    return found


def _resources(program: Any) -> dict[str, bytes]:
    """The large constants of a program by name, which can be had as text only."""
    _, _, resources = str(program).rpartition("\n  dialect_resources: {")
    found = re.finditer(r'^ *("[^"]*"|[\w.$-]+): "0x([0-9A-Fa-f]*)"', resources, re.MULTILINE)
    alignment = 4
    return {each[1].strip('"'): bytes.fromhex(each[2])[alignment:] for each in found}


def _contents(graph: Any, resources: Mapping[str, bytes]) -> tuple[tuple[Constant, ...], str]:
    """The numbers that operations join with what follows from the input, backwards from the end.

    Also the kind of the first operation that this package does not write, or that computes from
    constants alone; empty if there is none.
    """
    operations = _operations(graph)
    made = {result: op for op in operations if _kind(op) == "constant" for result in op.results}
    known: set[Any] = set()
    for op in operations:
        operands = list(op.operands)
        if _kind(op) == "constant" or (operands and all(each in known for each in operands)):
            known.update(op.results)
    needed: set[Any] = set(operations[-1].operands)
    found: list[Constant] = []
    strange = ""
    for op in reversed(operations[:-1]):
        if needed.isdisjoint(op.results):
            continue
        kind = _kind(op)
        if kind in COMPRESSED and all(each in made for each in op.operands):
            found.append(_decompressed(op, [made[each] for each in op.operands], resources))
            continue
        needed.update(op.operands)
        if kind == "constant":
            found += _constants(op, resources)
            continue
        is_of_constants = all(each in known for each in op.results)
        if is_of_constants or kind not in (*STRUCTURAL, *COMPUTING):
            strange = kind
    return tuple(found), strange


def _constants(op: Any, resources: Mapping[str, bytes]) -> Iterator[Constant]:
    """A constant as those see it that read it: a weight, a number, or a shape, which is none."""
    (result,) = op.results
    is_float = str(_tensor(result.type).element_type).startswith(("f", "bf"))
    if not is_float and all(_kind(use.owner) in STRUCTURAL for use in result.uses):
        return
    numbers = _numbers(op, resources)
    yield Constant(numbers, 8 * numbers.dtype.itemsize, _is_weight(result, numbers))


def _is_weight(value: Any, numbers: np.ndarray) -> bool:
    """Whether a layer multiplies by ``numbers``, those of ``value``."""
    places = ((_kind(use.owner), use.operand_number) for use in value.uses)
    return numbers.ndim > 1 and any(place in LAYERS.get(reader, ()) for reader, place in places)


def _decompressed(op: Any, operands: Sequence[Any], resources: Mapping[str, bytes]) -> Constant:
    """The weight that an operation makes of constants.

    On a grid ``scale (data - offset) + shift``, with numbers of a block each; of a palette
    ``colours[block, place]``.
    """
    (result,) = op.results
    arrays = [_numbers(each, resources) for each in operands]
    bits = sum(_stored_bits(each, held) for each, held in zip(operands, arrays, strict=True))
    dtype = TYPES[str(_tensor(result.type).element_type)]
    if _kind(op) == "blockwise_shift_scale":
        data = arrays[0].astype(np.float32)
        scale, offset, shift = (
            _spread(each.astype(np.float32), data.shape) for each in arrays[1:]
        )
        numbers = scale * (data - offset) + shift
    else:
        places, table, _ = arrays
        *blocks, _, length = table.shape
        if length != 1:
            raise ValueError(f"a palette of vectors of {length}")
        order = np.indices(places.shape)
        sizes = (side // count for side, count in zip(places.shape, blocks, strict=True))
        block = (each // size for each, size in zip(order, sizes, strict=True))
        index = (*block, places.astype(np.intp), 0)
        numbers = table[index]
    weight = numbers.astype(dtype)
    return Constant(weight, bits / max(weight.size, 1), _is_weight(result, weight))


def _spread(numbers: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """One number for each block of an array of ``shape``, repeated all over its block."""
    for axis, side in enumerate(shape):
        numbers = np.repeat(numbers, side // numbers.shape[axis], axis)
    return numbers


def _stored_bits(op: Any, numbers: np.ndarray) -> int:
    """What a file spends on a constant; of equal numbers one is stored."""
    from coreai._compiler import ir

    (result,) = op.results
    width = int(re.sub(r"\D", "", str(_tensor(result.type).element_type)))
    held = op.attributes["value"]
    is_one = ir.DenseElementsAttr.isinstance(held) and ir.DenseElementsAttr(held).is_splat
    return width * (1 if is_one else numbers.size)


def _numbers(op: Any, resources: Mapping[str, bytes]) -> np.ndarray:
    """The numbers of a constant; those of less than a byte are uint8."""
    from coreai._compiler import ir

    held, kind = op.attributes["value"], _tensor(op.results[0].type)
    if not ir.DenseResourceElementsAttr.isinstance(held):
        return np.array(held)
    (name,) = re.findall(r'^dense_resource<"?([^">]*)"?>', str(held))
    shape, element = tuple(kind.shape), str(kind.element_type)
    if element in PACKED:
        stored = np.frombuffer(resources[name], np.uint8)
        count = math.prod(shape) * PACKED[element]
        bits = np.unpackbits(stored, count=count, bitorder="little")
        padded = bits.reshape(-1, PACKED[element])
        return np.packbits(padded, axis=1, bitorder="little").reshape(shape)
    return np.frombuffer(resources[name], TYPES[element]).reshape(shape)


# --- executed -------------------------------------------------------------------------------


class _Opened:
    """A program that Core AI has compiled, with further values as outputs."""

    def __init__(self, path: Path, taps: Sequence[str]) -> None:
        from coreai.authoring import AIModelAsset

        self.loop = asyncio.new_event_loop()
        self.stack = AsyncExitStack()
        place = path
        if taps:
            folder = tempfile.mkdtemp(prefix="levit-export-")
            self.stack.callback(shutil.rmtree, folder, ignore_errors=True)
            place = _tapped(path, taps, Path(folder, "tapped.aimodel"))
        try:
            asset = AIModelAsset.load(place)
            model = self.loop.run_until_complete(
                self.stack.enter_async_context(asset.executable())
            )
            self.function = model.load_function(MAIN)
        except Exception as error:
            self.close()
            raise ArtifactError(
                f"Core AI cannot compile {path}: {first_line(error)}",
                remedy="Copy it again, or export it anew.",
            ) from error

    def run(self, inputs: Tensors) -> dict[str, np.ndarray]:
        """One call."""
        from coreai.runtime import NDArray

        given = {name: NDArray(np.ascontiguousarray(array)) for name, array in inputs.items()}
        found = self.loop.run_until_complete(self.function(given))
        return {name: np.array(array.numpy()) for name, array in found.items()}

    def close(self) -> None:
        """Let it go."""
        self.loop.run_until_complete(self.stack.aclose())
        self.loop.close()


_opened: dict[int, _Opened] = {}


def opened(path: Path, taps: Sequence[str]) -> int:
    """Compile the asset ``path``; the number that it is asked by."""
    described(path)  # an asset that cannot be read has no business in the compiler
    number = max(_opened, default=0) + 1
    _opened[number] = _Opened(path, taps)
    return number


def answered(path: Path, number: int, inputs: Tensors) -> dict[str, np.ndarray]:
    """What the program with that number gives."""
    try:
        return _opened[number].run(inputs)
    except LevitExportError:
        raise
    except Exception as error:
        raise RuntimeFailedError(
            f"Core AI failed on {path.name}: {first_line(error)}",
            remedy="Check the input's name, shape and type against the model's.",
        ) from error


def closed(number: int) -> None:
    """Let the program with that number go."""
    if number in _opened:
        _opened.pop(number).close()


def _tapped(path: Path, taps: Sequence[str], copy: Path) -> Path:
    """A copy of the asset whose function gives ``taps`` as well, under their names."""
    _digest(path)
    program = _load(path)
    graph = _graph(program, path)
    values = _values(graph)
    for tap in taps:
        if tap not in values:
            raise UsageError(
                f"{path.name} has no value {tap!r}", remedy="Take a name from its program."
            )
    with graph.context, graph.location:
        graph.outputs_spec = [
            *graph.outputs_spec,
            *((tap, values[tap]) for tap in taps),
        ]
    program.save_asset(copy)
    return copy
