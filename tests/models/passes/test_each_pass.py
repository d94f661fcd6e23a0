"""What is particular to one pass: its formula, its refusals, the cases it knows nothing of."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from levit_export.core.errors import PassError
from levit_export.core.precisions import UNIT_ROUNDOFF
from levit_export.models.architectures.layers import BNLinear, ConvBN, LinearBN
from levit_export.models.architectures.levit import Levit
from levit_export.models.architectures.random_weights import randomize_
from levit_export.models.passes import PASSES, apply_passes
from levit_export.models.passes.base import Matched, NotApplicable
from levit_export.models.zoo import LevitConfig

SHAPE = (3, 64, 64)
FUSE, FOLD, BAKE, MERGE = PASSES


# --- fuse_batchnorm -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pair", "shape"),
    [
        (ConvBN(3, 5), (2, 3, 8, 8)),
        (LinearBN(6, 5), (2, 4, 6)),
        (BNLinear(6, 5), (2, 6)),
    ],
    ids=["conv", "linear", "head"],
)
@torch.no_grad()
def test_a_fused_pair_is_the_same_affine_map(pair: nn.Module, shape: tuple[int, ...]) -> None:
    """Each kind of pair becomes one layer with a bias that maps inputs to the same outputs."""
    model = nn.Sequential(randomize_(copy.deepcopy(pair), seed=1)).double().eval()
    inputs = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    before = model(inputs)
    assert FUSE.apply(model) == Matched(1, bytes_added=_fused_bytes(pair))
    assert isinstance(model[0], nn.Conv2d | nn.Linear)
    # At most 3 * 9 terms in a sum, four roundings a term: the scale's own three and the product.
    bound = 4 * 27 * UNIT_ROUNDOFF["fp64"] * max(1.0, float(inputs.abs().max()))
    assert (model(inputs) - before).abs().max() <= bound * before.abs().max()


def _fused_bytes(pair: nn.Module) -> int:
    """A fused pair keeps its matrix and one bias; four vectors of the BatchNorm go."""
    channels = pair.bn.num_features
    has_bias = isinstance(pair, BNLinear)
    bias = 0 if has_bias else 5
    return 4 * (bias - 4 * channels)


def test_a_batchnorm_without_statistics_is_refused(small: Levit) -> None:
    """A BatchNorm that normalises by the batch at inference is refused by name."""
    norm = nn.BatchNorm1d(small.blocks[0].m.qkv.bn.num_features, track_running_stats=False)
    small.blocks[0].m.qkv.bn = norm.eval()
    with pytest.raises(PassError) as refused:
        apply_passes(small, PASSES, input_shape=SHAPE)
    assert refused.value.what.startswith("blocks.0.m.qkv.bn keeps no running statistics")
    assert "--skip-pass fuse_batchnorm" in refused.value.remedy


def test_a_batchnorm_without_a_partner_is_refused(small: Levit) -> None:
    """A BatchNorm with no layer to fold into is refused by name, with how many there are."""
    small.patch_embed.add_module("extra", randomize_(nn.BatchNorm2d(32), seed=1).eval())
    total = sum(isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d) for m in small.modules())
    with pytest.raises(PassError) as refused:
        apply_passes(small, PASSES, input_shape=SHAPE)
    assert refused.value.what == (
        f"1 of {total} BatchNorms have no layer to fold into, first patch_embed.extra"
    )


@pytest.mark.parametrize("affine", [True, False])
def test_a_batchnorm_with_and_without_scale_is_folded(small: Levit, affine: bool) -> None:  # noqa: FBT001
    """A BatchNorm without learned scale and shift is folded as one that has them."""
    norm = nn.BatchNorm1d(small.blocks[0].m.qkv.bn.num_features, affine=affine)
    small.blocks[0].m.qkv.bn = randomize_(norm, seed=1).eval()
    _, ledger = apply_passes(small, PASSES, input_shape=SHAPE, skip=["fold_attention_scale"])
    assert ledger[0].status == "applied"


def test_a_fused_model_has_no_batchnorm_to_fold(small: Levit) -> None:
    """On a model whose BatchNorms are folded already the pass is not applicable."""
    fused, _ = apply_passes(small, (FUSE,), input_shape=SHAPE)
    _, (record,) = apply_passes(fused, (FUSE,), input_shape=SHAPE)
    assert record.status == "not-applicable"
    assert record.reason == "no BatchNorm in the model: found fused"


# --- fold_attention_scale -------------------------------------------------------------------


@pytest.mark.parametrize("skip", [(), ("fuse_batchnorm", "merge_heads")], ids=["fused", "norms"])
def test_the_scale_goes_into_q_fused_or_not(small: Levit, skip: tuple[str, ...]) -> None:
    """Scales are folded into a plain layer and into a BatchNorm, and none is left over."""
    folded, ledger = apply_passes(small, PASSES, input_shape=SHAPE, skip=skip)
    blocks = [m for m in folded.modules() if hasattr(m, "scale")]
    assert len(blocks) == ledger[1].matches == 3
    assert {block.scale for block in blocks} == {1.0}


def test_only_q_is_scaled(small: Levit) -> None:
    """In every head of ``qkv`` the rows of q are multiplied by the scale, k and v are kept."""
    folded, _ = apply_passes(small, (FOLD,), input_shape=SHAPE)
    before, after = (m.blocks[0].m.qkv.bn for m in (small, folded))
    q_rows = torch.tensor([row % 64 < 16 for row in range(128)])
    for kind in ("weight", "bias"):
        was, now = getattr(before, kind), getattr(after, kind)
        assert torch.equal(now[q_rows], was[q_rows] / 4)  # 16 ** -0.5, an exact power of two
        assert torch.equal(now[~q_rows], was[~q_rows])


def test_an_unknown_layer_behind_q_is_refused(small: Levit) -> None:
    """Where q is made by a layer that the pass cannot scale, it is refused with the way out."""
    block = small.blocks[0].m
    block.qkv = nn.Sequential(block.qkv).eval()
    with pytest.raises(PassError) as refused:
        apply_passes(small, (FOLD,), input_shape=SHAPE)
    assert "q is made by a Sequential" in refused.value.what
    assert "--skip-pass fold_attention_scale" in refused.value.remedy


# --- bake_attention_bias --------------------------------------------------------------------


def test_the_table_is_the_parameter_looked_up(small: Levit) -> None:
    """Entry (h, q, k) of a table is the bias of head h for the offset between q and k."""
    baked, _ = apply_passes(small, (BAKE,), input_shape=SHAPE)
    block, table = small.blocks[2], baked.blocks[2].baked_bias  # shrinks a 4x4 grid to 2x2
    assert table.shape == (2, 4, 16)
    for head in range(2):
        for q in range(4):
            for k in range(16):
                entry = block.attention_bias_idxs[q, k]
                assert table[head, q, k] == block.attention_biases[head, entry]


# --- merge_heads ----------------------------------------------------------------------------


def test_the_merged_head_is_the_mean(small: Levit) -> None:
    """Weight and bias of the merged head are the means of the two heads'."""
    fused, _ = apply_passes(small, (FUSE,), input_shape=SHAPE)
    merged, _ = apply_passes(fused, (MERGE,), input_shape=SHAPE)
    for kind in ("weight", "bias"):
        first, second = (getattr(head, kind).double() for head in (fused.head, fused.head_dist))
        assert torch.equal(getattr(merged.head, kind), ((first + second) / 2).float())


def test_heads_that_are_not_fused_are_refused_with_the_flag(small: Levit) -> None:
    """Merging before fusing is refused, and the message says which flag to add."""
    with pytest.raises(PassError) as refused:
        apply_passes(small, PASSES, input_shape=SHAPE, skip=["fuse_batchnorm"])
    assert refused.value.what.startswith("the heads are BNLinear, not Linear")
    assert "--skip-pass merge_heads" in refused.value.remedy


def test_one_head_has_nothing_to_merge() -> None:
    """On a model with one head the pass is not applicable, and says so."""
    config = LevitConfig((32, 48), 16, (2, 3), (1, 1), image_size=(64, 64), two_heads=False)
    model = randomize_(Levit(config), seed=1).eval()
    _, ledger = apply_passes(model, PASSES, input_shape=SHAPE)
    assert (ledger[3].status, ledger[3].reason) == ("not-applicable", "the model has one head")
    assert MERGE.apply(model) == NotApplicable("the model has one head")
