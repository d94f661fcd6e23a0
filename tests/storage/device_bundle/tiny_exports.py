"""A small export directory made by hand: a linear model, its golden vectors, real tolerances."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from levit_export.core.values import (
    Interpolation,
    ModelInfo,
    Preprocessing,
    Resize,
    Signature,
    Size,
    TensorSpec,
    Tolerance,
    Verdict,
)
from levit_export.inputs import preprocessing, samples
from levit_export.inputs.samples import Samples
from levit_export.storage import export_directory
from levit_export.storage.export_directory import MANIFEST, ArtifactEntry, GoldenEntry, Manifest

RECIPE = Preprocessing("tiny", resize=(20, 20), crop=(16, 16))
_MODES: dict[Resize, tuple[Size, Size]] = {
    "shorter-side": ((21, 21), (18, 18)),
    "exact": ((21, 30), (18, 27)),
    "cover": ((21, 30), (18, 27)),
    "fit": ((21, 30), (18, 35)),
    "none": ((18, 21), (18, 21)),
}
RESIZES = [
    Preprocessing(
        mode, resize, crop, mode, kind, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), centre, (7, 130, 255)
    )
    for mode, (resize, crop) in _MODES.items()
    for kind in get_args(Interpolation)
    for centre in ("rounded", "floored", "truncated")
    if kind == "bicubic" or (mode, centre) == ("cover", "rounded")
]
"""Every way to resize and every way to settle a crop's offset, which is 3/2 or -5/2 in places."""


def named(recipe: Preprocessing) -> str:
    """What a test calls one of :data:`RESIZES`."""
    return f"{recipe.resize_mode}-{recipe.interpolation}-{recipe.centre}"


CLASSES = ("ant", "bee", "cat", "doe")
OUTPUTS = {"logits": 4, "distill": 3}
ONNX = "onnx-fp32/tiny.onnx"
OPENVINO = "openvino-fp32/tiny.xml"
COREML = "coreml-fp16/tiny.mlpackage"
SHAPE = (3, 16, 16)


def weights(output: str) -> np.ndarray:
    """Seeded weights ``(classes, 768)`` of one output."""
    generator = np.random.default_rng(len(output))
    matrix = generator.standard_normal((OUTPUTS[output], int(np.prod(SHAPE))))
    return (matrix / 28).astype(np.float32)


def golden_samples() -> Samples:
    """Noise, adversarial images, and two photographs that have to be resized."""
    generator = np.random.default_rng(5)
    photographs = generator.integers(0, 256, (2, 30, 41, 3), dtype=np.uint8)
    real = samples.from_images(RECIPE, photographs, np.array([1, 2]))
    return samples.make(RECIPE).joined(real)


def raw_samples() -> Samples:
    """The samples that have pixels, as a model takes them that normalises by itself."""
    golden = golden_samples()
    rows = [row for row, name in enumerate(golden.names) if name in golden.pixels]
    names = tuple(golden.names[row] for row in rows)
    images = [preprocessing.resize_and_crop(RECIPE, golden.pixels[n]) for n in names[-2:]]
    planes = [image.transpose(2, 0, 1) for image in (*map(golden.pixels.get, names[:-2]), *images)]
    return Samples(names, np.stack(planes), golden.labels[rows], golden.pixels)


def build_onnx(path: Path, *, raw: bool = False) -> None:
    """``logits`` and ``distill``, each a product with the flattened image.

    With ``raw`` the input is uint8 and the graph normalises it.
    """
    nodes = [helper.make_node("Flatten", ["normal" if raw else "input"], ["flat"])]
    tensors = []
    if raw:
        for name, values in (("scale", RECIPE.std), ("shift", RECIPE.mean)):
            constant = np.array(values, np.float32).reshape(1, 3, 1, 1) * np.float32(255)
            tensors.append(numpy_helper.from_array(constant, name))
        nodes[:0] = [
            helper.make_node("Cast", ["input"], ["pixels"], to=TensorProto.FLOAT),
            helper.make_node("Sub", ["pixels", "shift"], ["centred"]),
            helper.make_node("Div", ["centred", "scale"], ["normal"]),
        ]
    for name in OUTPUTS:
        nodes.append(helper.make_node("Gemm", ["flat", f"w_{name}"], [name], transB=1))
        tensors.append(numpy_helper.from_array(weights(name), f"w_{name}"))
    kind = TensorProto.UINT8 if raw else TensorProto.FLOAT
    taken = [helper.make_tensor_value_info("input", kind, [1, *SHAPE])]
    given = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, width])
        for name, width in OUTPUTS.items()
    ]
    graph = helper.make_graph(nodes, "tiny", taken, given, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString(deterministic=True))


def build_openvino(path: Path, source: Path) -> None:
    """The same as OpenVINO IR."""
    import openvino

    path.parent.mkdir(parents=True)
    openvino.save_model(openvino.convert_model(source), path, compress_to_fp16=False)


def make_export(
    folder: Path,
    *,
    openvino: bool = False,
    raw: bool = False,
    verdicts: dict[str, Verdict] | None = None,
) -> Path:
    """Write the export. Its Core ML package is a stand-in that no test executes."""
    build_onnx(folder / ONNX, raw=raw)
    paths = [ONNX, COREML]
    if openvino:
        build_openvino(folder / OPENVINO, folder / ONNX)
        paths.append(OPENVINO)
    package = folder / COREML / "Data" / "weight.bin"
    package.parent.mkdir(parents=True)
    package.write_bytes(bytes(range(256)))
    (folder / "labels.txt").write_text("".join(f"{name}\n" for name in CLASSES), encoding="utf-8")
    golden = raw_samples() if raw else golden_samples()
    flat = normal(golden)
    outputs = {name: (flat @ weights(name).T).astype(np.float32) for name in OUTPUTS}
    export_directory.write_golden(folder, golden, outputs)
    write_manifest(folder, paths, golden, verdicts or {})
    return folder


def write_manifest(
    folder: Path, paths: list[str], golden: Samples, verdicts: dict[str, Verdict]
) -> None:
    """``manifest.json`` for what lies in ``folder``; everything passes but for ``verdicts``."""
    entries = []
    for path in paths:
        format_, precision = Path(path).parts[0].split("-")
        entries.append(ArtifactEntry(format_, precision, path, verdicts.get(format_, "pass")))
    found = {entry.verdict for entry in entries}
    (folder / MANIFEST).unlink(missing_ok=True)
    manifest = Manifest(
        schema=export_directory.SCHEMA,
        verdict="fail" if "fail" in found else "not-run" if "not-run" in found else "pass",
        model=model_info(),
        signature=Signature(
            (TensorSpec("input", (1, *SHAPE), str(golden.inputs.dtype)),),
            tuple(TensorSpec(name, (1, width)) for name, width in OUTPUTS.items()),
        ),
        passes=(),
        artifacts=tuple(entries),
        golden=GoldenEntry(
            samples=golden.names,
            labels=tuple(int(label) for label in golden.labels),
            pixels=tuple(golden.pixels),
            tolerances={"fp32": tolerances(golden), "fp16": tolerances(golden)},
            weights={},
        ),
        toolchain={"levit-export": "0.1.0"},
        files=export_directory.list_files(folder),
    )
    export_directory.write_manifest(folder, manifest)


def tolerances(golden: Samples) -> dict[str, Tolerance]:
    """Rounding of a product of n terms: at most ``n u sum_j |w_j x_j|``, the reference's own too.

    The bound of Higham, Accuracy and Stability of Numerical Algorithms, section 3.1. Normalising
    in the graph rounds six times, constants included, values of at most ``largest``.
    """
    largest = 2.0 / min(RECIPE.std) if golden.inputs.dtype == np.uint8 else 0.0
    flat = np.abs(normal(golden))
    found = {}
    for name in OUTPUTS:
        sums = (flat @ np.abs(weights(name)).T.astype(np.float64)).max()
        inputs = 6 * largest * np.abs(weights(name)).sum(axis=1).max()
        bound = 2.0**-24 * ((flat.shape[1] + 1) * sums + inputs)
        found[name] = Tolerance(float(bound), (0.0,), "derived")
    return found


def normal(golden: Samples) -> np.ndarray:
    """Normalised inputs, a row each, in float64."""
    inputs = golden.inputs.astype(np.float64)
    if golden.inputs.dtype == np.uint8:
        mean, std = (np.array(v).reshape(3, 1, 1) for v in (RECIPE.mean, RECIPE.std))
        inputs = (inputs / 255 - mean) / std
    return inputs.reshape(len(golden), -1)


def model_info() -> ModelInfo:
    """A description of the model; no checkpoint exists."""
    return ModelInfo(
        name="tiny",
        dialect="fair",
        checkpoint="tiny.safetensors",
        checkpoint_sha256="0" * 64,
        parameters=5376,
        macs=5376,
        heads=2,
        config={},
        labels=CLASSES,
        preprocessing=RECIPE,
    )


def fed(cropped: np.ndarray) -> np.ndarray:
    """What the recipe makes of cropped pixels."""
    return preprocessing.normalise(RECIPE, cropped)
