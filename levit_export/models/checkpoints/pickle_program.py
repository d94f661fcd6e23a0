"""What a pickle would do, found out without doing it.

A pickle is a program for a stack machine. This machine has the same stack and memory and calls
nothing: what PyTorch would build is noted, storages and tensors as descriptions. It knows only the
operations that a state dict and its training state need, and holds every size against the file's.

``torch.load(weights_only=True)`` runs no code either, but it does not protect against files that
are made to harm: ``torch.FloatTensor(10**12)``, ``bytearray(10**12)`` and quantised tensors
allocate what they are told to, a tensor with strides of 0 has terabytes of one stored number, a
list that is copied two thousand times takes 20 KB of pickle, and a tuple nested 200,000 deep as a
dictionary's key (0.2 MB) exhausts C's stack while it is hashed, which ends the process without an
exception. ``tests/models/checkpoints/test_reading.py`` has a file of each kind.
"""

from __future__ import annotations

import _compat_pickle
import math
import pickletools
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch

from levit_export.core.errors import UnsafeCheckpointError
from levit_export.models.checkpoints.limits import (
    PICKLE_OPERATIONS,
    RANK,
    refuse_count,
    refuse_views,
)


@dataclass(frozen=True)
class Global:
    """A name that the pickle imports, as ``module.name``."""

    path: str


@dataclass(frozen=True)
class Storage:
    """A run of ``count`` elements of ``itemsize`` bytes."""

    key: str
    kind: str
    itemsize: int
    count: int

    @property
    def nbytes(self) -> int:
        """Bytes that the file has to hold of it."""
        return self.itemsize * self.count


class Opaque:
    """A value of which only its being there matters: a tensor, a device."""


class Namespace:
    """Stands for ``argparse.Namespace``."""


PLAIN_DTYPES = {
    f"torch.{name}": dtype.itemsize
    for name, dtype in vars(torch).items()
    if isinstance(dtype, torch.dtype) and not name.startswith(("q", "bits"))
}
STORAGES = {
    "torch.DoubleStorage": 8,
    "torch.FloatStorage": 4,
    "torch.HalfStorage": 2,
    "torch.BFloat16Storage": 2,
    "torch.LongStorage": 8,
    "torch.IntStorage": 4,
    "torch.ShortStorage": 2,
    "torch.CharStorage": 1,
    "torch.ByteStorage": 1,
    "torch.BoolStorage": 1,
    "torch.ComplexDoubleStorage": 16,
    "torch.ComplexFloatStorage": 8,
    "torch.storage.UntypedStorage": 1,
}
KEYS = (str, int, float, bytes, type(None))
"""What may be a key. A deeply nested tuple can be none: hashing it would exhaust C's stack."""

RUNNING = ("STACK_GLOBAL", "INST", "OBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4")
"""Operations that import or call, which no pickle of protocol 2 for PyTorch needs."""


def unsafe_checkpoint(path: Path, wanted: str) -> UnsafeCheckpointError:
    """The refusal of a pickle that asks for ``wanted``."""
    shown = "".join(c if c.isprintable() else "?" for c in wanted[:120])
    return UnsafeCheckpointError(
        f"{path} is a pickle that asks for more than tensors ({shown}); "
        "nothing of it was executed",
        remedy="Where it was trained, save the bare weights: "
        "safetensors.torch.save_file(model.state_dict(), 'model.safetensors').",
    )


@dataclass
class StackMachine:
    """Runs pickles of one file, of ``size`` bytes, and calls nothing.

    ``storages`` are those that the pickles have named. :meth:`run` raises
    ``UnsafeCheckpointError`` at the first thing that is not part of a state dict,
    ``CheckpointError`` at the first that is too large, and whatever damaged bytes lead to.
    """

    path: Path
    size: int
    storages: dict[str, Storage] = field(default_factory=dict)
    stack: list[Any] = field(default_factory=list)
    marks: list[list[Any]] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)
    operations: int = 0
    tensors: int = 0
    logical: int = 0

    def run(self, stream: IO[bytes]) -> object:
        """What the pickle at the stream's position describes; the stream is left behind it."""
        self.stack, self.marks, self.memo = [], [], {}
        argument: Any
        for operation, argument, _ in pickletools.genops(stream):
            self.spend(1)
            name = operation.name
            if name == "STOP":
                break
            if name in LITERALS:
                if name == "SHORT_BINSTRING" and not argument.isascii():
                    raise ValueError("text of an unknown encoding")
                self.push(argument)
            elif name in RUNNING or (name == "PROTO" and argument > 3):
                raise unsafe_checkpoint(
                    self.path, f"pickle protocol {argument or 'operation ' + name}"
                )
            elif name in OPERATIONS:
                OPERATIONS[name](self, argument)
            else:
                raise ValueError(f"the operation {name}, which torch.save does not write")
        return self.stack.pop()

    def spend(self, amount: int) -> None:
        """Count work and memory: a pickle that copies one long list many times is small."""
        self.operations += amount
        if self.operations > PICKLE_OPERATIONS:
            raise ValueError(f"more than {PICKLE_OPERATIONS:,} pickle operations")

    def push(self, value: object) -> None:
        """Put ``value`` on top of the stack."""
        self.stack.append(value)

    def pop_mark(self) -> list[Any]:
        """All that was pushed since the last mark."""
        items, self.stack = self.stack, self.marks.pop()
        return items

    def note_tensor(self, storage: Storage, offset: Any, shape: Any, itemsize: int) -> None:
        """Count a tensor, ``shape`` of sizes and strides, which must lie within its storage."""
        sizes, strides = shape
        if type(sizes) is not tuple or type(strides) is not tuple:
            raise TypeError("a tensor of an odd shape")
        numbers = [offset, *sizes, *strides]
        if any(type(n) is not int or not 0 <= n < 2**62 for n in numbers):
            raise ValueError("a tensor of an odd shape")
        if len(sizes) != len(strides) or len(sizes) > RANK or not isinstance(storage, Storage):
            raise ValueError("a tensor of an odd shape")
        reach = sum((n - 1) * step for n, step in zip(sizes, strides, strict=True))
        empty = 0 in sizes  # such a tensor touches nothing, wherever its strides lead
        if (offset if empty else offset + reach + 1) * itemsize > storage.nbytes:
            raise ValueError(f"a tensor {list(sizes)} beyond its storage")
        self.tensors += 1
        self.logical += math.prod(sizes) * itemsize
        refuse_count(self.tensors, self.path)
        refuse_views(self.logical, self.size, self.path)


def _import(machine: StackMachine, argument: str) -> None:
    module, _, name = argument.partition(" ")
    # Protocol 2 is Python 2's, so modules have the names that they had there.
    pair = _compat_pickle.NAME_MAPPING.get((module, name))
    module, name = pair or (_compat_pickle.IMPORT_MAPPING.get(module, module), name)
    path = f"{module}.{name}"
    if path not in STORAGES and path not in PLAIN_DTYPES and path not in CALLS:
        raise unsafe_checkpoint(machine.path, path)
    machine.push(Global(path))


def _call(machine: StackMachine, _: object) -> None:
    arguments, function = machine.stack.pop(), machine.stack.pop()
    if not isinstance(function, Global) or type(arguments) is not tuple:
        raise TypeError("a call of what cannot be called")
    if function.path not in CALLS:
        raise unsafe_checkpoint(machine.path, f"a call of {function.path}")
    machine.push(CALLS[function.path](machine, *arguments))


def _make(machine: StackMachine, _: object) -> None:
    """``NEWOBJ``, of which only empty namespaces are made so."""
    arguments, kind = machine.stack.pop(), machine.stack.pop()
    if kind != Global("argparse.Namespace") or arguments != ():
        shown = kind.path if isinstance(kind, Global) else type(kind).__name__
        raise unsafe_checkpoint(machine.path, f"an object of {shown}")
    machine.push(Namespace())


def _set_state(machine: StackMachine, _: object) -> None:
    """``BUILD``: attributes of a namespace, or the ``_metadata`` of a state dict."""
    state, instance = machine.stack.pop(), machine.stack[-1]
    if type(state) is not dict or not all(isinstance(key, str) for key in state):
        raise TypeError("attributes that are not a dictionary")
    if type(instance) is OrderedDict:
        if any(hasattr(OrderedDict, key) for key in state):
            raise ValueError("a dictionary whose methods are replaced")
    elif type(instance) is not Namespace:
        raise unsafe_checkpoint(machine.path, f"attributes of a {type(instance).__name__}")
    machine.spend(len(state))


def _set_items(machine: StackMachine, pairs: list[Any]) -> None:
    target = machine.stack[-1]
    if type(target) not in {dict, OrderedDict} or len(pairs) % 2:
        raise TypeError("items of what is not a dictionary")
    for key, value in zip(pairs[::2], pairs[1::2], strict=True):
        if not isinstance(key, KEYS):
            raise TypeError("a key that is neither text nor a number")
        target[key] = value


def _extend(machine: StackMachine, items: list[Any]) -> None:
    if type(machine.stack[-1]) is not list:
        raise TypeError("elements of what is not a list")
    machine.stack[-1].extend(items)


def _mark(machine: StackMachine, _: object) -> None:
    machine.marks.append(machine.stack)
    machine.stack = []


def _tuple(count: int) -> Callable[[StackMachine, object], None]:
    def make(machine: StackMachine, _: object) -> None:
        items = machine.stack[len(machine.stack) - count :]
        if len(items) != count:
            raise IndexError("stack")
        machine.stack[-count:] = [tuple(items)]

    return make


def _remember(machine: StackMachine, index: int) -> None:
    machine.memo[index] = machine.stack[-1]


def _name_storage(machine: StackMachine, _: object) -> None:
    """``BINPERSID``: ``("storage", type, key, location, elements)``, and None in old files."""
    identity = machine.stack.pop()
    if type(identity) is not tuple or len(identity) not in {5, 6} or type(identity[0]) is not str:
        raise ValueError("a reference to what is not a storage")
    name, kind, key, location, count, *view = identity
    if (
        name != "storage"
        or not isinstance(kind, Global)
        or kind.path not in STORAGES
        or any(v is not None for v in view)
    ):
        raise ValueError("a storage of an odd type")
    if type(key) is not str or type(location) is not str or type(count) is not int:
        raise TypeError("a storage of an odd name or size")
    storage = Storage(key, kind.path, STORAGES[kind.path], count)
    if not 0 <= storage.nbytes <= machine.size:
        raise ValueError(f"a storage of {count:,} elements in {machine.size:,} bytes")
    if machine.storages.setdefault(key, storage) != storage:
        raise ValueError("one storage of two types or sizes")
    machine.push(storage)


OPERATIONS: Mapping[str, Callable[[StackMachine, Any], None]] = {
    "PROTO": lambda *_: None,
    "GLOBAL": _import,
    "REDUCE": _call,
    "NEWOBJ": _make,
    "BUILD": _set_state,
    "BINPERSID": _name_storage,
    "MARK": _mark,
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    # All that lies above the mark is taken before the stack below it is looked at.
    "TUPLE": lambda machine, _: machine.push(tuple(machine.pop_mark())),
    "TUPLE1": _tuple(1),
    "TUPLE2": _tuple(2),
    "TUPLE3": _tuple(3),
    "APPEND": lambda machine, _: _extend(machine, [machine.stack.pop()]),
    "APPENDS": lambda machine, _: _extend(machine, machine.pop_mark()),
    "SETITEM": lambda machine, _: _set_items(
        machine, [machine.stack.pop(), machine.stack.pop()][::-1]
    ),
    "SETITEMS": lambda machine, _: _set_items(machine, machine.pop_mark()),
    "BINPUT": _remember,
    "LONG_BINPUT": _remember,
    "BINGET": lambda machine, index: machine.push(machine.memo[index]),
    "LONG_BINGET": lambda machine, index: machine.push(machine.memo[index]),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
}
LITERALS = (
    "BININT",
    "BININT1",
    "BININT2",
    "BINFLOAT",
    "LONG1",
    "BINUNICODE",
    "SHORT_BINSTRING",
)


def _tensor(machine: StackMachine, storage: Any, offset: Any, *shape: Any) -> Opaque:
    machine.note_tensor(storage, offset, shape, storage.itemsize)
    return Opaque()


def _tensor_v2(machine: StackMachine, *arguments: Any) -> Opaque:
    storage, offset, sizes, strides, *extras = arguments
    _refuse_extras(*extras)
    return _tensor(machine, storage, offset, sizes, strides)


def _tensor_v3(machine: StackMachine, *arguments: Any) -> Opaque:
    storage, offset, sizes, strides, grad, hooks, dtype, *metadata = arguments
    _refuse_extras(grad, hooks, *metadata)
    machine.note_tensor(storage, offset, (sizes, strides), PLAIN_DTYPES[dtype.path])
    return Opaque()


def _parameter(_: StackMachine, data: Any, grad: Any, hooks: Any) -> Opaque:
    _refuse_extras(grad, hooks)
    if type(data) is not Opaque:
        raise TypeError("a parameter without a tensor")
    return Opaque()


def _refuse_extras(grad: object, hooks: object, *metadata: object) -> None:
    if type(grad) is not bool or hooks or any(metadata):
        raise ValueError("a tensor with hooks or other extras")


def _ordered_dict(machine: StackMachine, items: Any = ()) -> OrderedDict[Any, Any]:
    if not isinstance(items, list | tuple):
        raise TypeError("a dictionary made of something else than pairs")
    machine.spend(len(items))
    machine.push(OrderedDict())
    _set_items(machine, [part for key, value in items for part in (key, value)])
    made: OrderedDict[Any, Any] = machine.stack.pop()
    return made


def _plain(machine: StackMachine, *arguments: Any) -> Opaque:
    """A value that is made of text and numbers, or of one collection of them.

    What PyTorch then makes of wrong ones is an exception. Types are looked at before anything
    else, here and elsewhere: comparing or hashing what a pickle nests deeply may never return.
    """
    for argument in arguments:
        items = [argument]
        if isinstance(argument, list | tuple):
            items = [*argument]
        elif type(argument) is dict:
            items = [*argument.values()]  # its keys were looked at when they were set
        machine.spend(len(items))
        if not all(isinstance(item, KEYS) for item in items):
            raise TypeError("a value that is not made of text and numbers")
    return Opaque()


def _size(machine: StackMachine, sizes: Any) -> Any:
    _plain(machine, sizes)
    return sizes


def _bytes(machine: StackMachine, text: Any, encoding: Any) -> bytes:
    if type(text) is not str or type(encoding) is not str or encoding[:5] != "latin":
        raise TypeError("bytes that are not made of text")
    machine.spend(len(text) // 100)  # a copy costs memory as well, a hundredth of an object's
    return text.encode("latin-1")


def _byte_array(machine: StackMachine, value: Any = b"", encoding: Any = "latin-1") -> Opaque:
    content = value if type(value) is bytes else _bytes(machine, value, encoding)
    machine.spend(len(content) // 100)
    return Opaque()


CALLS: Mapping[str, Callable[..., object]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor_v2,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _parameter,
    "collections.OrderedDict": _ordered_dict,
    "collections.Counter": _plain,
    "argparse.Namespace": lambda _: Namespace(),
    "torch.Size": _size,
    "torch.device": _plain,
    "builtins.set": _plain,
    "builtins.bytearray": _byte_array,
    "builtins.complex": _plain,
    "_codecs.encode": _bytes,
}
"""What a pickle may call, and what this machine does in its place."""
