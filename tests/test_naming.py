"""Values of every format are called after the block that computes them."""

from __future__ import annotations

import re

import pytest
import subjects

from levit_export import naming
from levit_export.architectures import build
from levit_export.architectures.blocks import block_names
from levit_export.core import RunOptions
from levit_export.targets import target
from levit_export.zoo import VARIANTS, LevitConfig, variant

ATTENTION_TAPS = ("scores", "softmax", "out")


@pytest.mark.parametrize("known", VARIANTS, ids=lambda known: known.name)
def test_blocks_are_modules_of_the_network(known: object) -> None:
    """Every named block is a module, every layer of the network is in one, names are unique."""
    import torch

    config = known.config  # type: ignore[attr-defined]
    with torch.device("meta"):
        module = build(config)
    blocks = block_names(config)
    paths = dict(module.named_modules())
    assert set(blocks) <= set(paths)
    assert len(set(blocks.values())) == len(blocks)
    layers = (torch.nn.Linear, torch.nn.Conv2d)
    homeless = [
        path
        for path, part in paths.items()
        if isinstance(part, layers) and not any(path.startswith(block) for block in blocks)
    ]
    assert homeless == []


def test_blocks_of_the_paper() -> None:
    """Stages count from 1 as in the paper, blocks from 0; shrinking blocks stand between them."""
    names = list(block_names(variant("levit_128s").config).values())
    assert names[:6] == [
        "stem.0",
        "stem.1",
        "stem.2",
        "stem.3",
        "stage1.block0.attention",
        "stage1.block0.mlp",
    ]
    assert names[8:10] == ["shrink1.attention", "shrink1.mlp"]
    assert names[-4:] == ["stage3.block3.attention", "stage3.block3.mlp", "head", "head_dist"]


def test_taps_of_the_captured_program() -> None:
    """Each attention has scores, softmax and out; each MLP out; the stem and the pool are taps."""
    model = subjects.tiny()
    taps = naming.names(model.program.graph.nodes, model.blocks).taps
    attentions = [name for name in model.blocks.values() if name.endswith("attention")]
    wanted = [f"{name}.{tap}" for name in attentions for tap in ATTENTION_TAPS]
    wanted += [f"{name}.out" for name in model.blocks.values() if name.endswith("mlp")]
    wanted += [f"stem.{index}" for index in range(4)] + ["pool"]
    assert sorted(taps) == sorted(wanted)
    assert set(taps.values()) == {naming.tap_value(tap) for tap in wanted}


@pytest.mark.parametrize(("kind", "precision"), [("onnx", "fp32"), ("openvino", "fp32")])
def test_taps_are_in_the_file(kind: str, precision: str) -> None:
    """A shipped file gives every tap by its name, shaped as the program computes it."""
    model = subjects.digits()
    found = naming.names(model.program.graph.nodes, model.blocks)
    taps = set(found.taps.values())
    sizes = {
        found.values[node.name]: node.meta["val"].numel()
        for node in model.program.graph.nodes
        if found.values.get(node.name) in taps
    }
    made = subjects.artifact(kind, precision)
    images = subjects.digits_reference().samples.inputs[:1]
    with target(kind).open(made, RunOptions(), sorted(taps)) as session:
        answers = session.run({"input": images})
    assert {value: answers[value].size for value in taps} == sizes


def test_names_do_not_collide() -> None:
    """No two values of a program share a name."""
    model = subjects.tiny()
    names = naming.names(model.program.graph.nodes, model.blocks).values
    assert len(set(names.values())) == len(names)
    assert all(re.fullmatch(r"[a-z]\w*", name) for name in names.values())


def test_renaming_keeps_the_program() -> None:
    """A renamed program computes the same and knows its outputs."""
    import torch

    program = subjects.tiny().program.run_decompositions({})
    side = 64
    images = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    before = program.module()(images)
    naming.rename(program, subjects.tiny().blocks)
    assert torch.equal(program.module()(images), before)
    names = {node.name for node in program.graph.nodes}
    assert {spec.arg.name for spec in program.graph_signature.output_specs} <= names  # type: ignore[union-attr]
    assert "stage1_block0_attention_softmax" in names


def test_config_of_tiny() -> None:
    """The small model of these tests is a LeViT of two stages."""
    config = subjects.tiny_checkpoint().config
    assert isinstance(config, LevitConfig)
    assert config.depths == (1, 1)
