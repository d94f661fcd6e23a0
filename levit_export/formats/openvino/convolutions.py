"""Linear layers over tokens as 1x1 convolutions, for OpenVINO's int8 kernels.

*Given* tokens ``X (B, N, C)``, ``W (O, C)`` and ``b (O,)``: ``Y = X Wᵀ + b``, and perhaps
``Hardswish(Y)``. *Result*: the same numbers as a convolution of ``Xᵀ (B, C, 1, N)``, its bias and
its activation inside the two transpositions.

OpenVINO keeps channels last, so the transpositions move nothing. Without VNNI its int8 matrix
products are slower than float32 ones, and its int8 convolutions faster: 1.2 and 0.6 of float32's
time for LeViT-256. With VNNI both take 0.4 of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from levit_export.core.network import Network, Op, Shape, Value

SWAPPED = (0, 2, 1)
TO_CHANNELS_FIRST = (0, 3, 1, 2)
TO_CHANNELS_LAST = (0, 2, 3, 1)
TOKENS_RANK = 3
POINTWISE = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1}


def as_convolutions(network: Network) -> Network:
    """The same network, every linear layer over tokens a convolution. Its values keep their names.

    A value inside the two transpositions is called ``NAME/images`` and so on.
    """
    layers = {op.output.name for op in network.ops if _is_linear(op, network)}
    swapped = {
        op.output.name: op.inputs[0]
        for op in network.ops
        if op.kind == "transpose" and op.attributes["axes"] == SWAPPED
    }
    kernels = {op.inputs[1] for op in network.ops if op.outputs[0].name in layers}
    ops: list[Op] = []
    inside: set[str] = set()
    for op in network.ops:
        if op.outputs[0].name in layers:
            activation = _activation(op, network)
            inside |= {activation.output.name} if activation else set()
            ops += _convolution(op, activation, network, swapped)
        elif op.outputs[0].name not in inside:
            ops.append(op)
    read = {name for op in ops for name in op.inputs} | set(network.outputs)
    return replace(
        network,
        ops=tuple(op for op in ops if op.outputs[0].name in read or op.kind != "transpose"),
        constants={
            name: array[:, :, None, None] if name in kernels else array
            for name, array in network.constants.items()
        },
    )


def _is_linear(op: Op, network: Network) -> bool:
    """Whether ``op`` is a layer over tokens whose weight no other operator reads."""
    return (
        op.kind == "linear"
        and len(network.shape(op.inputs[0])) == TOKENS_RANK
        and op.inputs[1] in network.constants
        and network.readers[op.inputs[1]] == (op,)
    )


def _activation(op: Op, network: Network) -> Op | None:
    """The Hardswish that alone reads what ``op`` gives; None where a tap is between them."""
    readers = network.readers.get(op.output.name, ())
    seen = {*network.outputs, *network.taps.values()}
    if op.output.name in seen or [reader.kind for reader in readers] != ["hardswish"]:
        return None
    return readers[0]


def _convolution(
    op: Op, activation: Op | None, network: Network, swapped: dict[str, str]
) -> Iterator[Op]:
    x, *weights = op.inputs
    batch, tokens, width = network.shape(x)
    channels = network.shape(op.inputs[1])[0]
    name = op.output.name

    def made(kind: str, role: str, sides: Shape, *inputs: str, **attributes: object) -> Op:
        value = Value(f"{name}/{role}", sides, op.output.dtype)
        return Op(kind, inputs, (value,), attributes, op.block)

    def reshaped(role: str, source: str, *sides: int | None) -> Op:
        return made("reshape", role, sides, source, shape=_asked(sides))

    if x in swapped:
        images = reshaped("images", swapped[x], batch, width, 1, tokens)
    else:
        rows = reshaped("rows", x, batch, 1, tokens, width)
        yield rows
        turned = (batch, width, 1, tokens)
        images = made("transpose", "images", turned, rows.output.name, axes=TO_CHANNELS_FIRST)
    yield images
    shape = (batch, channels, 1, tokens)
    last = made("convolution", "convolution", shape, images.output.name, *weights, **POINTWISE)
    yield last
    if activation is not None:
        last = made("hardswish", "hardswish", shape, last.output.name)
        yield last
    back = made(
        "transpose", "back", (batch, 1, tokens, channels), last.output.name, axes=TO_CHANNELS_LAST
    )
    yield back
    result = (activation or op).output
    yield Op("reshape", (back.output.name,), (result,), {"shape": _asked(result.shape)}, op.block)


def _asked(sides: Shape) -> tuple[int, ...]:
    """A shape as an operator's attribute: -1 where the batch is open."""
    return tuple(-1 if side is None else side for side in sides)
