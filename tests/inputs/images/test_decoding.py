"""One image file to pixels: every mode, every orientation, and what is refused."""

from __future__ import annotations

import io
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from pictures import COLOURS, claiming, picture
from PIL import Image

from levit_export.inputs.images.decoding import decode
from levit_export.inputs.images.image_set import UnreadableImageError

GREY = COLOURS[..., 0]


def saved(image: Image.Image, path: Path, **options: object) -> np.ndarray:
    """What is decoded of an image once it was saved."""
    image.save(path, **options)
    return decode(path)


def test_rgb_is_kept(tmp_path: Path) -> None:
    """RGB pixels come back as they were."""
    np.testing.assert_array_equal(saved(Image.fromarray(COLOURS), tmp_path / "a.png"), COLOURS)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "1"])
def test_grey_modes(tmp_path: Path, mode: str) -> None:
    """Grey, with or without alpha, by palette or in one bit, is repeated over three channels."""
    values = np.where(GREY > 100, 255, 0).astype(np.uint8) if mode == "1" else GREY
    found = saved(Image.fromarray(values).convert(mode), tmp_path / "a.png")
    np.testing.assert_array_equal(found, np.repeat(values[..., None], 3, axis=2))


def test_transparency_is_dropped(tmp_path: Path) -> None:
    """Of RGBA the colours are taken as they are, as torchvision's loader does."""
    alpha = np.full((4, 6, 1), 7, np.uint8)
    image = Image.fromarray(np.concatenate([COLOURS, alpha], axis=2))
    np.testing.assert_array_equal(saved(image, tmp_path / "a.png"), COLOURS)


def test_cmyk(tmp_path: Path) -> None:
    """CMYK is converted: no ink is white, full black is black."""
    inks = np.zeros((8, 8, 4), np.uint8)
    inks[:, 4:, 3] = 255
    found = saved(Image.fromarray(inks, "CMYK"), tmp_path / "a.tif")
    assert found[0, 0].tolist() == [255, 255, 255]
    assert found[0, 7].tolist() == [0, 0, 0]


def test_sixteen_bit(tmp_path: Path) -> None:
    """16-bit grey is scaled, so that 65535 is white and the middle stays in the middle."""
    levels = np.array([[0, 257, 32896, 65535]], np.uint16)
    found = saved(Image.fromarray(levels), tmp_path / "a.png")
    assert found[..., 0].tolist() == [[0, 1, 128, 255]]


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.array([[0.0, np.nan]], np.float32), "floating-point"),
        (np.array([[0, 70_000]], np.int32), "integers from 0 to 70000"),
        (np.array([[-1, 5]], np.int32), "integers from -1 to 5"),
    ],
)
def test_unknown_scale(tmp_path: Path, values: np.ndarray, reason: str) -> None:
    """Floats and integers beyond 16 bits are refused, for nothing says which of them is white."""
    with pytest.raises(UnreadableImageError, match=reason):
        saved(Image.fromarray(values), tmp_path / "a.tif")


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, COLOURS),
        (2, COLOURS[:, ::-1]),
        (3, COLOURS[::-1, ::-1]),
        (4, COLOURS[::-1]),
        (5, COLOURS.transpose(1, 0, 2)),
        (6, np.rot90(COLOURS, -1)),
        (7, COLOURS[::-1, ::-1].transpose(1, 0, 2)),
        (8, np.rot90(COLOURS)),
        (9, COLOURS),
    ],
)
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_orientation(tmp_path: Path, suffix: str, orientation: int, upright: np.ndarray) -> None:
    """The EXIF orientation is applied, in every format that has one; what is none is ignored."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = saved(Image.fromarray(COLOURS), tmp_path / f"a{suffix}", exif=exif)
    np.testing.assert_array_equal(found, upright)


def test_first_frame(tmp_path: Path) -> None:
    """Of an animation the first frame is taken."""
    frames = [Image.fromarray(np.full((4, 4), value, np.uint8)) for value in (10, 200)]
    found = saved(frames[0], tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert set(found.ravel()) == {10}


def test_bomb(tmp_path: Path) -> None:
    """30,000 x 30,000 pixels claimed by a header are refused before memory is taken."""
    path = claiming(tmp_path / "a.png", 30_000, 30_000)
    tracemalloc.start()
    with pytest.raises(UnreadableImageError, match=r"pixels|bomb"):
        decode(path)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_bomb_below_pillows_own_limit(tmp_path: Path) -> None:
    """The limit is ours: what Pillow would decode without a word is refused as well."""
    with pytest.raises(UnreadableImageError, match="8193 x 8192 pixels; at most 64 Mi"):
        decode(claiming(tmp_path / "a.png", 8193, 8192))


def test_truncated(tmp_path: Path) -> None:
    """A file that ends early is refused, not filled up with grey."""
    whole = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(
        whole, "JPEG"
    )
    path = tmp_path / "a.jpg"
    path.write_bytes(whole.getvalue()[:-400])
    with pytest.raises(UnreadableImageError, match="truncated"):
        decode(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"not an image", "not an image of a known format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image of a known format"),
        (b"\x89PNG\r\n\x1a\n", "."),
    ],
)
def test_no_image(tmp_path: Path, content: bytes, reason: str) -> None:
    """Empty files, text, PostScript and bare signatures are refused with a reason."""
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(UnreadableImageError, match=reason):
        decode(path)


def test_no_file(tmp_path: Path) -> None:
    """Folders, pipes, circular links and what is missing are refused; nothing waits for a pipe."""
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "a.png").symlink_to("b.png")
    (tmp_path / "b.png").symlink_to("a.png")
    for name, reason in {
        "folder.png": "is a folder",
        "pipe.png": "named pipe",
        "a.png": "symbolic links",
        "missing.png": "No such file",
    }.items():
        with pytest.raises(UnreadableImageError, match=reason):
            decode(tmp_path / name)


def test_content_decides(tmp_path: Path) -> None:
    """A PNG that is called .JPEG, as some of ImageNet's are, is read."""
    path = picture(tmp_path / "a.png").rename(tmp_path / "a.JPEG")
    assert decode(path).shape == (8, 8, 3)
