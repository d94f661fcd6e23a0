"""What a graph does beside the network: raw pixels in, probabilities out, in every format."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import subjects

from levit_export.checks.reference import Reference
from levit_export.core import constants
from levit_export.core.errors import DataError, RuntimeFailedError, UsageError
from levit_export.core.precisions import UNIT_ROUNDOFF
from levit_export.core.values import (
    PROBABILITIES,
    Artifact,
    Embedded,
    ExportOptions,
    Prepared,
    RunOptions,
    Signature,
    TensorSpec,
)
from levit_export.formats import target
from levit_export.inputs import preprocessing, samples
from levit_export.inputs.samples import Samples
from levit_export.models import graph_ends
from levit_export.models.preparation import prepare
from levit_export.models.zoo import DISTILL, LOGITS
from levit_export.workflows.export_plan import ExportRequest, plan

FORMATS = ("onnx", "openvino", "coreml")
RAW, PROBABLE, BOTH = Embedded(True, False), Embedded(False, True), Embedded(True, True)
EMBEDDED = (RAW, PROBABLE, BOTH)
SIDE = subjects.TINY.config.image_size[0]


@cache
def model(embedded: Embedded) -> Prepared:
    """The small model with what is embedded in it."""
    return prepare(subjects.tiny_checkpoint(), embedded=embedded)


@cache
def artifact(kind: str, embedded: Embedded, precision: str = "fp32") -> Artifact:
    """A file of it; do not change it."""
    place = subjects.folder() / f"embedded-{kind}-{precision}-{embedded}"
    options = ExportOptions(precision=precision, embedded=embedded)
    return subjects.export(model(embedded), place, kind, options)


@cache
def reference(embedded: Embedded) -> Reference:
    """The plain network's, with the digests of the weights that the files must hold."""
    return replace(subjects.tiny_reference(), weights=model(embedded).fingerprints)


def answers(found: Artifact, inputs: np.ndarray) -> dict[str, np.ndarray]:
    """What a file answers to one input at a time."""
    with target(found.format).open(found, RunOptions()) as session:
        name = session.signature.inputs[0].name
        rows = [session.run({name: row[None]}) for row in inputs]
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


@pytest.mark.parametrize("embedded", EMBEDDED, ids=("raw", "softmax", "both"))
@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_is_the_network_with_what_is_embedded(kind: str, embedded: Embedded) -> None:
    """Parity with the plain network, every weight found, no constant that is none of ours."""
    found = artifact(kind, embedded)
    report = subjects.judge(found, reference(embedded))
    assert report.verdict == "pass", report.reason
    assert report.weights is not None
    assert report.weights.tensors == len(model(embedded).weights)
    assert target(kind).inspect(found.path).signature == model(embedded).signature


def test_compressed_core_ml_takes_raw_pixels() -> None:
    """Coremltools rewrites a program again as it compresses it; normalisation stays as it is."""
    found = artifact("coreml", BOTH, "w8")
    constants = [np.squeeze(array) for array in target("coreml").constants(found)]
    for name, wanted in graph_ends.constants(subjects.tiny().info.preprocessing).items():
        rounded = wanted.astype(np.float16).astype(np.float32)
        assert any(np.array_equal(array, rounded) for array in constants), name


@pytest.mark.parametrize("kind", FORMATS)
def test_float16_too(kind: str) -> None:
    """The same holds in float16, which keeps pixels exactly."""
    report = subjects.judge(artifact(kind, BOTH, "fp16"), reference(BOTH))
    assert report.verdict == "pass", report.reason


def test_the_signature_says_what_goes_in_and_comes_out() -> None:
    """Bytes ``(1, H, W, 3)`` go in as ``image``; probabilities come out in place of logits."""
    signature = model(BOTH).signature
    assert signature.inputs == (TensorSpec("image", (1, SIDE, SIDE, 3), "uint8"),)
    assert [spec.name for spec in signature.outputs] == [PROBABILITIES]
    assert model(PROBABLE).signature.inputs == subjects.tiny().signature.inputs
    assert model(Embedded()).signature == subjects.tiny().signature


def test_a_distillation_head_keeps_its_logits() -> None:
    """Only the first output becomes probabilities."""
    taken = (TensorSpec("input", (1, 3, 8, 8)),)
    outputs = (TensorSpec(LOGITS, (1, 5)), TensorSpec(DISTILL, (1, 7)))
    found = graph_ends.signature(Signature(taken, outputs), PROBABLE)
    assert [spec.name for spec in found.outputs] == [PROBABILITIES, DISTILL]


@pytest.mark.parametrize("kind", FORMATS)
def test_probabilities_sum_to_one(kind: str) -> None:
    """Probabilities sum to 1, and their best class is that of the logits without a softmax."""
    raw, _ = samples.make(subjects.tiny().info.preprocessing).raw(
        subjects.tiny().info.preprocessing
    )
    probabilities = answers(artifact(kind, BOTH), raw.inputs)[PROBABILITIES]
    logits = answers(artifact(kind, RAW), raw.inputs)[LOGITS]
    # Ten rounded numbers below 1, summed in float64.
    rounding = 10 * 2 * UNIT_ROUNDOFF["fp32"]
    assert np.abs(probabilities.sum(axis=1, dtype=np.float64) - 1).max() <= rounding
    assert (probabilities.argmax(axis=1) == logits.argmax(axis=1)).all()


@pytest.mark.parametrize("kind", FORMATS)
def test_the_border_is_padded_with_the_mean_colour(kind: str) -> None:
    """Images whose border is black, white or the mean colour pass as they do unembedded.

    A normalisation that is folded into the first convolution is wrong at the border alone.
    """
    recipe = subjects.tiny().info.preprocessing
    mean = np.rint(255 * np.array(recipe.mean)).astype(np.uint8)
    framed = np.broadcast_to(mean, (SIDE, SIDE, 3)).copy()
    framed[0], framed[:, -1] = 255, 0
    pixels = {"mean": np.broadcast_to(mean, framed.shape), "framed": framed}
    inputs = np.stack([preprocessing.normalise(recipe, image) for image in pixels.values()])
    drawn = Samples(tuple(pixels), inputs, np.full(2, -1), pixels)
    plain = answers(artifact(kind, Embedded()), inputs)[LOGITS]
    raw = answers(artifact(kind, RAW), drawn.raw(recipe)[0].inputs)[LOGITS]
    # The derived tolerance of float32 covers what rounding does to such a network.
    (rtol,) = {max(t[LOGITS].rtol) for p, t in reference(RAW).tolerances.items() if p == "fp32"}
    assert (np.abs(plain - raw).max(axis=1) <= rtol * np.abs(plain).max(axis=1)).all()
    swapped = answers(artifact(kind, RAW), np.ascontiguousarray(framed[None, ..., ::-1]))[LOGITS]
    assert np.abs(swapped - raw[1]).max() > rtol * np.abs(raw[1]).max()


@pytest.mark.parametrize("kind", FORMATS)
def test_normalised_numbers_are_refused(kind: str) -> None:
    """Who normalises first gives another type and shape, which no runtime takes."""
    normalised = subjects.tiny_reference().samples.inputs[:1]
    found = artifact(kind, RAW)
    with target(kind).open(found, RunOptions()) as session:
        assert not session.signature.inputs[0].admits(normalised)
        if kind != "coreml":  # whose images are float32 inside the program
            with pytest.raises(RuntimeFailedError):
                session.run({"image": normalised})


@pytest.mark.parametrize("kind", FORMATS)
def test_the_same_export_gives_the_same_bytes(kind: str, tmp_path: Path) -> None:
    """Wrapping the network brings nothing in that differs from time to time."""
    fresh = prepare(subjects.tiny_checkpoint(), embedded=BOTH)
    again = subjects.export(fresh, tmp_path / "m", kind, ExportOptions(embedded=BOTH))
    assert subjects.contents(again) == subjects.contents(artifact(kind, BOTH))


def test_a_core_ml_classifier_takes_raw_pixels() -> None:
    """With a softmax inside or not, a classifier has one softmax and an image to take."""
    for embedded in (RAW, BOTH):
        options = ExportOptions(classifier=True, precision="fp16", embedded=embedded)
        place = subjects.folder() / f"raw-classifier-{embedded.softmax}"
        found = subjects.export(model(embedded), place, "coreml", options)
        report = subjects.judge(found, reference(embedded))
        assert report.verdict == "pass", report.reason
        assert found.signature.inputs[0].dtype == "uint8"


def test_blocks_keep_their_names() -> None:
    """A block within the wrapped network is kept in float32 by the name it always has."""
    kept = subjects.export(
        model(RAW),
        subjects.folder() / "raw-kept",
        "onnx",
        ExportOptions(precision="fp16", keep=("stem.0",), embedded=RAW),
    )
    import onnx

    kinds = {
        tensor.name: tensor.data_type
        for tensor in onnx.load(kept.path).graph.initializer
        if "patch_embed" in tensor.name and tensor.name.removesuffix("_float32").endswith("weight")
    }
    assert sorted(kinds.values()) == [onnx.TensorProto.FLOAT] + 3 * [onnx.TensorProto.FLOAT16]
    assert subjects.judge(kept, reference(RAW)).verdict == "pass"


def test_an_open_batch_takes_raw_pixels() -> None:
    """The batch stays open in front of the pixels."""
    dynamic = prepare(subjects.tiny_checkpoint(), batch=None, embedded=BOTH)
    for kind in ("onnx", "openvino"):
        options = ExportOptions(batch=None, embedded=BOTH)
        place = subjects.folder() / f"raw-dynamic-{kind}"
        found = subjects.export(dynamic, place, kind, options)
        assert subjects.judge(found, reference(BOTH)).verdict == "pass"


def test_the_reference_is_held_to_its_images() -> None:
    """Only samples with pixels can be fed raw; each keeps its answer and its tolerance."""
    plain = subjects.digits_reference()
    raw = plain.matching(graph_ends.signature(plain.signature, RAW))
    assert raw.samples.inputs.dtype == np.uint8
    assert raw.samples.names == tuple(n for n in plain.samples.names if n in plain.samples.pixels)
    rows = [plain.samples.names.index(name) for name in raw.samples.names]
    assert (raw.outputs[LOGITS] == plain.outputs[LOGITS][rows]).all()
    before, after = (each.tolerances["fp32"][LOGITS] for each in (plain, raw))
    assert (
        after.allowed(raw.outputs[LOGITS]) == before.allowed(plain.outputs[LOGITS])[rows]
    ).all()
    again = raw.matching(raw.signature)
    assert again is raw


def test_pixels_come_back_from_their_normalisation() -> None:
    """All 256 levels of each channel are told apart after rounding to float32."""
    recipe = preprocessing.RECIPES["fair"]
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    normalised = preprocessing.normalise(recipe, levels)[None]
    assert (preprocessing.pixels_of(recipe, normalised)[0] == levels).all()


def test_a_reference_without_its_recipe_is_refused() -> None:
    """Without the recipe the pixels behind the samples are not known."""
    unknown = replace(subjects.tiny_reference(), preprocessing=None)
    with pytest.raises(DataError, match="how its samples were normalised"):
        unknown.matching(model(RAW).signature)


def test_a_swapped_constant_fails_the_audit() -> None:
    """Scale and shift are weights of the file: another mean is not theirs."""
    other = replace(subjects.tiny().info.preprocessing, mean=(0.5, 0.456, 0.406))
    wrong = graph_ends.constants(other)
    expected = replace(
        reference(RAW),
        weights={"fp32": constants.fingerprints({**model(RAW).weights, **wrong}, "fp32")},
    )
    report = subjects.judge(artifact("onnx", RAW), expected)
    assert report.verdict == "fail"
    assert report.weights is not None
    assert report.weights.missing == ("preprocessing.shift",)


@pytest.mark.parametrize(
    ("options", "precision", "said"),
    [
        (ExportOptions(embedded=RAW), "int8", "calibrated on normalised images"),
        (ExportOptions(embedded=RAW), "auto", "calibrated on normalised images"),
        (ExportOptions(embedded=PROBABLE), "auto", "judges by logits"),
    ],
)
def test_what_does_not_go_together_is_refused(
    options: ExportOptions, precision: str, said: str
) -> None:
    """A contradiction is refused before anything is loaded, with a way out."""
    request = ExportRequest(formats=("onnx",), precisions={"onnx": (precision,)}, options=options)
    with pytest.raises(UsageError, match=said):
        plan(request)


def test_core_ml_takes_one_image() -> None:
    """An image is no batch."""
    with pytest.raises(UsageError, match="one image at a time"):
        target("coreml").refuse(ExportOptions(precision="fp16", batch=4, embedded=RAW))
