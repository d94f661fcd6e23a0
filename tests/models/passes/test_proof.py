"""The framework around the passes: what it refuses, and that a wrong pass does not get through."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from levit_export.core.errors import PassError, PassProofError
from levit_export.models.architectures.levit import Attention, AttentionBias, Levit
from levit_export.models.passes import PASSES, apply_passes, fuse_batchnorm
from levit_export.models.passes.base import Matched, NotApplicable, Pass
from levit_export.models.passes.proof import relative_error

SHAPE = (3, 64, 64)
FUSE, FOLD, BAKE, MERGE = PASSES


def test_train_mode_is_refused(small: Levit) -> None:
    """A model in train mode is refused, since its BatchNorms would be another function."""
    with pytest.raises(PassError) as refused:
        apply_passes(small.train(), PASSES, input_shape=SHAPE)
    assert refused.value.what == "the model is in train mode"
    assert "model.eval()" in refused.value.remedy


def test_one_part_in_train_mode_is_refused_by_name(small: Levit) -> None:
    """A single layer left in train mode is found and named."""
    small.blocks[0].m.qkv.bn.train()
    with pytest.raises(PassError) as refused:
        apply_passes(small, PASSES, input_shape=SHAPE)
    assert refused.value.what == "blocks.0.m.qkv.bn is in train mode"


def test_shared_weights_are_refused(small: Levit) -> None:
    """A parameter that serves two layers is refused, and both are named."""
    small.head_dist.l.weight = small.head.l.weight
    with pytest.raises(PassError) as refused:
        apply_passes(small, PASSES, input_shape=SHAPE)
    assert refused.value.what == "head.l.weight and head_dist.l.weight are the same parameter"
    assert refused.value.exit_status == 2


def test_a_module_used_twice_is_refused(small: Levit) -> None:
    """A whole layer that serves in two places is refused as its parameters are."""
    small.head_dist = small.head
    with pytest.raises(PassError, match=r"head\.\S+ and head_dist\.\S+ are the same parameter"):
        apply_passes(small, PASSES, input_shape=SHAPE)


def test_zero_matches_are_an_error(small: Levit) -> None:
    """A pass that matched nothing, and did not say that there is nothing, is an error."""
    with pytest.raises(PassError) as refused:
        apply_passes(small, (Pass("nothing", lambda _: Matched(0)),), input_shape=SHAPE)
    assert refused.value.what == "nothing matched nothing in Levit"
    assert "--skip-pass nothing" in refused.value.remedy
    assert not isinstance(refused.value, PassProofError)


def test_a_pass_that_is_not_applicable_says_why(small: Levit) -> None:
    """The reason that a pass gives for doing nothing is on its line, which claims nothing else."""
    absent = Pass("absent", lambda _: NotApplicable("no such thing here"))
    _, (record,) = apply_passes(small, (absent,), input_shape=SHAPE)
    assert (record.status, record.reason) == ("not-applicable", "no such thing here")
    assert (record.matches, record.parameters, record.nodes) == (0, (0, 0), (0, 0))


def _refused_proof(model: Levit, each: Pass, place: str = "the model") -> PassProofError:
    with pytest.raises(PassProofError) as refused:
        apply_passes(model, (each,), input_shape=SHAPE)
    assert refused.value.exit_status == 1
    assert refused.value.what.startswith(f"{each.name} changed {place}")
    assert ": relative error " in refused.value.what
    assert f"--skip-pass {each.name}" in refused.value.remedy
    return refused.value


def test_a_wrong_batchnorm_epsilon_is_caught(
    small: Levit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Folding with eps 1e-3 where the layers have 1e-5 fails the proof."""
    right = fuse_batchnorm.scale_and_shift

    def wrong(norm: fuse_batchnorm.BatchNorm, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        norm.eps = 1e-3
        return right(norm, name)

    monkeypatch.setattr(fuse_batchnorm, "scale_and_shift", wrong)
    _refused_proof(small, FUSE, "patch_embed.0 and ")


def test_a_forgotten_shift_is_caught(small: Levit, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folding the scales alone, without the shifts, fails the proof."""
    right = fuse_batchnorm.scale_and_shift

    def wrong(norm: fuse_batchnorm.BatchNorm, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        s, t = right(norm, name)
        return s, torch.zeros_like(t)

    monkeypatch.setattr(fuse_batchnorm, "scale_and_shift", wrong)
    _refused_proof(small, FUSE, "patch_embed.0 and ")


def test_a_transposed_bias_table_is_caught(small: Levit, monkeypatch: pytest.MonkeyPatch) -> None:
    """Baking a table whose rows and columns of the grid are exchanged fails the proof."""

    def wrong(block: AttentionBias) -> None:
        heads, queries, keys = block.bias().shape
        q, k = round(queries**0.5), round(keys**0.5)
        grid = block.bias().view(heads, q, q, k, k)
        block.baked_bias = grid.permute(0, 1, 2, 4, 3).reshape(heads, queries, keys)
        del block.attention_biases, block.attention_bias_idxs

    monkeypatch.setattr(AttentionBias, "bake_bias", wrong)
    _refused_proof(small, BAKE, "blocks.0.m and ")


def test_a_single_wrong_bias_is_caught(small: Levit, monkeypatch: pytest.MonkeyPatch) -> None:
    """One entry of one table, off by a hundredth, fails the proof."""
    right = AttentionBias.bake_bias

    def wrong(block: AttentionBias) -> None:
        right(block)
        assert block.baked_bias is not None
        if block is last[0]:
            block.baked_bias[0, 0, 0] += 0.01

    last: list[AttentionBias] = []

    def remember(module: nn.Module) -> Matched | NotApplicable:
        last[:] = [m for m in module.modules() if isinstance(m, Attention)][-1:]
        return BAKE.apply(module)

    monkeypatch.setattr(AttentionBias, "bake_bias", wrong)
    _refused_proof(small, Pass(BAKE.name, remember))


def _after(each: Pass, change: Callable[[nn.Module], None]) -> Pass:
    """A pass that does what ``each`` does and then ``change``."""

    @torch.no_grad()
    def apply(module: nn.Module) -> Matched | NotApplicable:
        outcome = each.apply(module)
        change(module)
        return outcome

    return Pass(each.name, apply)


def _scale_keys(module: nn.Module) -> None:
    module.blocks[0].m.qkv.bn.weight[16] *= 1.01


def _swap_head_rows(module: nn.Module) -> None:
    module.head.l.weight.copy_(module.head.l.weight.flip(0))


def _nan(module: nn.Module) -> None:
    module.blocks[0].m.qkv.c.weight[0, 0] = float("nan")


def _infinite(module: nn.Module) -> None:
    module.head.l.bias[0] = float("inf")


@pytest.mark.parametrize("change", [_scale_keys, _swap_head_rows, _nan, _infinite])
def test_a_pass_with_a_side_effect_is_caught(
    small: Levit, change: Callable[[nn.Module], None]
) -> None:
    """A pass that does its work and one thing more, NaN and infinity included, is refused."""
    _refused_proof(small, _after(FOLD, change))


@pytest.mark.parametrize("change", [_scale_keys, _nan])
def test_a_fault_where_a_pass_works_names_the_layer(
    small: Levit, change: Callable[[nn.Module], None]
) -> None:
    """The layer that a pass got wrong is named, though all of the network's answers move."""
    wrong = replace(_after(FOLD, change), probes=FOLD.probes)
    _refused_proof(small, wrong, "blocks.0.m: relative error")


def test_the_pass_at_fault_is_found_among_several(small: Levit) -> None:
    """Where only the whole network tells of a fault, its pass is named all the same."""
    passes = (FUSE, _after(FOLD, lambda module: module.head.bias.add_(0.1)), BAKE, MERGE)
    with pytest.raises(PassProofError, match="fold_attention_scale changed the model"):
        apply_passes(small, passes, input_shape=SHAPE)


def test_the_error_tells_how_far_off(small: Levit) -> None:
    """The message has the relative error, infinite where the rewritten model gives NaN."""
    assert "relative error inf in float64" in _refused_proof(small, _after(FOLD, _nan)).what


@pytest.mark.parametrize(
    ("after", "before", "error"),
    [
        ([1.0, -2.0], [1.0, -2.0], 0.0),
        ([1.0, -2.5], [1.0, -2.0], 0.25),
        ([float("nan"), 1.0], [1.0, 1.0], float("inf")),
        ([1.0, 1.0], [float("nan"), 1.0], float("inf")),
        ([float("inf"), 1.0], [float("inf"), 1.0], float("inf")),
        ([0.0, 0.0], [0.0, 0.0], float("inf")),
    ],
)
def test_relative_error(after: list[float], before: list[float], error: float) -> None:
    """The error is relative to the largest value; infinite where that is zero or not finite."""
    assert relative_error(torch.tensor(after), torch.tensor(before)) == error


def test_a_model_without_anything_to_rewrite_is_passed_through() -> None:
    """A network that is no LeViT has its BatchNorms folded and no other pass applied."""
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    _, ledger = apply_passes(plain, PASSES, input_shape=(3, 8, 8))
    assert {record.status for record in ledger} == {"not-applicable"}
    assert len({record.reason for record in ledger}) == 4
