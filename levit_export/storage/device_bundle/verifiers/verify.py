"""Check a bundle of levit-export on the machine that is to run it.

    python verify.py [--format onnx]                    files, pixels, outputs
    python verify.py --input fed.npy --sample gradient  what an app fed for a golden image
    python verify.py --results phone.json               answers and latencies, to be judged by
                                                        levit-export check BUNDLE --results FILE

Needs Python 3.10, NumPy and the runtime of the format: onnxruntime, openvino, coremltools on
macOS, or coreai-core on Python 3.11 or later. With Pillow the resize is checked as well. Exit
status: 0 pass, 1 fail, 2 bad usage, 3 not run.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import hashlib
import itertools
import json
import math
import os
import pkgutil
import platform
import re
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, suppress
from functools import cache
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple, NoReturn

import numpy as np

SCHEMA = 1
UNLISTED = ("bundle.json", "SHA256SUMS")
LEFT_BY_OTHERS = (".DS_Store", "__pycache__")
ROUNDOFF = {"fp64": 2.0**-53, "fp32": 2.0**-24, "fp16": 2.0**-11, "bf16": 2.0**-8}
OPENVINO_PROVIDER = "OpenVINOExecutionProvider"
HINT = "INFERENCE_PRECISION_HINT"
"""OpenVINO's property that says what it computes float32 numbers in."""

COMPUTED_IN = {"f32": "fp32", "bf16": "bf16", "f16": "fp16"}
"""What OpenVINO calls the types that it computes in, and what a bundle calls them."""

EXPLAINED = 3
"""Images whose mistake is looked for; the others are counted."""

WARM_UP, WARM, WARM_S = 5, 50, 1.0
"""Calls before timing; the least number of warm ones, and their least seconds."""

OPENED = ExitStack()
"""What has to be closed before this program ends."""

STATUS = {"pass": 0, "fail": 1, "not run": 3}

Arrays = dict[str, np.ndarray]
Run = Callable[[np.ndarray], Arrays]


class Line(NamedTuple):
    """One check: its verdict, its name, and what was seen."""

    verdict: str
    check: str
    detail: str = ""


class NotABundleError(Exception):
    """The folder cannot be verified at all."""


class NotStartedError(Exception):
    """What was asked for does not start here, so that nothing is known of it."""


# Files


def read_json(path: Path) -> Any:
    """Parsed JSON of a file that has to be there."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise NotABundleError(f"{path} cannot be read: {error}") from error


def read_description(folder: Path) -> Any:
    """``bundle.json``, if it is of the schema that this program knows."""
    content = read_json(folder / "bundle.json")
    is_ours = isinstance(content, dict) and content.get("format") == "levit-export bundle"
    if not is_ours or content.get("schema") != SCHEMA:
        raise NotABundleError(f"{folder / 'bundle.json'} is not of bundle format {SCHEMA}")
    return content


def check_files(folder: Path, described: Any) -> Iterator[Line]:
    """Every file there, as described, and no other."""
    wanted = described["files"]
    present = {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if not (path.is_dir() and not path.is_symlink())
        and not any(part in LEFT_BY_OTHERS for part in path.relative_to(folder).parts)
    }
    for name in sorted(present - set(wanted) - set(UNLISTED)):
        yield Line("fail", "files", f"{name} does not belong to the bundle")
    for name, entry in sorted(wanted.items()):
        path = folder / name
        if name not in present:
            yield Line("fail", "files", f"{name} is missing")
        elif path.is_symlink() or not path.is_file():
            yield Line("fail", "files", f"{name} is not a regular file")
        elif (found := sha256_of(path)) != (entry["sha256"], entry["bytes"]):
            yield Line("fail", "files", f"{name} was altered: SHA-256 {found[0]}")


def check_labels(folder: Path, manifest: Any) -> Iterator[Line]:
    """One line of ``labels.txt`` for each class, in the order of the outputs."""
    lines = (folder / "labels.txt").read_text(encoding="utf-8").split("\n")
    labels = manifest["model"]["labels"]
    if lines != [*labels, ""]:
        yield Line(
            "fail", "labels", f"labels.txt has {len(lines) - 1} lines, not the {len(labels)} names"
        )


def sha256_of(path: Path) -> tuple[str, int]:
    """Hash and size of a file."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        for chunk in iter(lambda: file.read(1 << 20), b""):
            digest.update(chunk)
            size += len(chunk)
    return digest.hexdigest(), size


def load(path: Path) -> np.ndarray:
    """An array of the bundle."""
    array: np.ndarray = np.load(path, allow_pickle=False)
    return array


# From pixels to the model's input


def check_images(folder: Path, described: Any, manifest: Any) -> Iterator[Line]:
    """Golden pixels, resized and normalised here, have to be the golden input."""
    recipe, spec = manifest["model"]["preprocessing"], manifest["signature"]["inputs"][0]
    inputs = load(folder / "golden/input.npy")
    repeated, wrong = 0, []
    for name, image in sorted(described["images"].items()):
        cropped = load(folder / f"golden/cropped/{name}.npy")
        pixels = load(folder / f"golden/pixels/{name}.npy")
        again = resize(recipe, pixels) if image["resized"] else pixels
        if again is not None:
            repeated += image["resized"]
            if not np.array_equal(again, cropped):
                yield Line("fail", "resize", f"{name}: {levels_apart(again, cropped)}")
        if image["row"] is not None:
            fed = inputs[image["row"]]
            if not np.array_equal(feed(recipe, spec, cropped), fed):
                wrong.append((is_grey(cropped), name, fed, cropped))
    wrong.sort(key=lambda each: each[:2])
    for _, name, fed, cropped in wrong[:EXPLAINED]:
        yield Line("fail", "normalisation", f"{name}: {explain(fed, cropped, recipe, spec)}")
    if len(wrong) > EXPLAINED:
        yield Line("fail", "normalisation", f"{len(wrong) - EXPLAINED} further images")
    if any(image["resized"] for image in described["images"].values()) and not repeated:
        yield Line("note", "resize", "not repeated here: Pillow is not installed")


def is_grey(cropped: np.ndarray) -> bool:
    """Whether the three channels are equal, so that their order cannot show."""
    return bool((cropped == cropped[..., :1]).all())


def feed(recipe: Any, spec: Any, cropped: np.ndarray) -> np.ndarray:
    """uint8 ``(H, W, 3)`` to the input without its batch: ``(p / 255 - mean) / std``, NCHW.

    A model with a uint8 input normalises by itself and takes the pixels as they are.
    """
    if spec["dtype"] == "uint8":
        return cropped if spec["shape"][-1] == 3 else cropped.transpose(2, 0, 1)
    scaled = (cropped.astype(np.float64) / 255 - recipe["mean"]) / recipe["std"]
    result: np.ndarray = scaled.transpose(2, 0, 1).astype(spec["dtype"])
    return result


def resize(recipe: Any, pixels: np.ndarray, **other: Any) -> np.ndarray | None:
    """The uint8 RGB image that the recipe sees; None without Pillow."""
    try:
        from PIL import Image
    except ImportError:
        return None
    recipe = {**recipe, **other}
    height, width = resized_size(recipe, *pixels.shape[:2])
    if not height or not width:
        return None
    image = Image.fromarray(pixels).convert("RGB")
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling[recipe["interpolation"].upper()])
    high, wide = recipe["crop"]
    seen = Image.new("RGB", (wide, high), tuple(recipe["fill"]))
    seen.paste(image, (-crop_offset(recipe, width, wide), -crop_offset(recipe, height, high)))
    return np.asarray(seen)


def resized_size(recipe: Any, height: int, width: int) -> tuple[int, int]:
    """What an image is resized to: height and width."""
    high, wide = recipe["resize"]
    mode = recipe["resize_mode"]
    if mode == "none":
        return height, width
    if mode == "exact":
        return high, wide
    if mode == "shorter-side":
        short = min(height, width)
        # Multiplied first: a factor such as 256 / 49 is rounded, and 49 times that is below 256.
        return int(high * height / short), int(high * width / short)
    ratios = (height / high, width / wide)
    ratio = max(ratios) if mode == "fit" else min(ratios)
    return round(height / ratio), round(width / ratio)


def crop_offset(recipe: Any, side: int, crop: int) -> int:
    """Where the crop starts along a side; negative where it reaches beyond the image."""
    half = (side - crop) / 2
    if recipe["centre"] == "floored":
        return math.floor(half)
    return round(half) if recipe["centre"] == "rounded" and half > 0 else int(half)


def levels_apart(one: np.ndarray, other: np.ndarray) -> str:
    """How far two uint8 images lie apart."""
    if one.shape != other.shape:
        return f"has shape {one.shape}, expected {other.shape}"
    apart = np.abs(one.astype(int) - other.astype(int))
    return f"differs by up to {apart.max()} of 255 levels, {apart.mean():.2f} on average"


# What an app did wrong


def geometries() -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """What happens to ``(H, W, 3)`` images on their way."""
    return {
        "": lambda image: image,
        "mirrored left to right": lambda image: image[:, ::-1],
        "upside down": lambda image: image[::-1],
        "rows and columns are exchanged": lambda image: image.transpose(1, 0, 2),
    }


def scalings(recipe: Any) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """What happens to pixel values ``(H, W, 3)``, 0 to 255, on their way."""
    mean, std = np.array(recipe["mean"]), np.array(recipe["std"])

    def once(p: np.ndarray) -> np.ndarray:
        result: np.ndarray = (p / 255 - mean) / std
        return result

    return {
        "": once,
        "normalised twice": lambda p: (once(p) - mean) / std,
        "normalised twice, divided by 255 both times": lambda p: once(once(p)),
        "not normalised: values are 0 to 255": lambda p: p,
        "divided by 255, but mean and std are not applied": lambda p: p / 255,
        "divided by 255 twice": lambda p: once(p / 255),
        "not divided by 255 before mean and std": lambda p: (p - mean) / std,
        "the mean is not subtracted": lambda p: p / 255 / std,
        "not divided by std": lambda p: p / 255 - mean,
        "mean and std are in BGR order": lambda p: (p / 255 - mean[::-1]) / std[::-1],
        "normalised with ImageNet's mean and std": lambda p: (
            (p / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
        ),
        "scaled to -1..1": lambda p: p / 127.5 - 1,
    }


CHANNELS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "": lambda image: image,
    "channels look swapped: BGR": lambda image: image[..., ::-1],
}
LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "": lambda image: image.transpose(2, 0, 1),
    "laid out as NHWC, the model takes NCHW": lambda image: image.reshape(3, *image.shape[:2]),
}


def histories(recipe: Any, spec: Any) -> list[tuple[str, Callable[[np.ndarray], np.ndarray]]]:
    """Every combination of the mistakes above, those with fewest first; the first is right."""
    values: dict[str, Callable[[np.ndarray], np.ndarray]] = scalings(recipe)
    if spec["dtype"] == "uint8":
        wrong = values.pop("")
        values.pop("not normalised: values are 0 to 255")
        values = {"": lambda p: p, "normalised, which the model does by itself": wrong, **values}
    layouts = LAYOUTS
    if spec["shape"][-1] == 3 and spec["shape"][1] != 3:
        layouts = {"": lambda image: image}

    def chain(steps: tuple[Callable[[np.ndarray], np.ndarray], ...]) -> Any:
        def run(image: np.ndarray) -> np.ndarray:
            for step in steps:
                image = step(image)
            return image

        return run

    kinds = (geometries(), CHANNELS, values, layouts)
    combined = [
        ("; ".join(filter(None, words)), len([word for word in words if word]), chain(steps))
        for words, steps in (
            zip(*choice, strict=True) for choice in itertools.product(*(k.items() for k in kinds))
        )
    ]
    return [(words, run) for words, _, run in sorted(combined, key=lambda each: each[1])]


def roundings(recipe: Any, values: np.ndarray, unit: float) -> float:
    """Largest error of ``(p / 255 - mean) / std`` in arithmetic of this unit roundoff.

    Three operations and three rounded constants, none of whose results exceeds the larger of
    ``(1 + |mean|) / std`` and the values themselves; 8 in place of 6 leaves room for second order.
    """
    largest = (1 + np.abs(recipe["mean"]).max()) / min(recipe["std"])
    return float(8 * unit * max(largest, np.abs(values).max()))


def explain(fed: np.ndarray, cropped: np.ndarray, recipe: Any, spec: Any) -> str:
    """What was done to ``cropped`` to give ``fed``; empty when it was the right thing."""
    shape = feed(recipe, spec, cropped).shape
    prefix = ""
    if fed.shape != shape and sorted(fed.shape) == sorted(shape) and fed.shape[-1] == 3:
        prefix, fed = "laid out as NHWC, the model takes NCHW", fed.transpose(2, 0, 1)
    if fed.shape != shape:
        return f"shape {fed.shape}, the model takes {shape}"
    if not np.isfinite(fed).all():
        return "holds NaN or infinity"
    image = cropped.astype(np.float64)
    closest, least, halved = "", np.inf, None
    for words, run in histories(recipe, spec):
        values = run(image)
        apart = np.abs(fed - values)
        exact = spec["dtype"] == "uint8" and not words
        if apart.max() <= (0 if exact else roundings(recipe, values, ROUNDOFF["fp32"])):
            return "; ".join(filter(None, (prefix, words)))
        if halved is None and apart.max() <= roundings(recipe, values, ROUNDOFF["fp16"]):
            halved = "; ".join(filter(None, (prefix, words, "computed in float16")))
        if apart.mean() < least:
            closest, least = f"{words}; " if words else "", apart.mean()
            levels = apart * max(np.ptp(image), 1) / max(np.ptp(values), 1e-9)
    return halved or (
        f"{prefix}{'; ' if prefix else ''}{closest}other pixels: up to {levels.max():.1f} levels "
        f"of 255 apart, {levels.mean():.2f} on average: look at resize, crop and interpolation"
    )


def explain_resize(fed: np.ndarray, pixels: np.ndarray, recipe: Any, spec: Any) -> str:
    """Which other resize of the pixels gives ``fed`` within half a level; empty if none does."""
    others: dict[str, dict[str, Any]] = {
        f"resized with {kind} in place of {recipe['interpolation']}": {"interpolation": kind}
        for kind in ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")
        if kind != recipe["interpolation"]
    }
    if recipe["resize_mode"] in ("exact", "none"):
        others["the aspect ratio was kept and the sides cropped"] = {"resize_mode": "cover"}
    else:
        straight = {"resize": recipe["crop"]}
        others["the aspect ratio was not kept"] = {"resize_mode": "exact", **straight}
        others["resized straight to the crop's size"] = straight
    if recipe["resize_mode"] == "fit":
        others["padded with black"] = {"fill": (0, 0, 0)}
        others["cropped, not padded"] = {"resize_mode": "cover"}
    for words, other in others.items():
        image = resize(recipe, pixels, **other)
        if image is not None and not explain(fed, image, recipe, spec):
            return words
    return ""


def check_input(folder: Path, described: Any, manifest: Any, file: Path, name: str) -> Line:
    """Hold the tensor that an app fed for a golden image against the recipe."""
    if name not in described["images"]:
        known = ", ".join(sorted(described["images"]))
        raise NotABundleError(f"no golden image is called {name!r}; known: {known}")
    recipe, spec = manifest["model"]["preprocessing"], manifest["signature"]["inputs"][0]
    cropped = load(folder / f"golden/cropped/{name}.npy")
    fed = read_fed(file, feed(recipe, spec, cropped))
    problem = explain(fed, cropped, recipe, spec)
    if "other pixels" in problem and described["images"][name]["resized"]:
        pixels = load(folder / f"golden/pixels/{name}.npy")
        problem = explain_resize(fed, pixels, recipe, spec) or problem
    if problem:
        return Line("fail", "input", f"{name}: {problem}")
    hint = "; this image is grey and cannot show swapped channels" if is_grey(cropped) else ""
    return Line("pass", "input", f"{name} was preprocessed as it should be{hint}")


def read_fed(file: Path, like: np.ndarray) -> np.ndarray:
    """A ``.npy`` array, or raw little-endian numbers of the input's type; without its batch."""
    try:
        if file.suffix == ".npy":
            fed = load(file)
        else:
            fed = np.fromfile(file, like.dtype.newbyteorder("<"))
            fed = fed.reshape(like.shape) if fed.size == like.size else fed
    except (OSError, ValueError, EOFError) as error:
        raise NotABundleError(f"{file} cannot be read: {error}") from error
    if fed.ndim == 4 and len(fed) == 1:
        fed = fed[0]
    if fed.dtype.kind not in "fu" or not fed.size:
        raise NotABundleError(f"{file} holds {fed.dtype} of shape {fed.shape}, not an image")
    return fed.astype(np.float64)


# Outputs


def onnx(path: Path, manifest: Any, unit: str) -> tuple[str, Run]:
    """Load into ONNX Runtime under one provider, which has to execute every node.

    ``unit`` is NAME[,KEY=VALUE…]. Raises ``NotStartedError`` where the provider is absent, does
    not start or leaves nodes to another one: ONNX Runtime itself would go on with the CPU
    (onnxruntime#23647).
    """
    import onnxruntime

    del manifest
    name, given = split(unit)
    settings = onnxruntime.SessionOptions()
    plugins = plugin_providers()
    # A plug-in is listed too, with devices that stand for several: OpenVINOExecutionProvider.AUTO.
    listed = onnxruntime.get_available_providers()
    built_in = [each for each in listed if each.partition(".")[0] not in plugins]
    known = {each.lower(): each for each in [*built_in, *plugins]}
    provider = known.get(f"{name}ExecutionProvider".lower()) or known.get(name.lower())
    if provider is None:
        raise NotStartedError(f"no provider {name!r} is here; known: {', '.join(known.values())}")
    if provider == "CPUExecutionProvider":
        session = onnxruntime.InferenceSession(str(path), settings, providers=[provider])
    else:
        settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        try:
            if provider in plugins:
                # OpenVINO's ignores what its provider has where it is built in.
                kind = given.pop("device_type", "") if provider == OPENVINO_PROVIDER else ""
                device = plugin_device(provider, given.pop("device", kind).upper())
                refuse_type(device, given)
                place = dict(device.ep_metadata).get("ov_device", "CPU")
                options = provider_options(provider, given, [place])
                settings.add_provider_for_devices([device], options)
                session = onnxruntime.InferenceSession(str(path), settings, enable_fallback=0)
            else:
                options = built_in_options(provider, given)
                session = onnxruntime.InferenceSession(
                    str(path), settings, providers=[(provider, options)], enable_fallback=0
                )
        except Exception as error:
            raise NotStartedError(f"{unit} does not start: {reason(error)}") from error
    taken = session.get_inputs()[0].name
    names = [output.name for output in session.get_outputs()]
    return f"onnxruntime {onnxruntime.__version__}", lambda batch: dict(
        zip(names, session.run(None, {taken: batch}), strict=True)
    )


def split(unit: str) -> tuple[str, dict[str, str]]:
    """The name and the options of NAME[,KEY=VALUE…]; a value may hold commas."""
    name, *pairs = re.split(r",(?=\s*[\w.]+\s*=)", unit)
    halves = (pair.partition("=") for pair in pairs)
    return name.strip(), {key.strip(): value.strip() for key, _, value in halves}


def built_in_options(provider: str, given: dict[str, str]) -> dict[str, str]:
    """Options as a provider takes them that ONNX Runtime was built with.

    OpenVINO's device is an option of its own there, and its properties belong to single devices:
    by the name ``AUTO`` ONNX Runtime 1.21.0 did not follow the hint.
    """
    if provider != OPENVINO_PROVIDER:
        return given
    device = given.pop("device", "CPU").upper()
    given.setdefault("device_type", device)
    names = given["device_type"].rpartition(":")[2].split(",")
    return provider_options(provider, given, [name.split(".")[0] for name in names])


def provider_options(provider: str, given: dict[str, str], devices: list[str]) -> dict[str, str]:
    """Options as a provider takes them: OpenVINO's has its properties as JSON, by device."""
    options = {key: value for key, value in given.items() if not key.isupper()}
    if provider != OPENVINO_PROVIDER or len(options) == len(given):
        return given
    return {**options, "load_config": json.dumps(dict.fromkeys(devices, properties(given)))}


def properties(given: dict[str, str]) -> dict[str, Any]:
    """OpenVINO's own properties, such as the hint: in capitals, or in ``load_config``."""
    inner: dict[str, Any] = {}
    for of_device in json.loads(given.get("load_config", "{}")).values():
        inner |= of_device
    return inner | {key: value for key, value in given.items() if key.isupper()}


def judged_as(artifact: Any, unit: str) -> str:
    """The precision by whose tolerance an artifact's answers are judged.

    It is its own, or what OpenVINO's provider was told to compute in where that is coarser.
    """
    precision: str = artifact["precision"]
    if not is_openvino_provider(artifact, unit):
        return precision
    computed = COMPUTED_IN[str(properties(split(unit)[1]).get(HINT, "f32")).lower()]
    is_coarser = ROUNDOFF[computed] > ROUNDOFF.get(precision, 1.0)
    return computed if is_coarser else precision


def is_openvino_provider(artifact: Any, unit: str) -> bool:
    """Whether ``unit`` is ONNX Runtime's provider of OpenVINO, which may compute in less."""
    name = split(unit)[0].lower()
    return artifact["format"] == "onnx" and name in ("openvino", OPENVINO_PROVIDER.lower())


def plugin_device(provider: str, name: str) -> Any:
    """The first device of a plug-in, or OpenVINO's of that name."""
    import onnxruntime

    for device in onnxruntime.get_ep_devices():
        known = dict(device.ep_metadata).get("ov_device", "")
        if device.ep_name == provider and (not name or known.upper() == name):
            return device
    raise NotStartedError(f"it has no device {name} here")


def refuse_type(device: Any, given: dict[str, str]) -> None:
    """Raise where OpenVINO's device cannot compute in what it is told: it would not say so."""
    told = COMPUTED_IN[str(properties(given).get(HINT, "f32")).lower()]
    able = dict(device.ep_metadata).get("OPTIMIZATION_CAPABILITIES", "").split()
    if able and told.upper() not in able:
        raise NotStartedError(f"its device does not compute in {told}")


@cache
def plugin_providers() -> tuple[str, ...]:
    """The providers that installed packages bring, registered with ONNX Runtime."""
    import onnxruntime

    found: list[str] = []
    for module in pkgutil.iter_modules():
        if module.name.startswith("onnxruntime_ep_"):
            package = import_module(module.name)
            with suppress(Exception):  # without its library it has no device, and does not start
                onnxruntime.register_execution_provider_library(
                    module.name, package.get_library_path()
                )
            found += package.get_ep_names()
    return tuple(found)


def openvino(path: Path, manifest: Any, unit: str) -> tuple[str, Run]:
    """Compile for the CPU, in what the file asks for, else in float32.

    Some processors would compute in bfloat16 by default. Raises ``NotStartedError`` where this one
    does not compute in what the file asks for.
    """
    # Importing openvino would tell Google Analytics of it; it does without what is not there.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino as ov

    del manifest, unit
    core, hint = ov.Core(), "INFERENCE_PRECISION_HINT"
    graph, place = core.read_model(str(path)), ["runtime_options", hint]
    is_hinted = graph.has_rt_info(place) and graph.get_rt_info(place).value == "bf16"
    asked = "bf16" if is_hinted else "f32"  # other words there are not this tool's
    compiled = core.compile_model(graph, "CPU", {hint: asked})
    if asked != "f32" and (taken := compiled.get_property(hint).get_type_name()) != asked:
        raise NotStartedError(f"it asks for {asked}, and OpenVINO takes {taken} on this processor")

    def run(batch: np.ndarray) -> Arrays:
        results = compiled([batch])
        return {min(port.get_names()): np.array(results[port]) for port in compiled.outputs}

    return f"openvino {ov.__version__.split('-')[0]}", run


def coreml(path: Path, manifest: Any, unit: str) -> tuple[str, Run]:
    """Load into Core ML; a classifier's probabilities come in the order of the labels."""
    if platform.system() != "Darwin":
        raise ImportError("Core ML runs on macOS only")
    import coremltools

    model = coremltools.models.MLModel(
        str(path), compute_units=coremltools.ComputeUnit[unit.upper()]
    )
    taken, labels = manifest["signature"]["inputs"][0]["name"], manifest["model"]["labels"]

    def run(batch: np.ndarray) -> Arrays:
        arrays = {}
        given: Any = batch
        if batch.dtype == np.uint8:  # the model normalises, and takes an image
            from PIL import Image

            given = Image.fromarray(batch[0])
        for name, value in model.predict({taken: given}).items():
            if isinstance(value, dict):
                row = [value[label] for label in labels]
                arrays["probabilities"] = np.array([row], np.float32)
            elif isinstance(value, np.ndarray):
                arrays[name] = value
        return arrays

    return f"Core ML {platform.mac_ver()[0]}", run


def coreai(path: Path, manifest: Any, unit: str) -> tuple[str, Run]:
    """Compile with the runtime inside coreai-core, which computes on the CPU.

    On macOS 27 USE_OS_COREAI=1 in the environment lets it take the system's instead.
    """
    from coreai.authoring import AIModelAsset
    from coreai.runtime import NDArray

    del unit
    taken = manifest["signature"]["inputs"][0]["name"]
    loop, stack = asyncio.new_event_loop(), AsyncExitStack()
    asset = AIModelAsset.load(path)
    OPENED.callback(lambda: loop.run_until_complete(stack.aclose()))
    model = loop.run_until_complete(stack.enter_async_context(asset.executable()))
    function = model.load_function("main")

    def run(batch: np.ndarray) -> Arrays:
        answer = loop.run_until_complete(function({taken: NDArray(batch)}))
        return {name: np.array(value.numpy()) for name, value in answer.items()}

    return f"Core AI (coreai-core {version('coreai-core')})", run


RUNTIMES = {"onnx": onnx, "openvino": openvino, "coreml": coreml, "coreai": coreai}


def reason(error: Exception) -> str:
    """What a runtime says at its end, where the cause stands behind paths and source lines."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
    return line if len(line) <= 400 else f"{line[:80]} … {line[-320:]}"


def check_artifact(
    folder: Path, manifest: Any, artifact: Any, unit: str, recorder: Recorder | None = None
) -> Iterator[Line]:
    """Golden inputs through the runtime, held against the reference's outputs.

    With a ``recorder`` outputs and latencies are kept for the results file.
    """
    check = f"outputs of {artifact['path']}"
    inputs = load(folder / "golden/input.npy")
    opened, judged = RUNTIMES.get(artifact["format"]), judged_as(artifact, unit)
    if opened is None:
        yield Line("not run", check, f"this program knows no runtime for {artifact['format']}")
        return
    if judged not in manifest["golden"]["tolerances"]:
        yield Line("not run", check, f"({unit}): the bundle has no tolerance for {judged}")
        return
    runtime, problem = artifact["format"], "cannot be loaded: "
    outputs: Arrays = {}
    try:
        started = perf_counter()
        runtime, run = opened(folder / artifact["path"], manifest, unit)
        loaded, problem = perf_counter(), ""
        first, _ = next(batches(inputs, manifest))
        run(first)
        answered = perf_counter()
        outputs = collect(run, inputs, manifest)
        if recorder is not None:
            names, seconds = (
                (artifact["path"], runtime, unit),
                (answered - started, answered - loaded),
            )
            recorder.answered(names, outputs, seconds, first, run)
    except (ImportError, NotStartedError) as error:
        yield Line("not run", check, str(error))
        return
    except Exception as error:
        yield Line("fail", check, f"{runtime} ({unit}): {problem}{reason(error)}")
        if recorder is not None:
            recorder.failed((artifact["path"], runtime, unit), f"{problem}{reason(error)}")
        return
    lines = list(judge(folder, manifest, judged, outputs, (check, runtime, unit)))
    yield from lines
    is_told = HINT in unit or not is_openvino_provider(artifact, unit)
    if not is_told and any(line.verdict == "fail" for line in lines):
        yield Line(
            "note",
            check,
            f"OpenVINO may compute in bfloat16 or float16 unless it is told: {unit},{HINT}=f32",
        )


def judge(
    folder: Path, manifest: Any, precision: str, outputs: Arrays, names: tuple[str, str, str]
) -> Iterator[Line]:
    """Outputs against the reference's; ``names`` are those of check, runtime and unit."""
    check, runtime, unit = names
    reference, allowed = expected(folder, manifest, precision, outputs)
    failures = [
        f"{name}: {problem}"
        for name in reference
        for problem in compare(reference[name], outputs.get(name), allowed[name], manifest)
    ]
    if not reference:
        failures.append("nothing was compared")
    rows = len(manifest["golden"]["samples"])
    for failure in failures:
        yield Line("fail", check, f"{runtime} ({unit}): {failure}")
    if not failures:
        worst = max(
            float((distances(reference[n], outputs[n]) / allowed[n]).max()) for n in reference
        )
        detail = f"{rows} samples, {worst:.0%} of the tolerance"
        yield Line("pass", check, f"{runtime} ({unit}): {detail}")


def collect(run: Run, inputs: np.ndarray, manifest: Any) -> Arrays:
    """Every output for every row, fed in the model's own batch size, the last one filled up."""
    parts: dict[str, list[np.ndarray]] = {}
    for filled, rows in batches(inputs, manifest):
        for name, value in run(filled).items():
            if value.shape[:1] != filled.shape[:1]:
                raise ValueError(f"{name} has shape {value.shape} for a batch of {len(filled)}")
            parts.setdefault(name, []).append(value[:rows])
    return {name: np.concatenate(values) for name, values in parts.items()}


def batches(inputs: np.ndarray, manifest: Any) -> Iterator[tuple[np.ndarray, int]]:
    """Batches of the model's own size, and how many rows of each are samples."""
    size = manifest["signature"]["inputs"][0]["shape"][0] or 1
    for start in range(0, len(inputs), size):
        piece = inputs[start : start + size]
        filled = np.concatenate([piece, np.repeat(piece[-1:], size - len(piece), axis=0)])
        yield np.ascontiguousarray(filled), len(piece)


def expected(
    folder: Path, manifest: Any, precision: str, outputs: Arrays
) -> tuple[Arrays, Arrays]:
    """Reference outputs and, for each row, the distance ``atol + rtol_i * max|reference_i|``.

    For a classifier of a model that gives logits z, p = softmax(z) and ``|dp| <= max|dz| / 2``.
    """
    names = [spec["name"] for spec in manifest["signature"]["outputs"]]
    reference = {name: load(folder / f"golden/{name}.npy").astype(np.float64) for name in names}
    tolerances = manifest["golden"]["tolerances"][precision]
    allowed = {
        name: tolerances[name]["atol"] + np.array(tolerances[name]["rtol"]) * peaks(rows)
        for name, rows in reference.items()
    }
    if set(outputs) == {"probabilities"} and names != ["probabilities"] and len(names) == 1:
        ((_, z),), ((_, distance),) = reference.items(), allowed.items()
        p = np.exp(z - z.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        # A quantised network computes in float16 at the coarsest.
        unit = ROUNDOFF.get(precision, ROUNDOFF["fp16"])
        bound = distance / 2 + unit * p.max(axis=1)
        return {"probabilities": p}, {"probabilities": bound}
    return reference, allowed


def peaks(rows: np.ndarray) -> np.ndarray:
    """The largest magnitude of each row."""
    largest: np.ndarray = np.abs(rows.reshape(len(rows), -1)).max(axis=1)
    return largest


def distances(reference: np.ndarray, candidate: np.ndarray) -> np.ndarray:
    """``max|candidate_i - reference_i|`` of each row i."""
    return peaks(candidate.astype(np.float64) - reference)


def compare(
    reference: np.ndarray, candidate: np.ndarray | None, allowed: np.ndarray, manifest: Any
) -> Iterator[str]:
    """Why one output does not pass."""
    if candidate is None:
        yield "the output is missing"
    elif candidate.shape != reference.shape or not reference.size:
        yield f"shape {candidate.shape}, expected {reference.shape}"
    elif candidate.dtype.kind != "f":
        yield f"type {candidate.dtype}, expected floating point"
    elif not (np.isfinite(allowed).all() and np.isfinite(reference).all()):
        yield "the reference or its tolerance holds NaN or infinity"
    elif not np.isfinite(candidate).all():
        yield "holds NaN or infinity"
    else:
        error = distances(reference, candidate)
        for row in np.flatnonzero(~(error <= allowed))[:3]:
            sample = manifest["golden"]["samples"][row]
            yield f"error {error[row]:.2e} on {sample} exceeds the tolerance {allowed[row]:.2e}"


# The results file (docs/bundle-format.md of levit-export)


class Recorder:
    """Keeps what each artifact answered, measures its latency, and writes both as JSON.

    ``sustain`` are the seconds for which calls follow one another after the warm ones.
    """

    def __init__(self, device: str, sustain: float) -> None:
        self.device, self.sustain = device, sustain
        self.rows: list[dict[str, Any]] = []

    def failed(self, names: tuple[str, str, str], error: str) -> None:
        """Keep why an artifact gave no answers; ``names`` are those of it, runtime and unit."""
        self.rows.append(self._row(names, printable(error)))

    def answered(
        self,
        names: tuple[str, str, str],
        outputs: Arrays,
        seconds: tuple[float, float],
        batch: np.ndarray,
        run: Run,
    ) -> None:
        """Keep answers and the cold and first ``seconds``; measure the other regimes."""

        def call() -> object:
            return run(batch)

        row = self._row(names, "")
        row["outputs"] = {
            name: {
                "shape": list(value.shape),
                "float32": base64.b64encode(value.astype("<f4").tobytes()).decode(),
            }
            for name, value in outputs.items()
        }
        for _ in range(WARM_UP):
            call()
        row["latency"] = {
            "batch": len(batch),
            "threads": 0,
            "cold_s": seconds[0],
            "first_s": seconds[1],
            "warm_s": timed(call, lambda count, elapsed: count < WARM or elapsed < WARM_S),
            "sustained_s": timed(call, lambda _, elapsed: elapsed < self.sustain),
        }
        self.rows.append(row)

    @staticmethod
    def _row(names: tuple[str, str, str], error: str) -> dict[str, Any]:
        keys = ("artifact", "runtime", "unit")
        row: dict[str, Any] = dict(zip(keys, names, strict=True))
        return {**row, "error": error, "outputs": {}, "latency": None}

    def write(self, folder: Path, file: Path) -> None:
        """Write the file; its last member is the CRC-32 of all bytes before it."""
        content = {
            "format": "levit-export results",
            "schema": 1,
            "bundle": sha256_of(folder / "bundle.json")[0],
            "program": "verify.py",
            "device": printable(self.device),
            "system": printable(f"{platform.platform()}, Python {platform.python_version()}"),
            "rows": self.rows,
        }
        body = json.dumps(content, indent=1).removesuffix("\n}")
        text = f'{body},\n"crc32": "{zlib.crc32(body.encode()):08x}"\n}}\n'
        # Beside it first: a full disk must not leave half a file.
        beside = file.with_name(f"{file.name}.part")
        beside.write_bytes(text.encode())
        beside.replace(file)


def timed(call: Callable[[], object], wanted: Callable[[int, float], bool]) -> list[float]:
    """Seconds of calls in a row, as long as ``wanted(calls, seconds since the start)``."""
    seconds: list[float] = []
    start = perf_counter()
    while wanted(len(seconds), perf_counter() - start):
        before = perf_counter()
        call()
        seconds.append(perf_counter() - before)
    return seconds


def printable(text: str) -> str:
    """At most 400 characters of one line, which is what results may hold."""
    return "".join(each if each.isprintable() else " " for each in text)[:400]


def device_name() -> str:
    """The processor's name, or what the system calls its kind."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return (names or [platform.processor() or platform.machine() or "unknown"])[0]


# The command line


def verify(
    folder: Path, formats: list[str], units: dict[str, list[str]], recorder: Recorder | None = None
) -> Iterator[Line]:
    """Files first; damaged ones are not loaded. ``units`` are those of each format."""
    described = read_description(folder)
    damaged = list(check_files(folder, described))
    yield from damaged or [Line("pass", "files", f"{len(described['files'])} as described")]
    if damaged:
        return
    manifest = read_json(folder / "manifest.json")
    yield from check_labels(folder, manifest)
    wrong = list(check_images(folder, described, manifest))
    yield from wrong
    if not any(line.verdict == "fail" for line in wrong):
        yield Line("pass", "pixels", f"{len(described['images'])} images give the golden input")
    known = [artifact["format"] for artifact in manifest["artifacts"]]
    for name in formats:
        if name not in known:
            raise NotABundleError(f"the bundle holds no {name!r}; known: {', '.join(known)}")
    for artifact in manifest["artifacts"]:
        if not formats or artifact["format"] in formats:
            for unit in units.get(artifact["format"], ["CPU"]):
                yield from check_artifact(folder, manifest, artifact, unit, recorder)


def conclude(lines: list[Line]) -> str:
    """The worst verdict; nothing checked is not a pass."""
    found = {line.verdict for line in lines}
    return next((worst for worst in ("fail", "not run", "pass") if worst in found), "not run")


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).resolve().parent)
    parser.add_argument("--format", default="", help=f"{', '.join(RUNTIMES)}; commas; [all]")
    parser.add_argument("--input", type=Path, help="the tensor an app fed, .npy or raw numbers")
    parser.add_argument("--sample", default="gradient", help="the golden image it was made of")
    units = ("cpu_only", "cpu_and_ne", "cpu_and_gpu", "all")
    parser.add_argument("--compute-units", default="cpu_only", help=f"{', '.join(units)}; commas")
    parser.add_argument(
        "--provider",
        action="append",
        metavar="NAME[,KEY=VALUE…]",
        help="ONNX Runtime's, which has to execute every node; may be repeated [CPU]",
    )
    parser.add_argument("--results", type=Path, metavar="FILE", help="write what was measured")
    parser.add_argument("--device", default=device_name(), help="its name in the results")
    parser.add_argument(
        "--sustain", type=float, default=0.0, metavar="SECONDS", help="time calls in a row as long"
    )
    asked = parser.parse_args()
    asked.compute_units = [unit.strip() for unit in asked.compute_units.split(",")]
    if wrong := [unit for unit in asked.compute_units if unit not in units]:
        parser.error(f"--compute-units {wrong[0]}: choose from {', '.join(units)}")
    for provider in asked.provider or []:
        name, given = split(provider)
        if "," in name or not name:
            parser.error(f"--provider {provider}: a name, then KEY=VALUE pairs")
        try:
            hint = str(properties(given).get(HINT, "f32"))
        except (ValueError, AttributeError, TypeError):
            parser.error(f"--provider {provider}: load_config is a JSON object of objects")
        if hint.lower() not in COMPUTED_IN:
            parser.error(f"--provider {provider}: {HINT} is one of {', '.join(COMPUTED_IN)}")
    if not 0 <= asked.sustain < math.inf:
        parser.error(f"--sustain {asked.sustain}: 0 or more seconds")
    if asked.input is not None and asked.results is not None:
        parser.error("--input runs nothing, so that there are no --results")
    return asked


def main() -> int:
    """Check, print a line for each check, and return the exit status."""
    asked = arguments()
    formats = [name.strip() for name in asked.format.split(",") if name.strip()]
    recorder = None if asked.results is None else Recorder(asked.device, asked.sustain)
    lines = []
    try:
        if asked.input is not None:
            described, manifest = (
                read_description(asked.folder),
                read_json(asked.folder / "manifest.json"),
            )
            found = iter(
                [check_input(asked.folder, described, manifest, asked.input, asked.sample)]
            )
        else:
            units = {"onnx": asked.provider or ["CPU"], "coreml": asked.compute_units}
            found = verify(asked.folder, formats, units, recorder)
        for line in found:
            lines.append(line)
            sys.stdout.write(f"{line.verdict:8}{line.check}: {line.detail}\n")
        if recorder is not None and recorder.rows:
            recorder.write(asked.folder, asked.results)
        elif recorder is not None:
            sys.stderr.write("nothing was run, so that no results were written\n")
    except (NotABundleError, OSError, ValueError, KeyError, TypeError, IndexError) as error:
        sys.stderr.write(f"error: {error if str(error) else type(error).__name__}\n")
        return 2
    verdict = conclude(lines)
    sys.stdout.write(f"{verdict}\n")
    if verdict == "not run" and not formats:
        sys.stdout.write("name the formats of this device to check them alone: --format onnx\n")
    return STATUS[verdict]


def leave(status: int) -> NoReturn:
    """End this process with ``status`` once all that was said is written.

    Where Core AI ran that is without the interpreter's own end. Its threads let go of Python's
    objects a moment after they gave an answer, and each time they ask for the interpreter. Before
    3.14 Python ends a thread that asks while the interpreter is ending (cpython#87135), on which
    Swift's runtime aborts the process (seen with coreai-core 1.0.0b3).
    """
    if "coreai.runtime" in sys.modules:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


if __name__ == "__main__":
    with OPENED:
        found = main()
    leave(found)
