"""Taps of eager modules and of the captured network are the same points of the network."""

from __future__ import annotations

import numpy as np
import pytest
import subjects
import torch

from levit_export.checks.drift import chain, taps
from levit_export.checks.drift.chain import Model
from levit_export.inputs.samples import Samples, make
from levit_export.models.architectures import build
from levit_export.models.architectures.blocks import block_names
from levit_export.models.capture import exported, read
from levit_export.models.preparation import signature_of
from levit_export.models.zoo import Config, GraftedConfig, LevitConfig, VitPytorchConfig
from levit_export.testing import randomize_

OTHERS: dict[str, Config] = {
    "levit": LevitConfig((32, 48), 16, (2, 3), (1, 1), image_size=(64, 64), classes=10),
    "one head, SiLU": LevitConfig(
        (32, 48), 16, (2, 3), (1, 1), image_size=(64, 64), two_heads=False, activation="silu"
    ),
    "vit-pytorch": VitPytorchConfig(
        (32, 48), (2, 2), (1, 1), 16, 16, image_size=(64, 64), classes=5
    ),
    "grafted": GraftedConfig(1, 1, dim=32, heads=2, image_size=(64, 64), classes=5),
}


def images(count: int = 1) -> Samples:
    """The first samples of the small model's check."""
    return make(subjects.tiny_checkpoint().preprocessing).first(count)


def model() -> Model:
    """The small model on one sample."""
    return Model(subjects.tiny_checkpoint(), images())


@pytest.mark.parametrize("name", OTHERS)
def test_every_architecture_has_the_taps_of_its_program(name: str) -> None:
    """An eager module shows the taps that the network captured from it has."""
    config = OTHERS[name]
    module = randomize_(build(config), 0).eval()
    blocks = block_names(config)
    outputs = tuple(output for output, _ in config.outputs)
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    seen = taps.run(module, blocks, image, outputs)
    signature = signature_of(config, 1)
    found = read(exported(module, signature, name), signature, blocks, name).taps
    heads = {taps.out_of(block) for block in taps.HEADS}
    assert set(seen) == (set(found) - heads) | set(outputs)


def test_program_and_module_agree_at_every_tap() -> None:
    """What the captured network has at a tap is what the prepared module computes there."""
    subject = model()
    module = chain.rewritten(subject)
    image = torch.from_numpy(subject.samples.inputs)
    eager = taps.run(module, subject.blocks, image, subject.outputs)
    captured = taps.of_network(subjects.tiny().network, subject.samples.inputs)
    assert list(captured) == list(eager)
    for name, value in eager.items():
        assert np.allclose(captured[name], value, rtol=0, atol=1e-5 * float(value.abs().max()))


def test_given_values_go_on() -> None:
    """A given value replaces the computed one for what follows, and the computed one is shown."""
    subject = model()
    module = chain.rewritten(subject)
    image = torch.from_numpy(subject.samples.inputs)
    before = taps.run(module, subject.blocks, image, subject.outputs)
    given = {"stem.3": torch.zeros_like(before["stem.3"])}
    after = taps.run(module, subject.blocks, image, subject.outputs, given)
    assert torch.equal(after["stem.3"], before["stem.3"])
    first = "stage1.block0.attention.scores"
    assert not torch.equal(after[first], before[first])


def test_given_everything_errors_do_not_pass_on() -> None:
    """With all taps given, changing one changes only the next ones that read it."""
    subject = model()
    module = chain.rewritten(subject)
    image = torch.from_numpy(subject.samples.inputs)
    values = taps.run(module, subject.blocks, image, subject.outputs)
    changed = {**values, "stage1.block0.mlp.out": values["stage1.block0.mlp.out"] + 1}
    after = taps.run(module, subject.blocks, image, subject.outputs, changed)
    moved = [name for name in values if not torch.allclose(after[name], values[name], atol=1e-5)]
    assert set(moved) == {"shrink1.attention.scores", "shrink1.attention.out"}


def test_a_module_is_left_as_it_was() -> None:
    """Tapping leaves no hook behind."""
    subject = model()
    module = chain.rewritten(subject)
    taps.run(module, subject.blocks, torch.from_numpy(subject.samples.inputs), subject.outputs)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())
