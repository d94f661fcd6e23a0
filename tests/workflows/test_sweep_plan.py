"""The file of a sweep: the cells that it means, and mistakes named by file and key."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from levit_export.core.errors import LevitExportError, UnknownNameError, UsageError
from levit_export.models.loading import ModelChoice
from levit_export.workflows.sweep import cell as cell_module
from levit_export.workflows.sweep.cell import Cell, Images, Settings
from levit_export.workflows.sweep.plan import Plan, read

DIGITS = '[[models]]\nmodel = "levit_digits"\n'


def plan(folder: Path, text: str, **options: object) -> Plan:
    """What a file with this text spells out."""
    (folder / "s.toml").write_text(text)
    return read(folder / "s.toml", **options)  # type: ignore[arg-type]


def names(found: Plan) -> list[str]:
    """Labels and artifacts, in order."""
    return [f"{cell.label} {cell.id}" for cell in found.cells]


def test_least_file(tmp_path: Path) -> None:
    """A model alone is every format in its default precision, beside the file."""
    found = plan(tmp_path, DIGITS)
    assert names(found) == [
        "levit_digits onnx-fp32",
        "levit_digits openvino-fp32",
        "levit_digits coreml-fp16",
    ]
    assert found.output == tmp_path / "s-sweep"
    assert found.cells[0].settings == Settings()
    assert found.cells[0].data is None


def test_products(tmp_path: Path) -> None:
    """Precisions go with each format that has them, what has none is said, models may differ."""
    found = plan(
        tmp_path,
        'formats = ["ort", "coreml"]\nprecisions = ["fp16", "w4", "int8"]\n'
        'data = "digits"\ncalibration = "digits"\nmax-drop = 1\nbatch = "dynamic"\nlimit = 9\n'
        + DIGITS
        + '[[models]]\nname = "b"\nmodel = "levit_128s"\nrandom-weights = 3\n'
        'precisions = {onnx = ["fp32"]}\nformats = ["onnx"]\nlabels = ["x", "y"]\n',
    )
    assert names(found) == [
        "levit_digits onnx-fp16",
        "levit_digits onnx-int8",
        "levit_digits coreml-fp16",
        "levit_digits coreml-w4",
        "levit_digits coreml-int8",
        "b onnx-fp32",
    ]
    assert found.left_out == ("levit_digits: onnx has no w4",)
    assert found.cells[0].settings == Settings(batch=None, limit=9, max_drop=1)
    calibrated = [cell.id for cell in found.cells if cell.calibration is not None]
    assert calibrated == ["onnx-int8", "coreml-int8"]
    assert found.cells[-1].choice == ModelChoice(
        model="levit_128s", random_seed=3, labels=("x", "y")
    )


def test_timing_is_for_one_at_a_time(tmp_path: Path) -> None:
    """Latency is measured unless the caller or the file says no, and where it can be."""
    assert [cell.timed for cell in plan(tmp_path, DIGITS).cells[:2]] == [True, True]
    assert not any(cell.timed for cell in plan(tmp_path, DIGITS, timed=False).cells)
    assert not any(cell.timed for cell in plan(tmp_path, "bench = false\n" + DIGITS).cells)


def test_paths_are_relative_to_the_file(tmp_path: Path, digits_file: Path) -> None:
    """Checkpoints, images and the output lie where the file lies, whatever the current folder."""
    (tmp_path / "w.safetensors").write_bytes(digits_file.read_bytes())
    (tmp_path / "photos").mkdir()
    found = plan(
        tmp_path,
        'output = "o"\ndata = "photos"\n[[models]]\ncheckpoint = "w.safetensors"\n',
    )
    assert found.output == tmp_path / "o"
    assert found.cells[0].choice.checkpoint == tmp_path / "w.safetensors"
    assert found.cells[0].label == "w"
    assert found.cells[0].data is not None
    assert found.cells[0].data.path == str(tmp_path / "photos")


@pytest.mark.parametrize(
    ("text", "what", "remedy"),
    [
        ("", "names no model", "[[models]]"),
        ("models = []", "names no model", "[[models]]"),
        ("models = [1]", "models is [1]", "table"),
        ("precision = 1\n" + DIGITS, "unknown key of {file}: 'precision'", "'precisions'"),
        (
            DIGITS + "random_weights = 1",
            "key of {file}, model 1: 'random_weights'",
            "'random-weights'",
        ),
        ("batch = 0\n" + DIGITS, "{file}: batch is 0", '"dynamic"'),
        ("batch = true\n" + DIGITS, "batch is True", "whole number"),
        ("batch = 1000000000\n" + DIGITS, "GiB at least", "smaller --batch"),
        ("limit = 0\n" + DIGITS, "{file}: limit is 0", "from 1"),
        ('seed = "x"\n' + DIGITS, "{file}: seed is 'x'", "whole number"),
        ("max-drop = 101\n" + DIGITS, "max-drop is 101", "0 to 100"),
        ("bench = 1\n" + DIGITS, "bench is 1", "true or false"),
        ('formats = "onnx"\n' + DIGITS, "{file}: formats is 'onnx'", '["onnx"]'),
        ('formats = ["onx"]\n' + DIGITS, "{file}: unknown format 'onx'", "'onnx'"),
        ('precisions = ["fp31"]\n' + DIGITS, "precision in {file}: 'fp31'", "'fp32'"),
        ('precisions = {onx = ["fp32"]}\n' + DIGITS, "{file}: precisions: 'onx'", "'onnx'"),
        ('precisions = {onnx = ["w4"]}\n' + DIGITS, "precision of onnx in {file}: 'w4'", "w8"),
        ('data = "nowhere"\n' + DIGITS, "data {folder}/nowhere does not exist", "relative"),
        ('[[models]]\ncheckpoint = "no.pth"\n', "no.pth does not exist", "relative"),
        ("[[models]]\nimgsz = 96\n", "model 1 does not say which model", "levit_digits"),
        (DIGITS + DIGITS, "two models called 'levit_digits'", "name"),
        ("x = \n", "{file} is not TOML", "line"),
    ],
)
def test_mistakes(tmp_path: Path, text: str, what: str, remedy: str) -> None:
    """A mistake is named with the file and the key, and the remedy says what would do."""
    with pytest.raises(LevitExportError) as caught:
        plan(tmp_path, text)
    expected = what.format(file=tmp_path / "s.toml", folder=tmp_path)
    assert expected in caught.value.what
    assert remedy in caught.value.remedy
    assert isinstance(caught.value, UsageError | UnknownNameError)


def test_no_such_file(tmp_path: Path) -> None:
    """A file that is not there is bad usage."""
    with pytest.raises(UsageError, match="cannot be read"):
        read(tmp_path / "none.toml")


CELL = Cell("a", ModelChoice(), "bundled", "onnx", "fp32")
CHANGES = [
    {"weights": "other"},
    {"choice": ModelChoice(image_size=(128, 128))},
    {"format": "openvino"},
    {"precision": "fp16"},
    {"settings": Settings(opset=17)},
    {"settings": Settings(limit=3)},
    {"data": Images("digits", "digits")},
    {"calibration": Images("x", "ab")},
    {"timed": True},
]


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_whatever_matters_is_in_the_key(change: dict[str, object]) -> None:
    """Another of anything that determines the result is another key."""
    assert replace(CELL, **change).key != CELL.key  # type: ignore[arg-type]


def test_what_does_not_matter_is_not_in_the_key() -> None:
    """Names and places are not in the key, so that a moved sweep finds what it has."""
    here = replace(CELL, choice=ModelChoice(checkpoint=Path("/a/x.pth")), data=Images("/p", "d"))
    there = replace(
        CELL, label="b", choice=ModelChoice(checkpoint=Path("/b/x.pth")), data=Images("/q", "d")
    )
    assert here.key == there.key


def test_toolchain_is_in_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another version of anything that decides a result is another key."""
    before = CELL.key
    monkeypatch.setattr(cell_module, "identity", lambda: {"onnx": "9.9"})
    assert CELL.key != before


def test_contents(tmp_path: Path) -> None:
    """The digest of a folder follows its files' names and contents, not where it lies."""
    for place in ("a", "b"):
        (tmp_path / place / "c").mkdir(parents=True)
        (tmp_path / place / "c" / "1.png").write_bytes(b"x")
    one = cell_module.content_digest(tmp_path / "a")
    assert one == cell_module.content_digest(tmp_path / "b")
    cell_module.content_digest.cache_clear()
    (tmp_path / "b" / "c" / "1.png").write_bytes(b"y")
    assert one != cell_module.content_digest(tmp_path / "b")
    with pytest.raises(LevitExportError, match="cannot be read"):
        cell_module.content_digest(tmp_path / "none")
