"""OpenVINO's smaller precisions: what is rounded and what is not, and what is refused."""

from __future__ import annotations

import sys
from functools import cache, partial
from importlib import resources
from pathlib import Path

import numpy as np
import openvino
import pytest
import subjects
from subjects import IMAGES, options_for

from levit_export.core.errors import MissingDependencyError, UnknownNameError, UsageError
from levit_export.core.values import Artifact, Calibration, ExportOptions, RunOptions
from levit_export.formats.openvino.target import OpenvinoTarget
from levit_export.inputs import samples

TARGET = OpenvinoTarget()
tiny = partial(subjects.tiny_artifact, "openvino")
RUN = RunOptions(threads=1)
SMALL = ("fp16", "int8", "w8", "w4")
KEPT = "stage1.block0.attention"
COARSE = {"int8": 8, "w8": 8, "w4": 4}


@cache
def digits(precision: str) -> Artifact:
    """The bundled model as a file, calibrated with its own images."""
    recipe = subjects.digits().info.preprocessing
    with (resources.files("levit_export.inputs.data") / "digits.npz").open("rb") as file:
        held = np.load(file)
        images = samples.from_images(
            recipe, held["calibration_images"], held["calibration_labels"]
        )
    options = ExportOptions(
        precision=precision, calibration=Calibration(images.inputs, "the bundled digits")
    )
    place = subjects.folder() / f"openvino-digits-{precision}"
    return subjects.export(subjects.digits(), place, "openvino", options)


def tensors() -> dict[str, np.ndarray]:
    """The small model's tensors, as every target gets them."""
    found = subjects.tiny().program.state_dict
    return {name: t.numpy() for name, t in found.items() if t.is_floating_point()}


def stored(artifact: Artifact) -> list[np.ndarray]:
    """A file's floating-point constants without axes of length one."""
    return [np.squeeze(c) for c in TARGET.constants(artifact) if c.dtype.kind == "f"]


def graph_of(artifact: Artifact) -> openvino.Model:
    """A file as OpenVINO reads it."""
    return openvino.Core().read_model(artifact.path)


def quantised(artifact: Artifact) -> dict[str, np.ndarray]:
    """For each quantised weight its scale, spread over the weight, by the name of its layer."""
    found = {}
    for node in graph_of(artifact).get_ordered_ops():
        if node.get_type_name() != "Multiply":
            continue
        number, source = (node.input_value(i).get_node() for i in (1, 0))
        while number.get_type_name() in ("Convert", "Reshape"):
            number = number.input_value(0).get_node()
        while source.get_type_name() in ("Convert", "Reshape", "Subtract"):
            source = source.input_value(0).get_node()
        if {number.get_type_name(), source.get_type_name()} != {"Constant"}:
            continue
        spread = np.broadcast_to(number.get_data(dtype=np.float32), node.get_output_shape(0))
        (reader,) = (each.get_node() for each in node.output(0).get_target_inputs())
        while reader.get_type_name() in ("Convert", "Reshape"):
            spread = spread.reshape(reader.get_output_shape(0))
            (reader,) = (each.get_node() for each in reader.output(0).get_target_inputs())
        found[reader.get_friendly_name()] = np.squeeze(spread)
    return found


def nearest(tensor: np.ndarray, constants: list[np.ndarray]) -> np.ndarray:
    """That of ``constants``, or their transposes, which lies closest to ``tensor``."""
    turned = [c.T for c in constants if c.ndim == 2]
    same = [c for c in (*constants, *turned) if c.shape == tensor.shape]
    return min(same, key=lambda c: float(np.abs(c - tensor).max()))


# --- what is in the files -------------------------------------------------------------------


@pytest.mark.parametrize("precision", SMALL)
def test_runs(precision: str) -> None:
    """Every precision gives float32 logits from float32 images, under the same names."""
    made = tiny(precision)
    found = TARGET.inspect(made.path)
    assert (found.signature, found.precision) == (made.signature, precision)
    assert found.signature == subjects.tiny().signature
    assert found.passes is not None
    with TARGET.open(made, RUN) as session:
        given = session.run({"input": IMAGES[:1]})["logits"]
    assert (given.dtype, given.shape) == (np.float32, (1, 10))
    assert np.isfinite(given).all()


def test_float16_constants_are_rounded_once() -> None:
    """A float16 file holds every tensor rounded to float16, and nothing finer beside them."""
    constants = stored(tiny("fp16"))
    rounded = [c.astype(np.float16) for c in constants]
    assert all(np.array_equal(c, r) for c, r in zip(constants, rounded, strict=True))
    held = {c.tobytes() for c in rounded} | {c.T.tobytes() for c in rounded}
    for tensor in tensors().values():
        assert np.squeeze(tensor.astype(np.float16)).tobytes() in held


@pytest.mark.parametrize("precision", COARSE)
def test_weights_lie_within_half_a_step(precision: str) -> None:
    """Every matrix is the tensor to half a step, which NNCF's scales in float16 widen a little.

    4 bits with a zero point that is rounded too: a whole step.
    """
    made = tiny(precision)
    scales = list(quantised(made).values())
    assert scales
    constants = stored(made)
    steps = 1.0 if precision == "w4" else 0.5
    for name, tensor in tensors().items():
        plain = np.squeeze(tensor)
        found = nearest(plain, constants)
        if np.array_equal(found, plain):
            continue
        same = [s for c in scales for s in (c, c.T) if s.shape == plain.shape]
        # Scales in float16 are off by half a spacing, 2^-11 of a number or 2^-25.
        slack = np.abs(found) * 2.0**-11 + 2.0**-25 * 255 * (precision != "int8")
        assert any(
            (np.abs(found - plain) <= s * steps * (1 + 1e-3) + slack).all() for s in same
        ), name


@pytest.mark.parametrize("precision", COARSE)
def test_biases_are_the_checkpoints(precision: str) -> None:
    """No bias, table or first convolution is changed by a bit."""
    constants = stored(tiny(precision))
    exact = [
        name
        for name, tensor in tensors().items()
        if np.array_equal(nearest(np.squeeze(tensor), constants), np.squeeze(tensor))
    ]
    assert "patch_embed.0.weight" in {n for n in exact if n.endswith("weight")} or any(
        n.startswith("patch_embed.0") and n.endswith("weight") for n in exact
    )
    inexact = set(tensors()) - set(exact)
    assert inexact
    assert all(name.endswith("weight") for name in inexact)


def test_first_convolution_and_attention_stay_float() -> None:
    """Neither the first convolution nor a product of two activations is quantised."""
    graph = graph_of(tiny("int8"))
    nodes = {node.get_friendly_name(): node for node in graph.get_ops()}
    first = nodes["stem_0/Convolution"]
    products = [n for n in nodes.values() if n.get_type_name() == "MatMul"]
    attention = [n for n in products if "_attention_matmul" in n.get_friendly_name()]
    assert attention
    for node in (first, *attention):
        sources = {node.input_value(i).get_node().get_type_name() for i in range(2)}
        assert "FakeQuantize" not in sources
    linear = [n for n in products if n not in attention]
    assert [n.get_friendly_name() for n in linear] == ["logits/MatMul"]


@pytest.mark.parametrize("precision", SMALL)
def test_values_keep_their_names(precision: str) -> None:
    """Every block's output, scores and softmax can be tapped under their names."""
    names = {node.get_friendly_name() for node in graph_of(tiny("fp32")).get_ops()}
    ends = ("_out", "_scores", "_softmax", "stem_0", "stem_1", "pool")
    taps = sorted(name for name in names if name.endswith(ends))
    assert len(taps) > len(ends)
    with TARGET.open(tiny("fp32"), RUN, taps) as session:
        wanted = session.run({"input": IMAGES[:1]})
    with TARGET.open(tiny(precision), RUN, taps) as session:
        found = session.run({"input": IMAGES[:1]})
    assert {k: v.shape for k, v in found.items()} == {k: v.shape for k, v in wanted.items()}


# --- what stays float -----------------------------------------------------------------------


@pytest.mark.parametrize("precision", SMALL)
def test_kept_blocks(precision: str) -> None:
    """The weights of a kept block are the checkpoint's, and no other that was not before."""
    prefix = {path for path, block in subjects.tiny().blocks.items() if block == KEPT}.pop() + "."
    held = tensors()
    inside = {name for name in held if name.startswith(prefix)}
    assert inside
    exact = {}
    for keep in ((), (KEPT,)):
        constants = stored(tiny(precision, *keep))
        exact[keep] = {
            name
            for name, tensor in held.items()
            if np.array_equal(nearest(np.squeeze(tensor), constants), np.squeeze(tensor))
        }
    assert not inside <= exact[()]
    assert exact[(KEPT,)] == exact[()] | inside
    with TARGET.open(tiny(precision, KEPT), RUN) as session:
        assert np.isfinite(session.run({"input": IMAGES[:1]})["logits"]).all()


def test_no_quantiser_in_a_kept_block() -> None:
    """A kept block of an int8 file has no quantised activations either."""
    layers = quantised(tiny("int8", KEPT))
    value = KEPT.replace(".", "_")
    assert any(name.startswith(value) for name in quantised(tiny("int8")))
    assert not any(name.startswith(value) for name in layers)


@pytest.mark.parametrize("precision", SMALL)
def test_an_unknown_block(precision: str, tmp_path: Path) -> None:
    """A block that the model does not have is refused by name, and nothing is written."""
    with pytest.raises(UnknownNameError, match=r"stage9\.block0"):
        TARGET.export(
            subjects.tiny(),
            tmp_path / "m.xml",
            options_for(precision, keep=("stage9.block0",)),
        )
    assert list(tmp_path.iterdir()) == []


# --- what is refused ------------------------------------------------------------------------


def test_int8_needs_images() -> None:
    """Without calibration images int8 is refused, and the remedy says how to give some."""
    with pytest.raises(UsageError, match="--data DIR"):
        TARGET.refuse(ExportOptions(precision="int8"))
    TARGET.refuse(ExportOptions(precision="w8"))


@pytest.mark.parametrize("precision", ["int8", "w8", "w4"])
def test_nncf_is_optional(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where NNCF is missing its precisions name the extra that brings it; the others do not."""
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(MissingDependencyError) as raised:
        TARGET.refuse(options_for(precision))
    assert "pip install 'levit-export[int8]'" in raised.value.remedy
    for other in ("fp32", "fp16"):
        TARGET.refuse(ExportOptions(precision=other))


# --- how well they work ---------------------------------------------------------------------


@pytest.mark.parametrize("precision", SMALL)
def test_accuracy(precision: str) -> None:
    """At least 355 of the bundled model's 360 held-out images are right; PyTorch has 357."""
    images, labels = samples.held_out_digits()
    held = samples.from_images(subjects.digits().info.preprocessing, images, labels)
    with TARGET.open(digits(precision), RUN) as session:
        logits = [session.run({"input": image[None]})["logits"] for image in held.inputs]
    right = int((np.concatenate(logits).argmax(axis=1) == labels).sum())
    assert right >= 355
