"""Core ML packages of 8, 6 and 4 bits, with 8-bit inputs, and with blocks that are left alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
import subjects
from mutations import read_specification
from subjects import IMAGES, options_for

from levit_export.checks import weights
from levit_export.core.errors import ExportFailedError, UsageError
from levit_export.core.precisions import PRECISIONS
from levit_export.core.values import Artifact, Calibration, ExportOptions, Prepared
from levit_export.formats import mil
from levit_export.formats.coreml import target as coreml
from levit_export.formats.coreml.target import CoremlTarget
from levit_export.inputs import samples
from levit_export.models.preparation import prepare

TARGET = CoremlTarget()
tiny = partial(subjects.tiny_artifact, "coreml")
COMPRESSED = ("int8", "w8", "w6", "w4")
KEPT = "shrink1.attention"
HALF = 2.0**-11
BATCH = 40


@pytest.fixture(scope="module", autouse=True)
def _no_core_ml() -> Iterator[None]:
    """Let these tests be about the evaluator on a Mac too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coreml, "on_macos", lambda: False)
        yield


def run(found: Artifact, *taps: str) -> dict[str, np.ndarray]:
    """What a package gives for one image that it was not calibrated on."""
    drawn = np.random.default_rng(1).standard_normal((1, 3, 64, 64)).astype(np.float32)
    return mil.load(found.path).run({"input": drawn}, taps=taps)


def error(found: Artifact) -> float:
    """Distance from the float32 package, relative to its largest logit."""
    exact = run(tiny("fp32"))["logits"]
    return float(np.abs(run(found)["logits"] - exact).max() / np.abs(exact).max())


def tensors() -> dict[str, np.ndarray]:
    """The weights of the small model as the exporters get them, tables included."""
    return {k: v.detach().numpy() for k, v in subjects.tiny().program.state_dict.items()}


def scaled(factor: float) -> Prepared:
    """The small model with the inside of its first MLP ``factor`` times as large.

    The second layer takes it back. Hardswish is not linear, so the answers differ a little.
    """
    model = prepare(subjects.tiny_checkpoint())
    state = model.program.state_dict
    for name, by in (("0.weight", factor), ("0.bias", factor), ("2.weight", 1 / factor)):
        state[f"blocks.1.m.{name}"].data.mul_(by)
    return model


# --- what is in the packages ----------------------------------------------------------------


@pytest.mark.parametrize("precision", COMPRESSED)
def test_compressed_packages(precision: str) -> None:
    """The large layers are compressed and nothing else is; inputs and outputs stay float32."""
    made = tiny(precision)
    count = mil.load(made.path).op_types
    stored = (
        "constexpr_lut_to_dense" if precision in {"w6", "w4"} else "constexpr_affine_dequantize"
    )
    large = [k for k, w in tensors().items() if w.ndim > 1 and "bias" not in k and w.size > 2048]
    assert count[stored] == len(large) == 10
    assert count["quantize"] == count["dequantize"] == (10 if precision == "int8" else 0)
    assert made.signature == TARGET.inspect(made.path).signature == subjects.tiny().signature
    assert TARGET.inspect(made.path).precision == precision
    assert read_specification(made.path).specificationVersion == (8 if precision == "int8" else 7)


@pytest.mark.parametrize("precision", ["int8", "w8"])
def test_answers(precision: str) -> None:
    """A package errs at most as the same rounding does in PyTorch, by the derived tolerance.

    Not so palettes of a whole tensor, which are coarser than that yardstick's grid per channel.
    """
    from levit_export.checks import reference

    expected = reference.make(
        subjects.tiny_checkpoint(),
        subjects.tiny().info,
        [precision],
        calibration=Calibration(IMAGES, "noise"),
    )
    report = subjects.judge(
        tiny(precision),
        replace(expected, images=None, predictions=None),
    )
    assert report.verdict == "pass"
    assert error(tiny(precision)) > error(tiny("fp16"))


@pytest.mark.parametrize("precision", COMPRESSED)
def test_against_coremltools(precision: str, tmp_path: Path) -> None:
    """The evaluator computes as if coremltools had decompressed the weights beforehand."""
    import coremltools as ct
    from coremltools.optimize.coreml import decompress_weights

    from levit_export.core.quiet import quiet
    from levit_export.formats.coreml.package import write_package

    made = tiny(precision)
    with quiet("coremltools"):
        plain = decompress_weights(ct.models.MLModel(str(made.path), skip_model_load=True))
    write_package(tmp_path / "m.mlpackage", plain.get_spec(), Path(plain.weights_dir), {})
    other = replace(made, path=tmp_path / "m.mlpackage")
    assert not any(op.startswith("constexpr") for op in mil.load(other.path).op_types)
    assert np.array_equal(run(other)["logits"], run(made)["logits"])


@pytest.mark.parametrize("precision", ["w6", "w4"])
def test_palettes_of_channel_groups(precision: str) -> None:
    """From iOS 18 on 16 channels share a palette; they lie nearer to the weights."""
    grouped = tiny(precision, deployment_target="iOS18")
    count = mil.load(grouped.path).op_types
    assert read_specification(grouped.path).specificationVersion == 9
    assert count["constexpr_lut_to_dense"] == 10

    def distance(made: Artifact) -> float:
        name = "blocks.5.m.0.weight"
        stored = [c for c in TARGET.constants(made) if c.shape == tensors()[name].shape]
        return float(min(np.square(c - tensors()[name]).mean() for c in stored))

    assert distance(grouped) < distance(tiny(precision))


# --- the weights ----------------------------------------------------------------------------


def found_in(made: Artifact, name: str) -> np.ndarray:
    """The constant of a package that lies nearest to the tensor ``name``."""
    tensor = tensors()[name]
    alike = [c for c in TARGET.constants(made) if c.shape == tensor.shape and c.dtype.kind == "f"]
    return min(alike, key=lambda c: float(np.abs(c - tensor).max()))


@pytest.mark.parametrize("precision", ["int8", "w8"])
@pytest.mark.parametrize("name", ["patch_embed.6.weight", "blocks.0.m.qkv.weight"])
def test_weights_within_half_a_step(precision: str, name: str) -> None:
    """Each weight is the grid's nearest number, but for the roundings to float16.

    Three of them: of the weight, of the quotient by the step, and of the product with it. Each
    is of a number no larger than the channel's largest weight.
    """
    tensor = tensors()[name]
    stored = found_in(tiny(precision), name)
    largest = np.abs(tensor).reshape(len(tensor), -1).max(axis=1)
    bound = largest / 127 / 2 + 3 * HALF * largest
    off = np.abs(stored - tensor).reshape(len(tensor), -1).max(axis=1)
    assert (off <= bound).all()
    assert (off > largest * HALF).any()  # it was compressed


@pytest.mark.parametrize("precision", ["w6", "w4"])
@pytest.mark.parametrize("name", ["patch_embed.6.weight", "blocks.0.m.qkv.weight"])
def test_weights_by_palette(precision: str, name: str) -> None:
    """Each weight is the nearest of at most 2**bits colours, but for its rounding to float16."""
    tensor = tensors()[name].astype(np.float16).astype(np.float64)
    stored = found_in(tiny(precision), name)
    colours = np.unique(stored).astype(np.float64)
    assert 2 < len(colours) <= 2 ** PRECISIONS[precision].bits
    nearest = np.abs(tensor[..., None] - colours).min(axis=-1)
    assert np.array_equal(nearest, np.abs(stored - tensor))


@pytest.mark.parametrize("precision", COMPRESSED)
def test_audit(precision: str) -> None:
    """Every tensor is found among the constants, and none that is strange beside them."""
    made = tiny(precision)
    bits = PRECISIONS[precision].bits
    settled = weights.settled(tensors(), TARGET.constants(made), bits)
    audit = weights.audit(settled, TARGET.constants(made), precision)
    assert (audit.missing, audit.strange) == ((), ())
    assert audit.tensors == len(tensors())


def test_audit_sees_a_damaged_palette() -> None:
    """A tensor whose constant is another one's is missed."""
    spoilt = {**tensors(), "head.weight": -tensors()["head.weight"]}
    settled = weights.settled(spoilt, TARGET.constants(tiny("w4")), 4)
    assert "head.weight" in weights.audit(settled, TARGET.constants(tiny("w4")), "w4").missing


# --- blocks that are left alone -------------------------------------------------------------


@pytest.mark.parametrize("precision", COMPRESSED)
def test_kept_blocks_are_not_compressed(precision: str) -> None:
    """The weights of a kept block are the float16 ones, its inputs float16; others are not."""
    made = tiny(precision, KEPT)
    kept = tensors()["blocks.2.kv.weight"].astype(np.float16)
    assert np.array_equal(found_in(made, "blocks.2.kv.weight"), kept)
    other = tensors()["blocks.0.m.qkv.weight"].astype(np.float16)
    assert not np.array_equal(found_in(made, "blocks.0.m.qkv.weight"), other)
    count = mil.load(made.path).op_types
    assert count["quantize"] == (8 if precision == "int8" else 0)
    assert made.keep == (KEPT,)


def taps_of(made: Artifact) -> dict[str, str | None]:
    """What the taps of the small model are called in a package; None where it has none."""
    known = TARGET.values(made)
    taps = subjects.tiny().network.taps
    return {tap: name if name in known else None for tap, name in taps.items()}


def tap_types(made: Artifact) -> dict[str, str]:
    """The element type of each tap in a package."""
    names = {tap: name for tap, name in taps_of(made).items() if name is not None}
    values = run(made, *names.values())
    return {tap: str(values[name].dtype) for tap, name in names.items()}


def test_kept_blocks_compute_in_float32() -> None:
    """In float16 a kept block computes in float32, and no other does."""
    types = tap_types(tiny("fp16", KEPT, "stem.0"))
    inside = {tap for tap in types if tap.startswith((f"{KEPT}.", "stem.0"))}
    assert {tap for tap, type_ in types.items() if type_ == "float32"} == inside
    assert len(inside) == 4
    assert set(tap_types(tiny("fp16")).values()) == {"float16"}


def test_kept_head() -> None:
    """The head can be kept although its value bears the output's name."""
    head = mil.load(tiny("fp16", "head").path)
    assert "logits_fp16" not in head.value_names
    assert "logits_fp16" in mil.load(tiny("fp16").path).value_names


def test_overflow_is_mended_by_keeping_the_block(tmp_path: Path) -> None:
    """A block that leaves the range of float16 is right again when it is kept."""
    model = scaled(4e5)
    plain = subjects.export(model, tmp_path / "plain", "coreml", options_for("fp16"))
    kept = subjects.export(
        model,
        tmp_path / "kept",
        "coreml",
        options_for("fp16", keep=("stage1.block0.mlp",)),
    )
    exact = subjects.export(model, tmp_path / "exact", "coreml", options_for("fp32"))
    assert not np.isfinite(run(plain)["logits"]).all()
    wanted = run(exact)["logits"]
    off = np.abs(run(kept)["logits"] - wanted).max() / np.abs(wanted).max()
    assert off <= 10 * error(tiny("fp16"))


@pytest.mark.parametrize("precision", ["fp16", "int8", "w4"])
def test_kept_blocks_of_a_classifier(precision: str, tmp_path: Path) -> None:
    """The softmax that ends a classifier does not hide its blocks."""
    options = options_for(precision, keep=(KEPT,), classifier=True)
    made = subjects.export(subjects.tiny(), tmp_path / "m", "coreml", options)
    name = taps_of(made)[f"{KEPT}.out"]
    assert name is not None
    constants = list(TARGET.constants(made))
    kept = tensors()["blocks.2.kv.weight"]
    rounded = kept if precision == "fp16" else kept.astype(np.float16)
    assert any(np.array_equal(c, rounded) for c in constants)


# --- names ----------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp16", "fp32", *COMPRESSED])
def test_every_tap_is_found(precision: str) -> None:
    """Every tap of the network is a value of the package, of linear layers too."""
    found = taps_of(tiny(precision))
    assert len(found) > 15
    assert None not in found.values()
    assert len(set(found.values())) == len(found)
    assert not any("linear_0" in name for name in TARGET.values(tiny(precision)))


# --- calibration ----------------------------------------------------------------------------


def test_ranges_come_from_the_images(tmp_path: Path) -> None:
    """Images with larger values give coarser grids."""
    loud = Calibration(8 * IMAGES, "loud")
    made = subjects.export(
        subjects.tiny(), tmp_path / "m", "coreml", options_for("int8", calibration=loud)
    )
    assert error(made) > 2 * error(tiny("int8"))


def test_images_that_fill_no_batch(tmp_path: Path) -> None:
    """The last images count as the others do where they do not fill a batch."""
    model = prepare(subjects.tiny_checkpoint(), batch=4)
    options = options_for("int8", batch=4)
    made = subjects.export(model, tmp_path / "four", "coreml", options)

    def grids(found: Artifact) -> list[float]:
        values = read_specification(found.path).mlProgram.functions["main"]
        (block,) = values.block_specializations.values()
        return [
            number
            for op in block.operations
            if op.type == "const" and "scale" in op.outputs[0].name
            for number in np.frombuffer(
                op.attributes["val"].immediateValue.tensor.bytes.values, np.float16
            ).tolist()
        ]

    assert grids(made) == pytest.approx(grids(tiny("int8")), rel=4 * HALF)
    assert len(grids(made)) >= 10


@pytest.mark.parametrize("factor", [2000.0, 0.0])
def test_ranges_that_coremltools_cannot_shift(factor: float, tmp_path: Path) -> None:
    """Large inputs go to a symmetric grid and dead ones to any: no infinity, no NaN.

    The product of 128 and an end of the range, by which coremltools finds zero points, would
    leave float16.
    """
    model = scaled(factor or 1.0)
    if not factor:
        for part in ("weight", "bias"):
            model.program.state_dict[f"blocks.1.m.0.{part}"].data.zero_()
    made = subjects.export(model, tmp_path / "int8", "coreml", options_for("int8"))
    exact = run(subjects.export(model, tmp_path / "fp32", "coreml", options_for("fp32")))["logits"]
    found = run(made)["logits"]
    assert np.isfinite(found).all()
    assert np.abs(found - exact).max() / np.abs(exact).max() <= 2 * error(tiny("int8"))


def test_inputs_beyond_float16_are_refused(tmp_path: Path) -> None:
    """An input of a layer that leaves float16 is named, and what to do instead."""
    with pytest.raises(ExportFailedError, match="stage1_block0_mlp_out") as raised:
        subjects.export(scaled(4e5), tmp_path / "m", "coreml", options_for("int8"))
    assert "fp32" in raised.value.remedy
    assert list((tmp_path / "m").iterdir()) == []


# --- refusals -------------------------------------------------------------------------------


def test_int8_needs_images() -> None:
    """Without images int8 is refused, with the option that gives them."""
    with pytest.raises(UsageError, match="real images") as raised:
        TARGET.refuse(ExportOptions(precision="int8"))
    assert "--data DIR" in raised.value.remedy


@pytest.mark.parametrize(
    ("precision", "target"),
    [("int8", "macOS13"), ("int8", "iOS15"), ("w8", "iOS15"), ("w4", "macOS12")],
)
def test_early_systems_are_refused(precision: str, target: str) -> None:
    """A system without the ops of a precision is refused, with the first that has them."""
    with pytest.raises(UsageError, match=target) as raised:
        TARGET.refuse(options_for(precision, deployment_target=target))
    assert {"int8": "iOS17"}.get(precision, "iOS16") in raised.value.remedy


def test_int8_raises_the_default_system() -> None:
    """The default deployment target becomes iOS 17 for int8, and a note says so."""
    TARGET.refuse(options_for("int8"))
    note, _ = tiny("int8").notes
    assert "iOS17 and later, not on iOS16" in note
    assert not any("later" in note for note in tiny("w8").notes)
    later = tiny("int8", deployment_target="iOS18")
    assert not any("later" in note for note in later.notes)
    assert read_specification(later.path).specificationVersion == 9


# --- bytes and words ------------------------------------------------------------------------


# --- the bundled model ----------------------------------------------------------------------


@cache
def pictures() -> Callable[[str], samples.Samples]:
    """The bundled images, as the model takes them."""
    recipe = subjects.digits().info.preprocessing
    sets = {"held out": samples.held_out_digits, "calibration": samples.calibration_digits}
    return lambda name: samples.from_images(recipe, *sets[name]())


@pytest.mark.parametrize("precision", COMPRESSED)
def test_accuracy(precision: str, tmp_path: Path) -> None:
    """Of 360 held-out digits at most two more are wrong than in PyTorch: half a point."""
    options = ExportOptions(precision=precision, batch=BATCH)
    if precision == "int8":
        known = pictures()("calibration").inputs
        options = replace(options, calibration=Calibration(known, "digits"))
    made = subjects.export(subjects.digits(BATCH), tmp_path / "m", "coreml", options)
    program = mil.load(made.path)
    unseen = pictures()("held out")
    logits = [program.run({"input": batch})["logits"] for batch, _ in unseen.batches(BATCH)]
    right = int((np.concatenate(logits).argmax(axis=1) == unseen.labels).sum())
    assert right >= 357 - 0.005 * 360
