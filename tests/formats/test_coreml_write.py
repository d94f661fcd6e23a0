"""Core ML packages written from a network: each kind of operator, and whole architectures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import subjects
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from levit_export.checks import tolerance
from levit_export.core import packages
from levit_export.core.network import KINDS, Network, Op, Value
from levit_export.core.precisions import UNIT_ROUNDOFF
from levit_export.core.quiet import quiet
from levit_export.core.values import Embedded, ExportOptions, Prepared, RunOptions
from levit_export.formats import mil, target
from levit_export.formats.coreml.package import assembled, write_package
from levit_export.formats.coreml.write import WRITERS, program
from levit_export.models import checkpoints
from levit_export.models.interpreter import evaluate
from levit_export.models.preparation import prepare
from levit_export.models.zoo import Config, GraftedConfig, VitPytorchConfig, variant

FP32, FP16 = ExportOptions(precision="fp32"), ExportOptions(precision="fp16")

# --- each kind of operator ------------------------------------------------------------------

Drawn = tuple[list[tuple[int, ...]], dict[str, Any]]
"""The shapes of the inputs of one operator, and its attributes."""
Draw = Callable[[st.DataObject], Drawn]

SIDE = st.integers(1, 6)
POSITIVE = {"divide": (1,), "batch_norm": (4,)}
"""Inputs that are positive numbers."""
CONSTANT = {
    "convolution": (1, 2),
    "linear": (1, 2),
    "batch_norm": (1, 2, 3, 4),
    "layer_norm": (1, 2),
}
"""Inputs that are constants in every network."""


def _shape(data: st.DataObject, least: int = 1, most: int = 5) -> tuple[int, ...]:
    return tuple(data.draw(st.lists(SIDE, min_size=least, max_size=most)))


def _unary(**attributes: Any) -> Draw:
    return lambda data: ([_shape(data)], {k: data.draw(v) for k, v in attributes.items()})


def _binary(data: st.DataObject) -> Drawn:
    """Two shapes that broadcast; the second may have fewer axes."""
    whole = _shape(data)
    first = tuple(data.draw(st.sampled_from((side, 1))) for side in whole)
    second = tuple(
        side if one == 1 or data.draw(st.booleans()) else 1
        for side, one in zip(whole, first, strict=True)
    )
    return [first, second[data.draw(st.integers(0, len(whole) - 1)) :]], {}


def _convolution(data: st.DataObject) -> Drawn:
    groups, wide, out = (data.draw(st.integers(1, 3)) for _ in range(3))
    window = data.draw(st.tuples(SIDE, SIDE))
    dilation = data.draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    padding = data.draw(st.tuples(st.integers(0, 2), st.integers(0, 2)))
    reach = [d * (w - 1) + 1 for d, w in zip(dilation, window, strict=True)]
    sides = [r + data.draw(st.integers(0, 5)) for r in reach]
    shapes = [(data.draw(st.integers(1, 2)), groups * wide, *sides)]
    shapes += [(groups * out, wide, *window)]
    shapes += [(groups * out,)] if data.draw(st.booleans()) else []
    stride = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    attributes = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return shapes, attributes


def _pool(data: st.DataObject) -> Drawn:
    window = data.draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    padding = tuple(data.draw(st.integers(0, w // 2)) for w in window)
    sides = [w + data.draw(st.integers(0, 5)) for w in window]
    stride = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    shape = (*data.draw(st.tuples(SIDE, SIDE)), *sides)
    return [shape], {"window": window, "stride": stride, "padding": padding}


def _linear(data: st.DataObject) -> Drawn:
    shape, width = _shape(data, 2, 4), data.draw(SIDE)
    bias = [(width,)] if data.draw(st.booleans()) else []
    return [shape, (width, shape[-1]), *bias], {}


def _matmul(data: st.DataObject) -> Drawn:
    rows, inner, columns = (data.draw(SIDE) for _ in range(3))
    outer = _shape(data, 0, 3)
    a, b = [*outer, rows, inner], [*outer, inner, columns]
    turned = {key: data.draw(st.booleans()) for key in ("transpose_a", "transpose_b")}
    for shape, is_turned in zip((a, b), turned.values(), strict=True):
        shape[-2:] = reversed(shape[-2:]) if is_turned else shape[-2:]
    if outer and data.draw(st.booleans()):
        b[0] = 1
    return [tuple(a), tuple(b)], turned


def _batch_norm(data: st.DataObject) -> Drawn:
    shape = data.draw(st.sampled_from([_shape(data, 2, 2), _shape(data, 4, 4)]))
    return [shape, *[(shape[1],)] * 4], {"epsilon": data.draw(st.sampled_from([1e-5, 1e-3]))}


def _layer_norm(data: st.DataObject) -> Drawn:
    shape = (*_shape(data, 1, 3), data.draw(st.integers(4, 9)))
    return [shape, *[shape[-1:]] * 2], {"epsilon": data.draw(st.sampled_from([1e-12, 1e-3]))}


def _softmax(data: st.DataObject) -> Drawn:
    shape = _shape(data)
    return [shape], {"axis": data.draw(st.integers(0, len(shape) - 1))}


def _mean(data: st.DataObject) -> Drawn:
    shape = _shape(data, 2)
    axes = st.sets(st.integers(0, len(shape) - 1), min_size=1, max_size=len(shape) - 1)
    return [shape], {"axes": tuple(sorted(data.draw(axes))), "keep": data.draw(st.booleans())}


def _reshape(data: st.DataObject) -> Drawn:
    shape = _shape(data, 1, 4)
    flat = data.draw(st.integers(0, len(shape) - 1))
    other = (*shape[:flat], int(np.prod(shape[flat:])))
    return ([shape], {"shape": other}) if data.draw(st.booleans()) else ([other], {"shape": shape})


def _transpose(data: st.DataObject) -> Drawn:
    shape = _shape(data, 2)
    return [shape], {"axes": tuple(data.draw(st.permutations(range(len(shape)))))}


def _slice(data: st.DataObject) -> Drawn:
    shape = _shape(data)
    axes = data.draw(st.sets(st.integers(0, len(shape) - 1), min_size=1))
    starts = [data.draw(st.integers(0, shape[axis] - 1)) for axis in axes]
    stops = [data.draw(st.integers(a + 1, shape[x])) for a, x in zip(starts, axes, strict=True)]
    steps = [data.draw(st.integers(1, 3)) for _ in axes]
    named = {"axes": axes, "starts": starts, "stops": stops, "steps": steps}
    return [shape], {key: tuple(value) for key, value in named.items()}


def _select(data: st.DataObject) -> Drawn:
    shape = _shape(data, 2)
    axis = data.draw(st.integers(0, len(shape) - 1))
    return [shape], {"axis": axis, "index": data.draw(st.integers(0, shape[axis] - 1))}


def _split(data: st.DataObject) -> Drawn:
    sizes = tuple(data.draw(st.lists(SIDE, min_size=2, max_size=4)))
    shape = list(_shape(data))
    axis = data.draw(st.integers(0, len(shape) - 1))
    shape[axis] = sum(sizes)
    return [tuple(shape)], {"axis": axis, "sizes": sizes}


def _concatenate(data: st.DataObject) -> Drawn:
    shape = list(_shape(data))
    axis = data.draw(st.integers(0, len(shape) - 1))
    sides = data.draw(st.lists(SIDE, min_size=2, max_size=4))
    return [(*shape[:axis], side, *shape[axis + 1 :]) for side in sides], {"axis": axis}


def _pad(data: st.DataObject) -> Drawn:
    shape = _shape(data, 2)
    before, after = (tuple(data.draw(st.integers(0, 2)) for _ in shape) for _ in range(2))
    return [shape], {"before": before, "after": after}


def _gather(data: st.DataObject) -> Drawn:
    shape = _shape(data, 1, 3)
    return [shape, _shape(data, 1, 2)], {"axis": data.draw(st.integers(0, len(shape) - 1))}


MOVES = {"reshape", "transpose", "slice", "select", "split", "concatenate", "pad", "gather"}
MOVES |= {"max_pool", "relu", "cast"}
"""Kinds that change no number: what they give is exact."""
DRAWS: dict[str, Draw] = {
    "convolution": _convolution,
    "linear": _linear,
    "matmul": _matmul,
    **dict.fromkeys(("add", "subtract", "multiply", "divide"), _binary),
    **dict.fromkeys(("relu", "hardswish", "silu", "sigmoid"), _unary()),
    "gelu": _unary(tanh=st.booleans()),
    "softmax": _softmax,
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "mean": _mean,
    "max_pool": _pool,
    "average_pool": _pool,
    "reshape": _reshape,
    "transpose": _transpose,
    "slice": _slice,
    "select": _select,
    "split": _split,
    "concatenate": _concatenate,
    "pad": _pad,
    "gather": _gather,
    "cast": _unary(dtype=st.just("float32")),
}


def _numbers(kind: str, place: int, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Multiples of 1/8 that float16 holds exactly: no error is that of rounding the inputs."""
    drawn = np.random.default_rng(seed).integers(-32, 33, shape)
    drawn = np.abs(drawn) + 8 if place in POSITIVE.get(kind, ()) else drawn
    return (drawn / 8).astype(np.float32)


def network_of(kind: str, cases: list[Drawn], seed: int) -> tuple[Network, dict[str, np.ndarray]]:
    """A network of several operators of a kind beside one another, and inputs for it."""
    ops, constants, inputs = [], {}, {}
    for number, (shapes, attributes) in enumerate(cases):
        names = []
        for place, shape in enumerate(shapes):
            name = f"case{number}.x{place}"
            array = _numbers(kind, place, shape, seed + 10 * number + place)
            if kind == "gather" and place == 1:
                length = shapes[0][attributes["axis"]]
                array = np.random.default_rng(seed).integers(0, length, shape)
            is_constant = place in CONSTANT.get(kind, ()) or array.dtype.kind == "i"
            # The second input of what takes two is a constant in every other case.
            is_constant |= place == 1 and kind in {"add", "subtract", "multiply"} and number % 2
            (constants if is_constant else inputs)[name.replace(".", "_")] = array
            names.append(name.replace(".", "_"))
        count = len(attributes["sizes"]) if kind == "split" else 1
        outputs = tuple(Value(f"y{number}_{part}", ()) for part in range(count))
        ops.append(Op(kind, tuple(names), outputs, attributes, f"case{number}"))
    every = tuple(value.name for op in ops for value in op.outputs)
    taken = tuple(Value(name, array.shape) for name, array in inputs.items())
    return Network(taken, every, tuple(ops), constants), inputs


def run(network: Network, inputs: dict[str, np.ndarray], *, half: bool) -> dict[str, np.ndarray]:
    """What a network's saved package gives, by the evaluator."""
    ct = packages.coremltools()
    with TemporaryDirectory() as place, quiet("coremltools"):
        written = program(network, ct.target.iOS16, half=half)
        described = [ct.TensorType(name=v.name, shape=v.shape) for v in network.inputs]
        made = assembled(written, ct.target.iOS16, described)
        package = Path(place, "m.mlpackage")
        write_package(package, made.get_spec(), Path(made.weights_dir), {})
        return mil.load(package).run(inputs)


def bound(network: Network, inputs: dict[str, np.ndarray], u: float) -> dict[str, float]:
    """How far each output may lie from the exact one in arithmetic of unit roundoff ``u``.

    A sum of n terms errs by n roundoffs of the sum of their sizes (Higham 2002, section 3.1), and
    n is at most the size of the largest input. 16 more are for elementary functions and what a
    normalisation computes on the way. Sizes are those that the inputs' own absolutes give, where
    an operator adds, and at least those of inputs and results.
    """
    absolute = replace(network, constants={k: np.abs(v) for k, v in network.constants.items()})
    sizes = evaluate(absolute, {k: np.abs(v) for k, v in inputs.items()}, dtype=torch.float64)
    exact = evaluate(network, inputs, dtype=torch.float64)
    known = {**network.constants, **inputs}
    found = {}
    for op in network.ops:
        arrays = [known[name] for name in op.inputs]
        given = sum(float(np.abs(array).max()) for array in arrays)
        terms = max(array.size for array in arrays) + 16
        for name in (value.name for value in op.outputs):
            size = max(np.abs(sizes[name]).max(), np.abs(exact[name]).max(), given)
            found[name] = 0.0 if op.kind in MOVES else terms * u * float(size)
    return found


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=3, derandomize=True)
@given(data=st.data())
def test_each_kind(kind: str, data: st.DataObject) -> None:
    """A package computes what a kind of operator means, in float32 and in float16."""
    cases = [DRAWS[kind](data) for _ in range(6)]
    network, inputs = network_of(kind, cases, data.draw(st.integers(0, 1000)))
    exact = evaluate(network, inputs, dtype=torch.float64)
    for precision in ("fp32", "fp16"):
        found = run(network, inputs, half=precision == "fp16")
        allowed = bound(network, inputs, UNIT_ROUNDOFF[precision])
        for name, expected in exact.items():
            assert found[name].shape == expected.shape, name
            assert found[name].dtype == np.float32
            assert np.abs(found[name] - expected).max() <= allowed[name], (name, precision)


def test_every_kind_has_a_writer() -> None:
    """The table is complete, and so is the test of its functions."""
    assert set(WRITERS) == set(DRAWS) == set(KINDS)


# --- whole architectures, beside coremltools' own converter ---------------------------------

VIT_PYTORCH = VitPytorchConfig(
    (32, 48), (1, 2), (1, 2), 8, 12, image_size=(64, 64), classes=5, distill_classes=7
)
ARCHITECTURES: dict[str, tuple[Config | None, dict[str, Any]]] = {
    "tokens": (None, {}),
    "maps": (None, {"layout": "maps"}),
    "unbaked": (None, {"skip": ("bake_attention_bias",)}),
    "softmax": (None, {"embedded": Embedded(softmax=True)}),
    "vit-pytorch": (VIT_PYTORCH, {}),
    "deit": (GraftedConfig(0, 2, dim=128, heads=2, image_size=(64, 64), classes=5), {}),
    "grafted": (GraftedConfig(2, 1, dim=64, heads=4, image_size=(48, 48), classes=3), {}),
    "resnet": (GraftedConfig(4, 0, image_size=(64, 64), classes=5), {}),
}
KNOWN_TYPES = {"conv", "linear", "matmul", "add", "sub", "mul", "real_div", "sigmoid_hard", "cast"}
KNOWN_TYPES |= {"softmax", "reshape", "transpose", "slice_by_index", "split", "concat", "pad"}
KNOWN_TYPES |= {"gelu", "silu", "sigmoid", "relu", "layer_norm", "batch_norm", "gather"}
KNOWN_TYPES |= {"max_pool", "avg_pool", "reduce_mean"}
"""Types of ops that the Neural Engine takes."""


@cache
def prepared(name: str) -> Prepared:
    """A small network of an architecture, with seeded weights."""
    config, settings_ = ARCHITECTURES[name]
    if config is None:
        return prepare(subjects.tiny_checkpoint(), **settings_)
    model = replace(variant("vit_pytorch_levit"), name=f"tiny_{name}", config=config)
    return prepare(checkpoints.randomised(model, 0), **settings_)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_against_coremltools(name: str, tmp_path: Path) -> None:
    """The same answers as of what coremltools converts, from no more ops, of types it has too.

    Its Hardswish has a thresholded_relu, which changes no answer.
    """
    ct = packages.coremltools()
    model = prepared(name)
    ours = mil.load(subjects.export(model, tmp_path / "ours", "coreml", FP32).path)
    with quiet("coremltools"):
        converted = ct.convert(
            model.program.run_decompositions({}),
            convert_to="mlprogram",
            compute_precision=ct.precision.FLOAT32,
            minimum_deployment_target=ct.target.iOS16,
            skip_model_load=True,
        )
        package = tmp_path / "theirs.mlpackage"
        write_package(package, converted.get_spec(), Path(converted.weights_dir), {})
        theirs = mil.load(package)
    shape = model.signature.inputs[0].shape
    images = np.random.default_rng(0).standard_normal((8, *shape[1:])).astype(np.float32)
    rows = [{"input": image[None]} for image in images]
    exact = [evaluate(model.network, row, dtype=torch.float64) for row in rows]
    rounded = [evaluate(model.network, row) for row in rows]
    answers = [list(ours.run(row).values()) for row in rows[:2]]
    (taken,) = theirs.inputs
    others = [list(theirs.run({taken.name: row["input"]}).values()) for row in rows[:2]]
    for place, spec in enumerate(model.signature.outputs):
        stacked = [np.concatenate([each[spec.name] for each in x]) for x in (rounded, exact)]
        allowed = tolerance.derive(*stacked, precision="fp32").rtol
        for row, (mine, their) in enumerate(zip(answers, others, strict=True)):
            scale = np.abs(stacked[1][row]).max()
            assert np.abs(mine[place] - stacked[1][row]).max() <= allowed[row] * scale
            assert np.abs(mine[place] - their[place]).max() <= 2 * allowed[row] * scale
    mine, their = (_computing(each.op_types) for each in (ours, theirs))
    assert mine.total() <= their.total()
    assert set(mine) <= set(their)
    assert set(mine) <= KNOWN_TYPES


def _computing(count: Counter[str]) -> Counter[str]:
    return Counter({kind: n for kind, n in count.items() if kind != "const"})


@pytest.mark.parametrize(
    "skip",
    [("fuse_batchnorm", "merge_heads"), ("bake_attention_bias",), ("merge_heads",)],
    ids="-".join,
)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_without_a_pass(skip: tuple[str, ...], precision: str, tmp_path: Path) -> None:
    """A network that a pass was left out of gives its own answers, within half precision too."""
    model = prepare(subjects.tiny_checkpoint(), skip=skip)
    made = subjects.export(model, tmp_path / "m", "coreml", ExportOptions(precision=precision))
    report = subjects.judge(made, subjects.held_against(subjects.tiny_checkpoint(), model))
    assert (report.verdict, report.reason) == ("pass", "")


def test_an_image_for_a_classifier(tmp_path: Path) -> None:
    """Raw pixels go in and probabilities by label come out of one package, in float16."""
    embedded = Embedded(preprocessing=True)
    model = prepare(subjects.tiny_checkpoint(), embedded=embedded)
    options = ExportOptions(precision="fp16", classifier=True, embedded=embedded)
    made = subjects.export(model, tmp_path / "m", "coreml", options)
    pixels = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8)
    with target("coreml").open(made, RunOptions()) as session:
        found = session.run({"image": pixels})["probabilities"]
    exact = evaluate(model.network, {"image": pixels}, dtype=torch.float64)["logits"]
    expected = torch.from_numpy(exact).softmax(-1).numpy()
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= UNIT_ROUNDOFF["fp16"] * 2**5
    assert found.argmax() == expected.argmax()


def test_names_do_not_depend_on_earlier_programs(tmp_path: Path) -> None:
    """Names that coremltools would number in this process are ours, and the bytes the same."""
    builder = packages.coremltools("converters.mil").Builder
    before = subjects.export(subjects.tiny(), tmp_path / "before", "coreml", FP32)

    @builder.program(input_specs=[builder.TensorSpec(shape=(1, 4))])
    def _other(x: Any) -> Any:
        for _ in range(3):
            x = builder.relu(x=builder.reshape(x=x, shape=[1, 4]))
        return x

    after = subjects.export(subjects.tiny(), tmp_path / "after", "coreml", FP32)
    assert subjects.contents(before) == subjects.contents(after)


def test_a_kept_block_is_cast_once_on_each_side(tmp_path: Path) -> None:
    """What a kept block reads and gives is cast once, and everything else stays as it was."""
    half = mil.load(subjects.export(subjects.tiny(), tmp_path / "a", "coreml", FP16).path)
    options = replace(FP16, keep=("stage1.block0.mlp",))
    kept = mil.load(subjects.export(subjects.tiny(), tmp_path / "b", "coreml", options).path)
    # In: what the MLP and its residual sum read. Out: what the next block reads.
    assert kept.op_types["cast"] == half.op_types["cast"] + 2
    assert _computing(kept.op_types) - Counter(cast=2) == _computing(half.op_types)
