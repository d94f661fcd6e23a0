"""An OpenVINO graph in each precision: float16 weights, a hint, and NNCF's int8, w8 and w4.

``bf16`` is the float32 graph with :data:`HINT` in it.

What NNCF is told about LeViT, each measured on the bundled model (worst logit of an image over its
largest, median of 360 held-out images):

- the first convolution stays float32: 0.029 instead of 0.085 for int8, 0.004 instead of 0.015 for
  w8. Its three input channels have few weights and the whole picture's range;
- products of two activations (queries by keys, softmax by values) stay float32: 0.026 instead of
  0.029, and no slower;
- weights of int8 use half their range: processors without VNNI add two products in 16 bits, which
  saturate. 0.035 instead of 0.053 there, no difference elsewhere. The file must not depend on the
  machine that wrote it, so this is always so;
- biases are not corrected: that gains 0.001, and no bias would be the checkpoint's any more;
- linear layers are 1x1 convolutions; see :func:`as_convolutions`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from levit_export.core.errors import MissingDependencyError, UsageError
from levit_export.core.network import Network, Op, Shape, Value
from levit_export.core.packages import PRECISION_HINT, needs, told
from levit_export.core.precisions import FLOATS, GRIDS, HINTED
from levit_export.core.quiet import quiet
from levit_export.core.values import ExportOptions, Prepared
from levit_export.formats.openvino import write as openvino_write
from levit_export.inputs.samples import in_batches

if TYPE_CHECKING:
    import openvino

HINT = ("runtime_options", PRECISION_HINT)
"""Where a graph's ``rt_info`` names what it is to be computed in. OpenVINO reads other properties
of its own from there, and ignores this one: whoever compiles the graph has to pass it on."""

GROUP = 64
"""Weights of a row that share a scale in w4; fewer where a row is not a multiple of it."""
PACKED_BITS = 4
TELEMETRY_OFF = "NNCF_CI"
"""The variable that keeps NNCF from reporting its use to its makers when it is imported."""
SWAPPED = (0, 2, 1)
TO_CHANNELS_FIRST = (0, 3, 1, 2)
TO_CHANNELS_LAST = (0, 2, 3, 1)
TOKENS_RANK = 3
POINTWISE = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1}


def refuse(options: ExportOptions) -> None:
    """Raise unless NNCF, images and a layout are there for a precision that needs them.

    Blocks cannot stay in float32 where one hint is for the whole graph.
    """
    if options.precision in HINTED and options.keep:
        raise UsageError(
            f"OpenVINO computes a whole graph in {options.precision}, and no block can stay out",
            remedy="Leave out --keep, or the precision.",
        )
    if options.precision in GRIDS and not needs("nncf").ok:
        raise MissingDependencyError(
            f"OpenVINO as {options.precision} needs NNCF, which is not installed",
            remedy="pip install 'levit-export[int8]'",
        )
    if options.precision == "int8" and options.calibration is None:
        raise UsageError(
            "int8 needs images to fit the range of activations to, and none were given",
            remedy="Give --data DIR with a few hundred images, or take --precision w8.",
        )
    if options.precision == "w4" and options.layout == "maps":
        raise _nothing_in_4_bits()


def _nothing_in_4_bits() -> UsageError:
    return UsageError(
        "NNCF packs matrix products into 4 bits, and here every layer is a convolution",
        remedy="Use --precision openvino=w8; for a LeViT, --layout tokens would do.",
    )


def write(model: Prepared, options: ExportOptions) -> openvino.Model:
    """The graph of ``model`` in ``options.precision``."""
    refuse(options)
    name, network = model.info.name, model.network
    network.refuse_unknown(options.keep)
    if options.precision in FLOATS:
        half = options.precision == "fp16"
        graph = openvino_write.write(network, name, half=half, keep=options.keep)
        if options.precision in HINTED:
            graph.set_rt_info(options.precision, list(HINT))  # OpenVINO calls it so too
        return graph
    nncf = _nncf()
    with quiet("nncf"):
        if options.precision == "int8":
            graph = openvino_write.write(as_convolutions(network), name)
            graph = _quantised(nncf, graph, model, options)
        else:
            graph = openvino_write.write(network, name)
            graph = _compressed(nncf, graph, network, options)
    # NNCF names nodes by a counter of the process, which makes two exports of one differ.
    for index, node in enumerate(graph.get_ordered_ops()):
        kind = node.get_type_name()
        if re.fullmatch(rf"{kind}_\d+", node.get_friendly_name()):
            node.set_friendly_name(f"{kind}_{index}")
    return graph


def _nncf() -> Any:
    """NNCF, imported without its telemetry and without its class for everybody's loggers."""
    logger_class = logging.getLoggerClass()
    try:
        with quiet(), told(TELEMETRY_OFF, "1"):
            import nncf

            return nncf
    finally:
        logging.setLoggerClass(logger_class)


def _float_nodes(graph: openvino.Model, network: Network, keep: Collection[str]) -> set[str]:
    """The nodes that stay float: the first convolution, and every node of the blocks ``keep``."""
    first = [op for op in network.ops if op.kind == "convolution"][:1]
    kept = {value.name for op in network.ops_of(keep) for value in op.outputs}
    nodes = {str(node.get_friendly_name()) for node in graph.get_ops()}
    return {openvino_write.main_node(op) for op in first} | {
        node for node in nodes if node.partition("/")[0] in kept
    }


def _quantised(
    nncf: Any, graph: openvino.Model, model: Prepared, options: ExportOptions
) -> openvino.Model:
    """Weights int8 per channel and symmetric, activations int8 per tensor and asymmetric."""
    from nncf.quantization.advanced_parameters import (
        AdvancedQuantizationParameters,
        AdvancedSmoothQuantParameters,
        OverflowFix,
    )

    assert options.calibration is not None  # noqa: S101 - refuse saw to it
    network = model.network
    products_of_activations = {
        op.output.name
        for op in network.ops
        if op.kind == "matmul" and not network.constants.keys() & set(op.inputs)
    }
    ignored = _float_nodes(graph, network, options.keep) | products_of_activations
    name, batch = model.signature.inputs[0].name, model.signature.batch or 1
    pieces = [{name: piece} for piece in in_batches(options.calibration.inputs, batch)]
    return nncf.quantize(
        graph,
        nncf.Dataset(pieces),
        preset=nncf.QuantizationPreset.MIXED,
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(pieces),
        ignored_scope=_scope(nncf, ignored),
        advanced_parameters=AdvancedQuantizationParameters(
            overflow_fix=OverflowFix.ENABLE,
            disable_bias_correction=True,
            batchwise_statistics=batch > 1,
            # Smoothing moves factors from activations into weights, which would not be ours then.
            smooth_quant_alphas=AdvancedSmoothQuantParameters(matmul=-1),
        ),
    )


def _compressed(
    nncf: Any, graph: openvino.Model, network: Network, options: ExportOptions
) -> openvino.Model:
    """Weights in 8 or 4 bits with a zero point, by row or by ``GROUP`` of a row."""
    from nncf.quantization.advanced_parameters import (
        AdvancedCompressionParameters,
        GroupSizeFallbackMode,
    )

    ignored = _float_nodes(graph, network, options.keep)
    settings: dict[str, Any] = {"mode": nncf.CompressWeightsMode.INT8_ASYM}
    if options.precision == "w4":
        settings = {
            "mode": nncf.CompressWeightsMode.INT4_ASYM,
            "group_size": GROUP,
            "advanced_parameters": AdvancedCompressionParameters(
                group_size_fallback_mode=GroupSizeFallbackMode.ADJUST
            ),
        }
    compressed = nncf.compress_weights(graph, ignored_scope=_scope(nncf, ignored), **settings)
    constants = (n for n in compressed.get_ordered_ops() if n.get_type_name() == "Constant")
    is_packed = any(node.get_element_type().bitwidth == PACKED_BITS for node in constants)
    if options.precision == "w4" and not is_packed:
        raise _nothing_in_4_bits()
    return compressed


def _scope(nncf: Any, names: Collection[str]) -> Any:
    return nncf.IgnoredScope(names=sorted(names), validate=False)


def as_convolutions(network: Network) -> Network:
    """The same network, every linear layer over tokens a 1x1 convolution, for int8 kernels.

    *Given* tokens ``X (B, N, C)``, ``W (O, C)`` and ``b (O,)``: ``Y = X Wᵀ + b``, and perhaps
    ``Hardswish(Y)``. *Result*: the same numbers as a convolution of ``Xᵀ (B, C, 1, N)``, its bias
    and its activation inside the two transpositions. Values keep their names; one inside the
    transpositions is called ``NAME/images`` and so on.

    OpenVINO keeps channels last, so the transpositions move nothing. Without VNNI its int8 matrix
    products are slower than float32 ones, and its int8 convolutions faster: 1.2 and 0.6 of
    float32's time for LeViT-256. With VNNI both take 0.4 of it.
    """
    # Layers over tokens whose weight no other operator reads.
    layers = {
        op.output.name
        for op in network.ops
        if op.kind == "linear"
        and len(network.shape(op.inputs[0])) == TOKENS_RANK
        and op.inputs[1] in network.constants
        and network.readers[op.inputs[1]] == (op,)
    }
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
