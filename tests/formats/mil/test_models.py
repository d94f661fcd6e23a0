"""Whole models: from PyTorch through coremltools to disk, and evaluated from there."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import numpy.typing as npt
import pytest
import torch
from mil_programs import UNIT, Saved, convert, export, mb
from transformers import LevitConfig
from transformers.models.levit.modeling_levit import LevitForImageClassification

from levit_export.core.errors import DataError, UsageError
from levit_export.formats import mil

Save = Callable[..., Saved]
Array = npt.NDArray[Any]
SIZE = 64
CLASSES = 10


class _Logits(torch.nn.Module):
    """A small LeViT that takes and gives plain tensors."""

    def __init__(self) -> None:
        super().__init__()
        config = LevitConfig(
            image_size=SIZE,
            hidden_sizes=[16, 24, 32],
            num_attention_heads=[2, 3, 4],
            depths=[1, 1, 1],
            key_dim=[8, 8, 8],
            down_ops=[["Subsample", 8, 2, 4, 2, 2], ["Subsample", 8, 3, 4, 2, 2]],
            num_labels=CLASSES,
        )
        self.levit = LevitForImageClassification(config)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Image to logits."""
        return self.levit(pixel_values=x).logits  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def levit() -> _Logits:
    """A LeViT with random weights, attention biases and batch-norm statistics."""
    torch.manual_seed(0)
    model = _Logits().eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if "running_var" in name:
                tensor.uniform_(0.5, 1.5)
            elif "attention_biases" in name or "running_mean" in name or "bias" in name:
                tensor.normal_(0, 0.3)
    return model


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    """A random image."""
    return torch.randn(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def packages(
    levit: _Logits, image: torch.Tensor, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """The LeViT in both precisions, saved."""
    folder = tmp_path_factory.mktemp("levit")
    exported = export(levit, image)
    for precision in UNIT:
        convert(exported, image, str(precision)).save(str(folder / f"{precision}.mlpackage"))
    return {str(p): folder / f"{p}.mlpackage" for p in UNIT}


def test_float32_model_agrees_with_torch(
    packages: dict[str, Path], levit: _Logits, image: torch.Tensor
) -> None:
    """In float32 the saved LeViT gives PyTorch's logits to 1e-5 of the largest."""
    found = mil.load(packages["float32"]).run({"input": image.numpy()})["output"]
    with torch.no_grad():
        exact = levit.double()(image.double()).numpy()
        levit.float()
    assert found.dtype == np.float32
    assert np.abs(found - exact).max() <= 1e-5 * np.abs(exact).max()


def test_float16_model_stays_within_a_derived_bound(
    packages: dict[str, Path], levit: _Logits, image: torch.Tensor
) -> None:
    """In float16 the error is within the number of roundings on the path, all in one direction.

    Every computing op rounds once (unit roundoff u), every weight was rounded once. For ops that
    neither amplify nor damp, n roundings leave a relative error of n u; the bound takes every
    rounding of the program, and still tells float16 from an evaluator that is wrong in a digit.
    """
    program = mil.load(packages["float16"])
    found = program.run({"input": image.numpy()})["output"]
    with torch.no_grad():
        exact = levit.double()(image.double()).numpy()
        levit.float()
    free = {"const", "reshape", "transpose", "squeeze", "expand_dims", "split", "slice_by_index"}
    roundings = sum(n for op, n in program.op_types.items() if op not in free)
    assert found.dtype == np.float16
    error = np.abs(found - exact).max() / np.abs(exact).max()
    assert 0 < error <= roundings * UNIT[np.dtype(np.float16)]


def test_every_float16_value_is_a_half_float(packages: dict[str, Path]) -> None:
    """Tapped values of a float16 program are float16, of the shape that the program declares."""
    program = mil.load(packages["float16"])
    taps = program.value_names
    found = program.run({"input": np.zeros((1, 3, SIZE, SIZE), np.float32)}, taps=taps)
    assert {found[name].dtype for name in taps} == {np.dtype(np.float16)}


def test_taps_are_the_values_inside(
    packages: dict[str, Path], levit: _Logits, image: torch.Tensor
) -> None:
    """A tap gives an intermediate value: here the first convolution with its batch norm."""
    program = mil.load(packages["float32"])
    name = next(n for n in program.value_names if n != "input")
    found = program.run({"input": image.numpy()}, taps=(name,))
    with torch.no_grad():
        embedding = levit.levit.levit.patch_embeddings.embedding_layer_1
        exact = embedding(image).numpy()
    assert list(found) == ["output", name]
    assert np.abs(found[name] - exact).max() <= 1e-5 * np.abs(exact).max()


def test_runs_repeat_exactly_and_leave_inputs_alone(packages: dict[str, Path]) -> None:
    """A second run gives the same bits, and neither run writes to the caller's array."""
    program = mil.load(packages["float16"])
    x = np.random.default_rng(0).standard_normal((1, 3, SIZE, SIZE)).astype(np.float32)
    kept = x.copy()
    first, second = (program.run({"input": x}, taps=program.value_names) for _ in range(2))
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert np.array_equal(x, kept)


def test_description_of_a_program(packages: dict[str, Path]) -> None:
    """Inputs, outputs, metadata and op types are those that coremltools wrote."""
    program = mil.load(str(packages["float16"]))
    model = ct.models.MLModel(str(packages["float16"]), skip_model_load=True)
    assert program.inputs == (mil.ArrayFeature("input", (1, 3, SIZE, SIZE), "float16"),)
    assert program.outputs == (mil.ArrayFeature("output", (1, CLASSES), "float16"),)
    assert program.metadata == dict(model.user_defined_metadata)
    block = model.get_spec().mlProgram.functions["main"].block_specializations["CoreML6"]
    assert program.op_types == Counter(op.type for op in block.operations)


def test_metadata_that_a_user_sets(saved: Save, tmp_path: Path) -> None:
    """Author, license, version, description and user-defined entries are all reported."""
    path = saved(lambda x: mb.relu(x=x), x=np.zeros((2,), np.float32)).path
    model = ct.models.MLModel(str(path), skip_model_load=True)
    model.author, model.license, model.version = "A. Author", "MIT", "3"
    model.short_description = "Nothing below zero"
    model.user_defined_metadata["preset"] = "small"
    model.save(str(tmp_path / "described.mlpackage"))
    metadata = mil.load(tmp_path / "described.mlpackage").metadata
    assert metadata["preset"] == "small"
    assert metadata["author"] == "A. Author"
    assert metadata["license"] == "MIT"
    assert metadata["version"] == "3"
    assert metadata["description"] == "Nothing below zero"


@pytest.mark.parametrize("specification", [6, 7, 8, 9, 10])
def test_every_op_set_is_accepted(saved: Save, specification: int) -> None:
    """Programs for iOS 15 to 18 and for iOS 26 are evaluated."""
    x = np.array([-1.0, 2.0], np.float32)
    found = saved(lambda x: mb.relu(x=x), specification=specification, x=x).output()
    assert found.tolist() == [0.0, 2.0]


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        ({}, UsageError, "takes .'x'., given .."),
        ({"y": np.zeros((2, 3), np.float32)}, UsageError, "given .'y'."),
        ({"x": np.zeros((3, 2), np.float32)}, DataError, "shape .3, 2., not .2, 3."),
        ({"x": np.zeros((2, 3), np.complex64)}, DataError, "complex64, not float32"),
        ({"x": np.full((2, 3), "1")}, DataError, "<U1, not float32"),
        (np.zeros((2, 3), np.float32), UsageError, "by name, not as a ndarray"),
        ({"x": [[1, 2], [3]]}, DataError, "not an array"),
    ],
)
def test_inputs_that_do_not_fit(
    saved: Save, inputs: dict[str, Any], error: type[Exception], message: str
) -> None:
    """Names, shapes and element types are checked, with what was expected and found."""
    program = mil.load(saved(lambda x: mb.relu(x=x), x=np.zeros((2, 3), np.float32)).path)
    with pytest.raises(error, match=message):
        program.run(inputs)


@pytest.mark.parametrize(
    "given",
    [
        np.array([-1, 3], np.float16),
        np.array([-1, 3], np.float64),
        np.array([-1, 3], np.int64),
        [-1, 3],
        torch.tensor([-1, 3]),
    ],
)
def test_numbers_of_other_types_are_converted(saved: Save, given: Any) -> None:
    """Whatever NumPy makes an array of numbers of feeds a float input."""
    package = saved(lambda x: mb.relu(x=x), x=np.zeros((2,), np.float32))
    found = mil.load(package.path).run({"x": given})
    assert next(iter(found.values())).tolist() == [0, 3]


def test_only_whole_numbers_in_range_feed_integers(saved: Save) -> None:
    """A fraction, or a number that int32 cannot hold, is refused rather than cut."""
    package = saved(lambda x: mb.add(x=x, y=np.int32(1)), x=np.zeros((2,), np.int32))
    program = mil.load(package.path)
    (found,) = program.run({"x": np.array([-1.0, 3.0])}).values()
    assert found.tolist() == [0, 4]
    assert found.dtype == np.int32
    for wrong in ([0.5, 1.0], [0, 2**31], [0, -(2.0**31) - 1], [np.nan, 1.0], [np.inf, 1.0]):
        with pytest.raises(DataError, match="numbers that int32 cannot hold"):
            program.run({"x": np.array(wrong)})
    # NumPy compares it with the largest int32 as float32, where the two are equal.
    with pytest.raises(DataError, match="numbers that int32 cannot hold"):
        program.run({"x": np.array([0, 2**31], np.float32)})


class _Twice(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """One tensor, another, and the first again."""
        y = 2 * x
        return y, y + 1, y


def test_an_output_that_a_network_gives_twice(tmp_path: Path) -> None:
    """It is listed twice under one name by coremltools; a prediction has it once."""
    x = torch.tensor([1.0, -2.0])
    inputs = [ct.TensorType(name="x", shape=(2,))]
    model = convert(_Twice(), x, "float32", inputs=inputs, outputs=None)
    names = [output.name for output in model.get_spec().description.output]
    assert names[0] == names[2] != names[1]
    model.save(str(tmp_path / "twice.mlpackage"))

    program = mil.load(tmp_path / "twice.mlpackage")
    assert [output.name for output in program.outputs] == names[:2]
    found = program.run({"x": x.numpy()})
    assert {name: y.tolist() for name, y in found.items()} == {
        names[0]: [2.0, -4.0],
        names[1]: [3.0, -3.0],
    }


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_outputs_without_axes_come_as_core_ml_gives_them(saved: Save, dtype: str) -> None:
    """Core ML has no scalars: an output of rank 0 has shape ``(1,)``, as a tap it has none."""
    package = saved(
        lambda x: mb.identity(x=mb.reduce_sum(x=x, keep_dims=False, name="inner"), name="sum"),
        x=np.array([1, 2, 3], dtype),
    )
    found = mil.load(package.path).run(package.inputs, taps=("inner",))
    assert found["sum"].tolist() == [6]
    assert found["sum"].dtype == dtype
    assert found["inner"].shape == ()


def test_loading_says_nothing(saved: Save) -> None:
    """Whoever only reads a package does not hear what coremltools says at its import."""
    package = saved(lambda x: mb.relu(x=x), x=np.zeros((2,), np.float32))
    code = f"import levit_export.mil as mil; mil.load({str(package.path)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    assert done.stderr == ""


def test_an_unknown_tap_names_the_nearest(packages: dict[str, Path]) -> None:
    """A tap that does not exist is a usage error with a suggestion."""
    program = mil.load(packages["float32"])
    with pytest.raises(UsageError, match=r"no value 'softmaxx'.*softmax"):
        program.run({"input": np.zeros((1, 3, SIZE, SIZE), np.float32)}, taps=("softmaxx",))


class _Scores(torch.nn.Module):
    """Three class probabilities from the mean of each colour."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Image to probabilities."""
        return torch.softmax(x.mean((2, 3)), dim=1)


@pytest.mark.parametrize("labels", [["red", "green", "blue"], [7, 8, 9]])
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_classifiers(tmp_path: Path, labels: list[Any], precision: str) -> None:
    """A classifier gives its label and the probability of every class."""
    x = torch.zeros(1, 3, 4, 4)
    x[0, 1] = 2.0
    model = convert(
        _Scores(), x, precision, outputs=None, classifier_config=ct.ClassifierConfig(labels)
    )
    model.save(str(tmp_path / "c.mlpackage"))
    program = mil.load(tmp_path / "c.mlpackage")
    found = program.run({"input": x.numpy()})
    assert program.outputs[0].name == "classLabel"
    assert found["classLabel"] == labels[1]
    assert type(found["classLabel"]) is type(labels[1])
    probabilities = found["classLabel_probs"]
    assert list(probabilities) == labels
    exact = _Scores()(x.double())[0].tolist()
    # Rounding to the program's type, twice at most: after the mean and after softmax.
    for label, value in zip(labels, exact, strict=True):
        assert probabilities[label] == pytest.approx(value, rel=8 * UNIT[np.dtype(precision)])


@pytest.mark.parametrize("layout", ["RGB", "BGR", "GRAYSCALE"])
def test_images(tmp_path: Path, layout: str) -> None:
    """``uint8`` images arrive as planes of 0 to 255 in the declared order."""
    colours = 1 if layout == "GRAYSCALE" else 3
    image_type = ct.ImageType(
        name="input",
        shape=(1, colours, 4, 5),
        scale=0.5,
        color_layout=getattr(ct.colorlayout, layout),
    )
    model = convert(torch.nn.ReLU(), torch.zeros(1, colours, 4, 5), "float32", inputs=[image_type])
    model.save(str(tmp_path / "i.mlpackage"))
    program = mil.load(tmp_path / "i.mlpackage")
    assert program.inputs == (mil.ImageFeature("input", 4, 5, layout),)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 5, colours)).astype(np.uint8)
    planes = pixels.transpose(2, 0, 1)[np.newaxis].astype(np.float32)
    planes = planes[:, ::-1] if layout == "BGR" else planes
    given = pixels[..., 0] if layout == "GRAYSCALE" else pixels
    assert np.array_equal(program.run({"input": given})["output"], planes * 0.5)
    assert np.array_equal(program.run({"input": planes})["output"], planes * 0.5)
    with pytest.raises(DataError, match="image 'input' has shape"):
        program.run({"input": given[1:]})


def test_importing_is_light() -> None:
    """Importing the evaluator imports neither coremltools nor torch."""
    code = (
        "import sys, levit_export.mil; "
        "sys.exit(bool({'coremltools', 'torch', 'google.protobuf'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
