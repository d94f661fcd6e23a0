"""Small MIL programs saved as packages, and the rounding-error bounds that results must meet."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from coremltools.converters.mil.backend.mil.load import load as to_specification
from coremltools.converters.mil.mil import Builder, types
from coremltools.converters.mil.mil.program import Program as MilProgram
from coremltools.proto import Model_pb2

from levit_export.formats import mil

mb = Builder
Build = Callable[..., Any]
Float = npt.NDArray[np.floating[Any]]

MODEL = Path("Data/com.apple.CoreML/model.mlmodel")
WEIGHTS = Path("Data/com.apple.CoreML/weights/weight.bin")

UNIT = {np.dtype(np.float32): 2.0**-24, np.dtype(np.float16): 2.0**-11}
"""Unit roundoff: the largest relative error of one rounding."""
TINY = {np.dtype(np.float32): 2.0**-150, np.dtype(np.float16): 2.0**-25}
"""Half the spacing of the subnormal numbers: the largest absolute error below the normal ones."""
LARGEST_HALF = 65504.0
FUNCTION = 4.0
"""Units in the last place that NumPy's float32 exp, log, tanh may be off (its own test limit)."""

_TYPES = {
    "float32": types.fp32,
    "float16": types.fp16,
    "int32": types.int32,
    "int8": types.int8,
    "bool": types.bool,
}


@dataclass(frozen=True)
class Saved:
    """A package on disk, and what coremltools itself computes for the given inputs."""

    path: Path
    inputs: dict[str, npt.NDArray[Any]]

    def run(self) -> dict[str, Any]:
        """The evaluator's outputs for the given inputs."""
        return mil.load(self.path).run(self.inputs)

    def output(self) -> npt.NDArray[Any]:
        """The only output."""
        (value,) = self.run().values()
        return np.asarray(value)


def program(build: Build, specification: int, inputs: Mapping[str, Any]) -> MilProgram:
    """A MIL program whose function ``build(**variables)`` makes, for inputs of these types."""
    import coremltools as ct

    specs = [
        mb.TensorSpec(shape=np.shape(x), dtype=_TYPES[str(np.asarray(x).dtype)])
        for x in inputs.values()
    ]
    names = list(inputs)
    function = eval(  # noqa: S307 - MIL takes the inputs' names from the function's signature
        f"lambda {', '.join(names)}: build({', '.join(f'{n}={n}' for n in names)})",
        {"build": build},
    )
    made: MilProgram = mb.program(input_specs=specs, opset_version=ct.target(specification))(
        function
    )
    return made


def save(folder: Path, build: Build, specification: int, inputs: Mapping[str, Any]) -> Saved:
    """Save without coremltools' optimisation passes, so that the ops stay as built (and fast)."""
    root = folder / "model.mlpackage"
    model = root / "Data" / "com.apple.CoreML"
    weights = model / "weights"
    weights.mkdir(parents=True)
    proto = to_specification(
        program(build, specification, inputs),
        weights_dir=str(weights),
        specification_version=specification,
    )
    (model / "model.mlmodel").write_bytes(proto.SerializeToString())
    manifest = {
        "fileFormatVersion": "1.0.0",
        "itemInfoEntries": {
            "root": {
                "author": "com.apple.CoreML",
                "description": "CoreML Model Specification",
                "name": "model.mlmodel",
                "path": "com.apple.CoreML/model.mlmodel",
            },
            "weights": {
                "author": "com.apple.CoreML",
                "description": "CoreML Model Weights",
                "name": "weights",
                "path": "com.apple.CoreML/weights",
            },
        },
        "rootModelIdentifier": "root",
    }
    (root / "Manifest.json").write_text(json.dumps(manifest))
    return Saved(root, {name: np.asarray(x) for name, x in inputs.items()})


def export(model: torch.nn.Module, x: torch.Tensor) -> torch.export.ExportedProgram:
    """``model`` as the graph that coremltools converts."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported: torch.export.ExportedProgram = torch.export.export(model, (x,))
        decomposed: torch.export.ExportedProgram = exported.run_decompositions({})
        return decomposed


def convert(
    model: torch.nn.Module | torch.export.ExportedProgram,
    x: torch.Tensor,
    precision: str,
    *,
    specification: int = 7,
    **options: Any,
) -> Any:
    """``model`` converted as exporters do it: input ``input``, output ``output``."""
    exported = model if isinstance(model, torch.export.ExportedProgram) else export(model, x)
    import coremltools as ct

    given: dict[str, Any] = {
        "inputs": [ct.TensorType(name="input", shape=tuple(x.shape))],
        "outputs": [ct.TensorType(name="output")],
        **options,
    }
    # torch.export and coremltools warn about versions and their own deprecated calls.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ct.convert(
            exported,
            convert_to="mlprogram",
            compute_precision=getattr(ct.precision, precision.upper()),
            minimum_deployment_target=ct.target(specification),
            **given,
        )


def assert_close(
    found: npt.NDArray[Any], exact: npt.ArrayLike, *, error: npt.ArrayLike = 0.0
) -> None:
    """``found`` is ``exact`` within ``error``, rounded once to the type of ``found``.

    ``error`` bounds what float32 arithmetic inside the op may add; the last rounding adds the unit
    roundoff of the output type.
    """
    expected = np.asarray(exact, dtype=np.float64)
    assert found.shape == expected.shape
    dtype = found.dtype
    slack = np.asarray(error, dtype=np.float64)
    bound = slack + UNIT[dtype] * (np.abs(expected) + slack) + TINY[dtype]
    with np.errstate(invalid="ignore"):
        off = np.abs(found.astype(np.float64) - expected)
    same = (found == expected) | (np.isnan(found) & np.isnan(expected)) | (off <= bound)
    # Beyond the largest half float, infinity is the correct result.
    if dtype == np.float16:
        same |= np.isinf(found) & (np.abs(expected) + slack >= LARGEST_HALF + 16)
    worst = np.max(np.where(same, 0.0, off / np.maximum(bound, 1e-300)), initial=0.0)
    assert same.all(), f"{np.sum(~same)} of {same.size} off, by up to {worst:.3g} bounds"


def dot_error(length: int, magnitude: npt.ArrayLike) -> Float:
    """Bound on a float32 sum of ``length`` products with absolute sum ``magnitude``.

    ``n u / (1 - n u) * sum |x||y|`` (Higham, Accuracy and Stability of Numerical Algorithms, 3.1),
    whatever the order of summation.
    """
    growth = (length + 1) * UNIT[np.dtype(np.float32)]
    return np.asarray(growth / (1 - growth) * np.asarray(magnitude, dtype=np.float64))


def convolution_to_softmax(x: Any) -> Any:
    """A program with weights of both kinds of layer."""
    w = np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(np.float32)
    y = mb.conv(x=x, weight=w, pad_type="custom", pad=[1, 1, 1, 1], strides=[2, 2], name="stem")
    y = mb.relu(x=y, name="active")
    y = mb.reshape(x=y, shape=[1, 4, 16], name="tokens")
    m = np.random.default_rng(1).standard_normal((4, 16)).astype(np.float32)
    y = mb.linear(x=y, weight=m, name="mixed")
    return mb.softmax(x=y, axis=-1, name="p")


def many_ops(x: Any) -> Any:
    """A program of ops that allocate, index and repeat, for ``x`` of shape ``(1, 3, 8, 8)``."""
    w = np.random.default_rng(0).standard_normal((3, 1, 3, 3)).astype(np.float32)
    y = mb.conv(x=x, weight=w, pad_type="same", groups=3, name="depthwise")
    y = mb.conv_transpose(x=y, weight=w, strides=[2, 2], pad_type="custom", pad=[1, 0, 0, 1])
    y = mb.upsample_bilinear(x=y, scale_factor_height=0.5, scale_factor_width=0.5, name="small")
    y = mb.upsample_nearest_neighbor(x=y, scale_factor_height=2, scale_factor_width=2)
    y = mb.resize_bilinear(x=y, target_size_height=8, target_size_width=8, name="back")
    y = mb.crop(x=y, crop_height=[1, 1], crop_width=[2, 0], name="cut")
    y = mb.space_to_depth(x=y, block_size=2)
    y = mb.sliding_windows(x=y, axis=3, size=2, stride=1, name="windows")
    y = mb.reverse(x=mb.cumsum(x=y, axis=1, exclusive=True), axes=[1])
    y = mb.band_part(x=y, lower=0, upper=1)
    values, places = mb.topk(x=y, k=3, axis=1)
    y = mb.scatter_along_axis(data=y, indices=places, updates=values, axis=1, mode="max")
    y = mb.gather_nd(x=y, indices=[[0, 1], [0, 2]], name="chosen")
    y = mb.select(cond=mb.less(x=y, y=np.float32(0)), a=np.float32(-1), b=y)
    y = mb.tile(x=y, reps=[2, 1, 1, 1])
    y = mb.avg_pool(x=y, kernel_sizes=[2, 2], strides=[2, 2], pad_type="valid", ceil_mode=True)
    return mb.reduce_log_sum_exp(x=y, axes=[-1], name="p")


def integer_ops(x: Any) -> Any:
    """A program of arithmetic on integers, for ``x`` of shape ``(1, 3, 8, 8)``."""
    y = mb.cast(x=x, dtype="int32", name="whole")
    y = mb.pow(x=mb.add(x=y, y=np.int32(2)), y=np.int32(5), name="power")
    y = mb.floor_div(x=mb.mul(x=y, y=np.int32(1000)), y=np.int32(7), name="quotient")
    y = mb.mod(x=mb.abs(x=mb.sub(x=y, y=np.int32(9))), y=np.int32(11), name="rest")
    y = mb.matmul(x=y, y=np.arange(32, dtype=np.int32).reshape(8, 4), name="product")
    y = mb.cumsum(x=y, axis=2, name="sums")
    y = mb.scatter(data=y, indices=[0, 1, 1], updates=y, axis=1, mode="add", name="put")
    y = mb.square(x=mb.reduce_sum(x=y, axes=[3], keep_dims=True), name="squares")
    y = mb.reduce_prod(x=mb.minimum(x=y, y=np.int32(3)), axes=[1], name="all")
    return mb.cast(x=y, dtype="fp32", name="p")


def edit(package: Path, change: Callable[[Any, Any], object]) -> None:
    """Apply ``change(model, block)`` to the specification."""
    model = Model_pb2.Model()
    model.ParseFromString((package / MODEL).read_bytes())
    change(model, model.mlProgram.functions["main"].block_specializations["CoreML6"])
    (package / MODEL).write_bytes(model.SerializeToString())
