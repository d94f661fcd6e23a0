"""Core ML packages with weights of 8, 6 or 4 bits, and with 8-bit inputs of the layers.

coremltools does the compressing. What is decided here is what it is done to:

- The weights of convolutions and linear layers of more than 2048 numbers. The first convolution of
  every LeViT is smaller. Attention-bias tables are added and not multiplied with; they stay in
  float16, which is 2 % of a float32 file.
- ``w8`` and ``int8``: a symmetric grid per output channel. ``w6`` and ``w4``: a palette per
  tensor, which every system since iOS 16 reads, or per 16 channels from iOS 18 on.
- ``int8``: the inputs of those layers on an affine 8-bit grid over the range that the calibration
  images gave them, except for the first layer and the heads. Attention's own products, softmax
  and the residual sums stay in float16.

coremltools calibrates by running the model, which needs a Mac. Here the reference evaluator gives
the ranges of the saved float16 package, and coremltools' pass puts the grids in.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from levit_export.core import heavy_imports
from levit_export.core.errors import ExportFailedError
from levit_export.core.network import is_within
from levit_export.core.values import Calibration
from levit_export.formats import mil
from levit_export.formats.coreml.package import write_package
from levit_export.formats.coreml.palettes import palette

PALETTE_BITS = {"w6": 6, "w4": 4}
COMPRESSED = ("int8", "w8", *PALETTE_BITS)
LAYERS = ("conv", "linear")
WEIGHT_THRESHOLD = 2048
"""Weights of at most so many numbers stay in float16: coremltools' own default."""
GROUP = 16
"""Channels that share a palette, where the system allows more than one a tensor."""
GROUPED_FROM = 9
"""The specification version of iOS 18."""
FLOAT_INPUTS = ("stem.0", "embedding", "head", "head_dist", "distill_head")
"""Blocks that take float16: they cost little, and rounding there shows most."""

LARGEST_AFFINE = 65504 / 128
"""coremltools computes zero points in float16, with products of 128 and the range's ends."""
LARGEST_SYMMETRIC = 65504 / 2
SMALLEST_RANGE = 255 * 2.0**-14
"""So that the step is a normal float16 number."""

Range = tuple[float, float]


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer of a package: what it gives, what it reads, its block.

    ``shape`` is that of its weight, output channels first.
    """

    name: str
    source: str
    block: str
    shape: tuple[int, ...]

    @property
    def is_large(self) -> bool:
        """Whether its weight is compressed."""
        return len(self.shape) > 1 and prod(self.shape) > WEIGHT_THRESHOLD


def compress(
    converted: Any,
    precision: str,
    owners: Mapping[str, str],
    keep: Collection[str],
    calibration: Calibration | None,
) -> Any:
    """``converted``, a float16 ``MLModel``, with its layers compressed; ``keep`` are left alone.

    ``owners`` are the blocks of ops. Raises ``ExportFailedError`` where a layer's input leaves the
    range that float16 can be quantised in.
    """
    found = [
        layer
        for layer in layers(converted.get_spec(), owners)
        if layer.is_large and not is_within(layer.block, keep)
    ]
    if precision == "int8":
        if calibration is None:
            raise ValueError("int8 is calibrated on images")
        chosen = [layer for layer in found if layer.block not in FLOAT_INPUTS]
        ranges = observe(converted, {layer.source for layer in chosen}, calibration.inputs)
        converted = _with_grids(converted, chosen, ranges)
    grouped = converted.get_spec().specificationVersion >= GROUPED_FROM
    tools = heavy_imports.coremltools("optimize.coreml")
    shrink = (
        tools.palettize_weights if precision in PALETTE_BITS else tools.linear_quantize_weights
    )
    return _forgetful(shrink, converted, _weights_config(found, precision, grouped=grouped))


def layers(specification: Any, owners: Mapping[str, str]) -> list[Layer]:
    """The layers of a program with constant weights, in its order."""
    (block,) = specification.mlProgram.functions["main"].block_specializations.values()
    shapes = {
        output.name: _shape(output.type)
        for operation in block.operations
        if operation.type == "const"
        for output in operation.outputs
    }
    found = []
    for operation in block.operations:
        if operation.type in LAYERS:
            name = operation.outputs[0].name
            weight = _argument(operation, "weight")
            plain = name if name in owners else name.removesuffix("_fp16")
            source = _argument(operation, "x")
            found.append(Layer(name, source, owners.get(plain, ""), shapes.get(weight, ())))
    return found


def observe(converted: Any, values: Collection[str], images: np.ndarray) -> dict[str, Range]:
    """Least and largest number of each of ``values`` over ``images``, by the evaluator."""
    with tempfile.TemporaryDirectory(prefix="levit-export-") as folder:
        package = Path(folder, "calibrated.mlpackage")
        write_package(package, converted.get_spec(), Path(converted.weights_dir), {})
        program = mil.load(package)
    (taken,) = (f for f in program.inputs if isinstance(f, mil.ArrayFeature))
    # In the program's order: what comes after an infinity is infinite too.
    names = [name for name in program.value_names if name in values]
    low, high = dict.fromkeys(names, np.inf), dict.fromkeys(names, -np.inf)
    for piece in _pieces(images, taken.shape[0]):
        seen = program.run({taken.name: piece}, taps=names)
        for name in names:
            low[name] = min(low[name], float(seen[name].min()))
            high[name] = max(high[name], float(seen[name].max()))
            if not np.isfinite(low[name] + high[name]):
                raise _leaves_float16(name)
    return {name: (low[name], high[name]) for name in names}


def _pieces(images: np.ndarray, batch: int) -> Iterable[np.ndarray]:
    """``images`` in batches, the last one filled up with its last image."""
    for start in range(0, len(images), batch):
        piece = images[start : start + batch]
        yield np.concatenate([piece, np.repeat(piece[-1:], batch - len(piece), axis=0)])


def _with_grids(converted: Any, chosen: Sequence[Layer], ranges: Mapping[str, Range]) -> Any:
    """``converted`` with each chosen layer's input quantised and dequantised before it."""
    tools = heavy_imports.coremltools("optimize.coreml")
    option = heavy_imports.coremltools("converters.mil.mil.passes.graph_pass").PassOption
    registry = heavy_imports.coremltools("converters.mil.mil.passes.pass_registry").PASS_REGISTRY
    configs = {
        layer.name: tools.OpLinearQuantizerConfig(mode=_mode(layer, ranges[layer.source]))
        for layer in chosen
    }
    statistics = {
        name: {"rmin": low, "rmax": max(high, low + SMALLEST_RANGE)}
        for name, (low, high) in ranges.items()
    }
    insert = registry["compression::insert_prefix_quantize_dequantize_pair"]
    config = tools.OptimizationConfig(global_config=None, op_name_configs=configs)
    insert.set_options([option("config", config), option("activation_stats", statistics)])
    # What linear_quantize_activations does once it has calibrated (coremltools 9.0).
    apply = heavy_imports.coremltools("models.utils")._apply_graph_pass  # noqa: SLF001
    return _forgetful(apply, converted, insert, spec_version=8, skip_model_load=True)


def _mode(layer: Layer, found: Range) -> str:
    """Affine, or symmetric where coremltools could not compute the zero point."""
    largest = max(map(abs, found))
    if largest >= LARGEST_SYMMETRIC:
        raise _leaves_float16(layer.source)
    return "linear" if largest < LARGEST_AFFINE else "linear_symmetric"


def _leaves_float16(value: str) -> ExportFailedError:
    return ExportFailedError(
        f"{value!r} comes near the end of float16 ({LARGEST_SYMMETRIC:.0f}) on a calibration "
        "image, so it cannot be put on an 8-bit grid",
        remedy="Export --format coreml as fp32, or as fp16 with --keep and the block's name.",
    )


def _weights_config(found: Iterable[Layer], precision: str, *, grouped: bool) -> Any:
    """How the weight of each layer is stored; those of other ops stay as they are."""
    tools = heavy_imports.coremltools("optimize.coreml")
    if precision in PALETTE_BITS:
        paint = {"mode": "custom", "lut_function": palette(PALETTE_BITS[precision])}
        whole = tools.OpPalettizerConfig(**paint)
        shared = tools.OpPalettizerConfig(
            **paint, granularity="per_grouped_channel", group_size=GROUP
        )
    else:
        whole = shared = tools.OpLinearQuantizerConfig(mode="linear_symmetric")
    return tools.OptimizationConfig(
        global_config=None,
        op_name_configs={
            # coremltools would leave out a weight whose channels do not divide.
            layer.name: shared if grouped and layer.shape[0] % GROUP == 0 else whole
            for layer in found
        },
    )


def _forgetful(make: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Call ``make`` with the counter emptied that numbers new names; see ``coreml_conversion``."""
    heavy_imports.coremltools("converters.mil").Builder.name_count.clear()
    return make(*arguments, **options)


def _argument(operation: Any, parameter: str) -> str:
    return str(operation.inputs[parameter].arguments[0].name)


def _shape(type_: Any) -> tuple[int, ...]:
    return tuple(int(d.constant.size) for d in type_.tensorType.dimensions)
