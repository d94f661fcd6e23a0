"""``--precision auto`` on real files, and blocks whose values leave float16."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import subjects
from safetensors.torch import save_file
from support import Cli

from levit_export.core.values import Calibration
from levit_export.reports.report import SearchResult
from levit_export.workflows import precision_search


def report_of(folder: Path) -> Any:
    """What was found out about an export."""
    return json.loads((folder / "report.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with a block beyond float16, and images without labels."""
    folder = tmp_path_factory.mktemp("swollen")
    tensors = {name: t.contiguous() for name, t in subjects.swollen(1e6).tensors.items()}
    save_file(tensors, folder / "swollen.safetensors")
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (24, 64, 64, 3), dtype=np.uint8)
    np.savez(folder / "images.npz", images=images)
    return folder


def test_overflow_is_named(cli: Cli, files: Path, tmp_path: Path) -> None:
    """A Core ML export that overflows fails, and says which block, how far and what to do."""
    out = tmp_path / "out"
    given = ("--checkpoint", files / "swollen.safetensors", "--format", "coreml", "--no-bench")
    result = cli(*given, "-o", out)
    assert result.exit_code == 1, result.output
    (row,) = report_of(tmp_path / "out.failed")["artifacts"]
    reason = row["parity"]["reason"]
    assert f"{subjects.SWOLLEN} reaches" in reason
    assert "float16 ends at 65504" in reason
    assert f"--keep {subjects.SWOLLEN}" in reason


def test_auto_leaves_the_overflowing_block_in_float(cli: Cli, files: Path, tmp_path: Path) -> None:
    """The search keeps that block in float32, the export passes, and its recipe repeats it."""
    out = tmp_path / "out"
    given = ("--checkpoint", files / "swollen.safetensors", "--no-bench")
    asked = ("--precision", "coreml=auto", "--data", files / "images.npz", "--max-drop", 10)
    result = cli(*given, "--format", "coreml", *asked, "-o", out)
    assert result.exit_code == 0, result.output
    (search,) = report_of(out)["searches"].values()
    chosen = search["chosen"]["candidate"]
    assert subjects.SWOLLEN in chosen["keep"]
    assert subjects.SWOLLEN in result.stdout
    (entry,) = json.loads((out / "manifest.json").read_text("utf-8"))["artifacts"]
    assert entry["keep"] == chosen["keep"]
    again = tmp_path / "again"
    data = ("--data", files / "images.npz")
    assert cli(*given, "--recipe", out, *data, "-o", again).exit_code == 0
    package = Path(entry["path"])
    for file in (out / package).rglob("*"):
        if file.is_file():
            assert (again / package / file.relative_to(out / package)).read_bytes() == (
                file.read_bytes()
            )


def test_auto_needs_images(cli: Cli, files: Path) -> None:
    """Without images there is no accuracy to keep: status 2, before anything is loaded."""
    result = cli("--checkpoint", files / "swollen.safetensors", "--precision", "auto")
    assert result.exit_code == 2
    assert "Give --data DIR" in result.stderr


@pytest.mark.parametrize(
    ("labels", "answers", "expected"),
    [
        (None, [0, 1, 1, 1], 25.0),
        ([0, 1, 0, 1], [0, 1, 1, 1], 25.0),
        ([0, 1, 1, 1], [0, 1, 1, 1], -25.0),
        ([-1, 1, -1, 1], [0, 1, 1, 1], 0.0),
        ([-1, -1, -1, -1], [1, 1, 0, 1], 25.0),
    ],
)
def test_points_lost(labels: list[int] | None, answers: list[int], expected: float) -> None:
    """Top-1 below the reference where images are labelled, else answers that are not its own."""
    images = Calibration(
        np.zeros((4, 3, 1, 1), np.float32), "x", None if labels is None else np.array(labels)
    )
    reference = np.eye(2)[[0, 1, 0, 1]]
    assert precision_search.drop(images, reference, np.eye(2)[answers]) == expected


def test_nan_is_no_answer() -> None:
    """An artifact that answers NaN agrees with nothing."""
    images = Calibration(np.zeros((2, 3, 1, 1), np.float32), "x")
    reference = np.eye(2)
    assert precision_search.drop(images, reference, np.full((2, 2), np.nan)) == 100.0


def test_found_is_plain_data() -> None:
    """What a search saw can be written down."""
    from dataclasses import asdict

    from levit_export.reports.report import Candidate, SearchPoint

    point = SearchPoint(Candidate("int8", ("head",)), 0.25, 10)
    assert json.loads(json.dumps(asdict(SearchResult(point, (point,)))))["chosen"]["drop"] == 0.25
