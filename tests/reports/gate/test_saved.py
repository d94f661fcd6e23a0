"""Reports read back from JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gate_reports import artifact, output, parity_of, report_of, timed, unrun, write

from levit_export.checks import timing
from levit_export.checks.results import Accuracy
from levit_export.core.errors import DataError
from levit_export.reports import report


def test_a_report_comes_back(tmp_path: Path) -> None:
    """What is read gives the very JSON that was written, NaN and what was not run included."""
    timing_ = replace(timed(np.array([0.25, 0.5]), efficiency=0.5), peak_bytes=7, load_s=0.5)
    broken = replace(
        output(), worst_ratio=math.inf, max_abs=math.nan, errors=(), scales=(), spreads=(), rows=()
    )
    saved = report_of(
        replace(artifact(timing=timing_), accuracy=Accuracy("d", 4, 3, 3, 1.0), notes=("n",)),
        replace(artifact("openvino"), parity=parity_of(broken)),
        replace(unrun(artifact("coreml")), timing=timing.not_timed("no Mac")),
        eager=timed(np.array([0.5, 1.0])),
    )
    found = report.read_report(write(saved, tmp_path / "report.json"))
    assert report.to_json(found) == report.to_json(saved)
    assert found.artifacts[0] == saved.artifacts[0]
    assert found.model is not None
    assert found.model.preprocessing == saved.model.preprocessing if saved.model else False


Edit = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda r: r.update(schema=2), "schema 2"),
        (lambda r: r.update(schema=True), "schema True"),
        (lambda r: r.pop("schema"), "schema None"),
        (lambda r: r.update(artifacts=[]), "no artifact"),
        (lambda r: r.pop("artifacts"), "artifacts"),
        (lambda r: r["artifacts"][0].update(bytes="many"), "bytes"),
        (lambda r: r["artifacts"][0]["parity"].update(verdict="maybe"), "verdict"),
        (lambda r: r["artifacts"][0]["parity"]["outputs"][0].update(errors=[1.0]), "1 errors"),
        (
            lambda r: r["artifacts"][0]["parity"]["outputs"][0]["scales"].__setitem__(0, -1),
            "below",
        ),
        (
            lambda r: r["artifacts"][0]["parity"]["outputs"][0]["errors"].__setitem__(0, None),
            "below",
        ),
        (lambda r: r["artifacts"][0]["timing"].update(seconds=[]), "no latencies"),
        (lambda r: r["artifacts"][0]["timing"].update(seconds=[0.0]), "no latencies"),
        (lambda r: r["artifacts"][0]["timing"].update(efficiency=-1), "efficiency"),
        (lambda r: r["artifacts"][0]["timing"].update(verdict="quick"), "quick"),
        (lambda r: r["artifacts"][0]["timing"].update(load_ms=10**400), "schema 1"),
        (lambda r: r.update(baselines={"PyTorch eager": 3}), "baselines"),
    ],
)
def test_a_report_that_is_none_of_ours(tmp_path: Path, edit: Edit, words: str) -> None:
    """A report of another schema, or one that contradicts itself, is refused and named."""
    timing_ = timed(np.full(10, 0.25), efficiency=0.5)
    path = write(report_of(artifact(timing=timing_)), tmp_path / "report.json")
    content = json.loads(path.read_text("utf-8"))
    edit(content)
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(DataError, match=words) as caught:
        report.read_report(path)
    assert str(path) in caught.value.what
    assert caught.value.exit_status == 2


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "[" * 100_000])
def test_a_file_that_is_no_report(tmp_path: Path, text: str) -> None:
    """A file without a report in it is refused and named."""
    path = tmp_path / "report.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"report\.json"):
        report.read_report(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    """A missing file and a folder are bad input, not a crash."""
    for path in (tmp_path / "nowhere.json", tmp_path):
        with pytest.raises(DataError, match="cannot be read"):
            report.read_report(path)
