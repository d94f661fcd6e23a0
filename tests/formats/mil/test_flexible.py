"""Programs whose shapes only a run decides, and their inputs."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import pytest
import torch
from mil_programs import MODEL, Saved, edit
from PIL import Image

from levit_export.core.errors import DataError
from levit_export.formats import mil
from levit_export.formats.mil.listing import lines, main
from levit_export.formats.mil.table import LEFT_OUT, OPS


class _Pooled(torch.nn.Module):
    """Channel means of an image of any size, after a convolution."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = torch.nn.Conv2d(3, 4, 3, stride=2, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Image to four numbers."""
        return torch.relu(self.conv(x)).mean((2, 3))


def _saved(tmp_path: Path, kind: Any) -> mil.Program:
    with warnings.catch_warnings():
        # coremltools and torch.jit deprecate each other's parts.
        warnings.simplefilter("ignore")
        model = ct.convert(
            torch.jit.trace(_Pooled(), torch.zeros(1, 3, 16, 16)),
            inputs=[kind],
            outputs=[ct.TensorType(name="output")],
            compute_precision=ct.precision.FLOAT32,
            minimum_deployment_target=ct.target.iOS16,
        )
    model.save(str(tmp_path / "flexible.mlpackage"))
    return mil.load(tmp_path / "flexible.mlpackage")


def _agrees(program: mil.Program, *shape: int) -> bool:
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    found = program.run({"input": x})["output"]
    with torch.no_grad():
        exact = _Pooled()(torch.from_numpy(x)).numpy()
    # Two roundings a product at most, of sums of 28 numbers below 4.
    return found.shape == exact.shape and bool(np.abs(found - exact).max() < 28 * 4 * 2.0**-23)


def test_enumerated_shapes(tmp_path: Path) -> None:
    """Each of the listed shapes is taken, and no other."""
    shapes = [(1, 3, 16, 16), (1, 3, 24, 16), (2, 3, 16, 32)]
    kind = ct.TensorType(
        name="input", shape=ct.EnumeratedShapes(shapes=shapes, default=(1, 3, 16, 16))
    )
    program = _saved(tmp_path, kind)
    (taken,) = program.inputs
    assert isinstance(taken, mil.ArrayFeature)
    assert taken.shape == (1, 3, 16, 16)
    assert sorted(taken.shapes) == sorted(shapes)
    assert all(_agrees(program, *shape) for shape in shapes)
    with pytest.raises(DataError, match=r"shape \[1, 3, 20, 16\], not .* or one of"):
        program.run({"input": np.zeros((1, 3, 20, 16), np.float32)})


def test_ranges_of_shapes(tmp_path: Path) -> None:
    """Every size within the declared bounds is taken, and none beyond."""
    sizes = ct.RangeDim(lower_bound=8, upper_bound=40, default=16)
    kind = ct.TensorType(name="input", shape=(1, 3, sizes, ct.RangeDim(8, 80, default=16)))
    program = _saved(tmp_path, kind)
    assert all(_agrees(program, 1, 3, *size) for size in [(8, 8), (40, 11), (17, 70)])
    for size in [(7, 16), (41, 16)]:
        with pytest.raises(DataError, match="or sizes within"):
            program.run({"input": np.zeros((1, 3, *size), np.float32)})


def test_images_of_enumerated_sizes(tmp_path: Path) -> None:
    """An image may have any of the listed sizes, as pixels and as a Pillow image."""
    shape = ct.EnumeratedShapes(shapes=[(1, 3, 16, 16), (1, 3, 20, 12)], default=(1, 3, 16, 16))
    program = _saved(tmp_path, ct.ImageType(name="input", shape=shape))
    (taken,) = program.inputs
    assert isinstance(taken, mil.ImageFeature)
    assert sorted(taken.sizes) == [(16, 16), (20, 12)]
    pixels = np.random.default_rng(0).integers(0, 256, (20, 12, 3)).astype(np.uint8)
    given = {"pixels": pixels, "Pillow": Image.fromarray(pixels)}
    found = [program.run({"input": image})["output"].tolist() for image in given.values()]
    assert found[0] == found[1]
    with pytest.raises(DataError, match="or one of"):
        program.run({"input": pixels[:12]})


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> mil.Program:
    """A program that takes an RGB image of 16 x 16 pixels."""
    kind = ct.ImageType(name="input", shape=(1, 3, 16, 16))
    return _saved(tmp_path_factory.mktemp("pictures"), kind)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA"])
def test_pillow_images_are_converted(pictures: mil.Program, mode: str) -> None:
    """An opaque Pillow image arrives in the colours that the model declares."""
    pixels = np.random.default_rng(1).integers(0, 256, (16, 16, 3)).astype(np.uint8)
    image = Image.fromarray(pixels).convert(mode)
    expected = np.asarray(image.convert("RGB"))
    found = pictures.run({"input": image})["output"]
    assert found.tolist() == pictures.run({"input": expected})["output"].tolist()


def test_transparent_pillow_images_are_refused(pictures: mil.Program) -> None:
    """What is behind a transparent pixel is for the application to say."""
    with pytest.raises(DataError, match="Pillow mode RGBA, with transparency"):
        pictures.run({"input": Image.new("RGBA", (16, 16), (1, 2, 3, 100))})


def test_a_package_is_listed(sound: Saved, capfd: pytest.CaptureFixture[str]) -> None:
    """The listing names inputs, outputs, ops by type, and every op with its constants."""
    assert main([str(sound.path)]) == 0
    said, heard = capfd.readouterr()
    assert heard == ""
    assert "specification version 7 (iOS 16 and later)" in said
    assert "x: ArrayFeature shape (1, 3, 8, 8) dtype float32" in said
    assert "      1 softmax" in said
    assert "active: float32[1, 4, 4, 4] = relu(x=%stem)" in said
    assert "weight=float32[4, 3, 3, 3]" in said
    assert "strides=[2, 2]" in said
    assert "return %p" in said


def test_what_is_unsupported_is_listed_with_its_reason(
    sound: Saved, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A program with unknown ops is listed all the same, and ends in the error of ``load``."""
    package = tmp_path / "copy.mlpackage"
    (package / MODEL).parent.mkdir(parents=True)
    for path in sound.path.rglob("*"):
        if path.is_file():
            (package / path.relative_to(sound.path)).parent.mkdir(parents=True, exist_ok=True)
            (package / path.relative_to(sound.path)).write_bytes(path.read_bytes())
    edit(package, lambda _, b: setattr(_softmax(b), "type", "gru"))
    assert main([str(package)]) == 2
    said, heard = capfd.readouterr()
    assert f"1 gru: not evaluated, {LEFT_OUT['gru']}" in said
    assert "p: float32[1, 4, 4] = gru(axis=-1, x=%mixed)" in said
    assert heard.startswith("error: ")
    assert "gru (1: recurrent layers" in heard


def _softmax(block: Any) -> Any:
    return next(op for op in block.operations if op.type == "softmax")


def test_the_module_is_a_command(sound: Saved) -> None:
    """``python -m levit_export.mil`` prints the listing; usage and errors are on stderr."""
    command = [sys.executable, "-m", "levit_export.mil"]
    done = subprocess.run([*command, str(sound.path)], capture_output=True, text=True, check=True)
    assert done.stdout == "".join(f"{line}\n" for line in lines(sound.path))
    assert done.stderr == ""
    assert subprocess.run(command, capture_output=True, check=False).returncode == 2


def test_a_reader_of_the_listing_may_leave(sound: Saved) -> None:
    """Where nobody reads the listing, nothing is complained of, and the status is the same."""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "levit_export.mil", str(sound.path)],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_documented_table_of_ops_is_the_one_in_use() -> None:
    """docs/coreml-evaluator.md names every op that is evaluated, and those that are left out."""
    page = (Path(__file__).parents[3] / "docs" / "coreml-evaluator.md").read_text("utf-8")
    table, _, rest = page.partition("## What is left out")
    named = {name for name in OPS if f"`{name}`" in table}
    assert sorted(set(OPS) - named) == []
    assert sorted(name for name in LEFT_OUT if f"`{name}`" not in rest) == []
