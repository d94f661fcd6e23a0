"""Every kind of operator in OpenVINO computes what it means; whole files are the converter's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import openvino
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from subjects import CONFIGS
from subjects import small as small_network

from levit_export.core.network import KINDS, Network, Op, Value
from levit_export.formats.openvino.precisions import as_convolutions
from levit_export.formats.openvino.write import write
from levit_export.models.interpreter import evaluate, steps
from levit_export.models.preparation import prepare

Draw = Callable[[st.SearchStrategy[Any]], Any]
UNIT = 2.0**-24
"""The unit roundoff of float32."""
SETTINGS = settings(max_examples=12, derandomize=True, database=None)

small = st.integers(1, 5)
pair = st.tuples(st.integers(1, 3), st.integers(1, 3))


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    """Seeded numbers of size one."""
    drawn = np.random.default_rng(seed + sum(shape)).standard_normal(shape)
    return drawn.astype(np.float32)


def network(
    kind: str, x: np.ndarray, *constants: np.ndarray, swap: bool = False, **attributes: Any
) -> Network:
    """One operator over an input and constants; its outputs are the network's."""
    names = [f"layer.{number}" for number in range(len(constants))]
    held = dict(zip(names, constants, strict=True))
    inputs = ("x", *names)
    inputs = inputs[::-1] if swap else inputs
    given_ = Value("x", x.shape, str(x.dtype))
    parts = len(attributes["sizes"]) if kind == "split" else 1
    blank = tuple(Value(f"y_{number}", ()) for number in range(parts))
    rough = Network(
        (given_,), tuple(v.name for v in blank), (Op(kind, inputs, blank, attributes),), held
    )
    ((op, results),) = steps(rough, {"x": x})
    made = tuple(
        Value(v.name, tuple(r.shape), str(r.dtype).removeprefix("torch."))
        for v, r in zip(op.outputs, results, strict=True)
    )
    return Network((given_,), rough.outputs, (Op(kind, inputs, made, attributes),), held)


def run(graph: openvino.Model, x: np.ndarray) -> dict[str, np.ndarray]:
    """What OpenVINO computes in float32."""
    wanted = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = openvino.Core().compile_model(graph, "CPU", wanted)
    results = compiled([x])
    return {port.any_name: results[port] for port in compiled.outputs}


def rounded(made: Network) -> Network:
    """The network with its constants as float16 holds them."""
    held = {
        name: array.astype(np.float16).astype(np.float32) if array.dtype == np.float32 else array
        for name, array in made.constants.items()
    }
    return Network(made.inputs, made.outputs, made.ops, held)


def convolution(draw: Draw) -> tuple[Any, ...]:
    """Grouped or not, with any stride, padding and dilation that fit."""
    groups, window = draw(st.integers(1, 3)), draw(pair)
    dilation, width, out = draw(pair), groups * draw(small), groups * draw(small)
    x = numbers(draw(small), width, 7, 9)
    weight = numbers(out, width // groups, *window)
    bias = [numbers(out)] if draw(st.booleans()) else []
    padding = draw(st.tuples(st.integers(0, 2), st.integers(0, 2)))
    sides = {"stride": draw(pair), "padding": padding, "dilation": dilation, "groups": groups}
    return x, [weight, *bias], sides


def linear(draw: Draw) -> tuple[Any, ...]:
    """Over any number of outer axes."""
    outer, width, out = draw(st.lists(small, min_size=1, max_size=3)), draw(small), draw(small)
    bias = [numbers(out)] if draw(st.booleans()) else []
    return numbers(*outer, width), [numbers(out, width), *bias], {}


def matmul(draw: Draw) -> tuple[Any, ...]:
    """Either factor transposed, outer axes broadcast."""
    n, k, m = draw(small), draw(small), draw(small)
    turned = draw(st.booleans()), draw(st.booleans())
    outer = draw(st.sampled_from([(), (1,), (3,)]))
    a = numbers(2, 3, *((k, n) if turned[0] else (n, k)))
    b = numbers(*outer, *((m, k) if turned[1] else (k, m)), seed=1)
    return a, [b], {"transpose_a": turned[0], "transpose_b": turned[1]}


def elementwise(draw: Draw) -> tuple[Any, ...]:
    """Broadcasting either way, from a scalar up; the constant may come first."""
    x = numbers(*draw(st.sampled_from([(2, 3, 4), (2, 1, 4), (2, 3, 1)])))
    other = numbers(*draw(st.sampled_from([(), (4,), (3, 1), (1, 3, 4)])), seed=1)
    away = np.where(np.abs(other) < 0.5, np.float32(1.5), other)  # a divisor is no zero
    shifted = np.where(np.abs(x) < 0.5, np.float32(0.7), x)
    return shifted, [away], {}, draw(st.booleans())


def unary(draw: Draw) -> tuple[Any, ...]:
    """Any rank, numbers on both sides of every bend."""
    return 4 * numbers(*draw(st.lists(small, min_size=1, max_size=4))), [], {}


def gelu(draw: Draw) -> tuple[Any, ...]:
    """The exact one and the approximate one."""
    return 2 * numbers(3, draw(small)), [], {"tanh": draw(st.booleans())}


def softmax(draw: Draw) -> tuple[Any, ...]:
    """Along any axis."""
    return numbers(2, 3, draw(small)), [], {"axis": draw(st.integers(0, 2))}


def batch_norm(draw: Draw) -> tuple[Any, ...]:
    """Over two to four axes."""
    width, outer = draw(small), draw(st.lists(small, max_size=2))
    x = numbers(2, width, *outer)
    tensors = [numbers(width, seed=s) for s in (1, 2, 3)]
    return x, [*tensors, np.abs(numbers(width, seed=4)) + np.float32(0.5)], {"epsilon": 1e-5}


def layer_norm(draw: Draw) -> tuple[Any, ...]:
    """Over the last of two to four axes, with an epsilon that shows."""
    width, outer = draw(st.integers(2, 9)), draw(st.lists(small, min_size=1, max_size=3))
    scales = [numbers(width, seed=1), numbers(width, seed=2)]
    return numbers(*outer, width), scales, {"epsilon": draw(st.sampled_from([1e-5, 0.1]))}


def mean(draw: Draw) -> tuple[Any, ...]:
    """Over some axes, which stay or go."""
    axes = draw(st.sets(st.integers(1, 3), min_size=1))
    return numbers(2, 3, 4, 5), [], {"axes": tuple(sorted(axes)), "keep": draw(st.booleans())}


def pool(draw: Draw) -> tuple[Any, ...]:
    """Windows over a padded map."""
    window = draw(st.tuples(st.integers(2, 3), st.integers(2, 3)))
    padding = draw(st.tuples(st.integers(0, 1), st.integers(0, 1)))
    return numbers(2, 3, 7, 8), [], {"window": window, "stride": draw(pair), "padding": padding}


def reshape(draw: Draw) -> tuple[Any, ...]:
    """To other shapes, the first side left to be worked out or not."""
    shapes = [(6, 4), (-1, 4), (2, 12), (24,), (-1, 1, 3, 4)]
    return numbers(2, 3, 4), [], {"shape": draw(st.sampled_from(shapes))}


def transpose(draw: Draw) -> tuple[Any, ...]:
    """Any order of the axes."""
    return numbers(2, 3, 4, 5), [], {"axes": tuple(draw(st.permutations(range(4))))}


def part(draw: Draw) -> tuple[Any, ...]:
    """A slice of several axes."""
    axes = tuple(draw(st.lists(st.integers(0, 2), min_size=1, max_size=3, unique=True)))
    starts, steps_ = tuple(draw(small) for _ in axes), tuple(draw(small) for _ in axes)
    stops = tuple(draw(st.integers(start + 1, 8)) for start in starts)
    return numbers(8, 8, 8), [], {"axes": axes, "starts": starts, "stops": stops, "steps": steps_}


def select(draw: Draw) -> tuple[Any, ...]:
    """Any position of any axis."""
    return (
        numbers(3, 3, 3),
        [],
        {"axis": draw(st.integers(0, 2)), "index": draw(st.integers(0, 2))},
    )


def split(draw: Draw) -> tuple[Any, ...]:
    """Equal and unequal parts."""
    sizes = draw(st.sampled_from([(2, 2, 2), (1, 2, 3), (6,), (5, 1)]))
    return numbers(6, 6, 6), [], {"axis": draw(st.integers(0, 2)), "sizes": sizes}


def concatenate(draw: Draw) -> tuple[Any, ...]:
    """With a constant, along any axis, in either order."""
    axis, shape = draw(st.integers(0, 2)), [2, 3, 4]
    shape[axis] = draw(small)
    return numbers(2, 3, 4), [numbers(*shape, seed=1)], {"axis": axis}, draw(st.booleans())


def pad(draw: Draw) -> tuple[Any, ...]:
    """Zeros on any side."""
    sides = st.tuples(*[st.integers(0, 2)] * 3)
    return numbers(2, 3, 4), [], {"before": draw(sides), "after": draw(sides)}


def gather(draw: Draw) -> tuple[Any, ...]:
    """By a matrix of indices along any axis."""
    index = np.random.default_rng(draw(small)).integers(0, 3, (2, 4))
    return numbers(3, 3, 3), [index], {"axis": draw(st.integers(0, 2))}


def cast(draw: Draw) -> tuple[Any, ...]:
    """Pixels become numbers."""
    pixels = np.random.default_rng(draw(small)).integers(0, 256, (2, 3, 4)).astype(np.uint8)
    return pixels, [], {"dtype": "float32"}


CASES: dict[str, Callable[[Draw], tuple[Any, ...]]] = {
    "convolution": convolution,
    "linear": linear,
    "matmul": matmul,
    **dict.fromkeys(("add", "subtract", "multiply", "divide"), elementwise),
    **dict.fromkeys(("relu", "hardswish", "silu", "sigmoid"), unary),
    "gelu": gelu,
    "softmax": softmax,
    "batch_norm": batch_norm,
    "layer_norm": layer_norm,
    "mean": mean,
    **dict.fromkeys(("max_pool", "average_pool"), pool),
    "reshape": reshape,
    "transpose": transpose,
    "slice": part,
    "select": select,
    "split": split,
    "concatenate": concatenate,
    "pad": pad,
    "gather": gather,
    "cast": cast,
}


def test_every_kind_has_a_case() -> None:
    """No kind is left out."""
    assert set(CASES) == set(KINDS)


@pytest.mark.parametrize("kind", CASES)
def test_a_kind(kind: str) -> None:
    """OpenVINO computes what the kind means, with float32 constants and with float16 ones."""

    @SETTINGS
    @given(st.data())
    def holds(data: st.DataObject) -> None:
        x, constants, attributes, *swap = CASES[kind](data.draw)
        made = network(kind, x, *constants, swap=bool(swap and swap[0]), **attributes)
        for half, meant in ((False, made), (True, rounded(made))):
            found = run(write(made, "one", half=half), x)
            exact = evaluate(meant, {"x": x}, dtype=torch.float64)
            assert found.keys() == exact.keys()
            for name, answer in exact.items():
                assert found[name].shape == answer.shape
                assert found[name].dtype == made.values[name].dtype
                # At most 81 · 5 products are added up, of numbers that hardly pass 16; activations
                # are polynomials good to some units in the last place.
                size = max(1.0, float(np.abs(answer).max()))
                assert np.abs(found[name] - answer).max() <= 64 * UNIT * 16 * size

    holds()


def images(made: Network) -> np.ndarray:
    """Seeded inputs; three for an open batch."""
    (taken,) = made.inputs
    return numbers(*(side or 3 for side in taken.shape))


def operators(graph: openvino.Model) -> Counter[str]:
    """How many there are of each kind beside constants."""
    kinds = Counter(node.get_type_name() for node in graph.get_ops())
    del kinds["Constant"]
    return kinds


MATHEMATICS = ("Convolution", "MatMul", "HSwish", "Gelu", "Swish", "MVN", "MaxPool", "AvgPool")


def converted(name: str, layout: Any, skip: Sequence[str]) -> tuple[Network, openvino.Model]:
    """A network, and what OpenVINO's own converter makes of the program that it was read from."""
    model = prepare(small_network(name), layout=layout, skip=skip)
    return model.network, openvino.convert_model(model.program.run_decompositions({}))


FORMS = [
    *((name, "tokens", ()) for name in CONFIGS),
    ("levit", "maps", ()),
    ("levit", "tokens", ("fuse_batchnorm", "merge_heads", "bake_attention_bias")),
]


@pytest.mark.parametrize(("name", "layout", "skip"), FORMS, ids=str)
def test_the_converters_file(name: str, layout: str, skip: Sequence[str]) -> None:
    """Ours gives the converter's answers, has its mathematics, and has no more operators."""
    made, theirs = converted(name, layout, skip)
    ours = write(made, name)
    x = images(made)
    theirs.reshape(list(x.shape))
    found = list(run(ours, x).values())
    results = openvino.Core().compile_model(theirs, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(
        [x]
    )
    exact = list(evaluate(made, {made.inputs[0].name: x}, dtype=torch.float64).values())
    for number, answer in enumerate(exact):
        size = np.abs(answer).max()
        error = np.abs(results[number] - answer).max() / size
        # Both round each of some hundred operators; neither may be much worse than the other.
        assert np.abs(found[number] - answer).max() / size <= 8 * max(error, 4 * UNIT)
    mine, other = operators(ours), operators(theirs)
    assert mine.total() <= other.total()
    assert {kind: mine[kind] for kind in MATHEMATICS} == {
        kind: other[kind] for kind in MATHEMATICS
    }


@pytest.mark.parametrize("batch", [2, None])
def test_linear_layers_as_convolutions(batch: int | None) -> None:
    """The same answers in float64 and the same taps; no layer over tokens is left."""
    plain = prepare(small_network("levit"), batch=batch).network
    made = as_convolutions(plain)
    x = {plain.inputs[0].name: images(plain)}
    names = [*plain.taps.values()]
    before = evaluate(plain, x, dtype=torch.float64, also=names)
    after = evaluate(made, x, dtype=torch.float64, also=names)
    for name, answer in before.items():
        assert after[name].shape == answer.shape
        assert np.abs(after[name] - answer).max() <= 1e-13 * np.abs(answer).max()
    left = [op.output.name for op in made.ops if op.kind == "linear"]
    assert left == [plain.outputs[0]]
    found = run(write(made, "m"), x[plain.inputs[0].name])
    for name, result in found.items():
        assert np.abs(result - before[name]).max() <= 1e-5 * np.abs(before[name]).max()


def test_values_and_constants_keep_their_names() -> None:
    """Values and weights are called as in the network, and no name is OpenVINO's own."""
    made = prepare(small_network("levit")).network
    graph = write(made, "m")
    nodes = {node.get_friendly_name(): node.get_type_name() for node in graph.get_ops()}
    assert set(made.constants) <= {name for name, kind in nodes.items() if kind == "Constant"}
    assert {op.outputs[0].name for op in made.ops} <= set(nodes)
    assert not [name for name, kind in nodes.items() if name.startswith(f"{kind}_")]
    assert len(nodes) == len(graph.get_ops())


def test_kept_blocks_stay_float32() -> None:
    """Float16 is for the constants of all other blocks."""
    made = prepare(small_network("levit")).network
    kept = "stage1.block0.attention"
    graph = write(made, "m", half=True, keep=[kept])
    whole = {name for op in made.ops_of([kept]) for name in op.inputs if name in made.constants}
    assert whole
    stored = {
        node.get_friendly_name(): node.get_element_type().to_dtype()
        for node in graph.get_ops()
        if node.get_type_name() == "Constant"
    }
    for name in made.constants:
        expected = name if name in whole else f"{name}/float16"
        assert stored[expected] == (np.float32 if name in whole else np.float16)


def test_numbers_that_float16_cannot_hold() -> None:
    """A constant beyond float16's range, or mostly below it, stays float32."""
    x = numbers(2, 3)
    for size in (1e6, 1e-9):
        made = network("multiply", x, np.full(3, size, np.float32))
        np.testing.assert_allclose(run(write(made, "m", half=True), x)["y_0"], x * size, rtol=1e-6)
