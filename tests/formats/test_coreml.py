"""The Core ML target where there is no Core ML: packages, and the evaluator that runs them."""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import subjects
from mutations import edit_specification, read_specification
from support import Cli

from levit_export.core.errors import (
    ArtifactError,
    ExportFailedError,
    PackageError,
    UnknownNameError,
    UsageError,
)
from levit_export.core.values import Artifact, ExportOptions, RunOptions
from levit_export.formats import mil
from levit_export.formats.coreml import target as coreml
from levit_export.formats.coreml.target import EVALUATOR, CoremlTarget
from levit_export.formats.metadata import PREFIX

TARGET = CoremlTarget()
RUN = RunOptions(threads=1)
DATA = "m.mlpackage/Data/com.apple.CoreML"
UNWANTED = {
    "batch_norm",
    "gather",
    "gather_along_axis",
    "gather_nd",
    "expand_dims",
    "squeeze",
    "shape",
    "concat",
}
SPECIFICATIONS = {
    "iOS15": 6,
    "iOS16": 7,
    "iOS17": 8,
    "iOS18": 9,
    "iOS26": 10,
    "macOS12": 6,
    "macOS13": 7,
    "macOS14": 8,
    "macOS15": 9,
    "macOS26": 10,
}


@pytest.fixture(scope="module", autouse=True)
def _no_core_ml() -> Iterator[None]:
    """Let these tests be about the evaluator on a Mac too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coreml, "on_macos", lambda: False)
        yield


@pytest.fixture(scope="session")
def half() -> Artifact:
    """The bundled model in the format's own precision; do not change its files."""
    return subjects.artifact("coreml", "fp16")


@pytest.fixture(params=["fp16", "fp32"])
def either(request: pytest.FixtureRequest) -> Artifact:
    """The bundled model in each precision; do not change its files."""
    return subjects.artifact("coreml", request.param)


@pytest.fixture
def copied(half: Artifact, tmp_path: Path) -> Artifact:
    """A copy of the bundled model's package that a test may damage."""
    return subjects.copy(half, tmp_path)


def image(batch: int = 1) -> dict[str, np.ndarray]:
    """Seeded inputs of the bundled model's size."""
    drawn = np.random.default_rng(0).standard_normal((batch, 3, 96, 96))
    return {"input": drawn.astype(np.float32)}


def count_of(package: Path) -> Counter[str]:
    """How many ops of each type a package has."""
    return mil.load(package).op_types


# --- what is in the package -----------------------------------------------------------------


def test_no_needless_ops(either: Artifact) -> None:
    """No BatchNorm, no gather and no arithmetic with shapes is left in the program."""
    count = count_of(either.path)
    assert not UNWANTED & set(count)
    assert (count["conv"], count["softmax"]) == (4, 8)
    assert count["cast"] == (2 if either.precision == "fp16" else 0)


def test_ops_are_in_the_report(half: Artifact) -> None:
    """A note says how many ops of which types there are."""
    count = Counter({kind: n for kind, n in count_of(half.path).items() if kind != "const"})
    (note,) = half.notes
    assert note.startswith(f"{count.total()} ops: {count['add']} add, 2 cast, 4 conv, ")


def test_precisions(either: Artifact) -> None:
    """Half precision is the default; each precision is that of the weights in the file."""
    assert TARGET.precisions == ("fp16", "fp32", "int8", "w8", "w6", "w4")
    held = {"fp16": "float16", "fp32": "float32"}[either.precision]
    program = mil.load(either.path)
    tap = next(name for name in program.value_names if "softmax" in name)
    assert program.run(image(), taps=[tap])[tap].dtype == held
    numbers = sum(t.numel() for t in subjects.digits().program.state_dict.values())
    size = (either.path / "Data/com.apple.CoreML/weights/weight.bin").stat().st_size
    assert size / numbers == pytest.approx({"fp16": 2, "fp32": 4}[either.precision], rel=0.05)


def test_signature(either: Artifact) -> None:
    """The input is called input, the output logits, both float32 whatever is inside."""
    found = TARGET.inspect(either.path)
    assert found.signature == either.signature == subjects.digits().signature
    assert (found.precision, found.format) == (either.precision, "coreml")
    description = read_specification(either.path).description
    assert [f.name for f in (*description.input, *description.output)] == ["input", "logits"]


def test_metadata(half: Artifact) -> None:
    """The package says what Xcode shows, and how to feed it."""
    description = read_specification(half.path).description
    info = subjects.digits().info
    shown = description.metadata
    assert shown.author == "levit-export"
    assert shown.license == info.licence == "Apache-2.0"
    assert shown.versionString == info.checkpoint_sha256[:12]
    assert shown.shortDescription == "levit_digits: image classifier, 10 classes"
    assert description.input[0].shortDescription == info.preprocessing.in_words()
    assert "Logits" in description.output[0].shortDescription


def test_contents(either: Artifact) -> None:
    """A package is a manifest, a specification and a weight file."""
    assert set(subjects.contents(either)) == {
        "m.mlpackage/Manifest.json",
        f"{DATA}/model.mlmodel",
        f"{DATA}/weights/weight.bin",
    }
    assert sorted(p.name for p in either.path.parent.iterdir()) == ["m.mlpackage"]


def test_same_bytes_after_other_programs(half: Artifact, tmp_path: Path) -> None:
    """What else was built in the process does not show in the names of the package."""
    from coremltools.converters.mil import Builder

    for kind in ("const", "transpose", "x_perm"):
        Builder.name_count[kind] += 43
    options = ExportOptions(precision="fp16")
    again = subjects.export(subjects.digits(), tmp_path / "again", "coreml", options)
    assert subjects.contents(again) == subjects.contents(half)


def test_what_is_not_printed_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """What a converter says goes to the log, also when it fails then."""

    def refuse(model: object, options: object) -> None:
        del model, options
        print("op 7 of 9")  # noqa: T201 - as converters do
        logging.getLogger("coremltools").warning("version not tested")
        raise RuntimeError("no such op\nat line 1")

    monkeypatch.setattr(coreml, "_convert", refuse)
    with (
        caplog.at_level(logging.DEBUG, "levit_export"),
        pytest.raises(ExportFailedError, match="levit_digits: no such op") as raised,
    ):
        TARGET.export(subjects.digits(), tmp_path / "m.mlpackage", ExportOptions())
    assert "line 1" not in raised.value.what
    assert raised.value.remedy
    assert {"op 7 of 9", "version not tested"} <= {r.getMessage() for r in caplog.records}


# --- what the evaluator says ----------------------------------------------------------------


def test_single_precision_is_close() -> None:
    """In float32 the package lies within 1e-5 of the reference, relative to its largest logit."""
    report = subjects.judge(subjects.artifact("coreml", "fp32"), subjects.digits_reference())
    assert (report.verdict, report.reason, report.runtime) == ("pass", "", EVALUATOR)
    assert 0 < report.outputs[0].max_rel <= 1e-5


def test_half_precision_is_within_its_tolerance() -> None:
    """In float16 the package is within the tolerance derived for float16, beyond float32's."""
    expected = subjects.digits_reference()
    report = subjects.judge(subjects.artifact("coreml", "fp16"), expected)
    assert (report.verdict, report.reason) == ("pass", "")
    assert report.outputs[0].tolerance == expected.tolerances["fp16"]["logits"]
    assert report.outputs[0].worst_ratio <= 1
    assert report.outputs[0].max_rel > max(expected.tolerances["fp32"]["logits"].rtol)


@pytest.mark.parametrize("name", SPECIFICATIONS)
def test_deployment_targets(name: str, tmp_path: Path) -> None:
    """Each system that may be asked for gives its version of the format, which passes."""
    options = ExportOptions(precision="fp16", deployment_target=name)
    TARGET.refuse(options)
    made = subjects.export(subjects.tiny(), tmp_path / "tiny", "coreml", options)
    version = read_specification(made.path).specificationVersion
    assert version == SPECIFICATIONS[name]
    report = subjects.judge(made, subjects.tiny_reference())
    assert (report.verdict, report.reason) == ("pass", "")
    assert not UNWANTED & set(count_of(made.path))


@pytest.mark.parametrize(("asked", "near"), [("ios17", "iOS17"), ("macOs14", "macOS14")])
def test_unknown_deployment_targets(asked: str, near: str, cli: Cli) -> None:
    """Other systems are refused with the nearest that is known: status 2."""
    with pytest.raises(UnknownNameError, match=asked):
        TARGET.refuse(ExportOptions(deployment_target=asked))
    result = cli("export", "--format", "coreml", "--deployment-target", asked)
    assert result.exit_code == 2
    assert f"Did you mean '{near}'?" in result.stderr
    assert all(name in result.stderr for name in SPECIFICATIONS)


def test_several_images_at_a_time(tmp_path: Path) -> None:
    """A package of another fixed batch has that batch and passes."""
    made = subjects.export(
        subjects.digits(3), tmp_path / "three", "coreml", ExportOptions(precision="fp32", batch=3)
    )
    assert TARGET.inspect(made.path).signature.batch == 3
    report = subjects.judge(made, subjects.digits_reference())
    assert (report.verdict, report.reason) == ("pass", "")


# --- compute units and timing ---------------------------------------------------------------


@pytest.mark.parametrize("units", ["all", "cpu_and_ne", "cpu_only,cpu_and_gpu"])
def test_compute_units_need_macos(units: str, cli: Cli) -> None:
    """Where there is no Core ML its compute units are refused: status 2."""
    result = cli("export", "--format", "coreml", "--compute-units", units)
    assert result.exit_code == 2
    assert f"--compute-units {units} needs macOS" in result.stderr


def test_unknown_compute_units(cli: Cli) -> None:
    """Compute units that do not exist are refused with those that do: status 2."""
    result = cli("export", "--format", "coreml", "--compute-units", "nonsense")
    assert result.exit_code == 2
    assert "'nonsense'" in result.stderr
    assert "Known: all, cpu_and_gpu, cpu_and_ne, cpu_only." in result.stderr


# --- classifiers ----------------------------------------------------------------------------


def test_classifier(cli: Cli) -> None:
    """A classifier gives the label and probabilities that sum to 1, and passes: status 0."""
    made = subjects.classifier()
    description = read_specification(made.path).description
    assert description.predictedFeatureName
    answer = mil.load(made.path).run(image())
    (label,) = (value for value in answer.values() if isinstance(value, str))
    (shares,) = (value for value in answer.values() if isinstance(value, dict))
    assert list(shares) == [str(digit) for digit in range(10)]
    assert label == max(shares, key=lambda key: shares[key])
    with TARGET.open(made, RUN) as session:
        (row,) = session.run(image())["probabilities"]
        assert session.signature == made.signature == TARGET.inspect(made.path).signature
    assert row.tolist() == [np.float32(share) for share in shares.values()]
    # Ten numbers, each rounded to float16 once.
    assert row.astype(np.float64).sum() == pytest.approx(1, abs=10 * 2.0**-11)
    result = cli("check", made.path, "--model", "levit_digits")
    assert result.exit_code == 0, result.output


def test_classifier_metadata() -> None:
    """Xcode is told to show a classifier's preview, and not of a model that gives logits."""
    key = "com.apple.coreml.model.preview.type"
    said = read_specification(subjects.classifier().path).description.metadata.userDefined
    assert said[key] == "imageClassifier"
    plain = read_specification(subjects.artifact("coreml", "fp16").path)
    assert key not in plain.description.metadata.userDefined


def test_classifier_with_repeated_labels(tmp_path: Path) -> None:
    """A classifier whose labels repeat is refused before anything is written."""
    model = subjects.digits()
    labels = ("one", "one", "two", "two", "two", *"56789")
    doubled = replace(model, info=replace(model.info, labels=labels))
    options = ExportOptions(precision="fp16", classifier=True)
    with pytest.raises(UsageError, match="3 are repeated") as raised:
        TARGET.export(doubled, tmp_path / "m.mlpackage", options)
    assert "--labels" in raised.value.remedy
    assert list(tmp_path.iterdir()) == []


def test_classifier_of_several_images(cli: Cli) -> None:
    """A classifier of several images is refused: status 2."""
    result = cli("export", "--format", "coreml", "--classifier", "--batch", 2)
    assert result.exit_code == 2
    assert "one image at a time, not 2" in result.stderr


# --- damage ---------------------------------------------------------------------------------


def as_file(package: Path) -> None:
    """Put a file in the place of a package."""
    shutil.rmtree(package)
    package.write_bytes(b"PK\x03\x04")


def emptied(package: Path) -> None:
    """Leave an empty folder of a package."""
    shutil.rmtree(package)
    package.mkdir()


def cut(file: Path) -> None:
    """Cut a file in half."""
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a file": (as_file, "is not an .mlpackage: it is a file"),
    "an empty folder": (emptied, "Manifest.json cannot be read"),
    "no weights": (
        lambda p: (p / "Data/com.apple.CoreML/weights/weight.bin").unlink(),
        "weight.bin cannot be read",
    ),
    "half the weights": (
        lambda p: cut(p / "Data/com.apple.CoreML/weights/weight.bin"),
        "weight.bin",
    ),
    "half the specification": (
        lambda p: cut(p / "Data/com.apple.CoreML/model.mlmodel"),
        "is damaged",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_packages(copied: Artifact, damage: str, cli: Cli) -> None:
    """What is no whole package is an ArtifactError with path and remedy: status 2."""
    harm, what = DAMAGE[damage]
    harm(copied.path)
    with pytest.raises(PackageError) as raised, TARGET.open(copied, RUN):
        pytest.fail("a damaged package was opened")
    assert str(copied.path) in raised.value.what
    assert what in raised.value.what
    assert raised.value.remedy
    result = cli("check", copied.path, "--model", "levit_digits")
    assert result.exit_code == 2
    assert what in result.stderr
    assert raised.value.remedy in result.stderr


@pytest.mark.parametrize(("key", "value"), [("labels", "one, two"), ("labels", '{"a": 1}')])
def test_damaged_metadata(copied: Artifact, key: str, value: str, cli: Cli) -> None:
    """A package that says of itself what cannot be is refused with what it says: status 2."""

    def lie(model: object) -> None:
        model.description.metadata.userDefined[PREFIX + key] = value  # type: ignore[attr-defined]

    edit_specification(copied.path, lie)
    result = cli("check", copied.path, "--model", "levit_digits")
    assert result.exit_code == 2
    assert repr(value) in result.stderr
    with pytest.raises(ArtifactError) as raised:
        _inspect_and_open(copied)
    assert raised.value.remedy


def _inspect_and_open(artifact: Artifact) -> None:
    TARGET.inspect(artifact.path)
    with TARGET.open(artifact, RUN):
        pytest.fail("a lie was believed")
