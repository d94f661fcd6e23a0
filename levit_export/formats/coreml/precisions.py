"""Core ML packages with weights of 8, 6 or 4 bits, and with 8-bit inputs of the layers.

What is compressed is read from the network, and decided here:

- The weights that ``formats.compressed`` names.
- ``w8`` and ``int8``: a symmetric grid per output channel. ``w6`` and ``w4``: a palette per
  tensor, which every system since iOS 16 reads, or per 16 channels from iOS 18 on.
- ``int8``: the inputs of those layers on an affine 8-bit grid over the range that the calibration
  images gave them, except for the first layer and the heads. Attention's own products, softmax
  and the residual sums stay in float16.

coremltools compresses the weights. It calibrates by running the model, which needs a Mac; here
the reference evaluator gives the ranges of the saved float16 package, and the writer puts the
grids in.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from levit_export.core import packages
from levit_export.core.errors import ExportFailedError
from levit_export.core.network import Network
from levit_export.core.precisions import PRECISIONS
from levit_export.formats import mil
from levit_export.formats.compressed import GROUP, CompressedLayer, palette
from levit_export.formats.coreml.package import write_package
from levit_export.formats.coreml.write import Range, name_in
from levit_export.inputs.samples import in_batches

GROUPED_FROM = 9
"""The specification version of iOS 18."""
FLOAT_INPUTS = ("stem.0", "embedding", "head", "head_dist", "distill_head")
"""Blocks that take float16: they cost little, and rounding there shows most."""

LARGEST = 65504 / 2
"""Half of float16's range: a value that comes nearer to its end may leave it on another image."""


def with_grids(found: Sequence[CompressedLayer]) -> list[CompressedLayer]:
    """Those of the layers whose input ``int8`` puts on a grid."""
    return [layer for layer in found if layer.block not in FLOAT_INPUTS]


def observe(converted: Any, values: Collection[str], images: np.ndarray) -> dict[str, Range]:
    """Least and largest number of each of ``values`` over ``images``, by the evaluator.

    ``converted`` is a float16 ``MLModel``. Raises ``ExportFailedError`` where a value comes near
    the end of float16's range.
    """
    with tempfile.TemporaryDirectory(prefix="levit-export-") as folder:
        package = Path(folder, "calibrated.mlpackage")
        write_package(package, converted.get_spec(), Path(converted.weights_dir), {})
        program = mil.load(package)
    (taken,) = (f for f in program.inputs if isinstance(f, mil.ArrayFeature))
    # In the program's order: what comes after an infinity is infinite too.
    names = [name for name in program.value_names if name in values]
    low, high = dict.fromkeys(names, np.inf), dict.fromkeys(names, -np.inf)
    for piece in in_batches(images, taken.shape[0]):
        seen = program.run({taken.name: piece}, taps=names)
        for name in names:
            low[name] = min(low[name], float(seen[name].min()))
            high[name] = max(high[name], float(seen[name].max()))
            if not np.abs(seen[name]).max() < LARGEST:  # so that NaN is refused too
                raise ExportFailedError(
                    f"{name!r} comes near the end of float16 ({LARGEST:.0f}) on a calibration "
                    "image, so it cannot be put on an 8-bit grid",
                    remedy="Export --format coreml as fp32, or as fp16 with --keep and the "
                    "block's name.",
                )
    return {name: (low[name], high[name]) for name in names}


def compress_weights(
    converted: Any, found: Sequence[CompressedLayer], network: Network, to: str
) -> Any:
    """``converted``, an ``MLModel`` of ``network``, with the weights of ``found`` as ``to`` says.

    The weights of other layers stay as they are.
    """
    tools = packages.coremltools("optimize.coreml")
    grouped = converted.get_spec().specificationVersion >= GROUPED_FROM
    if PRECISIONS[to].is_palette:
        shrink = tools.palettize_weights
        paint = {"mode": "custom", "lut_function": palette(PRECISIONS[to].bits)}
        whole = tools.OpPalettizerConfig(**paint)
        shared = tools.OpPalettizerConfig(
            **paint, granularity="per_grouped_channel", group_size=GROUP
        )
    else:
        shrink = tools.linear_quantize_weights
        whole = shared = tools.OpLinearQuantizerConfig(mode="linear_symmetric")
    configs = {
        # coremltools would leave out a weight whose channels do not divide.
        name_in(network, layer.name, half=True): shared
        if grouped and layer.channels % GROUP == 0
        else whole
        for layer in found
    }
    # New names are numbered by a counter of the whole process: emptied, they are always the same.
    packages.coremltools("converters.mil").Builder.name_count.clear()
    return shrink(converted, tools.OptimizationConfig(global_config=None, op_name_configs=configs))
