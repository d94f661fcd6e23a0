"""``levit-export check``: what files and directories say of themselves decides nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import fooling
import mutate
import pytest
import subjects
from mutations import edit_specification, main_block
from support import Cli, Exported

from levit_export.core.values import Artifact, Embedded, ExportOptions
from levit_export.models import checkpoints
from levit_export.models.preparation import prepare
from levit_export.storage import device_bundle

MODEL = ("--model", "levit_digits", "--no-drift")
FILE = "onnx-fp32/levit_digits.onnx"


@cache
def foreign() -> Artifact:
    """The bundled model with its BatchNorms, in a file that says nothing: do not change it."""
    model = prepare(checkpoints.bundled(), skip=("fuse_batchnorm", "merge_heads"))
    made = subjects.export(model, subjects.folder() / "foreign", "onnx", ExportOptions())
    fooling.say(made, dict.clear)
    return made


def with_an_unlisted_file(folder: Path) -> None:
    """Another model lies beside the one that the manifest lists."""
    shutil.copy(folder / FILE, (folder / FILE).with_name("other.onnx"))


def with_an_unlisted_folder(folder: Path) -> None:
    """A file lies in a folder where the manifest knows of none."""
    (folder / "notes").mkdir()
    (folder / "notes" / "README.txt").write_text("hello", "utf-8")


def with_mean_zero(folder: Path) -> None:
    """The manifest tells devices to subtract nothing."""
    path = folder / "manifest.json"
    content = json.loads(path.read_text("utf-8"))
    content["model"]["preprocessing"]["mean"] = [0.0, 0.0, 0.0]
    path.write_text(json.dumps(content), "utf-8")


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        (with_an_unlisted_file, 1, "other.onnx"),
        (with_an_unlisted_folder, 3, "nothing vouches for notes/README.txt"),
        (
            with_mean_zero,
            1,
            "preprocessing: the manifest differs from the checkpoint: mean",
        ),
    ],
)
def test_directories_that_say_or_hold_something_else(
    change: Callable[[Path], None], status: int, words: str, cli: Cli, copied: Path
) -> None:
    """Files that no manifest lists, and a recipe that is not the checkpoint's, are no pass."""
    change(copied)
    result = cli("check", copied, *MODEL)
    assert result.exit_code == status, result.output
    assert words in " ".join(result.stdout.split())


@pytest.mark.parametrize("name", ["extra/other.onnx", "golden/more.npy", "verify2.py"])
def test_a_stranger_that_a_bundle_lists(
    name: str, cli: Cli, exported: Exported, tmp_path: Path
) -> None:
    """That ``bundle.json`` lists a file with its right hash does not make it one of the bundle's.

    The bundle without it passes, so it is the stranger alone that is not vouched for.
    """
    path = device_bundle.write(exported.folder, tmp_path / "b.zip")
    assert cli("check", path).exit_code == 0
    stranger = (exported.folder / "golden/input.npy").read_bytes()
    entries = [*mutate.contents(path.read_bytes()), (name, stranger)]
    path.write_bytes(mutate.pack(mutate.vouched(entries)))
    result = cli("check", path)
    assert result.exit_code == 3, result.output
    assert f"nothing vouches for {name}" in " ".join(result.stdout.split())


def test_a_program_of_an_unpacked_bundle_that_was_altered(
    cli: Cli, exported: Exported, tmp_path: Path
) -> None:
    """A bundle's own files have to be as ``bundle.json`` describes them."""
    zipped = device_bundle.write(exported.folder, tmp_path / "b.zip")
    shutil.unpack_archive(zipped, tmp_path / "unpacked", "zip")
    with (tmp_path / "unpacked/verify.py").open("a", encoding="utf-8") as file:
        file.write("raise SystemExit(0)\n")
    result = cli("check", tmp_path / "unpacked")
    assert result.exit_code == 3, result.output
    assert "nothing vouches for verify.py" in " ".join(result.stdout.split())


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        ((), 0, "pass"),
        (("--precision", "fp32"), 0, "pass"),
        (("--precision", "int8"), 1, "--precision says int8, its graph is in fp32"),
        (("--require-audit",), 0, "86/86"),
    ],
)
def test_an_expected_precision(
    options: tuple[str, ...], status: int, words: str, cli: Cli, exported: Exported
) -> None:
    """A file of ours is in the precision that it is asked to be in, or fails."""
    result = cli("check", exported.folder / FILE, *MODEL, *options)
    assert result.exit_code == status, result.output
    assert words in " ".join(result.stdout.split())


@pytest.mark.parametrize(("options", "status"), [((), 0), (("--require-audit",), 3)])
def test_answers_alone_do_where_no_audit_is_required(
    options: tuple[str, ...], status: int, cli: Cli
) -> None:
    """A file of another tool passes by its answers, which is said, where that is enough."""
    result = cli("check", foreign().path, *MODEL, *options)
    assert result.exit_code == status, result.output
    (row,) = [line for line in result.stdout.splitlines() if line.startswith("onnx-fp32 ")]
    assert "pass (answers only)" in row


def test_a_classifier_with_reversed_labels(cli: Cli, tmp_path: Path) -> None:
    """Program and metadata agree with one another and not with the model: status 1."""
    artifact = subjects.copy(subjects.classifier(), tmp_path)
    key = f"{fooling.PREFIX}labels"

    def reverse(model: Any) -> None:
        said = model.description.metadata.userDefined
        names = json.loads(said[key])
        said[key] = json.dumps(names[::-1])
        (op,) = (op for op in main_block(model).operations if op.type == "classify")
        classes = op.inputs["classes"].arguments[0].value.immediateValue.list.values
        for each, name in zip(classes, names[::-1], strict=True):
            each.immediateValue.tensor.strings.values[:] = [name]

    assert cli("check", artifact.path, *MODEL).exit_code == 0
    edit_specification(artifact.path, reverse)
    result = cli("check", artifact.path, *MODEL)
    assert result.exit_code == 1, result.output
    said = " ".join(result.stdout.split())
    assert "labels: its metadata differs from the checkpoint" in said
    assert "labels: its program differs from the checkpoint" in said


@pytest.mark.parametrize(("space", "status"), [("RGB", 0), ("BGR", 1)])
def test_a_package_that_takes_its_colours_in_another_order(
    space: str, status: int, cli: Cli, tmp_path: Path
) -> None:
    """The order of colours is part of parity: nothing else of the package is wrong."""
    raw = Embedded(preprocessing=True)
    model = prepare(checkpoints.bundled(), embedded=raw)
    options = ExportOptions(precision="fp32", embedded=raw)
    made = subjects.export(model, tmp_path / "raw", "coreml", options)

    def take(specification: Any) -> None:
        image = specification.description.input[0].type.imageType
        image.colorSpace = image.ColorSpace.Value(space)
        specification.description.metadata.author = space

    edit_specification(made.path, take)
    result = cli("check", made.path, *MODEL)
    assert result.exit_code == status, result.output
