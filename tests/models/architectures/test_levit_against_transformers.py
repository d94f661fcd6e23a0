"""The paper's LeViT held against the independent implementation in ``transformers``."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers.models.levit.configuration_levit import LevitConfig as TransformersConfig
from transformers.models.levit.modeling_levit import (
    LevitForImageClassification,
    LevitForImageClassificationWithTeacher,
)

from levit_export.core.precisions import UNIT_ROUNDOFF
from levit_export.models.architectures.levit import Levit
from levit_export.models.architectures.random_weights import randomize_
from levit_export.models.zoo import VARIANTS, LevitConfig

PAPER = [known.name for known in VARIANTS if known.weights]
CONFIGS = {known.name: known.config for known in VARIANTS}

LAYERS = 2**6
"""No variant has more layers in a row (LeViT-384: 4 + 12 * 4 + 2 * 4 + 1 = 61)."""
TERMS = 2**11
"""No sum in any variant has more terms (LeViT-384's last stem convolution: 9 * 192 = 1728)."""
BOUND = UNIT_ROUNDOFF["fp64"] * LAYERS * TERMS
"""A sum of n terms errs by n unit roundoffs of its size at most, and layers add up: 1.5e-11."""

LINEAR_BN = {"c": "linear", "bn": "batch_norm"}


def _their_layers(config: LevitConfig) -> list[str]:
    """The ``transformers`` prefix of each of our blocks, in order.

    There a shrinking attention and the MLP behind it end the stage below; here they begin the
    stage above.
    """
    layers = []
    for stage, depth in enumerate(config.depths):
        count = 2 * depth + (2 if stage + 1 < len(config.depths) else 0)
        layers += [f"levit.encoder.stages.{stage}.layers.{i}" for i in range(count)]
    return layers


def _their_name(name: str, layers: list[str]) -> str:
    """What ``transformers`` calls our parameter or buffer ``name``."""
    part, *rest = name.split(".")
    if part in ("head", "head_dist"):
        classifier = {"head": "classifier", "head_dist": "classifier_distill"}[part]
        kind = {"bn": "batch_norm", "l": "linear"}[rest[0]]
        return f"{classifier}.{kind}.{rest[1]}"
    if part == "patch_embed":
        index, kind, leaf = rest
        kind = {"c": "convolution", "bn": "batch_norm"}[kind]
        layer = f"embedding_layer_{int(index) // 2 + 1}"
        return f"levit.patch_embeddings.{layer}.{kind}.{leaf}"
    layer = layers[int(rest[0])]
    inner = rest[1:]
    if inner[0] == "m":
        layer, inner = f"{layer}.module", inner[1:]
    if len(inner) == 1:
        return f"{layer}.{inner[0]}"
    *where, kind, leaf = inner
    theirs = {
        "qkv": "queries_keys_values",
        "kv": "keys_values",
        "q.1": "queries",
        "proj.1": "projection",
        "0": "linear_up",
        "2": "linear_down",
    }[".".join(where)]
    return f"{layer}.{theirs}.{LINEAR_BN[kind]}.{leaf}"


def _theirs(ours: Levit) -> torch.nn.Module:
    """The ``transformers`` model with the weights of ``ours``, in eval mode and float64.

    Loading is strict, so every parameter of either side has its partner on the other.
    """
    config = ours.config
    kind: Any = (
        LevitForImageClassificationWithTeacher if config.two_heads else LevitForImageClassification
    )
    theirs: Any = kind(
        TransformersConfig(
            image_size=config.image_size[0],
            hidden_sizes=list(config.dims),
            num_attention_heads=list(config.heads),
            depths=list(config.depths),
            key_dim=[config.key_dim] * len(config.dims),
            num_labels=config.classes,
        )
    )
    layers = _their_layers(config)
    state = {
        _their_name(name, layers): tensor
        for name, tensor in ours.state_dict().items()
        if not name.endswith("attention_bias_idxs")  # there it is not in the state dict
    }
    theirs.double().load_state_dict(state, strict=True)
    return theirs.eval()


def _same_logits(config: LevitConfig, *, batch: int) -> None:
    ours = randomize_(Levit(config), seed=7).double().eval()
    theirs = _theirs(ours)
    generator = torch.Generator().manual_seed(11)
    side, _ = config.image_size
    images = torch.randn(batch, 3, side, side, dtype=torch.float64, generator=generator)
    with torch.no_grad():
        mine, reference = ours(images), theirs(images).logits
    assert mine.shape == reference.shape == (batch, config.classes)
    assert reference.unique().numel() == reference.numel()  # nothing is constant
    assert (mine - reference).abs().max() <= BOUND * reference.abs().max()


@pytest.mark.parametrize("name", PAPER)
def test_the_same_weights_give_the_same_logits(name: str) -> None:
    """With two heads every paper variant computes what ``transformers`` computes, in float64."""
    _same_logits(CONFIGS[name], batch=1)


def test_the_same_weights_give_the_same_logits_for_a_batch() -> None:
    """A batch of two images is no different from one."""
    _same_logits(CONFIGS["levit_128s"], batch=2)


def test_the_same_weights_give_the_same_logits_with_one_head() -> None:
    """Without the distillation head the model is ``LevitForImageClassification``."""
    known = CONFIGS["levit_128s"]
    fields = {**vars(known), "two_heads": False, "classes": 10}
    _same_logits(LevitConfig(**fields), batch=2)


@pytest.mark.parametrize("side", [192, 256])
def test_the_same_weights_give_the_same_logits_at_other_sizes(side: int) -> None:
    """At another image size the two agree as well, an odd grid among the stages or not."""
    fields = {**vars(CONFIGS["levit_128s"]), "image_size": (side, side), "classes": 10}
    _same_logits(LevitConfig(**fields), batch=1)


@pytest.mark.parametrize("side", [192, 224, 256])
def test_the_bias_tables_are_numbered_alike(side: int) -> None:
    """Which bias entry belongs to which pair of positions is the same in every attention."""
    config = LevitConfig(
        **{**vars(CONFIGS["levit_128s"]), "image_size": (side, side), "classes": 2}
    )
    ours = Levit(config)
    theirs = dict(_theirs(ours).named_buffers())
    layers = _their_layers(config)
    mine = {n: b for n, b in ours.named_buffers() if n.endswith("attention_bias_idxs")}
    assert len(mine) == sum(config.depths) + len(config.dims) - 1
    for name, index in mine.items():
        assert torch.equal(index, theirs[_their_name(name, layers)]), name
