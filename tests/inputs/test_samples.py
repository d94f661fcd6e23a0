"""The inputs of a check."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from levit_export.core.errors import DataError
from levit_export.inputs import preprocessing
from levit_export.inputs.samples import (
    NORMAL_SAMPLES,
    Samples,
    adversarial_images,
    from_images,
    held_out_digits,
    make,
)

DIGITS = preprocessing.RECIPES["digits"]
FAIR = preprocessing.RECIPES["fair"]


def _samples(count: int) -> Samples:
    inputs = np.arange(count * 12, dtype=np.float32).reshape(count, 3, 2, 2)
    names = tuple(f"image-{index}" for index in range(count))
    pixels = {name: np.full((2, 2, 3), i, np.uint8) for i, name in enumerate(names) if i % 2}
    return Samples(names, inputs, np.arange(count), pixels)


# --- what they are --------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", [DIGITS, FAIR], ids=lambda recipe: recipe.name)
def test_samples_are_noise_and_adversarial_images(recipe: preprocessing.Preprocessing) -> None:
    """A check has normal tensors and six adversarial images, in float32 of the model's size."""
    samples = make(recipe)
    assert samples.names == (
        *(f"normal-{index}" for index in range(NORMAL_SAMPLES)),
        "black",
        "white",
        "checkerboard",
        "saturated",
        "noise",
        "gradient",
    )
    assert samples.inputs.shape == (10, 3, *recipe.crop)
    assert samples.inputs.dtype == np.float32
    assert np.isfinite(samples.inputs).all()
    assert samples.labels.tolist() == [-1] * 10


def test_samples_depend_on_the_seed_alone() -> None:
    """The same seed gives the same bytes, another seed other noise but the same fixed images."""
    one, again, other = make(DIGITS, seed=3), make(DIGITS, seed=3), make(DIGITS, seed=4)
    assert hashlib.sha256(one.inputs).digest() == hashlib.sha256(again.inputs).digest()
    same = [np.array_equal(a, b) for a, b in zip(one.inputs, other.inputs, strict=True)]
    fixed = ("black", "white", "checkerboard", "gradient")
    assert same == [name in fixed for name in one.names]


def test_all_samples_differ() -> None:
    """No two samples are the same input."""
    inputs = make(DIGITS).inputs
    assert len({image.tobytes() for image in inputs}) == len(inputs)


def test_the_pixels_behind_a_sample_are_kept() -> None:
    """Each adversarial image is there in pixels too, which give its input; noise has none."""
    samples = make(DIGITS)
    assert set(samples.pixels) == {n for n in samples.names if not n.startswith("normal-")}
    for name, pixels in samples.pixels.items():
        expected = preprocessing.normalise(DIGITS, pixels)
        assert np.array_equal(samples.inputs[samples.names.index(name)], expected)


def test_adversarial_images_are_at_the_edges() -> None:
    """They are uint8 images of the size asked for; the extreme ones hold 0 and 255 alone."""
    images = adversarial_images((32, 48), seed=0)
    assert {image.shape for image in images.values()} == {(32, 48, 3)}
    assert {image.dtype for image in images.values()} == {np.dtype(np.uint8)}
    values = {name: set(np.unique(image).tolist()) for name, image in images.items()}
    assert values["black"] == {0}
    assert values["white"] == {255}
    assert values["checkerboard"] == values["saturated"] == {0, 255}
    assert len(values["noise"]) > 200


def test_the_gradient_tells_channels_and_axes_apart() -> None:
    """No exchange of channels, flip or transposition leaves the gradient as it is."""
    image = adversarial_images((32, 32), seed=0)["gradient"]
    changed = [
        image[..., [1, 0, 2]],
        image[..., [2, 1, 0]],
        image[..., [0, 2, 1]],
        image[::-1],
        image[:, ::-1],
        image.transpose(1, 0, 2),
    ]
    assert not any(np.array_equal(image, other) for other in changed)


def test_real_images_go_through_the_recipe() -> None:
    """Real images become inputs by the model's own preprocessing and keep pixels and labels."""
    pixels, labels = held_out_digits()
    samples = from_images(DIGITS, pixels[:3], labels[:3])
    assert samples.names == ("real-0", "real-1", "real-2")
    assert samples.inputs.shape == (3, 3, 96, 96)
    assert np.array_equal(samples.inputs[2], preprocessing.apply(DIGITS, pixels[2]))
    assert np.array_equal(samples.pixels["real-1"], pixels[1])
    assert np.array_equal(samples.labels, labels[:3])


def test_the_held_out_digits_are_whole() -> None:
    """The package brings 360 images of 8 by 8 with labels of every class."""
    pixels, labels = held_out_digits()
    assert pixels.shape == (360, 8, 8)
    assert pixels.dtype == np.uint8
    assert labels.shape == (360,)
    assert set(labels.tolist()) == set(range(10))


# --- values ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("names", "labels"), [(2, 3), (3, 2), (4, 4)])
def test_as_many_names_inputs_and_labels_are_asked_for(names: int, labels: int) -> None:
    """A set whose parts are of different lengths is refused with the three lengths."""
    with pytest.raises(DataError) as refused:
        Samples(("x",) * names, np.zeros((3, 3, 2, 2), np.float32), np.zeros(labels), {})
    assert refused.value.what == f"{names} names, 3 inputs, {labels} labels"


@pytest.mark.parametrize("count", [0, 1, 3, 5, 9])
def test_the_first_samples(count: int) -> None:
    """``first`` keeps the beginning of every part, and of the pixels those that belong to it."""
    samples = _samples(5)
    first = samples.first(count)
    kept = min(count, 5)
    assert first.names == samples.names[:kept]
    assert np.array_equal(first.inputs, samples.inputs[:kept])
    assert first.labels.tolist() == list(range(kept))
    assert set(first.pixels) == {name for name in first.names if name in samples.pixels}


def test_joined_samples_follow_one_another() -> None:
    """``joined`` keeps both sets whole and in order."""
    one, two = make(DIGITS).first(6), from_images(DIGITS, *(x[:2] for x in held_out_digits()))
    both = one.joined(two)
    assert both.names == one.names + two.names
    assert np.array_equal(both.inputs, np.concatenate([one.inputs, two.inputs]))
    assert both.labels.tolist() == [-1] * 6 + two.labels.tolist()
    assert set(both.pixels) == {*one.pixels, *two.pixels}


# --- batches --------------------------------------------------------------------------------


@given(count=st.integers(0, 20), batch=st.none() | st.integers(1, 25))
def test_batches_hold_every_sample_once_and_in_order(count: int, batch: int | None) -> None:
    """The rows that count, joined, are the samples, whatever the batch."""
    samples = _samples(count)
    batches = list(samples.batches(batch))
    joined = [row for inputs, rows in batches for row in inputs[:rows]]
    assert len(joined) == count
    assert all(np.array_equal(a, b) for a, b in zip(joined, samples.inputs, strict=True))
    assert all(inputs.flags.c_contiguous for inputs, _ in batches)
    assert all(inputs.dtype == np.float32 for inputs, _ in batches)
    assert all(rows >= 1 for _, rows in batches)


@given(count=st.integers(1, 20), batch=st.integers(1, 25))
def test_a_fixed_batch_is_always_full(count: int, batch: int) -> None:
    """Each piece has exactly the batch's size, and only the last is filled up, by its last row."""
    pieces = list(_samples(count).batches(batch))
    assert {len(inputs) for inputs, _ in pieces} == {batch}
    assert len(pieces) == math.ceil(count / batch)
    assert [rows for _, rows in pieces[:-1]] == [batch] * (len(pieces) - 1)
    last, rows = pieces[-1]
    assert all(np.array_equal(row, last[rows - 1]) for row in last[rows:])


def test_mixed_sizes_come_in_turn() -> None:
    """Where any batch will do, sizes are 1, 2, 3 and again, the last cut short, none filled up."""
    sizes = [(len(inputs), rows) for inputs, rows in _samples(11).batches(None)]
    assert sizes == [(1, 1), (2, 2), (3, 3), (1, 1), (2, 2), (2, 2)]


def test_samples_of_a_default_check_cover_every_mixed_size() -> None:
    """The samples of a check are enough for batches of one, two and three."""
    assert {len(inputs) for inputs, _ in make(DIGITS).batches(None)} == {1, 2, 3}
