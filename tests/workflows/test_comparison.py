"""Files of networks that are not LeViTs, held against another file of the same network."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import classifiers
import numpy as np
import onnx
import pytest
import torch
import transformers
from torch import nn

from levit_export.checks.reference import Overrides
from levit_export.checks.results import ArtifactReport
from levit_export.core import packages
from levit_export.core.errors import ArtifactError, DataError, UsageError
from levit_export.core.quiet import quiet
from levit_export.reports.report import Report
from levit_export.workflows.compare import CompareRequest, _named_as, compare

FORMATS = tuple(classifiers.SUFFIXES)


@dataclass(frozen=True)
class Subject:
    """A sound network, its captured program on disk, and what converters made of it."""

    network: nn.Module
    reference: Path
    files: Mapping[str, Path]


@pytest.fixture(scope="module")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Subject]:
    """A ResNet and a ViT; do not change their files."""
    found = {}
    for name, make in classifiers.NETWORKS.items():
        folder = tmp_path_factory.mktemp(name)
        network = make()
        program = classifiers.captured(network)
        torch.export.save(program, folder / "reference.pt2")
        files = {kind: classifiers.write(program, kind, folder / name) for kind in FORMATS}
        found[name] = Subject(network, folder / "reference.pt2", files)
    return found


def _compare(reference: Path, *candidates: Path, **options: object) -> Report:
    return compare(CompareRequest(reference, candidates, **options))  # type: ignore[arg-type]


def _kinds(report: Report) -> list[set[str]]:
    return [{finding.kind for finding in each.parity.findings} for each in report.artifacts]


@pytest.mark.parametrize("name", classifiers.NETWORKS)
def test_sound_files_pass_and_use_a_part_of_a_derived_tolerance(
    subjects: dict[str, Subject], name: str
) -> None:
    """What converters make of a program answers as it does, within its own rounding."""
    subject = subjects[name]
    report = _compare(subject.reference, *subject.files.values())
    assert [each.parity.verdict for each in report.artifacts] == ["pass"] * 3
    outputs = [output for each in report.artifacts for output in each.parity.outputs]
    assert [output.tolerance.origin for output in outputs] == ["derived"] * 6
    assert report.verdict == "pass"


def test_an_onnx_file_is_a_reference_too(subjects: dict[str, Subject]) -> None:
    """The reference evaluator of the onnx package computes it in float64."""
    files = subjects["vit"].files
    report = _compare(files["onnx"], files["openvino"], files["coreml"])
    assert (report.verdict, _kinds(report)) == ("pass", [set(), set()])


def test_half_precision_is_judged_as_such(subjects: dict[str, Subject], tmp_path: Path) -> None:
    """The precision that is measured in a file widens its tolerance."""
    subject = subjects["resnet"]
    program = classifiers.captured(subject.network)
    half = classifiers.write(program, "coreml", tmp_path / "half", half=True)
    report = _compare(subject.reference, half)
    (artifact,) = report.artifacts
    assert (artifact.precision, artifact.parity.verdict) == ("fp16", "pass")
    tolerance = artifact.parity.outputs[0].tolerance
    assert tolerance.derivation["unit_roundoff"] == 2.0**-11


def test_torchscript_takes_its_shapes_from_the_candidates(
    subjects: dict[str, Subject], tmp_path: Path
) -> None:
    """It keeps neither shapes nor names of outputs, which are then matched by position."""
    subject = subjects["resnet"]
    with warnings.catch_warnings():  # the tracer warns of what the network asks of its input
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(subject.network, torch.randn(1, 3, 32, 32), strict=False)
        traced.save(tmp_path / "traced.pt")
    report = _compare(tmp_path / "traced.pt", subject.files["onnx"])
    (artifact,) = report.artifacts
    assert artifact.parity.verdict == "pass"
    assert [note for note in artifact.notes if "by position" in note] == [
        "its output 'linear' is held against 'output0', by position",
        "its output 'relu_4' is held against 'output1', by position",
    ]


QUERIES = "linear_8" if transformers.__version__.startswith("4.") else "linear_6"
"""The second layer's queries, which transformers 4 computes after keys and values."""

FOUND: dict[tuple[str, str], tuple[str, tuple[str | None, ...]]] = {
    ("resnet", "zeroed head"): ("too-far", ("", "", "")),
    ("resnet", "wrong eps"): ("too-far", ("getitem_6", "add", "add")),
    ("resnet", "swapped channels"): ("too-far", ("getitem", "relu", "relu")),
    ("resnet", "NaN"): ("not-finite", ("", "", "")),
    ("resnet", "one tensor 1 % larger"): ("too-far", ("getitem_9", "relu_3", "relu_3")),
    ("resnet", "missing output"): ("missing-output", (None, None, None)),
    ("vit", "permuted heads"): ("too-far", (QUERIES, QUERIES, QUERIES)),
    ("vit", "transposed table"): ("too-far", ("add", "add", "add")),
    ("vit", "wrong eps"): ("too-far", ("layer_norm_2", "linear_6", "layer_norm_2")),
    ("vit", "softmax over queries"): ("too-far", ("softmax", "linear_3", "softmax")),
}
"""What is found of each fault, and at which value in each format."""


@pytest.fixture(scope="module")
def judged(
    subjects: dict[str, Subject], tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, str], tuple[ArtifactReport, ...]]:
    """What one comparison says of all faulty files of a network, three for each fault."""
    found = {}
    for name, subject in subjects.items():
        faults = [fault for each, fault in FOUND if each == name]
        programs = [
            classifiers.captured(classifiers.faulty(subject.network, fault)) for fault in faults
        ]
        place = tmp_path_factory.mktemp("faulty")
        files = [
            classifiers.write(program, kind, place / f"{number}-{kind}")
            for number, program in enumerate(programs)
            for kind in FORMATS
        ]
        rows = _compare(subject.reference, *files).artifacts
        for number, fault in enumerate(faults):
            found[name, fault] = rows[number * len(FORMATS) :][: len(FORMATS)]
    return found


@pytest.mark.parametrize("made", FOUND, ids=" ".join)
def test_a_fault_is_found_in_every_format_and_its_place_named(
    judged: dict[tuple[str, str], tuple[ArtifactReport, ...]], made: tuple[str, str]
) -> None:
    """The first value that both files name and that differs is where the fault was made.

    Faults of the head show in the outputs alone, and an output that is missing differs nowhere.
    """
    kind, taps = FOUND[made]
    assert [each.format for each in judged[made]] == list(FORMATS)
    for each, tap in zip(judged[made], taps, strict=True):
        assert each.parity.verdict == "fail"
        assert kind in {finding.kind for finding in each.parity.findings}
        assert (None if each.drift is None else each.drift.tap) == tap


def test_without_float64_nothing_is_decided(subjects: dict[str, Subject]) -> None:
    """OpenVINO has no run in float64: the verdict has figures, and a given tolerance decides."""
    files = subjects["resnet"].files
    report = _compare(files["openvino"], files["onnx"])
    (artifact,) = report.artifacts
    assert (report.verdict, _kinds(report)) == ("inconclusive", [{"no-tolerance"}])
    assert "resnet.xml cannot be run in float64" in artifact.parity.reason
    assert artifact.parity.max_rel is not None
    assert 0 < artifact.parity.max_rel < 1
    given = _compare(files["openvino"], files["onnx"], overrides=Overrides(rtol=1e-3))
    assert given.verdict == "pass"


def test_a_fault_is_located_between_two_files_of_openvino(
    subjects: dict[str, Subject], tmp_path: Path
) -> None:
    """With a given tolerance any format may be the reference, by the names of its own values."""
    subject = subjects["resnet"]
    program = classifiers.captured(classifiers.faulty(subject.network, "swapped channels"))
    faulty = classifiers.write(program, "openvino", tmp_path / "faulty")
    images = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)
    np.savez(tmp_path / "images.npz", pixel_values=images)
    report = _compare(
        subject.files["openvino"],
        faulty,
        inputs=tmp_path / "images.npz",
        overrides=Overrides(rtol=1e-4),
    )
    (artifact,) = report.artifacts
    assert artifact.drift is not None
    assert artifact.drift.tap.startswith("_native_batch_norm_legit_no_training/")


def test_without_a_tolerance_a_missing_output_still_fails(
    subjects: dict[str, Subject], tmp_path: Path
) -> None:
    """What no tolerance could mend needs none to be found."""
    subject = subjects["resnet"]
    program = classifiers.captured(classifiers.faulty(subject.network, "missing output"))
    lost = classifiers.write(program, "onnx", tmp_path / "lost")
    report = _compare(subject.files["openvino"], lost)
    assert report.verdict == "fail"
    assert "missing-output" in _kinds(report)[0]


# --- inputs -----------------------------------------------------------------------------------


def test_an_image_is_given_the_numbers_that_a_tensor_is_given(
    subjects: dict[str, Subject], tmp_path: Path
) -> None:
    """A package of images and a program of tensors agree on pixels from 0 to 255."""
    subject, ct = subjects["resnet"], packages.coremltools()
    with quiet("coremltools"):
        package = ct.convert(
            classifiers.captured(subject.network).run_decompositions({}),
            inputs=[ct.ImageType(name="pixel_values", shape=(1, 3, 32, 32))],
            compute_precision=ct.precision.FLOAT32,
            minimum_deployment_target=ct.target.iOS16,
        )
        package.save(str(tmp_path / "image.mlpackage"))
    report = _compare(subject.reference, tmp_path / "image.mlpackage")
    (artifact,) = report.artifacts
    assert artifact.parity.verdict == "pass"
    assert any("pixels 0 to 255" in note for note in artifact.notes)


def _onnx(path: Path, shapes: Mapping[str, tuple[object, ...]], kind: int = 1) -> Path:
    """A sum of the inputs, each times itself."""
    helper = onnx.helper
    squares = [helper.make_node("Mul", [name, name], [f"{name}_squared"]) for name in shapes]
    total = helper.make_node("Sum", [f"{name}_squared" for name in shapes], ["total"])
    taken = [helper.make_tensor_value_info(n, kind, list(s)) for n, s in shapes.items()]
    given = helper.make_tensor_value_info("total", kind, list(next(iter(shapes.values()))))
    graph = helper.make_graph([*squares, total], "sum", taken, [given])
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), path)
    return path


def test_several_inputs_and_an_open_batch(tmp_path: Path) -> None:
    """Each input has its array, and batches of several sizes are run."""
    shapes: dict[str, tuple[object, ...]] = {"a": ("n", 4), "b": ("n", 4)}
    one, other = (_onnx(tmp_path / f"{name}.onnx", shapes) for name in ("one", "other"))
    assert _compare(one, other).verdict == "pass"


def test_inputs_of_a_file_are_given_to_both(tmp_path: Path) -> None:
    """Samples are called after the file that they come from."""
    one = _onnx(tmp_path / "one.onnx", {"a": ("n", 4)})
    np.savez(tmp_path / "mine.npz", a=np.arange(12, dtype=np.float32).reshape(3, 4))
    report = _compare(one, one, inputs=tmp_path / "mine.npz")
    (output,) = report.artifacts[0].parity.outputs
    assert output.rows == ("mine-0", "mine-1", "mine-2")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"b": np.ones((2, 4), np.float32)}, "holds ['b'], the reference takes ['a']"),
        ({"a": np.ones((2, 5), np.float32)}, "has shape (2, 5), the reference takes (any, 4)"),
        ({"a": np.full((2, 4), np.nan, np.float32)}, "not all finite numbers"),
        ({"a": np.full((2, 4), 1 / 3)}, "float32, which cannot hold the numbers given"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(
    tmp_path: Path, arrays: dict[str, np.ndarray], message: str
) -> None:
    """The message has the name, and what was found in place of what is needed."""
    one = _onnx(tmp_path / "one.onnx", {"a": ("n", 4)})
    np.savez(tmp_path / "mine.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(DataError) as caught:
        _compare(one, one, inputs=tmp_path / "mine.npz")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"a": (1, 8, 8, 3)}, "They are in other layouts"),
        ({"a": (1, 3, 9, 9)}, "takes 'a' as float32 (1, 3, 9, 9)"),
        ({"a": (1, 3, 8, 8), "b": (1, 3, 8, 8)}, "takes 2 inputs (a, b), the reference 1 (a)"),
    ],
)
def test_files_that_take_other_inputs_are_refused(
    tmp_path: Path, shapes: dict[str, tuple[object, ...]], message: str
) -> None:
    """Nothing is transposed or cut on a guess."""
    reference = _onnx(tmp_path / "reference.onnx", {"a": (1, 3, 8, 8)})
    with pytest.raises(UsageError) as caught:
        _compare(reference, _onnx(tmp_path / "candidate.onnx", shapes))
    assert message in str(caught.value)


def test_whole_numbers_and_open_sizes_are_not_guessed(tmp_path: Path) -> None:
    """Which indices or sizes make sense only the user knows."""
    indices = _onnx(tmp_path / "indices.onnx", {"a": ("n", 4)}, kind=7)
    sizes = _onnx(tmp_path / "sizes.onnx", {"a": ("n", "width")})
    with pytest.raises(UsageError, match="which whole numbers make sense"):
        _compare(indices, indices)
    with pytest.raises(UsageError, match="no file says which size to take"):
        _compare(sizes, sizes)


def test_a_file_that_is_no_program_is_refused(tmp_path: Path) -> None:
    """A checkpoint of tensors holds no network to be run."""
    one = _onnx(tmp_path / "one.onnx", {"a": ("n", 4)})
    torch.save({"weight": torch.ones(2)}, tmp_path / "weights.pt")
    (tmp_path / "text.pt2").write_text("not a program", "utf-8")
    for name in ("weights.pt", "text.pt2"):
        with pytest.raises(ArtifactError, match="cannot be read as a"):
            _compare(tmp_path / name, one)


def test_an_output_that_fits_none_is_named() -> None:
    """Of two outputs under other names the one whose shape agrees is compared, the other named."""
    ours = {"a": np.zeros((1, 2)), "b": np.zeros((1, 3))}
    theirs = {"x": np.ones((1, 5)), "y": np.ones((1, 3))}
    named, notes = _named_as(ours, theirs, frozenset())
    assert named == {"b": theirs["y"]}
    assert notes == [
        "its output 'y' is held against 'b', by position",
        "gives x as well, which nothing is held against",
    ]
