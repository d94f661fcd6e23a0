"""Files of each format tested by mutation: each way to spoil one on disk has to fail.

Those of ONNX, and more ways, are in ``test_mutations``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import subjects
import torch
from mutations import (
    Change,
    Weight,
    axis_in_asset,
    constant,
    edit_asset,
    edit_specification,
    edit_xml,
    find_weights,
    forget_bias_in_asset,
    main_block,
    operations,
    rename_in_asset,
)
from support import of_formats

from levit_export.checks.parity import ParityReport
from levit_export.checks.reference import Reference
from levit_export.core.values import Artifact, ExportOptions
from levit_export.formats import mil, target
from levit_export.models import checkpoints
from levit_export.models.architectures.levit import Levit
from levit_export.models.checkpoints import Checkpoint
from levit_export.models.preparation import prepare
from levit_export.models.zoo import VARIANTS, Variant

KINDS = (
    ("openvino", "fp32"),
    ("coreml", "fp32"),
    ("coreml", "fp16"),
    ("coreai", "fp32"),
    ("coreai", "fp16"),
)
NOT_IN_THE_FILE = "weight tensors are not in the file as the checkpoint has them"
UNWANTED = {"batch_norm", "gather", "expand_dims", "squeeze", "shape", "concat"}

# Blocks of levit_digits: heads, channels of v for each head.
ATTENTIONS = {"blocks.0.m": (2, 32), "blocks.4": (4, 64), "blocks.14.m": (4, 32)}


@pytest.fixture(scope="session", params=of_formats(KINDS))
def sound(request: pytest.FixtureRequest) -> Artifact:
    """The bundled model in each format and precision; do not change its files."""
    return subjects.artifact(*request.param)


@dataclass(frozen=True)
class Spoiling:
    """A copy of an artifact that may be changed, and where its weights are."""

    artifact: Artifact
    weights: dict[str, Weight]

    def judge(self) -> ParityReport:
        """The verdict on the copy as it is now; on Linux Core AI is slow in float16."""
        expected = subjects.digits_reference()
        is_slow = self.artifact.id == "coreai-fp16"
        return subjects.judge(self.artifact, few(expected, 4) if is_slow else expected)


@pytest.fixture
def copied(sound: Artifact, tmp_path: Path) -> Spoiling:
    """A copy to change."""
    artifact = subjects.copy(sound, tmp_path)
    return Spoiling(artifact, find_weights(artifact, subjects.digits().weights))


# --- weights --------------------------------------------------------------------------------


def rolled(array: np.ndarray) -> np.ndarray:
    """Rows in another order."""
    return np.roll(array, 1, axis=0)


def exchanged(array: np.ndarray) -> np.ndarray:
    """The first two rows exchanged."""
    return array[[1, 0, *range(2, len(array))]]


def with_nan(array: np.ndarray) -> np.ndarray:
    """One number replaced by NaN."""
    array.flat[array.size // 2] = np.nan
    return array


def larger(array: np.ndarray) -> np.ndarray:
    """Every number one percent larger."""
    return array * array.dtype.type(1.01)


def transposed_grid(table: np.ndarray) -> np.ndarray:
    """A table of attention biases with the rows and columns of the key's grid exchanged."""
    heads, queries, keys = table.shape
    side = round(keys**0.5)
    return table.reshape(heads, queries, side, side).swapaxes(2, 3).reshape(table.shape)


HEAD = ("head.weight", "head.bias")
WEIGHTS: dict[str, tuple[tuple[str, ...], Change, str]] = {
    "zeroed head": (HEAD, np.zeros_like, "exceeds the tolerance"),
    "zeroed head weight": (HEAD[:1], np.zeros_like, "exceeds the tolerance"),
    "rolled classes": (HEAD, rolled, "exceeds the tolerance"),
    "two classes exchanged": (HEAD, exchanged, "exceeds the tolerance"),
    "swapped input channels": (
        ("patch_embed.0.weight",),
        lambda weight: weight[:, ::-1],
        "exceeds the tolerance",
    ),
    "NaN": (HEAD[:1], with_nan, "NaN or infinity on"),
    # Core ML's thresholded_relu, the first op of a hardswish there, turns NaN into 0.
    "NaN before a hardswish": (("blocks.1.m.0.weight",), with_nan, NOT_IN_THE_FILE),
}


@pytest.mark.parametrize("mutation", WEIGHTS)
def test_spoilt_weights_fail(copied: Spoiling, mutation: str) -> None:
    """A file with wrong weights fails by its answers, and the tensors at fault are named."""
    names, change, words = WEIGHTS[mutation]
    for name in names:
        copied.weights[name].change(change)
    report = copied.judge()
    assert report.verdict == "fail"
    assert words in report.reason
    assert NOT_IN_THE_FILE in report.reason
    assert report.weights is not None
    assert report.weights.missing == names


@pytest.mark.parametrize("block", ATTENTIONS)
def test_permuted_attention_heads_fail(copied: Spoiling, block: str) -> None:
    """A projection that takes the attention heads in another order fails."""
    heads, channels = ATTENTIONS[block]

    def permute(weight: np.ndarray) -> np.ndarray:
        by_head = weight.reshape(-1, heads, channels)
        return np.roll(by_head, 1, axis=1).reshape(weight.shape)

    copied.weights[f"{block}.proj.1.weight"].change(permute)
    report = copied.judge()
    assert report.verdict == "fail"
    assert f"{block}.proj.1.weight" in report.reason


@pytest.mark.parametrize("block", ATTENTIONS)
@pytest.mark.parametrize("change", [transposed_grid, np.zeros_like], ids=["transposed", "zeroed"])
def test_a_wrong_bias_table_fails(copied: Spoiling, block: str, change: Change) -> None:
    """A table of attention biases that is transposed, or was never loaded, fails."""
    copied.weights[f"{block}.baked_bias"].change(change)
    report = copied.judge()
    assert report.verdict == "fail"
    assert f"{block}.baked_bias" in report.reason


def few(expected: Reference, count: int) -> Reference:
    """The reference with its first ``count`` samples, which take less time."""
    return replace(
        expected,
        samples=expected.samples.first(count),
        outputs={name: rows[:count] for name, rows in expected.outputs.items()},
        tolerances={
            precision: {
                name: replace(tolerance, rtol=tolerance.rtol[:count])
                for name, tolerance in tolerances.items()
            }
            for precision, tolerances in expected.tolerances.items()
        },
    )


@pytest.mark.parametrize(
    "sound", of_formats(kind for kind in KINDS if kind != ("coreai", "fp32")), indirect=True
)
def test_any_tensor_that_is_one_percent_off_fails(copied: Spoiling) -> None:
    """Whichever weight tensor is one percent too large, the check fails and names that one.

    Core AI compiles a file anew for each tensor, and is asked in float16 alone, its default.
    """
    expected = few(subjects.digits_reference(), 2)
    assert subjects.judge(copied.artifact, expected).verdict == "pass"
    found: dict[str, tuple[str, tuple[str, ...]]] = {}
    for name, weight in copied.weights.items():
        before = weight.read()
        weight.change(larger)
        report = subjects.judge(copied.artifact, expected)
        missing = () if report.weights is None else report.weights.missing
        assert name in report.reason, report.reason
        found[name] = report.verdict, missing
        weight.write(before)
    assert set(found) == set(subjects.digits().fingerprints["fp32"])
    assert found == {name: ("fail", (name,)) for name in found}
    assert subjects.judge(copied.artifact, expected).verdict == "pass"


# --- graphs ---------------------------------------------------------------------------------


def softmax_over_queries(artifact: Artifact) -> None:
    """Let the first attention's softmax run over the queries."""
    if artifact.format == "coreai":
        edit_asset(artifact.path, axis_in_asset, "stage1_block0_attention_softmax")
        return
    if artifact.format == "openvino":
        pattern = r'(type="SoftMax"[^>]*>\s*<data axis=)"3"'
        edit_xml(artifact.path, pattern, r'\1"-2"')
        return

    def change(model: Any) -> None:
        name = operations(model, "softmax")[0].inputs["axis"].arguments[0].name
        axis = constant(model, name).ints.values
        assert list(axis) == [3]
        axis[0] = 2

    edit_specification(artifact.path, change)


def renamed_output(artifact: Artifact) -> None:
    """Call the output something else."""
    if artifact.format == "coreai":
        edit_asset(artifact.path, rename_in_asset)
        return
    if artifact.format == "openvino":
        edit_xml(artifact.path, 'output_names="logits"', 'output_names="scores"')
        return

    def change(model: Any) -> None:
        model.description.output[0].name = "scores"
        block = main_block(model)
        block.outputs[0] = "scores"
        (output,) = (o for op in block.operations for o in op.outputs if o.name == "logits")
        output.name = "scores"

    edit_specification(artifact.path, change)


def other_output(artifact: Artifact) -> None:
    """Give out, under the name of the logits, logits without the last layer's bias."""
    if artifact.format == "coreai":
        edit_asset(artifact.path, forget_bias_in_asset, "logits")
        return
    if artifact.format == "openvino":
        # The last Add takes its product twice in place of product and bias.
        text = artifact.path.read_text("utf-8")
        *_, last = [line for line in text.splitlines() if "<edge " in line]
        add = last.split('from-layer="')[1].split('"')[0]
        *_, bias = [
            line
            for line in text.splitlines()
            if "<edge " in line and f'to-layer="{add}" to-port="1"' in line
        ]
        (product,) = (
            line
            for line in text.splitlines()
            if "<edge " in line and f'to-layer="{add}" to-port="0"' in line
        )
        artifact.path.write_text(text.replace(bias, product.replace('"0" />', '"1" />')), "utf-8")
        return

    def change(model: Any) -> None:
        linear = operations(model, "linear")[-1]
        del linear.inputs["bias"]

    edit_specification(artifact.path, change)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (softmax_over_queries, "exceeds the tolerance"),
        (renamed_output, "output 'logits' is missing"),
        (other_output, "exceeds the tolerance"),
    ],
)
def test_a_spoilt_graph_fails(
    copied: Spoiling, change: Callable[[Artifact], None], words: str
) -> None:
    """A file whose weights are right and whose graph is not fails by its answers.

    A weight that no op takes any longer may be missing: OpenVINO and Core AI do not read it.
    """
    change(copied.artifact)
    report = copied.judge()
    assert report.verdict == "fail"
    assert words in report.reason
    assert report.weights is not None
    assert set(report.weights.missing) <= {"head.bias"}


def test_the_files_themselves_pass(copied: Spoiling) -> None:
    """Unspoilt, the same copy passes through the same path, every weight accounted for."""
    report = subjects.judge(copied.artifact, subjects.digits_reference())
    assert (report.verdict, report.reason) == ("pass", "")
    assert report.samples == 26
    assert report.weights is not None
    assert report.weights.tensors == len(copied.weights) == 86
    assert report.weights.missing == ()


def test_weights_written_back_pass(copied: Spoiling) -> None:
    """Writing every weight where it was found, as mutations do, is not what makes a file fail."""
    before = subjects.contents(copied.artifact)
    for weight in copied.weights.values():
        weight.change(lambda array: array)
    assert subjects.contents(copied.artifact) == before


# --- the module -----------------------------------------------------------------------------


@dataclass(frozen=True)
class WrongEpsilon(Checkpoint):
    """A checkpoint of which one BatchNorm is taken to have another epsilon."""

    def build(self) -> Levit:
        """The module, changed."""
        module = super().build()
        with torch.no_grad():
            module.blocks[0].m.qkv.bn.eps = 1e-3
        return module


@pytest.mark.parametrize("which", of_formats(KINDS))
def test_a_wrong_batchnorm_epsilon_fails(which: tuple[str, str], tmp_path: Path) -> None:
    """A BatchNorm that was fused with another epsilon fails, in float16 by the weights at fault.

    The same model with the right one passes.
    """
    kind, precision = which
    options = ExportOptions(precision=precision)
    layout = subjects.layout_of(kind)
    wrong = prepare(WrongEpsilon(**vars(subjects.tiny_checkpoint())), layout=layout)
    report = subjects.judge(
        subjects.export(wrong, tmp_path / "wrong", kind, options), subjects.tiny_reference()
    )
    assert report.verdict == "fail"
    assert report.weights is not None
    assert report.weights.missing == ("blocks.0.m.qkv.weight", "blocks.0.m.qkv.bias")
    assert ("exceeds the tolerance" in report.reason) == (precision == "fp32")
    sound = prepare(subjects.tiny_checkpoint(), layout=layout)
    right = subjects.export(sound, tmp_path / "right", kind, options)
    assert subjects.judge(right, subjects.tiny_reference()).verdict == "pass"


# --- the paper's models ---------------------------------------------------------------------


@pytest.mark.parametrize("known", [v for v in VARIANTS if v.weights], ids=lambda known: known.name)
def test_the_papers_models_pass(known: Variant, tmp_path: Path) -> None:
    """Every published architecture is the same function in each format and precision.

    In float32 a package lies within 1e-5 of the reference, relative to its largest logit. On Linux
    Core AI takes minutes for some of them in float16, so that it is left out here.
    """
    checkpoint = checkpoints.randomised(known, 0)
    tokens = prepare(checkpoint)
    expected = subjects.held_against(checkpoint, tokens)
    for kind, precision in KINDS:
        if not target(kind).can_export().ok or (kind, precision) == ("coreai", "fp16"):
            continue
        layout = subjects.layout_of(kind)
        model = tokens if layout == "tokens" else prepare(checkpoint, layout=layout)
        options = ExportOptions(precision=precision)
        made = subjects.export(model, tmp_path / f"{kind}-{precision}", kind, options)
        report = subjects.judge(made, expected)
        assert (report.verdict, report.reason) == ("pass", ""), made.id
        assert report.weights is not None
        assert report.weights.tensors == len(model.fingerprints[precision])
        if kind == "coreml":
            assert not UNWANTED & set(mil.load(made.path).op_types)
            if precision == "fp32":
                assert 0 < report.outputs[0].max_rel <= 1e-5
