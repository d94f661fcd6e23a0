"""``--precision auto``: what it measures and takes, on scales and on real files; overflows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import subjects
from safetensors.torch import save_file
from support import Cli

from levit_export.core.errors import UnknownNameError
from levit_export.core.values import Calibration
from levit_export.reports.report import Candidate, SearchPoint, SearchResult
from levit_export.workflows import precision_search
from levit_export.workflows.precision_search import find, order


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

    point = SearchPoint(Candidate("int8", ("head",)), 0.25, 10)
    assert json.loads(json.dumps(asdict(SearchResult(point, (point,)))))["chosen"]["drop"] == 0.25


BLOCKS = tuple(f"block{index}" for index in range(8))
RANKED = {"int8": BLOCKS, "w4": BLOCKS}


class Scale:
    """Measures as a network would whose blocks each lose as much as they are told to."""

    def __init__(self, losses: dict[str, list[float]]) -> None:
        self.losses = losses
        self.asked: list[Candidate] = []

    def __call__(self, candidate: Candidate) -> SearchPoint:
        self.asked.append(candidate)
        losses = self.losses.get(candidate.precision, [0.0] * len(BLOCKS))
        left = [
            loss for name, loss in zip(BLOCKS, losses, strict=True) if name not in candidate.keep
        ]
        size = {"w4": 40, "int8": 50, "fp16": 60, "fp32": 100}[candidate.precision]
        return SearchPoint(candidate, sum(left), size + 5 * len(candidate.keep))


def test_the_cheapest_that_keeps_the_promise() -> None:
    """A precision that loses nothing is taken whole, and nothing else is measured."""
    scale = Scale({})
    found = find(("int8", "fp32"), RANKED, scale, max_drop=0.5)
    assert found.chosen.candidate == Candidate("int8")
    assert scale.asked == [Candidate("int8")]


@pytest.mark.parametrize("needed", [1, 2, 3, 4])
def test_the_fewest_sensitive_blocks_stay_in_float(needed: int) -> None:
    """As many of the most sensitive blocks are left out as it takes, and not one more."""
    scale = Scale({"int8": [1.0] * needed + [0.0] * (8 - needed)})
    found = find(("int8", "fp32"), RANKED, scale, max_drop=0.5)
    assert found.chosen.candidate == Candidate("int8", BLOCKS[:needed])
    assert found.chosen.drop == 0


def test_too_many_blocks_is_the_next_precision() -> None:
    """Where more than half of the blocks would stay in float, the next precision is taken."""
    found = find(("int8", "fp32"), RANKED, Scale({"int8": [1.0] * 5 + [0.0] * 3}), max_drop=0.5)
    assert found.chosen.candidate == Candidate("fp32")


def test_forced_blocks_stay_in_float_first() -> None:
    """A block that leaves the range of float16 is kept, whatever its sensitivity."""
    forced = {"int8": ("block7",)}
    scale = Scale({"int8": [1.0] + [0.0] * 7})
    found = find(("int8", "fp32"), RANKED, scale, max_drop=0.5, forced=forced)
    assert found.chosen.candidate == Candidate("int8", ("block7", "block0"))


def test_size_takes_the_smallest_of_all_that_keep_the_promise() -> None:
    """By size, a coarser precision with many blocks in float may lose to a finer one."""
    scale = Scale({"w4": [1.0] * 4 + [0.0] * 4})
    found = find(("w4", "int8", "fp32"), RANKED, scale, max_drop=0.5, prefer="size")
    assert found.chosen.candidate == Candidate("int8")
    assert {point.candidate.precision for point in found.points} == {"w4", "int8", "fp32"}


def test_nothing_keeps_the_promise() -> None:
    """Where even the network itself loses more, it is what is taken, and its loss is shown."""
    scale = Scale({"int8": [9.0] * 8, "fp32": [1.0] * 8})
    found = find(("int8", "fp32"), {"int8": BLOCKS}, scale, max_drop=0.5)
    assert found.chosen.candidate == Candidate("fp32")
    assert found.chosen.drop == 8


def test_no_candidate_is_measured_twice() -> None:
    """Exports are expensive; each candidate is measured once."""
    scale = Scale({"int8": [1.0] * 3 + [0.0] * 5})
    find(("int8", "fp32"), RANKED, scale, max_drop=0.5)
    assert len(scale.asked) == len(set(scale.asked))


def test_unknown_format() -> None:
    """A format of another package has no table of precisions."""
    with pytest.raises(UnknownNameError, match="'tflite'"):
        order("tflite", "size")
