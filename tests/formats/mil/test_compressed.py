"""Compressed weights and quantised activations."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import coremltools.optimize.coreml as cto
import numpy as np
import numpy.typing as npt
import pytest
import torch
from coremltools.converters.mil.mil import types
from hypothesis import given, settings
from hypothesis import strategies as st
from mil_programs import UNIT, Saved, assert_close, convert, dot_error, mb

from levit_export.formats import mil
from levit_export.formats.mil.blob import unpack
from levit_export.formats.mil.ops.compression import constexpr_lut_to_dense

Save = Callable[..., Saved]
Array = npt.NDArray[Any]
U = UNIT[np.dtype(np.float32)]


@settings(max_examples=40, derandomize=True)
@given(
    bits=st.sampled_from([1, 2, 3, 4, 6, 8]),
    numbers=st.lists(st.integers(0, 255), max_size=40),
    signed=st.booleans(),
)
def test_packed_numbers(*, bits: int, numbers: list[int], signed: bool) -> None:
    """Packed numbers are the bits of one long integer, read from the lowest end."""
    kept = [n % 2**bits for n in numbers]
    word = sum(n << (bits * i) for i, n in enumerate(kept))
    data = word.to_bytes((bits * len(kept) + 7) // 8, "little")
    expected = [n - 2**bits if signed and n >= 2 ** (bits - 1) else n for n in kept]
    assert unpack(data, bits, (len(kept),), signed=signed).tolist() == expected
    with pytest.raises(ValueError, match="bytes"):
        unpack(data + b"\0", bits, (len(kept),))


def _weights_of(saved: Save, make: Callable[[], Any], specification: int) -> tuple[Array, Array]:
    """A compressed weight as the evaluator and as coremltools decompress it."""
    expected: list[Array] = []

    def build(x: Any) -> Any:
        w = make()
        expected.append(np.asarray(w.op.materialized_val_inference()))
        return mb.mul(x=x, y=w)

    # In iOS 18 the ops' operands are constants of their own; a product with 1 shows the weight.
    dtype = {7: np.float32, 9: np.float16}[specification]
    found = saved(build, specification=specification, x=np.ones((1, 1), dtype)).output()
    return found, expected[0]


def _codes(*shape: int, high: int = 256, dtype: str = "uint8") -> Array:
    return np.random.default_rng(3).integers(0, high, shape).astype(dtype)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_affine_dequantize(saved: Save, axis: int, dtype: str) -> None:
    """In iOS 16, affine weights: scale * (q - zero point) along an axis."""
    n = (6, 5)[axis]
    offsets = np.arange(n).astype(dtype)
    scales = (np.arange(n) / 8 + 0.1).astype(np.float32)
    found, exact = _weights_of(
        saved,
        lambda: mb.constexpr_affine_dequantize(
            quantized_data=_codes(6, 5).view(dtype), zero_point=offsets, scale=scales, axis=axis
        ),
        7,
    )
    assert np.array_equal(found, exact)


@pytest.mark.parametrize("bits", [1, 2, 4, 6, 8])
def test_packed_table(saved: Save, bits: int) -> None:
    """In iOS 16, palettes: packed indices into one table."""
    lut = np.linspace(-3, 3, 2**bits).astype(np.float32)
    packed = _codes(-(-bits * 35 // 8))
    shape = np.array([5, 7], np.uint32)
    found, exact = _weights_of(
        saved, lambda: mb.constexpr_lut_to_dense(indices=packed, lut=lut, shape=shape), 7
    )
    assert np.array_equal(found, exact)


def test_packed_sparse(saved: Save) -> None:
    """In iOS 16, sparse weights: a bit mask and the values of its set bits."""
    bits = np.random.default_rng(0).random(35) < 0.4
    values = np.arange(1, bits.sum() + 1, dtype=np.float32)
    found, _ = _weights_of(
        saved,
        lambda: mb.constexpr_sparse_to_dense(
            nonzero_data=values,
            mask=np.packbits(bits, bitorder="little"),
            shape=np.array([5, 7], np.uint32),
        ),
        7,
    )
    dense = np.zeros(35, np.float32)
    dense[bits] = values
    assert np.array_equal(found.reshape(-1), dense)


@pytest.mark.parametrize("code", ["int4", "uint4", "int8", "uint8"])
@pytest.mark.parametrize("blocks", [(1, 1), (6, 1), (3, 4), (6, 8)])
@pytest.mark.parametrize("offset", [False, True])
def test_blockwise_shift_scale(
    saved: Save, *, code: str, blocks: tuple[int, int], offset: bool
) -> None:
    """In iOS 18, block-wise weights, down to four bits."""
    kind = types.nptype_from_builtin(types.string_to_builtin(code))
    raw = _codes(6, 8, high=16) if "4" in code else _codes(6, 8)
    data = (raw.astype(np.int64) - (0 if code[0] == "u" else raw.max() // 2 + 1)).astype(kind)
    scale = (np.random.default_rng(1).random(blocks) + 0.1).astype(np.float16)
    options = {"offset": np.ones(blocks).astype(kind)} if offset else {}
    found, exact = _weights_of(
        saved,
        lambda: mb.constexpr_blockwise_shift_scale(data=data, scale=scale, **options),
        9,
    )
    assert np.array_equal(found, exact)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6, 8])
@pytest.mark.parametrize("vector", [1, 2])
def test_grouped_table(saved: Save, bits: int, vector: int) -> None:
    """In iOS 18, palettes: a table per group, of numbers or of vectors."""
    kind = types.nptype_from_builtin(types.string_to_builtin(f"uint{bits}"))
    lut = np.random.default_rng(2).standard_normal((2, 1, 2**bits, vector)).astype(np.float16)
    options = {"vector_axis": 0} if vector > 1 else {}
    found, exact = _weights_of(
        saved,
        lambda: mb.constexpr_lut_to_dense(
            indices=_codes(4, 12, high=2**bits).astype(kind), lut=lut, **options
        ),
        9,
    )
    assert np.array_equal(found, exact)


@pytest.mark.parametrize("index", [-1, 4])
def test_indices_stay_in_their_table(index: int) -> None:
    """An index of a signed type does not count from the end of a table."""
    lut = np.arange(4, dtype=np.float32).reshape(1, 4, 1)
    with pytest.raises(ValueError, match=f"index {index} in a table of 4"):
        constexpr_lut_to_dense(np.array([0, index], np.int8), lut)


@pytest.mark.parametrize("kind", ["plain", "table", "blockwise"])
def test_sparse_since_ios18(saved: Save, kind: str) -> None:
    """In iOS 18, sparse weights, alone and composed with a table or a scale."""
    bit = types.nptype_from_builtin(types.string_to_builtin("uint1"))
    two = types.nptype_from_builtin(types.string_to_builtin("uint2"))
    mask = (np.random.default_rng(0).random((6, 8)) < 0.5).astype(np.uint8)
    count = int(mask.sum())
    lut = np.array([1, 2, 3, 4], np.float16).reshape(1, 1, 4, 1)
    codes = _codes(count, high=4)
    scale = np.array([[0.5], [0.25], [2], [1], [3], [0.125]], np.float16)

    def make() -> Any:
        if kind == "plain":
            values = np.arange(1, count + 1, dtype=np.float16)
            return mb.constexpr_sparse_to_dense(nonzero_data=values, mask=mask.astype(bit))
        if kind == "table":
            m, v = mb.constexpr_lut_to_sparse(
                indices_mask=mask.astype(bit), indices_nonzero_data=codes.astype(two), lut=lut
            )
        else:
            m, v = mb.constexpr_sparse_blockwise_shift_scale(
                data_mask=mask.astype(bit), nonzero_data=codes.astype(np.int8), scale=scale
            )
        return mb.constexpr_sparse_to_dense(nonzero_data=v, mask=m)

    found, _ = _weights_of(saved, make, 9)
    dense = np.zeros((6, 8), np.float64)
    values = {
        "plain": np.arange(1, count + 1),
        "table": codes + 1,
        "blockwise": codes * np.repeat(scale, 8, axis=1)[mask != 0],
    }
    dense[mask != 0] = values[kind]
    assert np.array_equal(found, dense)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("per_channel", [False, True])
def test_quantised_activations(saved: Save, *, dtype: str, per_channel: bool) -> None:
    """``quantize`` rounds halves to even and clips; dequantize undoes it."""
    x = np.array([[-400.0, -1.25, -0.75, 0.25, 0.75, 400.0]] * 2).astype(dtype)
    scale = np.array([0.5, 2.0] if per_channel else 0.5).astype(dtype)
    zero = np.array([3, -5] if per_channel else 3).astype(np.int8)
    options = {"scale": scale, "zero_point": zero, **({"axis": 0} if per_channel else {})}

    def build(x: Any) -> list[Any]:
        q = mb.quantize(input=x, output_dtype="int8", **options)
        return [
            mb.cast(x=q, dtype="int32", name="q"),
            mb.dequantize(input=q, name="back", **options),
        ]

    found = saved(build, specification=8, x=x).run()
    s, z = (v.astype(np.float64).reshape(-1, 1) for v in (scale, zero))
    q = np.clip(np.rint(x.astype(np.float64) / s) + z, -128, 127)
    assert np.array_equal(found["q"], np.broadcast_to(q, x.shape))
    assert np.array_equal(found["back"], np.broadcast_to((q - z) * s, x.shape))


class _TwoLayers(torch.nn.Module):
    """A convolution and a linear layer large enough for coremltools to compress."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(4, 16, 3, stride=2)
        self.linear = torch.nn.Linear(16, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Image to features."""
        return self.linear(self.conv(x).mean((2, 3)))  # type: ignore[no-any-return]


def _linear_config(mode: str, dtype: str = "int8", **options: Any) -> Any:
    return cto.OpLinearQuantizerConfig(mode=mode, dtype=dtype, weight_threshold=0, **options)


COMPRESSIONS: dict[str, tuple[int, Callable[[Any, Any], Any], Callable[[], Any]]] = {
    "int8 iOS16": (7, cto.linear_quantize_weights, lambda: _linear_config("linear_symmetric")),
    "uint8 iOS16": (7, cto.linear_quantize_weights, lambda: _linear_config("linear", "uint8")),
    "int8 iOS18": (9, cto.linear_quantize_weights, lambda: _linear_config("linear_symmetric")),
    "int4 per block": (
        9,
        cto.linear_quantize_weights,
        lambda: _linear_config("linear", "int4", granularity="per_block", block_size=4),
    ),
    **{
        f"palette {bits} {system}": (
            version,
            cto.palettize_weights,
            functools.partial(
                cto.OpPalettizerConfig, mode="uniform", nbits=bits, weight_threshold=0
            ),
        )
        for bits in (4, 6, 8)
        for system, version in (("iOS16", 7), ("iOS18", 9))
    },
    "palette per group": (
        9,
        cto.palettize_weights,
        lambda: cto.OpPalettizerConfig(
            mode="uniform",
            nbits=4,
            granularity="per_grouped_channel",
            group_size=8,
            weight_threshold=0,
        ),
    ),
    "pruned": (
        7,
        cto.prune_weights,
        lambda: cto.OpMagnitudePrunerConfig(target_sparsity=0.5, weight_threshold=0),
    ),
}


@pytest.fixture(scope="module")
def models() -> dict[int, Any]:
    """The two layers converted for iOS 16 and iOS 18."""
    torch.manual_seed(0)
    x = torch.randn(1, 4, 9, 9)
    model = _TwoLayers().eval()
    return {version: convert(model, x, "float32", specification=version) for version in (7, 9)}


@pytest.mark.parametrize("name", COMPRESSIONS)
def test_models_compressed_by_coremltools(
    models: dict[int, Any], tmp_path: Path, name: str
) -> None:
    """A compressed model gives what coremltools' own decompression of it gives."""
    version, compress, config = COMPRESSIONS[name]
    compressed = compress(models[version], cto.OptimizationConfig(global_config=config()))
    plain = cto.decompress_weights(compressed)
    compressed.save(str(tmp_path / "compressed.mlpackage"))
    plain.save(str(tmp_path / "plain.mlpackage"))
    programs = {kind: mil.load(tmp_path / f"{kind}.mlpackage") for kind in ("compressed", "plain")}
    assert any(op.startswith("constexpr_") for op in programs["compressed"].op_types)
    assert not any(op.startswith("constexpr_") for op in programs["plain"].op_types)
    x = np.random.default_rng(0).standard_normal((1, 4, 9, 9)).astype(np.float32)
    found, exact = (p.run({"input": x})["output"] for p in programs.values())
    # Two sums, of 36 and 16 products; one rounding apart where a weight was rounded differently.
    error = dot_error(36 + 16 + 2, 36 * 16 * np.abs(x).max())
    assert np.abs(exact).max() > 0.1
    assert_close(found, exact, error=error)
