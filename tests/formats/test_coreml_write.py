"""Core ML packages written from a network: each kind of operator, and whole architectures."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import subjects
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kinds import DRAWS, assert_computes, network_of

from levit_export.checks import tolerance
from levit_export.core import packages
from levit_export.core.network import KINDS, Network
from levit_export.core.precisions import UNIT_ROUNDOFF
from levit_export.core.quiet import quiet
from levit_export.core.values import Embedded, ExportOptions, Prepared, RunOptions
from levit_export.formats import mil, target
from levit_export.formats.coreml.package import assembled, write_package
from levit_export.formats.coreml.write import WRITERS, program
from levit_export.models import checkpoints
from levit_export.models.interpreter import evaluate
from levit_export.models.preparation import prepare
from levit_export.models.zoo import Config, GraftedConfig, VitPytorchConfig, variant

FP32, FP16 = ExportOptions(precision="fp32"), ExportOptions(precision="fp16")

# --- each kind of operator ------------------------------------------------------------------


def run(network: Network, inputs: dict[str, np.ndarray], *, half: bool) -> dict[str, np.ndarray]:
    """What a network's saved package gives, by the evaluator."""
    ct = packages.coremltools()
    with TemporaryDirectory() as place, quiet("coremltools"):
        written = program(network, ct.target.iOS16, half=half)
        described = [ct.TensorType(name=v.name, shape=v.shape) for v in network.inputs]
        made = assembled(written, ct.target.iOS16, described)
        package = Path(place, "m.mlpackage")
        write_package(package, made.get_spec(), Path(made.weights_dir), {})
        return mil.load(package).run(inputs)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=3, derandomize=True)
@given(data=st.data())
def test_each_kind(kind: str, data: st.DataObject) -> None:
    """A package computes what a kind of operator means, in float32 and in float16."""
    cases = [DRAWS[kind](data) for _ in range(6)]
    network, inputs = network_of(kind, cases, data.draw(st.integers(0, 1000)))
    assert_computes(run, network, inputs)


def test_every_kind_has_a_writer() -> None:
    """The table is complete, and so is the test of its functions."""
    assert set(WRITERS) == set(DRAWS) == set(KINDS)


# --- whole architectures, beside coremltools' own converter ---------------------------------

VIT_PYTORCH = VitPytorchConfig(
    (32, 48), (1, 2), (1, 2), 8, 12, image_size=(64, 64), classes=5, distill_classes=7
)
ARCHITECTURES: dict[str, tuple[Config | None, dict[str, Any]]] = {
    "tokens": (None, {}),
    "maps": (None, {"layout": "maps"}),
    "unbaked": (None, {"skip": ("bake_attention_bias",)}),
    "softmax": (None, {"embedded": Embedded(softmax=True)}),
    "vit-pytorch": (VIT_PYTORCH, {}),
    "deit": (GraftedConfig(0, 2, dim=128, heads=2, image_size=(64, 64), classes=5), {}),
    "grafted": (GraftedConfig(2, 1, dim=64, heads=4, image_size=(48, 48), classes=3), {}),
    "resnet": (GraftedConfig(4, 0, image_size=(64, 64), classes=5), {}),
}
KNOWN_TYPES = {"conv", "linear", "matmul", "add", "sub", "mul", "real_div", "sigmoid_hard", "cast"}
KNOWN_TYPES |= {"softmax", "reshape", "transpose", "slice_by_index", "split", "concat", "pad"}
KNOWN_TYPES |= {"gelu", "silu", "sigmoid", "relu", "layer_norm", "batch_norm", "gather"}
KNOWN_TYPES |= {"max_pool", "avg_pool", "reduce_mean"}
"""Types of ops that the Neural Engine takes."""


@cache
def prepared(name: str) -> Prepared:
    """A small network of an architecture, with seeded weights."""
    config, settings_ = ARCHITECTURES[name]
    if config is None:
        return prepare(subjects.tiny_checkpoint(), **settings_)
    model = replace(variant("vit_pytorch_levit"), name=f"tiny_{name}", config=config)
    return prepare(checkpoints.randomised(model, 0), **settings_)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_against_coremltools(name: str, tmp_path: Path) -> None:
    """The same answers as of what coremltools converts, from no more ops, of types it has too.

    Its Hardswish has a thresholded_relu, which changes no answer.
    """
    ct = packages.coremltools()
    model = prepared(name)
    ours = mil.load(subjects.export(model, tmp_path / "ours", "coreml", FP32).path)
    with quiet("coremltools"):
        converted = ct.convert(
            model.program.run_decompositions({}),
            convert_to="mlprogram",
            compute_precision=ct.precision.FLOAT32,
            minimum_deployment_target=ct.target.iOS16,
            skip_model_load=True,
        )
        package = tmp_path / "theirs.mlpackage"
        write_package(package, converted.get_spec(), Path(converted.weights_dir), {})
        theirs = mil.load(package)
    shape = model.signature.inputs[0].shape
    images = np.random.default_rng(0).standard_normal((8, *shape[1:])).astype(np.float32)
    rows = [{"input": image[None]} for image in images]
    exact = [evaluate(model.network, row, dtype=torch.float64) for row in rows]
    rounded = [evaluate(model.network, row) for row in rows]
    answers = [list(ours.run(row).values()) for row in rows[:2]]
    (taken,) = theirs.inputs
    others = [list(theirs.run({taken.name: row["input"]}).values()) for row in rows[:2]]
    for place, spec in enumerate(model.signature.outputs):
        stacked = [np.concatenate([each[spec.name] for each in x]) for x in (rounded, exact)]
        allowed = tolerance.derive(*stacked, precision="fp32").rtol
        for row, (mine, their) in enumerate(zip(answers, others, strict=True)):
            scale = np.abs(stacked[1][row]).max()
            assert np.abs(mine[place] - stacked[1][row]).max() <= allowed[row] * scale
            assert np.abs(mine[place] - their[place]).max() <= 2 * allowed[row] * scale
    mine, their = (_computing(each.op_types) for each in (ours, theirs))
    assert mine.total() <= their.total()
    assert set(mine) <= set(their)
    assert set(mine) <= KNOWN_TYPES


def _computing(count: Counter[str]) -> Counter[str]:
    return Counter({kind: n for kind, n in count.items() if kind != "const"})


@pytest.mark.parametrize(
    "skip",
    [("fuse_batchnorm", "merge_heads"), ("bake_attention_bias",), ("merge_heads",)],
    ids="-".join,
)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_without_a_pass(skip: tuple[str, ...], precision: str, tmp_path: Path) -> None:
    """A network that a pass was left out of gives its own answers, within half precision too."""
    model = prepare(subjects.tiny_checkpoint(), skip=skip)
    made = subjects.export(model, tmp_path / "m", "coreml", ExportOptions(precision=precision))
    report = subjects.judge(made, subjects.held_against(subjects.tiny_checkpoint(), model))
    assert (report.verdict, report.reason) == ("pass", "")


def test_an_image_for_a_classifier(tmp_path: Path) -> None:
    """Raw pixels go in and probabilities by label come out of one package, in float16."""
    embedded = Embedded(preprocessing=True)
    model = prepare(subjects.tiny_checkpoint(), embedded=embedded)
    options = ExportOptions(precision="fp16", classifier=True, embedded=embedded)
    made = subjects.export(model, tmp_path / "m", "coreml", options)
    pixels = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8)
    with target("coreml").open(made, RunOptions()) as session:
        found = session.run({"image": pixels})["probabilities"]
    exact = evaluate(model.network, {"image": pixels}, dtype=torch.float64)["logits"]
    expected = torch.from_numpy(exact).softmax(-1).numpy()
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= UNIT_ROUNDOFF["fp16"] * 2**5
    assert found.argmax() == expected.argmax()


def test_names_do_not_depend_on_earlier_programs(tmp_path: Path) -> None:
    """Names that coremltools would number in this process are ours, and the bytes the same."""
    builder = packages.coremltools("converters.mil").Builder
    before = subjects.export(subjects.tiny(), tmp_path / "before", "coreml", FP32)

    @builder.program(input_specs=[builder.TensorSpec(shape=(1, 4))])
    def _other(x: Any) -> Any:
        for _ in range(3):
            x = builder.relu(x=builder.reshape(x=x, shape=[1, 4]))
        return x

    after = subjects.export(subjects.tiny(), tmp_path / "after", "coreml", FP32)
    assert subjects.contents(before) == subjects.contents(after)


def test_a_kept_block_is_cast_once_on_each_side(tmp_path: Path) -> None:
    """What a kept block reads and gives is cast once, and everything else stays as it was."""
    half = mil.load(subjects.export(subjects.tiny(), tmp_path / "a", "coreml", FP16).path)
    options = replace(FP16, keep=("stage1.block0.mlp",))
    kept = mil.load(subjects.export(subjects.tiny(), tmp_path / "b", "coreml", options).path)
    # In: what the MLP and its residual sum read. Out: what the next block reads.
    assert kept.op_types["cast"] == half.op_types["cast"] + 2
    assert _computing(kept.op_types) - Counter(cast=2) == _computing(half.op_types)
