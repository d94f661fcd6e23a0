"""The paper's LeViT: its sizes, its parameter names, and that it keeps no stale state."""

from __future__ import annotations

import itertools

import pytest
import torch

from levit_export.core.errors import UnknownNameError, UsageError
from levit_export.models.architectures.census import count_macs, count_parameters
from levit_export.models.architectures.levit import Attention, AttentionSubsample, Levit
from levit_export.models.architectures.random_weights import randomize_
from levit_export.models.zoo import LevitConfig, variant

SMALL = LevitConfig((32, 48), 16, (2, 3), (1, 1), image_size=(64, 64), classes=10)
"""Every kind of layer once, for the tests that do not ask for a published size."""

PUBLISHED = {
    # parameters in thousands (timm's model cards), multiply-accumulates in millions (table 3)
    "levit_128s": (7777, 305),
    "levit_128": (9214, 406),
    "levit_192": (10947, 658),
    "levit_256": (18894, 1120),
    "levit_384": (39129, 2353),
}


def _images(config: LevitConfig, *, batch: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    side, _ = config.image_size
    return torch.randn(batch, 3, side, side, generator=generator)


def _fresh(seed: int, config: LevitConfig = SMALL) -> Levit:
    return randomize_(Levit(config), seed).eval()


@torch.no_grad()
def _logits(model: Levit) -> torch.Tensor:
    return model(_images(model.config))


# --- sizes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_counts_are_the_published_ones(name: str) -> None:
    """Each paper variant has as many parameters as published, to the digits given."""
    with torch.device("meta"):
        model = Levit(variant(name).config)
    assert round(count_parameters(model) / 1e3) == PUBLISHED[name][0]


@pytest.mark.parametrize("name", PUBLISHED)
def test_multiply_accumulates_are_the_published_ones(name: str) -> None:
    """Each paper variant costs what the paper's table 3 says, within one percent."""
    with torch.device("meta"):
        model = Levit(variant(name).config).eval()
    macs = count_macs(model, (3, 224, 224))
    assert macs == pytest.approx(PUBLISHED[name][1] * 1e6, rel=0.01)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_zoo_states_the_published_figures(name: str) -> None:
    """The figures that the zoo shows are the published ones, rounded as it rounds them."""
    thousands, millions = PUBLISHED[name]
    known = variant(name)
    assert known.parameters == f"{thousands / 1e3:.1f}M"
    assert known.macs == f"{millions}M"


# --- names ----------------------------------------------------------------------------------


def _norm(prefix: str, channels: int) -> dict[str, tuple[int, ...]]:
    kinds = ("weight", "bias", "running_mean", "running_var")
    return {
        **{f"{prefix}.bn.{kind}": (channels,) for kind in kinds},
        f"{prefix}.bn.num_batches_tracked": (),
    }


def _linear(prefix: str, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
    return {f"{prefix}.c.weight": (rows, columns), **_norm(prefix, rows)}


def _names_of_128s() -> dict[str, tuple[int, ...]]:
    """Every entry of the authors' LeViT-128S checkpoint, written down from their layout."""
    names: dict[str, tuple[int, ...]] = {}
    stem = {0: (16, 3), 2: (32, 16), 4: (64, 32), 6: (128, 64)}
    for index, (above, below) in stem.items():
        prefix = f"patch_embed.{index}"
        names |= {f"{prefix}.c.weight": (above, below, 3, 3), **_norm(prefix, above)}
    # block: (channels, heads, side of the grid)
    attention = {
        **dict.fromkeys((0, 2), (128, 4, 14)),
        **dict.fromkeys((6, 8, 10), (256, 6, 7)),
        **dict.fromkeys((14, 16, 18, 20), (384, 8, 4)),
    }
    for index, (dim, heads, side) in attention.items():
        prefix = f"blocks.{index}.m"
        names |= {
            f"{prefix}.attention_biases": (heads, side**2),
            f"{prefix}.attention_bias_idxs": (side**2, side**2),
            **_linear(f"{prefix}.qkv", 64 * heads, dim),
            **_linear(f"{prefix}.proj.1", dim, 32 * heads),
        }
    shrinking = {4: (128, 256, 8, 14, 7), 12: (256, 384, 16, 7, 4)}
    for index, (dim, above, heads, side, side_out) in shrinking.items():
        prefix = f"blocks.{index}"
        names |= {
            f"{prefix}.attention_biases": (heads, side**2),
            f"{prefix}.attention_bias_idxs": (side_out**2, side**2),
            **_linear(f"{prefix}.kv", 80 * heads, dim),
            **_linear(f"{prefix}.q.1", 16 * heads, dim),
            **_linear(f"{prefix}.proj.1", above, 64 * heads),
        }
    mlp = {
        **dict.fromkeys((1, 3), 128),
        **dict.fromkeys((5, 7, 9, 11), 256),
        **dict.fromkeys((13, 15, 17, 19, 21), 384),
    }
    for index, dim in mlp.items():
        names |= _linear(f"blocks.{index}.m.0", 2 * dim, dim)
        names |= _linear(f"blocks.{index}.m.2", dim, 2 * dim)
    for head in ("head", "head_dist"):
        names |= {**_norm(head, 384), f"{head}.l.weight": (1000, 384), f"{head}.l.bias": (1000,)}
    return names


def test_the_state_dict_is_that_of_the_authors_checkpoint() -> None:
    """LeViT-128S has exactly the names and shapes of the authors' file, no more and no fewer."""
    with torch.device("meta"):
        state = Levit(variant("levit_128s").config).state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == _names_of_128s()


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("patch_embed.0.c.weight", (16, 3, 3, 3)),
        ("blocks.0.m.qkv.c.weight", (256, 128)),
        ("blocks.4.kv.c.weight", (640, 128)),
        ("blocks.4.q.1.c.weight", (128, 128)),
        ("blocks.4.proj.1.bn.running_var", (256,)),
        ("blocks.4.attention_bias_idxs", (49, 196)),
        ("head_dist.l.bias", (1000,)),
    ],
)
def test_landmarks_of_the_authors_checkpoint_are_there(name: str, shape: tuple[int, ...]) -> None:
    """Names that every reader of LeViT checkpoints relies on have their shapes."""
    with torch.device("meta"):
        state = Levit(variant("levit_128s").config).state_dict()
    assert tuple(state[name].shape) == shape


def test_one_head_has_no_distillation_head() -> None:
    """Without two heads the state dict lacks ``head_dist`` and nothing else."""
    one, two = (
        set(Levit(LevitConfig((32, 48), 16, (2, 3), (1, 1), two_heads=flag)).state_dict())
        for flag in (False, True)
    )
    assert one == {name for name in two if not name.startswith("head_dist.")} < two


# --- attention biases -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["same", "shrinking"])
def test_the_bias_of_a_pair_depends_on_its_offset_alone(kind: str) -> None:
    """Two pairs of positions share a bias exactly when their offsets are the same."""
    stride, queries, keys = {"same": (1, 4, 4), "shrinking": (2, 4, 7)}[kind]
    block = {
        "same": lambda: Attention(32, key_dim=16, heads=2, grid=(4, 4), activation=torch.nn.ReLU),
        "shrinking": lambda: AttentionSubsample(
            32, 48, key_dim=16, heads=2, grid=(7, 7), grid_out=(4, 4), activation=torch.nn.ReLU
        ),
    }[kind]()
    index = block.attention_bias_idxs.tolist()
    by_offset: dict[tuple[int, int], set[int]] = {}
    for q, k in itertools.product(range(queries**2), range(keys**2)):
        (qy, qx), (ky, kx) = divmod(q, queries), divmod(k, keys)
        offset = (abs(stride * qy - ky), abs(stride * qx - kx))
        by_offset.setdefault(offset, set()).add(index[q][k])
    entries = [entry for entries in by_offset.values() for entry in entries]
    assert sorted(entries) == list(range(len(by_offset)))
    assert block.attention_biases.shape == (2, len(by_offset))


# --- no stale state -------------------------------------------------------------------------


def test_weights_loaded_in_eval_mode_take_effect_at_once() -> None:
    """``load_state_dict`` after a forward call in eval mode gives a fresh build's output."""
    model, other = _fresh(0), _fresh(1)
    before = _logits(model)
    model.load_state_dict(other.state_dict())
    assert torch.equal(_logits(model), _logits(other))
    assert not torch.equal(_logits(model), before)


def test_biases_changed_in_place_take_effect_at_once() -> None:
    """An attention bias edited between two eval calls changes the second as a fresh build's."""
    model = _fresh(0)
    before = _logits(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("attention_biases"):
                parameter.add_(torch.linspace(-1, 1, parameter.numel()).view_as(parameter))
    rebuilt = Levit(SMALL)
    rebuilt.load_state_dict(model.state_dict())
    assert torch.equal(_logits(model), _logits(rebuilt.eval()))
    assert not torch.equal(_logits(model), before)


def test_train_and_back_changes_nothing() -> None:
    """``train()`` then ``eval()`` without a call in between leaves every logit as it was."""
    model = _fresh(0)
    before = _logits(model)
    assert torch.equal(_logits(model.train().eval()), before)


def test_a_training_step_leaves_nothing_behind() -> None:
    """After a forward call in train mode and new weights in eval, a fresh build's output comes."""
    model, other = _fresh(0), _fresh(1)
    _logits(model.train())
    model.eval()
    _logits(model)
    model.load_state_dict(other.state_dict())
    assert torch.equal(_logits(model), _logits(other))


def test_modes_leave_no_trace_outside_the_state_dict() -> None:
    """``train()`` and ``eval()`` calls add no attribute to any part of the model."""
    model = _fresh(0)
    before = {name: set(vars(part)) for name, part in model.named_modules()}
    _logits(model)
    model.train().eval()
    _logits(model)
    assert {name: set(vars(part)) for name, part in model.named_modules()} == before


# --- configurations -------------------------------------------------------------------------


@pytest.mark.parametrize("side", [192, 256])
def test_other_image_sizes_work(side: int) -> None:
    """A multiple of the stem's stride gives one finite row of logits for each image."""
    config = LevitConfig((32, 48), 16, (2, 3), (1, 1), image_size=(side, side), classes=10)
    model = _fresh(0, config)
    logits = _logits(model)
    assert logits.shape == (2, 10)
    assert torch.isfinite(logits).all()
    assert model.blocks[0].m.attention_biases.shape == (2, (side // 16) ** 2)


def test_a_grid_of_odd_side_keeps_its_last_row() -> None:
    """Shrinking keeps every other position, the first and (of an odd side) the last included."""
    assert LevitConfig((32, 48, 64), 16, (2, 3, 4), (1, 1, 1), image_size=(208, 208)).grids == (
        (13, 13),
        (7, 7),
        (4, 4),
    )


@pytest.mark.parametrize(("side", "near"), [(200, 192), (8, 16), (0, 16), (225, 224)])
def test_an_image_size_beside_the_stride_is_refused(side: int, near: int) -> None:
    """A size that the stem cannot divide is refused with one that works."""
    with pytest.raises(UsageError) as refused:
        LevitConfig((32, 48), 16, (2, 3), (1, 1), image_size=(side, side))
    assert str(side) in refused.value.what
    assert refused.value.remedy == f"Use multiples of 16, such as {near}."


def test_an_unknown_activation_is_refused_with_the_nearest() -> None:
    """A misspelt activation is refused and the one probably meant is named."""
    with pytest.raises(UnknownNameError) as refused:
        LevitConfig((32, 48), 16, (2, 3), (1, 1), activation="hard_swish")
    assert "'hard_swish'" in refused.value.what
    assert "Did you mean 'hardswish'?" in refused.value.remedy


@pytest.mark.parametrize("activation", ["hardswish", "silu", "gelu", "relu"])
def test_every_known_activation_is_used_throughout(activation: str) -> None:
    """The chosen activation is the only one in the model, and it is in the stem and the blocks."""
    config = LevitConfig((32, 48), 16, (2, 3), (1, 1), image_size=(64, 64), activation=activation)
    kinds = {"hardswish": "Hardswish", "silu": "SiLU", "gelu": "GELU", "relu": "ReLU"}
    found = {
        (name.split(".")[0], type(part).__name__)
        for name, part in Levit(config).named_modules()
        if type(part).__name__ in kinds.values()
    }
    assert found == {("patch_embed", kinds[activation]), ("blocks", kinds[activation])}
