"""A captured module is the same function as a network, with every value called after its block."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import subjects
import torch
from torch import nn

from levit_export.checks import reference
from levit_export.core.errors import ExportFailedError
from levit_export.core.network import Network
from levit_export.core.values import Embedded, RunOptions, Signature, TensorSpec
from levit_export.formats import target
from levit_export.inputs import samples
from levit_export.models import checkpoints
from levit_export.models.capture import exported, read
from levit_export.models.graph_ends import around
from levit_export.models.interpreter import evaluate
from levit_export.models.passes import PASSES
from levit_export.models.preparation import laid_out, prepare, rewrite, signature_of

NAMES = tuple(each.name for each in PASSES)
SKIPS = [NAMES, ("fuse_batchnorm", "merge_heads"), *[(name,) for name in NAMES[1:]]]
ATTENTION_TAPS = ("scores", "softmax", "out")


def differences(network: Network, module: nn.Module) -> list[float]:
    """Relative differences of the outputs in float64, on three images or a fixed batch."""
    (taken,) = network.inputs
    shape = [side or 3 for side in taken.shape]
    rng = np.random.default_rng(0)
    if taken.dtype == "uint8":
        image = rng.integers(0, 256, shape).astype(np.uint8)
        given = torch.from_numpy(image)
    else:
        image = rng.standard_normal(shape)
        given = torch.from_numpy(image)
    answers = evaluate(network, {taken.name: image}, dtype=torch.float64)
    with torch.no_grad():
        found = module.double()(given)
    expected = found if isinstance(found, tuple) else (found,)
    return [
        float(np.abs(answer - value.numpy()).max() / value.abs().max())
        for answer, value in zip(answers.values(), expected, strict=True)
    ]


@pytest.mark.parametrize("batch", [1, 2, None])
@pytest.mark.parametrize("name", subjects.CONFIGS)
def test_the_same_function(name: str, batch: int | None) -> None:
    """Every architecture, with a fixed and an open batch: the same answers in float64."""
    model = prepare(subjects.small(name), batch=batch)
    module = rewrite(subjects.small(name)).module
    assert max(differences(model.network, module)) <= 1e-14
    assert model.network.inputs[0].shape[0] == batch
    assert all(side is not None for v in model.network.values.values() for side in v.shape[1:])


@pytest.mark.parametrize("batch", [1, None])
@pytest.mark.parametrize("skip", SKIPS, ids="+".join)
def test_passes_that_were_left_out(skip: tuple[str, ...], batch: int | None) -> None:
    """What a pass would have rewritten is captured as it is."""
    model = prepare(subjects.small("levit"), batch=batch, skip=skip)
    module = rewrite(subjects.small("levit"), skip=skip).module
    assert max(differences(model.network, module)) <= 1e-14
    kinds = {op.kind for op in model.network.ops}
    assert ("batch_norm" in kinds) == ("fuse_batchnorm" in skip)
    assert ("gather" in kinds) == ("bake_attention_bias" in skip)


@pytest.mark.parametrize(
    "embedded", [Embedded(preprocessing=True), Embedded(softmax=True), Embedded(True, True)]
)
@pytest.mark.parametrize("layout", ["tokens", "maps"])
def test_what_is_embedded(embedded: Embedded, layout: str) -> None:
    """Raw pixels in and probabilities out; constants and blocks are called as without them."""
    plain = subjects.small("levit")
    model = prepare(plain, embedded=embedded, layout=layout)  # type: ignore[arg-type]
    inner = laid_out(rewrite(plain), layout).module.double()  # type: ignore[arg-type]
    whole = around(inner, plain.preprocessing, embedded).double()
    # Pixels are scaled by float32 constants, which the module computes in float32.
    assert max(differences(model.network, whole)) <= (1e-5 if embedded.preprocessing else 1e-14)
    assert {op.block for op in model.network.ops} - {""} == set(model.blocks.values()) - {
        "head_dist"
    }
    assert {name for name in model.network.constants if name in model.weights} == {
        name for name, array in model.network.constants.items() if array.dtype == np.float32
    }


def test_maps_are_the_smaller_graph() -> None:
    """In maps no axis is moved, and a product turns its factors itself."""
    counts = {
        layout: Counter(
            op.kind for op in prepare(subjects.small("levit"), layout=layout).network.ops
        )  # type: ignore[arg-type]
        for layout in ("tokens", "maps")
    }
    assert counts["maps"]["transpose"] == 0 < counts["tokens"]["transpose"]
    assert counts["maps"].total() < counts["tokens"].total()
    assert counts["maps"]["slice"] == 1  # every other row and column at once


def test_taps() -> None:
    """Each attention has scores, softmax and out; each MLP out; the stem and the pool are taps."""
    model = subjects.tiny()
    attentions = [name for name in model.blocks.values() if name.endswith("attention")]
    wanted = [f"{name}.{tap}" for name in attentions for tap in ATTENTION_TAPS]
    wanted += [f"{name}.out" for name in model.blocks.values() if name.endswith("mlp")]
    wanted += [f"stem.{index}" for index in range(4)] + ["pool"]
    assert sorted(model.network.taps) == sorted(wanted)
    assert model.network.taps == {tap: tap.replace(".", "_") for tap in wanted}


@pytest.mark.parametrize(("kind", "precision"), [("onnx", "fp32"), ("openvino", "fp32")])
def test_taps_are_in_the_file(kind: str, precision: str) -> None:
    """A shipped file gives every tap by its name, shaped as the network computes it."""
    network = subjects.digits().network
    made = subjects.artifact(kind, precision)
    images = subjects.digits_reference().samples.inputs[:1]
    with target(kind).open(made, RunOptions(), sorted(network.taps.values())) as session:
        answers = session.run({"input": images})
    for value in network.taps.values():
        assert answers[value].size == np.prod(network.values[value].shape)  # type: ignore[arg-type]


def test_names_do_not_collide() -> None:
    """Names of values are words, each there once, and begin with the block's name."""
    network = subjects.digits().network
    assert all(re.fullmatch(r"[a-z]\w*", name) for name in network.values)
    for op in network.ops:
        if op.block and op.outputs[0].name not in network.outputs:
            assert op.outputs[0].name.startswith(op.block.replace(".", "_"))


def test_two_layers_of_one_number_share_it() -> None:
    """A number that several operators take is one constant."""
    network = prepare(subjects.small("levit"), skip=["fold_attention_scale"]).network
    scales = [name for name in network.constants if name.startswith("scalar_")]
    assert scales == ["scalar_0.25"]
    assert len(network.readers["scalar_0.25"]) == 3


class Alone(nn.Module):
    """One function as a network, in a module that is called a block."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.part = Part(function)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.part(x) * 2


class Part(nn.Module):
    """The block."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


def captured(function: Callable[[torch.Tensor], torch.Tensor]) -> Network:
    """``function`` of ``(2, 6, 4)`` as a network."""
    given = TensorSpec("input", (2, 6, 4))
    module = Alone(function).eval()
    shape = tuple(module(torch.zeros(2, 6, 4)).shape)
    signature = Signature((given,), (TensorSpec("logits", shape),))
    return read(exported(module, signature, "x"), signature, {"part": "stage1.block0"}, "x")


@pytest.mark.parametrize(
    ("function", "kinds"),
    [
        (lambda x: torch.dropout(x.relu(), 0.5, train=False), ["relu"]),
        (lambda x: x.relu().contiguous().reshape(2, 6, 4), ["relu"]),
        (lambda x: x.relu()[:, 1:5:2, ::2], ["relu", "slice"]),
        (lambda x: x.relu()[:, -1], ["relu", "select"]),
        (lambda x: x.relu().unsqueeze(1), ["relu", "reshape"]),
        (lambda x: x.relu() @ x.transpose(1, 2), ["relu", "matmul"]),
        (lambda x: x.sigmoid().split(2, dim=1)[1], ["sigmoid", "split"]),
        (lambda x: torch.cat([x.relu(), x], -1), ["relu", "concatenate"]),
        (lambda x: nn.functional.pad(x.relu(), (1, 0, 0, 2)), ["relu", "pad"]),
        (lambda x: nn.functional.gelu(x, approximate="tanh"), ["gelu"]),
    ],
)
def test_one_way_to_say_it(
    function: Callable[[torch.Tensor], torch.Tensor], kinds: list[str]
) -> None:
    """What changes nothing is left out, and the values are right."""
    network = captured(function)
    assert [op.kind for op in network.ops] == [*kinds, "multiply"]
    x = np.random.default_rng(0).standard_normal((2, 6, 4))
    answer = evaluate(network, {"input": x}, dtype=torch.float64)["logits"]
    assert np.array_equal(answer, 2 * function(torch.from_numpy(x)).numpy())


@pytest.mark.parametrize(
    ("function", "operator"),
    [
        (lambda x: x.cumsum(1), "cumsum.default"),
        (lambda x: nn.functional.layer_norm(x, (6, 4)), "layer_norm.default"),
        (lambda x: torch.add(x, x, alpha=3), "add.Tensor"),
        (lambda x: nn.functional.pad(x, (1, 1), value=3.0), "pad.default"),
    ],
)
def test_an_operator_that_is_not_known(
    function: Callable[[torch.Tensor], torch.Tensor], operator: str
) -> None:
    """Another operator, or another use of a known one, is refused with its name and block."""
    with pytest.raises(ExportFailedError) as refused:
        captured(function)
    assert operator in refused.value.what
    assert "stage1.block0" in refused.value.what
    assert refused.value.remedy


def test_a_reference_is_not_changed_by_a_capture() -> None:
    """PyTorch gives the same bits while another thread captures a module.

    ``torch.export`` turns oneDNN off meanwhile, for the whole process.
    """
    checkpoint = checkpoints.bundled()
    session = reference.eager_session(checkpoint)
    inputs = {"input": samples.make(checkpoint.preprocessing).inputs}
    alone = session.run(inputs)["logits"]
    with ThreadPoolExecutor(1) as pool:
        signature = signature_of(checkpoint.config, 1)
        captured = pool.submit(exported, checkpoint.build(), signature, "digits")
        while not captured.done():
            assert np.array_equal(session.run(inputs)["logits"], alone)
    captured.result()
