"""Ops that image networks beside LeViT are made of, against PyTorch and NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from mil_programs import FUNCTION, UNIT, Saved, assert_close, dot_error, mb
from torch.nn import functional

from levit_export.core.errors import PackageError, UnsupportedOpError
from levit_export.formats.mil.binding import Operand, bind
from levit_export.formats.mil.elements import FLOAT32, INT32, TensorType
from levit_export.formats.mil.ops.convolution import conv

Save = Callable[..., Saved]
Array = npt.NDArray[Any]
U = UNIT[np.dtype(np.float32)]


def _random(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _torch(x: Array) -> torch.Tensor:
    return torch.from_numpy(x.astype(np.float64))


IMAGE = _random(2, 8, 6, 9)

MOVED: dict[str, tuple[Callable[[Any], Any], Callable[[Array], Any]]] = {
    "pixel_shuffle": (
        lambda x: mb.pixel_shuffle(x=x, upscale_factor=2),
        lambda x: functional.pixel_shuffle(torch.from_numpy(x), 2).numpy(),
    ),
    "pixel_unshuffle": (
        lambda x: mb.pixel_unshuffle(x=x, downscale_factor=np.uint32(3)),
        lambda x: functional.pixel_unshuffle(torch.from_numpy(x), 3).numpy(),
    ),
    "space_to_depth": (
        lambda x: mb.space_to_depth(x=x, block_size=3),
        lambda x: np.concatenate(
            [x[:, :, i::3, j::3] for i in range(3) for j in range(3)], axis=1
        ),
    ),
    "there and back": (
        lambda x: mb.depth_to_space(x=mb.space_to_depth(x=x, block_size=3), block_size=3),
        lambda x: x,
    ),
    "batches and back": (
        lambda x: mb.batch_to_space(
            x=mb.space_to_batch(x=x, block_shape=[2, 3], paddings=[[1, 1], [0, 3]]),
            block_shape=[2, 3],
            crops=[[1, 1], [0, 3]],
        ),
        lambda x: x,
    ),
    "crop": (
        lambda x: mb.crop(x=x, crop_height=[1, 2], crop_width=[0, 3]),
        lambda x: x[:, :, 1:-2, :-3],
    ),
    "reverse": (lambda x: mb.reverse(x=x, axes=[1, -1]), lambda x: x[:, ::-1, :, ::-1]),
    "flatten2d": (lambda x: mb.flatten2d(x=x, axis=2), lambda x: x.reshape(16, 54)),
    "sliding_windows": (
        lambda x: mb.sliding_windows(x=x, axis=3, size=4, stride=2),
        lambda x: np.stack([x[..., i : i + 4] for i in (0, 2, 4)], axis=3),
    ),
    "band_part": (
        lambda x: mb.band_part(x=x, lower=1, upper=2),
        lambda x: np.triu(np.tril(x, 2), -1),
    ),
    "upsample_nearest_neighbor": (
        lambda x: mb.upsample_nearest_neighbor(x=x, scale_factor_height=2, scale_factor_width=3),
        lambda x: functional.interpolate(torch.from_numpy(x), scale_factor=(2, 3)).numpy(),
    ),
    "select": (
        lambda x: mb.select(cond=mb.greater(x=x, y=np.float32(0)), a=x, b=np.float32(2)),
        lambda x: np.where(x > 0, x, np.float32(2)),
    ),
    "topk": (
        lambda x: mb.topk(x=x, k=3, axis=1)[0],
        lambda x: torch.topk(torch.from_numpy(x), 3, dim=1).values.numpy(),
    ),
    "gather_nd": (
        lambda x: mb.gather_nd(x=x, indices=[[0, 1], [1, 7]]),
        lambda x: x[[0, 1], [1, 7]],
    ),
    "scatter": (
        lambda x: mb.scatter(
            data=x,
            indices=[5, 2],
            updates=np.ones((2, 2, 6, 9), np.float32),
            axis=1,
            mode="update",
        ),
        lambda x: np.where(np.isin(np.arange(8), [2, 5])[:, None, None], np.float32(1), x),
    ),
}


@pytest.mark.parametrize("name", MOVED)
def test_values_that_move(saved: Save, name: str) -> None:
    """Every value arrives at its place, unchanged."""
    build, expected = MOVED[name]
    assert np.array_equal(saved(build, x=IMAGE).output(), expected(IMAGE))


def _places(x: Array, size: tuple[int, int], *, aligned: bool) -> Any:
    return functional.interpolate(_torch(x), size, mode="bilinear", align_corners=aligned).numpy()


# name: (op, exact values, roundings of a result, in parts of the largest number)
COMPUTED: dict[str, tuple[Callable[[Any], Any], Callable[[Array], Any], float]] = {
    "upsample_bilinear": (
        lambda x: mb.upsample_bilinear(x=x, scale_factor_height=3, scale_factor_width=2),
        lambda x: _places(x, (18, 18), aligned=True),
        8,
    ),
    "upsample_bilinear without corners": (
        lambda x: mb.upsample_bilinear(
            x=x, scale_factor_height=2.5, scale_factor_width=0.5, align_corners=False
        ),
        lambda x: _places(x, (15, 4), aligned=False),
        8,
    ),
    "resize_bilinear": (
        lambda x: mb.resize_bilinear(
            x=x, target_size_height=4, target_size_width=13, sampling_mode="UNALIGN_CORNERS"
        ),
        lambda x: _places(x, (4, 13), aligned=False),
        8,
    ),
    "l2_norm": (
        lambda x: mb.l2_norm(x=x, epsilon=1e-3),
        lambda x: x / np.sqrt((x.astype(np.float64) ** 2).sum((1, 2, 3), keepdims=True) + 1e-3),
        500,
    ),
    "local_response_norm": (
        lambda x: mb.local_response_norm(x=x, size=4, alpha=0.5, beta=0.6, k=1.5),
        lambda x: functional.local_response_norm(_torch(x), 4, alpha=0.5, beta=0.6, k=1.5).numpy(),
        40,
    ),
    "reduce_l2_norm": (
        lambda x: mb.reduce_l2_norm(x=x, axes=[2, 3], keep_dims=True),
        lambda x: np.sqrt((x.astype(np.float64) ** 2).sum((2, 3), keepdims=True)),
        60,
    ),
    "reduce_log_sum_exp": (
        lambda x: mb.reduce_log_sum_exp(x=x, axes=[1], keep_dims=False),
        lambda x: torch.logsumexp(_torch(x), 1).numpy(),
        20 + 2 * FUNCTION,
    ),
    "cumsum": (
        lambda x: mb.cumsum(x=x, axis=3, exclusive=True, reverse=True),
        lambda x: np.cumsum(x[..., ::-1].astype(np.float64), axis=3)[..., ::-1] - x,
        20,
    ),
    "softsign": (lambda x: mb.softsign(x=x), lambda x: functional.softsign(_torch(x)).numpy(), 3),
    "scaled_tanh": (
        lambda x: mb.scaled_tanh(x=x, alpha=2.0, beta=0.5),
        lambda x: 2 * np.tanh(x.astype(np.float64) / 2),
        FUNCTION + 3,
    ),
    "clamped_relu": (
        lambda x: mb.clamped_relu(x=x, alpha=0.25, beta=1.5),
        lambda x: np.minimum(np.where(x >= 0, x, x * 0.25), 1.5),
        1,
    ),
    "conv_transpose": (
        lambda x: mb.conv_transpose(
            x=x,
            weight=_random(8, 3, 3, 3, seed=1),
            bias=_random(6, seed=2),
            strides=[2, 3],
            pad_type="custom",
            pad=[1, 1, 2, 2],
            dilations=[1, 2],
            groups=2,
        ),
        lambda x: functional.conv_transpose2d(
            _torch(x),
            _torch(_random(8, 3, 3, 3, seed=1)),
            _torch(_random(6, seed=2)),
            stride=(2, 3),
            padding=(1, 2),
            dilation=(1, 2),
            groups=2,
        ).numpy(),
        400,
    ),
}


@pytest.mark.parametrize("name", COMPUTED)
def test_values_that_are_computed(saved: Save, name: str) -> None:
    """The formulas agree with float64, within the roundings of their steps."""
    build, expected, roundings = COMPUTED[name]
    exact = expected(IMAGE)
    assert_close(
        saved(build, x=IMAGE).output(), exact, error=roundings * U * float(np.max(np.abs(exact)))
    )


@pytest.mark.parametrize("align", [False, True])
@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize(
    ("rule", "same"),
    [("constant", "zeros"), ("border", "border"), ("reflection", "reflection")],
)
def test_resample_is_grid_sample(
    saved: Save, *, rule: str, same: str, mode: str, align: bool
) -> None:
    """Sampling far inside and outside an image agrees with PyTorch's for each rule."""
    grid = np.random.default_rng(3).uniform(-2.2, 2.2, (2, 5, 7, 2)).astype(np.float32)
    if same == "reflection" and not align:
        rule = "symmetric"  # PyTorch reflects about the outer edge of the last pixel then

    def build(x: Any, grid: Any) -> Any:
        return mb.resample(
            x=x,
            coordinates=grid,
            sampling_mode=mode,
            padding_mode=rule,
            padding_value=np.float32(0),
            coordinates_mode="normalized_minus_one_to_one",
            align_corners=align,
        )

    exact = functional.grid_sample(
        _torch(IMAGE), _torch(grid), mode, same, align_corners=align
    ).numpy()
    found = saved(build, x=IMAGE, grid=grid).output()
    assert_close(found, exact, error=16 * U * float(np.max(np.abs(IMAGE))))


@pytest.mark.parametrize("size", [(9,), (7, 12), (5, 6, 7)])
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (3, 2)])
@pytest.mark.parametrize("multiple", [1, 3])
def test_depthwise_convolutions(
    size: tuple[int, ...], stride: int, dilation: int, multiple: int
) -> None:
    """A group for every channel gives what PyTorch does, whatever the axes and strides."""
    axes = len(size)
    x, weight = _random(2, 4, *size), _random(4 * multiple, 1, *(3,) * axes, seed=1)
    bias = _random(4 * multiple, seed=2)
    found = conv(
        x,
        weight,
        bias=bias,
        strides=np.full(axes, stride),
        dilations=np.full(axes, dilation),
        pad_type="custom",
        pad=np.array([2, 2] * axes),
        groups=np.array(4),
    )
    function = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}[axes]

    def exact(*tensors: Array) -> Any:
        a, b, c = map(_torch, tensors)
        return function(a, b, c, stride=stride, padding=2, dilation=dilation, groups=4).numpy()

    magnitude = exact(np.abs(x), np.abs(weight), np.abs(bias))
    assert_close(found, exact(x, weight, bias), error=dot_error(3**axes + 1, magnitude))


def test_a_ceil_mode_pool_may_reach_beyond_its_only_window(saved: Save) -> None:
    """A window larger than the image is one window over what there is, as in PyTorch."""
    x = _random(1, 2, 7, 7)

    def build(x: Any) -> list[Any]:
        options = {
            "kernel_sizes": [50, 50],
            "strides": [50, 50],
            "pad_type": "custom",
            "pad": [0, 0, 0, 0],
            "ceil_mode": True,
        }
        return [
            mb.identity(x=mb.avg_pool(x=x, **options), name="mean"),
            mb.identity(x=mb.max_pool(x=x, **options), name="max"),
        ]

    found = saved(build, x=x).run()
    exact = functional.avg_pool2d(_torch(x), 50, ceil_mode=True).numpy()
    assert_close(found["mean"], exact, error=dot_error(49, np.abs(x).mean()))
    assert np.array_equal(found["max"], x.max((2, 3), keepdims=True))


def test_constants_of_matmul_may_have_another_type(saved: Save) -> None:
    """Since iOS 17 the result has the type of the operand that is not constant."""
    x, weight = _random(3, 4), _random(4, 5, seed=1).astype(np.float16)
    package = saved(lambda x: mb.matmul(x=x, y=weight), specification=8, x=x)
    found = package.output()
    assert found.dtype == np.float32
    exact = x.astype(np.float64) @ weight.astype(np.float64)
    assert_close(found, exact, error=dot_error(4, np.abs(x) @ np.abs(weight.astype(np.float32))))


def test_products_of_integers_are_integers(saved: Save) -> None:
    """``matmul`` of int32 gives exact int32 numbers."""
    x = np.array([[2**24 + 1, -3], [5, 7]], np.int32)
    found = saved(lambda x: mb.matmul(x=x, y=np.array([[3, 0], [1, -1]], np.int32)), x=x).output()
    assert found.dtype == np.int32
    assert found.tolist() == [[3 * (2**24 + 1) - 3, 3], [22, -7]]


def test_products_of_integers_that_no_int64_holds_are_refused(saved: Save) -> None:
    """Four products of the least integers by themselves sum to 2**64, which int64 wraps to 0."""
    x = np.full((1, 4), np.iinfo(np.int32).min, np.int32)
    package = saved(lambda x, y: mb.matmul(x=x, y=y), x=x, y=np.ascontiguousarray(x.T))
    with pytest.raises(UnsupportedOpError, match=r"the number 1\.8.*e\+19, which int32 does"):
        package.output()


def test_products_of_floats_and_integers_are_refused(saved: Save) -> None:
    """A sound program of iOS 17 that is not evaluated is unsupported, not damaged."""
    weight = np.arange(20, dtype=np.int32).reshape(4, 5)
    package = saved(lambda x: mb.matmul(x=x, y=weight), specification=8, x=_random(3, 4))
    with pytest.raises(UnsupportedOpError, match="x, y of floats and integers together"):
        package.output()


@pytest.mark.parametrize(("specification", "constants"), [(6, 1), (7, 1), (8, 0), (8, 2), (10, 0)])
def test_no_sound_program_mixes_kinds_otherwise(specification: int, constants: int) -> None:
    """Before iOS 17 an op takes one kind; since then one constant may differ from what varies."""
    operands = {
        name: (Operand(name, TensorType(element, (2, 2)), value),)
        for name, element, value in (
            ("x", FLOAT32, np.ones((2, 2), np.float32) if constants == 2 else None),
            ("y", INT32, np.ones((2, 2), np.int32) if constants else None),
        )
    }
    with pytest.raises(PackageError, match="x, y are of different kinds"):
        bind(
            "matmul",
            operands,
            [("z", TensorType(FLOAT32, (2, 2)))],
            specification=specification,
            package="the package",
        )


def test_forms_without_a_documented_result_are_refused(saved: Save) -> None:
    """An op in a form that Core ML does not describe is unsupported, not guessed."""
    package = saved(
        lambda x: mb.resize(
            x=x,
            shape=[4, 4],
            resized_dims=np.uint32(2),
            interpolation_mode="NEAREST_NEIGHBOR",
            sampling_mode="OFFSET_CORNERS",
        ),
        specification=8,
        x=IMAGE,
    )
    with pytest.raises(UnsupportedOpError, match="nearest neighbours with sampling mode"):
        package.run()


@pytest.mark.parametrize("specification", [6, 7])
def test_boxes_beyond_an_image(saved: Save, specification: int) -> None:
    """They are filled since iOS 16; what iOS 15 makes of them is not documented."""
    box = np.array([3.0, 4, 6, 6], np.float32).reshape(1, 1, 4, 1, 1)

    def build(x: Any) -> Any:
        return mb.crop_resize(
            x=x,
            roi=box,
            target_height=4,
            target_width=3,
            sampling_mode="STRICT_ALIGN_CORNERS",
        )

    package = saved(build, specification=specification, x=IMAGE)
    if specification == 6:
        with pytest.raises(UnsupportedOpError, match="a box beyond the image"):
            package.run()
        return
    found = package.output()[0]
    assert_close(found[..., :3, :], IMAGE[..., 3:6, 4:7], error=4 * U * np.abs(IMAGE).max())
    assert not found[..., 3, :].any()


MODES = ["STRICT_ALIGN_CORNERS", "ALIGN_CORNERS", "DEFAULT", "OFFSET_CORNERS", "UNALIGN_CORNERS"]


def _cropped(box: Any, size: tuple[int, int], mode: str, **more: Any) -> Callable[[Any], Any]:
    """A build that cuts one box from every image; beyond an image lies -100."""
    roi = np.asarray(box, np.float32).reshape(1, 1, 4, 1, 1)

    def build(x: Any) -> Any:
        return mb.crop_resize(
            x=x,
            roi=roi,
            target_height=size[0],
            target_width=size[1],
            sampling_mode=mode,
            pad_value=np.float32(-100),
            **more,
        )

    return build


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(12, 18), (7, 4), (1, 1)])
@pytest.mark.parametrize("box", [(0, 0, 5, 8), (1, 2, 4, 6), (2, 3, 2, 8)])
def test_a_box_is_resized_as_the_image_in_it(
    saved: Save, box: tuple[int, int, int, int], size: tuple[int, int], mode: str
) -> None:
    """No place leaves a box: its last pixels are its own, not padding and not its neighbours."""
    top, left, bottom, right = box
    inner = np.ascontiguousarray(IMAGE[..., top : bottom + 1, left : right + 1])
    expected = saved(
        lambda x: mb.resize_bilinear(
            x=x, target_size_height=size[0], target_size_width=size[1], sampling_mode=mode
        ),
        x=inner,
    ).output()
    found = saved(_cropped(box, size, mode), x=IMAGE).output()[0]
    assert_close(found, expected, error=16 * U * np.abs(IMAGE).max())


@pytest.mark.parametrize("stride", [3, 7, 14, 28])
def test_rounding_puts_no_box_beyond_an_image(saved: Save, stride: int) -> None:
    """The last pixel times a stride, and its float32 reciprocal, is the last pixel."""
    x = _random(1, 2, 32, 32)
    build = _cropped(
        np.array([0, 0, 31, 31]) * stride,
        (32, 32),
        "ALIGN_CORNERS",
        spatial_scale=np.float32(1 / stride),
    )
    found = saved(build, x=x).output()[0]
    assert_close(found, x, error=32 * 8 * U * np.abs(x).max())


def test_rounding_puts_no_place_beyond_an_image(saved: Save) -> None:
    """Boxes that end in the last row, at any fraction of it, have no padding."""
    boxes = np.random.default_rng(0).uniform(0, 31, (500, 4)).astype(np.float32)
    boxes[:, 2:] = 31
    x = _random(1, 1, 32, 32)

    def build(x: Any) -> Any:
        return mb.crop_resize(
            x=x,
            boxes=boxes,
            box_indices=np.zeros(500, np.int32),
            target_height=14,
            target_width=12,
            sampling_mode="ALIGN_CORNERS",
            pad_value=np.float32(-100),
        )

    assert saved(build, specification=8, x=x).output().min() > -99


@pytest.mark.parametrize("mode", MODES)
def test_boxes_that_end_before_they_start(saved: Save, mode: str) -> None:
    """They are mirrored where corners are aligned; elsewhere no page says what they are."""
    package = saved(_cropped((4, 6, 1, 2), (4, 5), mode), x=IMAGE)
    if mode not in {"STRICT_ALIGN_CORNERS", "ALIGN_CORNERS"}:
        with pytest.raises(UnsupportedOpError, match=f"ends before it starts, in mode {mode}"):
            package.run()
        return
    mirrored = IMAGE[..., 4:0:-1, 6:1:-1]
    assert_close(package.output()[0], mirrored, error=8 * U * np.abs(IMAGE).max())


@pytest.mark.parametrize("op", ["resize", "resize_nearest_neighbor", "upsample_nearest_neighbor"])
def test_the_nearest_of_a_size_and_of_a_factor(saved: Save, op: str) -> None:
    """A target size counts from the middles of pixels, a factor from their edges."""
    build = {
        "resize": lambda x: mb.resize(
            x=x, shape=[9, 3], resized_dims=np.uint32(2), interpolation_mode="NEAREST_NEIGHBOR"
        ),
        "resize_nearest_neighbor": lambda x: mb.resize_nearest_neighbor(
            x=x, target_size_height=9, target_size_width=3
        ),
        "upsample_nearest_neighbor": lambda x: mb.upsample_nearest_neighbor(
            x=x, scale_factor_height=np.float32(1.5), scale_factor_width=np.float32(0.34)
        ),
    }[op]
    mode = "nearest" if op == "upsample_nearest_neighbor" else "nearest-exact"
    exact = functional.interpolate(torch.from_numpy(IMAGE), (9, 3), mode=mode).numpy()
    assert np.array_equal(saved(build, specification=8, x=IMAGE).output(), exact)


def test_half_pixels_may_be_left_out(saved: Save) -> None:
    """Since iOS 16 ``i n / m`` can be asked for; both rules of corners together mean nothing."""

    def build(x: Any, aligned: bool = False) -> Any:  # noqa: FBT001, FBT002
        return mb.upsample_bilinear(
            x=x,
            scale_factor_height=2,
            scale_factor_width=1,
            align_corners=aligned,
            half_pixel_centers=aligned,
        )

    found = saved(build, specification=7, x=IMAGE).output()
    assert np.array_equal(found[:, :, ::2], IMAGE)
    assert np.array_equal(found[:, :, -1], IMAGE[:, :, -1])
    between = (IMAGE[:, :, :-1].astype(np.float64) + IMAGE[:, :, 1:]) / 2
    assert_close(found[:, :, 1:-1:2], between, error=2 * U * np.abs(IMAGE).max())
    with pytest.raises(UnsupportedOpError, match="together with half_pixel_centers"):
        saved(lambda x: build(x, True), specification=7, x=IMAGE).run()


def test_ties_of_mirrored_places_are_those_of_grid_sample(saved: Save) -> None:
    """A place between two pixels is mirrored first, and rounded to an even number then."""
    size = 8  # a power of two: float32 holds the places exactly
    places = np.zeros((1, 1, 6 * size, 2), np.float32)
    places[..., 0] = (2 * np.arange(-3 * size, 3 * size) + 2) / size - 1
    x = np.arange(size, dtype=np.float32).reshape(1, 1, 1, size)

    def build(x: Any, grid: Any) -> Any:
        return mb.resample(
            x=x,
            coordinates=grid,
            sampling_mode="nearest",
            padding_mode="symmetric",
            padding_value=np.float32(0),
            coordinates_mode="normalized_minus_one_to_one",
            align_corners=False,
        )

    exact = functional.grid_sample(
        torch.from_numpy(x), torch.from_numpy(places), "nearest", "reflection", align_corners=False
    ).numpy()
    assert np.array_equal(saved(build, x=x, grid=places).output(), exact)


def test_response_normalisation_of_five_axes(saved: Save) -> None:
    """It is that of PyTorch, as for four axes."""
    x = _random(2, 7, 3, 2, 4)
    package = saved(lambda x: mb.local_response_norm(x=x, size=4, alpha=0.5, beta=0.6, k=1.5), x=x)
    exact = functional.local_response_norm(_torch(x), 4, alpha=0.5, beta=0.6, k=1.5).numpy()
    assert_close(package.output(), exact, error=40 * U * np.abs(x).max())


def test_response_normalisation_of_three_axes_is_refused(saved: Save) -> None:
    """Tests of coremltools contradict each other in what they expect of it."""
    package = saved(lambda x: mb.local_response_norm(x=x, size=3), x=_random(2, 5, 4))
    with pytest.raises(UnsupportedOpError, match="local response normalisation of 3 axes"):
        package.run()


UNDOCUMENTED: dict[str, tuple[Callable[[Any], Any], Array, str]] = {
    "one_hot": (
        lambda x: mb.one_hot(indices=x, one_hot_vector_size=3),
        np.array([0, 3], np.int32),
        r"an index outside \[0, 3\) \(they run from 0 to 3\)",
    ),
    "quantize": (
        lambda x: mb.cast(
            x=mb.quantize(input=x, scale=np.float32(1), output_dtype="int8"), dtype="int32"
        ),
        np.array([np.nan], np.float32),
        "a quantised NaN",
    ),
    "reverse_sequence": (
        lambda x: mb.reverse_sequence(x=IMAGE, lengths=x, seq_axis=1, batch_axis=0),
        np.array([8, 9], np.int32),
        r"a length outside \[0, 8\] \(they are \[8, 9\]\)",
    ),
    "resample": (
        lambda x: mb.resample(
            x=IMAGE,
            coordinates=x,
            sampling_mode="bilinear",
            padding_mode="constant",
            padding_value=np.float32(0),
            coordinates_mode="unnormalized",
            align_corners=True,
        ),
        np.full((2, 1, 1, 2), np.inf, np.float32),
        "a pixel at infinity, or at NaN,",
    ),
    "crop_resize": (
        lambda x: mb.crop_resize(
            x=IMAGE, boxes=np.ones((2, 4), np.float32), box_indices=x, target_height=1
        ),
        np.array([0, 2], np.int32),
        r"a box of an image outside \[0, 2\) \(they are \[0, 2\]\)",
    ),
}


@pytest.mark.parametrize("name", UNDOCUMENTED)
def test_numbers_that_no_page_speaks_of_are_refused(saved: Save, name: str) -> None:
    """The package that meets them is sound: it is not called damaged."""
    build, x, what = UNDOCUMENTED[name]
    with pytest.raises(UnsupportedOpError, match=f"op '{name}'.*: {what} is not evaluated"):
        saved(build, specification=8, x=x).run()


def test_indices_outside_an_axis_are_refused(saved: Save) -> None:
    """What Core ML gives for them is not documented."""
    package = saved(
        lambda x, i: mb.gather(x=x, indices=i, axis=1), x=IMAGE, i=np.array([0, 8], np.int32)
    )
    message = r"an index outside \[-8, 8\) \(they run from 0 to 8\) is not evaluated"
    with pytest.raises(UnsupportedOpError, match=message):
        package.run()
