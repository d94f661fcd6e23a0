"""Images in an ``.npz``, the bundled digits among them."""

from __future__ import annotations

import io
import pickle
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from levit_export.core.errors import DataError
from levit_export.inputs.images import ImageSet, batches, open_images
from levit_export.inputs.preprocessing import RECIPES, apply

LABELS = ("a", "b", "c")
PIXELS = np.random.default_rng(0).integers(0, 256, (5, 6, 7, 3), np.uint8)
RECIPE = RECIPES["digits"]


def saved(path: Path, **arrays: Any) -> Path:
    """An archive of these arrays."""
    file = path / "x.npz"
    np.savez_compressed(file, **arrays)
    return file


def inputs(images: ImageSet, rows: list[int]) -> np.ndarray:
    """What is read of some images, one group each."""
    found = list(batches(images, RECIPE, [[row] for row in rows]))
    return np.concatenate([batch.inputs for batch in found])


def member(shape: tuple[int, ...], content: bytes, descr: str = "|u1") -> bytes:
    """A ``.npy`` whose header declares a shape."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": descr, "fortran_order": False, "shape": shape}
    )
    return buffer.getvalue() + content


def packed(path: Path, **members: bytes) -> Path:
    """An archive of these bytes."""
    file = path / "x.npz"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return file


def test_images_and_labels(tmp_path: Path) -> None:
    """Every image is read as it was saved, in any order, with its label."""
    images = open_images(saved(tmp_path, images=PIXELS, labels=[2, 0, 1, 1, 0]), labels=LABELS)
    assert [entry.label for entry in images.entries] == [2, 0, 1, 1, 0]
    order = [3, 0, 4, 1]
    expected = np.stack([apply(RECIPE, PIXELS[row]) for row in order])
    np.testing.assert_array_equal(inputs(images, order), expected)


def test_grey_without_labels(tmp_path: Path) -> None:
    """Grey images without labels are a set of no known class."""
    images = open_images(saved(tmp_path, images=PIXELS[..., 0]), labels=LABELS)
    assert not images.labelled
    np.testing.assert_array_equal(inputs(images, [4])[0], apply(RECIPE, PIXELS[4, ..., 0]))


def test_fingerprint_of_an_archive(tmp_path: Path) -> None:
    """It changes with one pixel and with one label."""
    other = PIXELS.copy()
    other[0, 0, 0, 0] ^= 1
    labels = np.zeros(5, np.int64)
    prints = {
        open_images(saved(tmp_path, **arrays), labels=LABELS).fingerprint
        for arrays in (
            {"images": PIXELS, "labels": labels},
            {"images": other, "labels": labels},
            {"images": PIXELS, "labels": labels + 1},
            {"images": PIXELS},
        )
    }
    assert len(prints) == 4


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pictures": PIXELS}, "not hold an array 'images'; it holds pictures.npy"),
        ({"images": PIXELS[..., :2]}, r"\(5, 6, 7, 2\), not uint8"),
        ({"images": PIXELS[0, 0]}, "not uint8"),
        ({"images": np.full((2, 4, 4), np.nan)}, "is float64 .*not uint8"),
        ({"images": PIXELS[:0]}, "holds 0 images"),
        ({"images": PIXELS[:, :0]}, "images of .* have 7 x 0 pixels"),
        ({"images": np.asfortranarray(PIXELS)}, "Fortran's order"),
        ({"images": PIXELS, "labels": [0, 1]}, r"\(2,\), not integers \(5,\)"),
        ({"images": PIXELS, "labels": [0, 1, np.nan, 0, 0]}, "float64 .*not integers"),
        ({"images": PIXELS, "labels": [0, 1, 3, 0, 0]}, "label 2 of .* is 3"),
        ({"images": PIXELS, "labels": [0, 1, -1, 0, 0]}, "label 2 of .* is -1"),
    ],
)
def test_arrays_that_are_no_images(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    """Wrong names, types, channels and labels are refused with what was found."""
    with pytest.raises(DataError, match=message):
        open_images(saved(tmp_path, **arrays), labels=LABELS)


class Trap:
    """An object whose unpickling would be noticed."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("sprung"),)


@pytest.mark.parametrize("name", ["images", "labels"])
def test_objects_are_not_unpickled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Arrays of Python objects are refused, and nothing of them is run."""
    monkeypatch.chdir(tmp_path)
    good = {"images": member((1, 2, 2), b"\0" * 4), "labels": member((1,), b"\0")}
    bad = member((1,), pickle.dumps([Trap()]), "|O")
    with pytest.raises(DataError, match="Python objects"):
        open_images(packed(tmp_path, **good | {name: bad}), labels=LABELS)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"images": member((10**9, 8, 8), b"\0" * 64)}, "declares 64000000000 bytes and holds 64"),
        ({"images": member((2**62, 2**62, 1), b"")}, "declares"),
        ({"images": member((1, 2, 2), b"\0" * 5)}, "declares 4 bytes and holds 5"),
        ({"images": member((-1, 8, 8), b"")}, "declares|header"),
        ({"images": b"\x93NUMPY\x01\x00\xff"}, "no valid header"),
        ({"images": b""}, "no valid header"),
        ({"images": member((0, 10**6, 10**6), b"")}, "holds 0 images"),
        (
            {"images": member((1, 2, 2), b"\0" * 4), "labels": member((10**10,), b"", "<i8")},
            "declares 80000000000",
        ),
    ],
)
def test_bombs(tmp_path: Path, members: dict[str, bytes], message: str) -> None:
    """Sizes that are only declared are found out before memory is taken."""
    file = packed(tmp_path, **members)
    tracemalloc.start()
    with pytest.raises(DataError, match=message):
        open_images(file, labels=LABELS)
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()


def test_large_archives_are_streamed(tmp_path: Path) -> None:
    """128 MB of pixels in 128 kB of file are listed and read without being unpacked at once."""
    count = 2000
    file = packed(tmp_path, images=member((count, 256, 256), bytes(count * 2**16)))
    tracemalloc.start()
    images = open_images(file, labels=LABELS)
    found = inputs(images, [0, count - 1])
    assert tracemalloc.get_traced_memory()[1] < 2**26
    tracemalloc.stop()
    assert found.shape == (2, 3, 96, 96)


def test_one_image_too_large(tmp_path: Path) -> None:
    """An image beyond the limit of pixels is refused, however well it is packed."""
    file = packed(tmp_path, images=member((1, 2**13, 2**13 + 1), bytes(2**26 + 2**13)))
    with pytest.raises(DataError, match="8193 x 8192 pixels"):
        open_images(file, labels=LABELS)


@pytest.mark.parametrize("content", [b"", b"PK", b"no archive"])
def test_no_archive(tmp_path: Path, content: bytes) -> None:
    """What is no zip is refused by its name."""
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"x\.npz cannot be read"):
        open_images(tmp_path / "x.npz", labels=LABELS)


def test_damage_within(tmp_path: Path) -> None:
    """A bit that flipped in the pixels is an error when they are read."""
    file = tmp_path / "x.npz"
    np.savez(file, images=PIXELS)
    content = bytearray(file.read_bytes())
    content[300] ^= 1
    file.write_bytes(content)
    with pytest.raises(DataError, match="CRC"):
        inputs(open_images(file, labels=LABELS), [0, 1, 2, 3, 4])


def test_digits() -> None:
    """``digits`` are the held-out images to evaluate, and others to calibrate."""
    labels = tuple("0123456789")
    held_out = open_images("digits", labels=labels)
    others = open_images("digits", labels=labels, purpose="calibration")
    assert (len(held_out), len(others)) == (360, 200)
    assert held_out.labelled
    assert held_out.fingerprint != others.fingerprint
    seen = {inputs(held_out, [row]).tobytes() for row in range(360)}
    assert not seen & {inputs(others, [row]).tobytes() for row in range(200)}


def test_digits_of_another_model() -> None:
    """A model of other classes cannot be evaluated on digits."""
    with pytest.raises(DataError, match="10 classes, the model 3"):
        open_images("digits", labels=LABELS)


def test_a_folder_called_digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's own path of that name comes first."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    with pytest.raises(DataError, match="digits holds no images"):
        open_images("digits", labels=LABELS)
