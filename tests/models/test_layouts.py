"""Tokens and maps: two forms of one model, equal in everything but the order of axes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import subjects
import torch
from support import Cli
from torch import nn

from levit_export.checks import reference
from levit_export.core.errors import PassError, PassProofError, UsageError
from levit_export.core.precisions import CALIBRATED
from levit_export.core.values import Artifact, Calibration, ExportOptions, Prepared
from levit_export.formats import Job, target
from levit_export.inputs import samples
from levit_export.models.architectures import build, levit
from levit_export.models.architectures.random_weights import randomize_
from levit_export.models.passes import LAY_OUT_MAPS, PASSES, apply_passes
from levit_export.models.passes.base import NotApplicable
from levit_export.models.passes.proof import PROOF_BOUND, relative_error
from levit_export.models.preparation import Forms, layout_of, prepare
from levit_export.models.zoo import Config, LevitConfig, variant
from levit_export.storage import export_directory

SMALL = LevitConfig((32, 48), 16, (2, 3), (1, 1), image_size=(64, 64), classes=10)
KINDS = {
    "plain": SMALL,
    "one head": replace(SMALL, two_heads=False),
    "stride 8": replace(SMALL, stem_stride=8),
    "odd grid": replace(SMALL, image_size=(112, 112)),
    "scale no power of two": replace(SMALL, key_dim=24, dims=(48, 72)),
}
ARTIFACTS = (
    ("onnx", "fp32"),
    ("onnx", "int8"),
    ("onnx", "w8"),
    ("openvino", "fp32"),
    ("openvino", "int8"),
    ("coreml", "fp32"),
    ("coreml", "fp16"),
    ("coreml", "int8"),
)


def rewritten(config: LevitConfig) -> nn.Module:
    """A randomised network in float32 after the passes that all artifacts share."""
    model = randomize_(build(config), 0).eval()
    shape = (3, *config.image_size)
    return apply_passes(model, PASSES, input_shape=shape)[0]


@cache
def maps() -> Prepared:
    """The small model in maps."""
    return prepare(subjects.tiny_checkpoint(), layout="maps")


def calibration() -> Calibration:
    """The samples of a check, in place of images."""
    images = samples.make(subjects.tiny_checkpoint().preprocessing).inputs
    return Calibration(images, "samples")


@cache
def in_maps(kind: str, precision: str) -> Artifact:
    """The small model in maps as a file."""
    place = subjects.folder() / f"maps-{kind}-{precision}"
    place.mkdir()
    images = calibration() if precision in CALIBRATED else None
    options = ExportOptions(precision=precision, calibration=images)
    return Job(kind, options).write(maps(), place)


@pytest.mark.parametrize("name", KINDS)
def test_maps_compute_what_tokens_compute(name: str) -> None:
    """In float64 the two forms differ by rounding, and hold the same numbers under one name."""
    config = KINDS[name]
    tokens = rewritten(config).double()
    other = copy.deepcopy(tokens)
    LAY_OUT_MAPS.apply(other)
    images = torch.randn(2, 3, *config.image_size, dtype=torch.float64)
    assert relative_error(other(images), tokens(images)) <= PROOF_BOUND
    kept, found = tokens.state_dict(), other.state_dict()
    assert list(found) == list(kept)
    assert all(torch.equal(found[key].squeeze(), kept[key].squeeze()) for key in kept)


def test_maps_move_no_axis() -> None:
    """Between stem and pool, values are reshaped, but the only axes swapped are a matrix's two."""
    kinds = [op.kind for op in maps().network.ops]
    assert "transpose" not in kinds
    products = [op.attributes for op in maps().network.ops if op.kind == "matmul"]
    blocks = sum(SMALL.depths) + 1
    scores = {"transpose_a": True, "transpose_b": False}
    mixed = {"transpose_a": False, "transpose_b": True}
    assert products == [scores, mixed] * blocks


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("queries", lambda q, k, v, **rest: levit.attend_in_maps(k, q, v, **rest)),
        ("values", lambda q, k, v, **rest: levit.attend_in_maps(q, k, v.flip(2), **rest)),
        (
            "bias",
            lambda q, k, v, bias, **rest: levit.attend_in_maps(
                q, k, v, bias=bias.transpose(1, 2), **rest
            ),
        ),
    ],
)
def test_a_wrong_layout_is_refused(
    name: str, wrong: Callable[..., torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A form that computes something else does not get past the proof of its pass."""
    del name
    config = replace(SMALL, dims=(32,), heads=(2,), depths=(1,))
    plain, right = rewritten(config), levit.attend_in_maps

    def swapped(*arguments: torch.Tensor, **rest: object) -> torch.Tensor:
        with monkeypatch.context() as context:
            context.setattr(levit, "attend_in_maps", right)
            return wrong(*arguments, **rest)

    monkeypatch.setattr(levit, "attend_in_maps", swapped)
    if wrong.__code__.co_argcount == 4:  # a table that is its own transpose shows nothing
        table = plain.blocks[0].m.baked_bias  # type: ignore[union-attr, index]
        table.copy_(torch.randn(table.shape))
    with pytest.raises(PassProofError, match="lay_out_maps changed the model"):
        apply_passes(plain, (LAY_OUT_MAPS,), input_shape=(3, 64, 64))


def test_maps_need_fused_layers() -> None:
    """A BatchNorm over tokens cannot be laid out; the message names the first and a way out."""
    with pytest.raises(PassError, match=r"patch_embed|qkv") as caught:
        LAY_OUT_MAPS.apply(randomize_(build(SMALL), 0).eval())
    assert "--layout tokens" in caught.value.remedy


def test_maps_are_laid_out_once() -> None:
    """A model in maps, and a network of another kind, have nothing to lay out."""
    model = rewritten(SMALL)
    LAY_OUT_MAPS.apply(model)
    for nothing in (model, nn.Linear(2, 2)):
        assert isinstance(LAY_OUT_MAPS.apply(nothing), NotApplicable)


@pytest.mark.parametrize(("kind", "precision"), ARTIFACTS)
def test_files_in_maps_pass_the_check(kind: str, precision: str) -> None:
    """In every format a file in maps is the checkpoint's model, holds its tensors and says so."""
    found, checkpoint = in_maps(kind, precision), subjects.tiny_checkpoint()
    expected = reference.make(
        checkpoint,
        maps().info,
        [precision],
        fingerprints=subjects.tiny().fingerprints,
        calibration=calibration(),
    )
    expected = reference.with_stored_weights(expected, subjects.tiny().weights, [found], {})
    report = subjects.judge(found, expected)
    assert report.verdict == "pass", report.reason
    assert report.weights is not None
    assert report.weights.tensors == len(subjects.tiny().weights)
    assert target(kind).inspect(found.path).layout == found.layout == "maps"


def test_both_forms_hold_the_same_weights() -> None:
    """What a file must hold does not depend on its layout."""
    assert maps().fingerprints == subjects.tiny().fingerprints


@pytest.mark.parametrize(
    ("asked", "kind", "config", "skip", "expected"),
    [
        ("auto", "onnx", SMALL, (), "maps"),
        ("auto", "openvino", SMALL, (), "tokens"),
        ("auto", "coreml", SMALL, (), "maps"),
        ("auto", "onnx", SMALL, ("fuse_batchnorm",), "tokens"),
        ("auto", "onnx", variant("vit_pytorch_levit").config, (), "tokens"),
        ("tokens", "onnx", SMALL, (), "tokens"),
        ("maps", "openvino", SMALL, ("merge_heads",), "maps"),
    ],
)
def test_the_layout_that_is_taken(
    asked: str, kind: str, config: Config, skip: tuple[str, ...], expected: str
) -> None:
    """Auto follows the table where a network has two forms; what is asked for goes before it."""
    assert layout_of(asked, kind, "fp32", config, skip) == expected


@pytest.mark.parametrize(
    ("config", "skip", "said"),
    [
        (variant("vit_pytorch_levit").config, (), "one layout"),
        (SMALL, ("fuse_batchnorm",), "BatchNorms are over tokens"),
    ],
)
def test_maps_are_refused(config: Config, skip: tuple[str, ...], said: str) -> None:
    """Maps that are not possible are refused with the reason."""
    with pytest.raises(UsageError, match=said):
        layout_of("maps", "onnx", "fp32", config, skip)


def test_a_form_is_made_once() -> None:
    """Artifacts of one layout share one program, and the ledger has every pass once."""
    forms = Forms(subjects.tiny_checkpoint())
    first = forms.of("onnx", ExportOptions(layout="tokens"))
    assert forms.of("coreml", ExportOptions(layout="tokens")) is first
    other = forms.of("onnx", ExportOptions(layout="maps"))
    assert other is not first
    assert [record.name for record in other.passes] == [
        *(each.name for each in PASSES),
        LAY_OUT_MAPS.name,
    ]


def test_openvino_has_no_4_bits_for_maps() -> None:
    """NNCF leaves convolutions in 8 bits: a file that says w4 would be none."""
    with pytest.raises(UsageError, match="every layer is a convolution"):
        target("openvino").refuse(ExportOptions(precision="w4", layout="maps"))
    with pytest.raises(UsageError, match="every layer is a convolution"):
        target("openvino").export(
            maps(), subjects.folder() / "w4.xml", ExportOptions(precision="w4")
        )


def test_a_recipe_repeats_the_layout(cli: Cli, tmp_path: Path) -> None:
    """The layouts of an export are in its manifest, and ``--recipe`` gives the same bytes."""
    first, again = tmp_path / "first", tmp_path / "again"
    command = ("export", "--no-bench", "--no-check", "--format", "onnx,openvino")
    assert cli(*command, "--layout", "maps", "-o", first).exit_code == 0
    manifest = export_directory.read_manifest(first)
    assert [entry.layout for entry in manifest.artifacts] == ["maps", "maps"]
    assert [found.layout for found in export_directory.artifacts(first, manifest)] == [
        "maps",
        "maps",
    ]
    assert manifest.passes[-1].name == LAY_OUT_MAPS.name
    done = cli("export", "--no-bench", "--no-check", "--recipe", first, "-o", again)
    assert done.exit_code == 0
    for entry in manifest.artifacts:
        assert (again / entry.path).read_bytes() == (first / entry.path).read_bytes()


def test_a_recipe_and_a_layout_contradict(cli: Cli, tmp_path: Path) -> None:
    """A recipe says the layouts already."""
    done = cli("export", "--recipe", tmp_path, "--layout", "maps")
    assert done.exit_code == 2
    assert "--recipe and --layout contradict" in done.stderr
