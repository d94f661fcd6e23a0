"""Checkpoints of the authors' form: read, unwrapped, recognised by shape, or refused."""

from __future__ import annotations

import argparse
import io
import random
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from folders import in_a_file, same, tensors_of
from safetensors.torch import save

from levit_export.core.errors import (
    CheckpointError,
    LevitExportError,
    UnsafeCheckpointError,
    UsageError,
)
from levit_export.models import checkpoints
from levit_export.models.architectures.levit import Levit
from levit_export.models.checkpoints import DIALECTS, limits, reading
from levit_export.models.loading import ModelChoice
from levit_export.models.zoo import VARIANTS, LevitConfig, variant

Tensors = dict[str, torch.Tensor]
PUBLISHED = [known for known in VARIANTS if known.weights]
TINY = LevitConfig((16, 24, 32), 8, (1, 2, 3), (1, 1, 1), image_size=(32, 32), classes=3)


@pytest.fixture(scope="module")
def tiny() -> Tensors:
    """Seeded weights of a small LeViT; do not change them."""
    return tensors_of(TINY)


def answer(checkpoint: checkpoints.Checkpoint) -> torch.Tensor:
    """What the checkpoint's module says of a seeded batch."""
    side, _ = checkpoint.config.image_size
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    return checkpoint.build()(images)


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth", "w.bin", "safetensors-inside.pth"])
def test_files(tmp_path: Path, tiny: Tensors, name: str) -> None:
    """Both kinds of file are read, told apart by content where the name does not tell."""
    file = in_a_file(tmp_path, tiny, name)
    if name.startswith("safetensors"):
        file.write_bytes(save(tiny))
    assert same(reading.read(file, DIALECTS).tensors, tiny)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda t: {"model": t, "epoch": 3, "optimizer": {"state": {}}},
        lambda t: {"state_dict": t},
        lambda t: {"model_ema": t, "model": {k: v * 2 for k, v in t.items() if v.dim()}},
        lambda t: {"state_dict_ema": t, "state_dict": {k: v * 2 for k, v in t.items() if v.dim()}},
        lambda t: {"model": {"state_dict": t}},
        lambda t: {f"module.{k}": v for k, v in t.items()},
        lambda t: {f"_orig_mod.{k}": v for k, v in t.items()},
        lambda t: {"model": {f"module._orig_mod.{k}": v for k, v in t.items()}},
    ],
    ids=["model", "state_dict", "model_ema", "state_dict_ema", "nested", "module", "orig", "both"],
)
def test_wrappers(tmp_path: Path, tiny: Tensors, wrap: Callable[[Tensors], object]) -> None:
    """Weights are found inside what training scripts save; averaged ones come before others."""
    assert same(reading.read(in_a_file(tmp_path, wrap(tiny)), DIALECTS).tensors, tiny)


def test_training_state_of_the_authors_script(tmp_path: Path, tiny: Tensors) -> None:
    """Weights beside an optimizer, an epoch and an argparse namespace are found and loaded."""
    file = tmp_path / "checkpoint.pth"
    state = {"model": tiny, "optimizer": {"state": {}}, "epoch": 3}
    torch.save({**state, "args": argparse.Namespace(lr=5e-4, model="LeViT_256")}, file)
    assert set(checkpoints.load(file).tensors) == set(tiny)


@pytest.mark.parametrize("suffix", ["attention_bias_idxs", "num_batches_tracked"])
def test_missing_derived_buffers(tmp_path: Path, tiny: Tensors, suffix: str) -> None:
    """Buffers that follow from the shapes, or play no part, may be missing."""
    fewer = {k: v for k, v in tiny.items() if not k.endswith(suffix)}
    assert len(fewer) < len(tiny)
    loaded = checkpoints.load(in_a_file(tmp_path, fewer))
    whole = checkpoints.load(in_a_file(tmp_path, tiny))
    assert torch.equal(answer(loaded), answer(whole))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_storage(tmp_path: Path, tiny: Tensors, dtype: torch.dtype) -> None:
    """Weights stored in another precision give a float32 model that holds their exact values."""
    stored = {k: v.to(dtype) if v.is_floating_point() else v for k, v in tiny.items()}
    checkpoint = checkpoints.load(in_a_file(tmp_path, stored, "w.safetensors"))
    module = checkpoint.build()
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            assert tensor.dtype == torch.float32
            assert torch.equal(tensor, stored[name].to(torch.float32))
    assert answer(checkpoint).dtype == torch.float32


def test_build_is_fresh(tmp_path: Path, tiny: Tensors) -> None:
    """Every build is a new module in eval mode; changing one does not change the next."""
    checkpoint = checkpoints.load(in_a_file(tmp_path, tiny))
    before = answer(checkpoint)
    module = checkpoint.build()
    for parameter in module.parameters():
        parameter.data.zero_()
    assert not module.training
    assert torch.equal(answer(checkpoint), before)


@pytest.mark.parametrize("known", PUBLISHED, ids=lambda known: known.name)
def test_variants_are_recognised_by_shape(tmp_path: Path, known: checkpoints.Variant) -> None:
    """Each published variant is told by its shapes alone, with the authors' preprocessing."""
    tensors = tensors_of(replace(known.config, classes=10))
    found = checkpoints.load(in_a_file(tmp_path, tensors, "w.safetensors"))
    assert (found.name, found.dialect) == (known.name, "fair")
    assert found.config == replace(known.config, classes=10)
    assert (found.preprocessing.name, found.preprocessing.crop) == ("fair", (224, 224))
    assert found.sha256 == limits.sha256_of(tmp_path / "w.safetensors")


@pytest.mark.parametrize("model", [None, "levit_128s"])
def test_fine_tuned(tmp_path: Path, model: str | None) -> None:
    """Another number of classes, one head and another image size are read from the file."""
    config = replace(
        variant("levit_128s").config, classes=7, two_heads=False, image_size=(160, 160)
    )
    file = in_a_file(tmp_path, tensors_of(config))
    found = checkpoints.load(file, ModelChoice(model=model, labels=tuple("abcdefg")))
    assert (found.name, found.config) == ("levit_128s", config)
    assert found.labels == tuple("abcdefg")
    assert found.preprocessing.crop == (160, 160)
    assert found.describe().heads == 1
    assert answer(found).shape == (2, 7)


@pytest.mark.parametrize("side", [16, 48, 112, 224, 256])
def test_image_size_is_read_from_the_bias_tables(tmp_path: Path, side: int) -> None:
    """The side of the image follows from the number of offsets of the first attention."""
    config = replace(TINY, image_size=(side, side))
    found = checkpoints.load(in_a_file(tmp_path, tensors_of(config)))
    assert found.config == config
    assert found.preprocessing.crop == (side, side)


def test_unknown_dimensions(tmp_path: Path, tiny: Tensors) -> None:
    """A LeViT of dimensions without a name is loaded all the same, under a name that says so."""
    found = checkpoints.load(in_a_file(tmp_path, tiny))
    assert (found.name, found.config, found.licence) == ("levit_custom", TINY, "")
    assert found.labels == ("0", "1", "2")


def test_order_of_the_tensors_does_not_matter(tmp_path: Path, tiny: Tensors) -> None:
    """A file that lists its tensors backwards holds the same model."""
    backwards = dict(reversed(tiny.items()))
    found = checkpoints.load(in_a_file(tmp_path, backwards))
    assert torch.equal(answer(found), answer(checkpoints.load(in_a_file(tmp_path, tiny))))


def test_image_size_that_was_not_trained(tmp_path: Path, tiny: Tensors) -> None:
    """Another image size than the trained one is refused, with both and the reason."""
    with pytest.raises(UsageError, match=r"--imgsz 64 .* trained at 32"):
        checkpoints.load(in_a_file(tmp_path, tiny), ModelChoice(image_size=(64, 64)))


def misfit(tmp_path: Path, tensors: Tensors) -> str:
    """The complaint about tensors that fit no model."""
    with pytest.raises(CheckpointError) as raised:
        checkpoints.load(in_a_file(tmp_path, tensors))
    assert raised.value.remedy
    return raised.value.what


def test_missing_keys(tmp_path: Path, tiny: Tensors) -> None:
    """A missing tensor is named."""
    fewer = {k: v for k, v in tiny.items() if k != "head.bn.running_var"}
    assert misfit(tmp_path, fewer).endswith("two classifier heads: head.bn.running_var: missing")


def test_unexpected_keys(tmp_path: Path, tiny: Tensors) -> None:
    """A tensor that the model has no place for is named."""
    more = {**tiny, "extra.weight": torch.ones(1)}
    assert misfit(tmp_path, more).endswith("two classifier heads: extra.weight: unexpected")


def test_misshaped_keys(tmp_path: Path, tiny: Tensors) -> None:
    """A tensor of the wrong shape is named with both shapes."""
    changed = {**tiny, "head.l.bias": torch.ones(5)}
    assert misfit(tmp_path, changed).endswith(
        "two classifier heads: head.l.bias: expected [3], found [5]"
    )


def test_long_lists_are_cut(tmp_path: Path, tiny: Tensors) -> None:
    """Of many misfits the first ten are listed, and the rest counted."""
    more = {**tiny, **{f"extra.{n}": torch.ones(1) for n in range(14)}}
    text = misfit(tmp_path, more)
    assert re.findall(r"extra\.(\d+): unexpected", text) == [str(n) for n in range(10)]
    assert text.endswith("; and 4 more")


@pytest.mark.parametrize(
    "change",
    [
        {"blocks.x.weight": torch.ones(1)},
        {"blocks.0.m.attention_biases": torch.ones(3)},
        {"blocks.0.m.attention_biases": torch.ones(0, 4)},
        {"blocks.0.m.attention_biases": torch.ones(2, 5)},
        {"blocks.0.m.qkv.c.weight": torch.ones(2)},
        {"blocks.0.m.qkv.c.weight": torch.ones(1, 16)},
        {"blocks.0.m.qkv.c.weight": torch.ones(64, 0)},
        {"head.l.weight": torch.tensor(1.0)},
        {"head.l.weight": torch.ones(0, 32)},
    ],
    ids=lambda change: " ".join(f"{k} {list(v.shape)}" for k, v in change.items()),
)
def test_odd_shapes(tmp_path: Path, tiny: Tensors, change: Tensors) -> None:
    """Tensors from which no configuration follows are refused on purpose, not by a crash."""
    with pytest.raises(LevitExportError):
        checkpoints.load(in_a_file(tmp_path, {**tiny, **change}))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(tmp_path: Path, tiny: Tensors, value: float) -> None:
    """NaN and infinity among the weights are refused, and the tensor is named."""
    changed = {**tiny, "head.l.bias": torch.tensor([0.0, value, 0.0])}
    assert "in 1 tensors, first head.l.bias" in misfit(tmp_path, changed)


def test_whole_module(tmp_path: Path) -> None:
    """A pickled module is refused as unsafe, and the class it asks for is named."""
    with pytest.raises(UnsafeCheckpointError, match="Linear") as raised:
        checkpoints.load(in_a_file(tmp_path, torch.nn.Linear(2, 2)))
    assert "state_dict()" in raised.value.remedy
    assert "weights_only" not in str(raised.value)


def test_labels_that_do_not_fit(tmp_path: Path, tiny: Tensors) -> None:
    """A number of labels other than the number of classes is refused with both."""
    with pytest.raises(UsageError, match="2 labels for 3 classes"):
        checkpoints.load(in_a_file(tmp_path, tiny), ModelChoice(labels=("a", "b")))


def test_random_weights() -> None:
    """A seed always gives the same weights, another seed others, and no branch is dead."""
    known = variant("levit_digits")
    one, again, other = (checkpoints.randomised(known, seed) for seed in (1, 1, 2))
    assert one.sha256 == again.sha256 != other.sha256
    assert same(dict(one.tensors), dict(again.tensors))
    assert one.describe().doubt == ""


def test_untrained_weights_are_doubted(tmp_path: Path) -> None:
    """A network whose residual branches are still at their initial zero is described so."""
    found = checkpoints.load(in_a_file(tmp_path, dict(Levit(TINY).state_dict())))
    assert re.fullmatch(r"8 of 8 residual branches .* zero \(untrained\)", found.describe().doubt)


def mutated(content: bytes, seed: int) -> bytes:
    """``content`` with a few bytes changed, removed or repeated, most of them near its ends."""
    generator = random.Random(seed)  # noqa: S311 - reproducible, no secret
    changed = bytearray(content)
    for _ in range(generator.randint(1, 6)):
        near = generator.choice((64, 4096, len(changed)))
        at = generator.randrange(min(near, len(changed)))
        at = generator.choice((at, len(changed) - 1 - at))
        length = generator.choice((0, 1, 1, 1, 8))
        changed[at : at + length] = generator.choice(
            (b"", generator.randbytes(length), b"\xff" * length, bytes(changed[at : at + 16]))
        )
    return bytes(changed)


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth", "legacy.pth"])
def test_fuzzed_files(tmp_path: Path, tiny: Tensors, name: str) -> None:
    """Whatever happened to a file's bytes, it is read or refused on purpose; nothing crashes."""
    buffer = io.BytesIO()
    if name == "legacy.pth":
        torch.save(tiny, buffer, _use_new_zipfile_serialization=False)
    else:
        torch.save(tiny, buffer)
    content = save(tiny) if name == "w.safetensors" else buffer.getvalue()
    file = tmp_path / name
    refused = named = 0
    for seed in range(100):
        file.write_bytes(mutated(content, seed))
        try:
            checkpoints.load(file)
        except LevitExportError as error:
            refused += 1
            named += str(file) in str(error)
        except Exception as error:
            raise AssertionError(f"seed {seed}") from error
    assert refused > 10
    assert named == refused


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda t: {**t, "head.bn.running_var": -t["head.bn.running_var"]}, "negative variances"),
        (lambda t: {**t, "head.l.weight": t["head.l.weight"].double() * 1e300}, "infinite"),
        (lambda t: {**t, "head.l.weight": t["head.l.weight"].to(torch.int8)}, "int8"),
        (lambda t: {**t, "module.head.l.bias": t["head.l.bias"] * 0}, "unexpected"),
        (
            lambda t: {
                **t,
                "blocks.0.m.attention_bias_idxs": t["blocks.0.m.attention_bias_idxs"].flip(0),
            },
            "not the table that the grid gives",
        ),
    ],
)
def test_weights_that_cannot_be_meant(
    tmp_path: Path, tiny: Tensors, spoil: Callable[[Tensors], Tensors], message: str
) -> None:
    """Values, types and names that no training gives are refused, with the tensor named."""
    with pytest.raises(CheckpointError, match=message):
        checkpoints.load(in_a_file(tmp_path, spoil(tiny)))
