"""All passes in their order: what the ledger says, and what is left of the model."""

from __future__ import annotations

import copy

import pytest
import torch
from pass_networks import Network
from torch import nn

from levit_export.core.errors import UnknownNameError
from levit_export.models.architectures.levit import Levit
from levit_export.models.passes import PASSES, apply_passes
from levit_export.models.passes.proof import PROOF_BOUND

NAMES = ("fuse_batchnorm", "fold_attention_scale", "bake_attention_bias", "merge_heads")
BatchNorm = nn.modules.batchnorm._BatchNorm


def _parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _weight_bytes(module: nn.Module) -> int:
    """Size of the floating-point parameters and buffers in float32."""
    tensors = (*module.parameters(), *module.buffers())
    return 4 * sum(t.numel() for t in tensors if t.is_floating_point())


def test_the_passes_are_the_four_and_run_in_order(network: Network) -> None:
    """The ledger has one line for each pass, in the order in which they must run."""
    assert tuple(record.name for record in network.ledger) == NAMES
    assert {record.status for record in network.ledger} == {"applied"}


def test_matches_are_exact(network: Network) -> None:
    """Every BatchNorm, every attention and the one pair of heads are matched."""
    found = {record.name: record.matches for record in network.ledger}
    assert found == dict(
        zip(NAMES, (network.pairs, network.blocks, network.blocks, 1), strict=True)
    )


def test_proofs_are_rounding(network: Network) -> None:
    """No pass changed the function by more than float64 rounding."""
    assert all(0 <= record.error <= PROOF_BOUND == 1e-12 for record in network.ledger)


@pytest.mark.parametrize("upto", range(1, 5), ids=NAMES)
def test_the_function_is_kept_on_an_image_the_proof_has_not_seen(
    network: Network, upto: int
) -> None:
    """After each pass the float64 model still answers as the original, on a fresh image."""
    before, after = network.stages[0].outputs, network.stages[upto].outputs
    assert (after - before).abs().max() <= upto * PROOF_BOUND * before.abs().max()


@pytest.mark.parametrize("index", range(4), ids=NAMES)
def test_the_ledger_counts_what_is_there(network: Network, index: int) -> None:
    """Parameters, operators and bytes of a line are those of the modules before and after."""
    before, after = network.stages[index : index + 2]
    record = network.ledger[index]
    assert record.parameters == (_parameters(before.module), _parameters(after.module))
    assert record.nodes == (before.nodes, after.nodes)
    assert record.bytes_added == _weight_bytes(after.module) - _weight_bytes(before.module)


def test_fewer_operators_are_left(network: Network) -> None:
    """Scaling and look-up cost one operator in each attention, the heads one layer and a mean."""
    saved = {r.name: r.nodes[0] - r.nodes[1] for r in network.ledger}
    assert saved["fuse_batchnorm"] >= network.pairs
    assert saved["fold_attention_scale"] == network.blocks
    assert saved["bake_attention_bias"] == network.blocks
    # The second head's transposition and product, the sum and the division.
    assert saved["merge_heads"] == 4


def test_no_batchnorm_and_no_second_head_are_left(network: Network) -> None:
    """The rewritten model holds no BatchNorm, no bias parameter and one linear head."""
    parts = dict(network.rewritten.named_modules())
    assert not [name for name, part in parts.items() if isinstance(part, BatchNorm)]
    assert not [n for n, _ in network.rewritten.named_parameters() if "attention_biases" in n]
    assert isinstance(parts["head"], nn.Linear)
    assert "head_dist" not in parts


def test_the_result_is_float32_without_gradients_in_eval_mode(network: Network) -> None:
    """The rewritten model is float32 throughout, needs no gradient and stays in eval mode."""
    tensors = [*network.rewritten.parameters(), *network.rewritten.buffers()]
    assert tensors
    assert {tensor.dtype for tensor in tensors} == {torch.float32}
    assert not any(tensor.requires_grad for tensor in tensors)
    assert not any(part.training for part in network.rewritten.modules())


def test_weights_are_rounded_once(network: Network) -> None:
    """The float32 weights are the float64 rewrite's, rounded to nearest at the very end."""
    exact = network.stages[-1].module.state_dict()
    rounded = network.rewritten.state_dict()
    assert set(rounded) == set(exact)
    assert all(torch.equal(rounded[name], exact[name].float()) for name in exact)


def test_the_original_is_untouched(small: Levit) -> None:
    """Passes work on a copy: parts, tensors, types and gradient flags stay as they were."""
    parts = {name: type(part) for name, part in small.named_modules()}
    state = copy.deepcopy(small.state_dict())
    flags = [parameter.requires_grad for parameter in small.parameters()]
    apply_passes(small, PASSES, input_shape=(3, 64, 64))
    assert {name: type(part) for name, part in small.named_modules()} == parts
    now = small.state_dict()
    assert list(now) == list(state)
    assert all(torch.equal(now[name], state[name]) for name in state)
    assert [parameter.requires_grad for parameter in small.parameters()] == flags


@pytest.mark.parametrize(
    "skip",
    [
        ("fold_attention_scale",),
        ("bake_attention_bias",),
        ("merge_heads",),
        ("fuse_batchnorm", "merge_heads"),
        ("fold_attention_scale", "bake_attention_bias"),
    ],
    ids="+".join,
)
def test_a_pass_can_be_skipped(small: Levit, skip: tuple[str, ...]) -> None:
    """A skipped pass is a line of its own, and the others still run and still prove."""
    _, ledger = apply_passes(small, PASSES, input_shape=(3, 64, 64), skip=skip)
    assert {r.name: r.status for r in ledger} == {
        name: "skipped" if name in skip else "applied" for name in NAMES
    }
    assert {r.reason for r in ledger if r.name in skip} == {"--skip-pass"}
    assert all(r.matches == 0 and r.nodes == (0, 0) for r in ledger if r.name in skip)


def test_skipping_all_leaves_the_model_as_it_is(small: Levit) -> None:
    """With every pass skipped the result has the very tensors of the original."""
    result, _ = apply_passes(small, PASSES, input_shape=(3, 64, 64), skip=NAMES)
    state = small.state_dict()
    assert list(result.state_dict()) == list(state)
    assert all(torch.equal(tensor, state[name]) for name, tensor in result.state_dict().items())


def test_an_unknown_pass_is_refused_with_the_nearest() -> None:
    """A misspelt pass is refused before anything is computed, the one meant is named."""
    with pytest.raises(UnknownNameError) as refused:
        apply_passes(nn.Identity(), PASSES, input_shape=(3, 64, 64), skip=["fuse_batch_norm"])
    assert "'fuse_batch_norm'" in refused.value.what
    assert "Did you mean 'fuse_batchnorm'?" in refused.value.remedy
    assert all(name in refused.value.remedy for name in NAMES)


def test_a_rewritten_model_has_nothing_left_to_rewrite(small: Levit) -> None:
    """Applied to their own result, all passes say that there is nothing for them."""
    once, _ = apply_passes(small, PASSES, input_shape=(3, 64, 64))
    twice, ledger = apply_passes(once, PASSES, input_shape=(3, 64, 64))
    assert {record.name: record.status for record in ledger} == dict.fromkeys(
        NAMES, "not-applicable"
    )
    assert all(record.reason for record in ledger)
    state = once.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in twice.state_dict().items())
