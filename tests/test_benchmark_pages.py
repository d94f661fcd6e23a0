"""Pages are made of records, and records survive the disk."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "scripts"))

from benchmarking import cell, headline, pages, plot, processes, record, tables, tool  # noqa: E402
from benchmarking.growth import per_sample  # noqa: E402
from benchmarking.values import (  # noqa: E402
    EAGER,
    OPTIMUM,
    OURS,
    Cell,
    Circumstances,
    Command,
    EvaluatorRecord,
    GrowthRecord,
    HeadlineRecord,
    LatencyRecord,
    Point,
    Record,
    Row,
    Run,
    Stage,
    StartupRecord,
    ToolRecord,
)

from levit_export.core.machine import GEMM_SIDE, Machine  # noqa: E402
from levit_export.models.passes.proof import relative_error  # noqa: E402

HERE = Circumstances(
    date="2026-01-02",
    machine=Machine("a processor", 2, 2**30, ("avx2",), "Linux x86_64", "3.11.7"),
    packages={"torch": "2.13.0"},
    alternatives={"optimum-onnx": "0.1.0"},
    notes=("a note",),
)


def row(name: str, form: str = "", precision: str = "fp32", ms: float = 10.0) -> Row:
    """A row whose calls all took the same time."""
    return Row(name, form, precision, "runtime", 1_000_000, 0.5, (ms / 1e3,) * 5)


def gemm_seconds(rate: float) -> float:
    """Seconds of a product at that many operations a second."""
    return 2 * GEMM_SIDE**3 / rate


CELL = Cell(
    batch=16,
    threads=2,
    gemm_seconds=(gemm_seconds(1e11),) * 3,
    rows=(
        row(EAGER, ms=30),
        row(OURS, "onnx", ms=10),
        row(OURS, "onnx", "int8", ms=8),
        row(OPTIMUM["onnx"], "onnx", ms=12.5),
        Row(OPTIMUM["onnx"], "onnx", "int8", reason="not installed: no such package"),
    ),
)
LATENCY = LatencyRecord(HERE, "levit_256", macs=10**7, parameters=10**6, cells=(CELL,))
TOOL = ToolRecord(
    HERE,
    "levit_256",
    10**6,
    (
        Command(tool.ALL, (Run(10.0, 15.0, 2**30, 0), Run(12.0, 15.0, 2**20, 0))),
        Command(tool.OF_THEIRS[0], (Run(16.0, 15.0, 2**20, 0),) * 2),
        Command(tool.OF_THEIRS[1], (Run(24.0, 15.0, 2**20, 0),) * 2),
    ),
    as_run=(Stage("loading", 1.0),),
    one_by_one=(Stage("export onnx", 2.0),),
)
SPEEDS = {  # milliseconds in PyTorch, ONNX Runtime, OpenVINO
    "levit_192": (100, 80, 90),
    "efficientnet_b2": (600, 200, 540),
    "levit_256": (200, 160, 180),
    "efficientnet_b4": (1600, 800, 900),
}
HEADLINE = HeadlineRecord(
    HERE,
    headline.NAME,
    (
        Cell(
            16,
            1,
            (gemm_seconds(1e11),) * 3,
            (
                *(
                    row(name, form, ms=ms)
                    for name, speeds in SPEEDS.items()
                    for form, ms in zip(headline.RUNTIMES, speeds, strict=True)
                ),
                row("levit_192", "onnx", "int8", ms=40),
                Row("levit_256", "onnx", "int8", reason="not enough memory"),
            ),
        ),
    ),
)
RECORDS: list[Record] = [
    LATENCY,
    HEADLINE,
    TOOL,
    StartupRecord(
        HERE, "levit_digits", (Command("levit-export --help", (Run(0.1, 0.1, 1, 0),), 0.15),)
    ),
    GrowthRecord(
        HERE, "levit_128s", (Point("check onnx", 10, 0.5), Point("check onnx", 100, 1.4))
    ),
    EvaluatorRecord(
        HERE,
        "levit_128s",
        2,
        (row("PyTorch, unfused"), row("reference evaluator", "coreml", "fp16", 15)),
    ),
]


@pytest.mark.parametrize("found", RECORDS, ids=record.section_of)
def test_a_record_survives_the_disk(found: Record, tmp_path: Path) -> None:
    """What was written is read back, raw samples included, under the name of its section."""
    path = record.write(tmp_path, found)
    assert path == tmp_path / found.model / "results" / f"{record.section_of(found)}.json"
    read = record.read(tmp_path / found.model)[record.section_of(found)]
    assert pages.show(read) == pages.show(found)
    if isinstance(read, LatencyRecord):
        assert isinstance(found, LatencyRecord)
        assert [r.seconds for r in read.cells[0].rows] == [r.seconds for r in found.cells[0].rows]


def test_a_series_is_one_line_of_its_file() -> None:
    """Raw samples do not take a line each."""
    assert '"seconds": [0.01, 0.01, 0.01, 0.01, 0.01]' in record.to_json(LATENCY)


def test_efficiency_is_against_the_measured_rate() -> None:
    """2 * MACs * batch at the rate of matrix products, over the latency."""
    ours = CELL.row(OURS, "onnx")
    assert ours is not None
    assert CELL.efficiency(ours, LATENCY.macs) == pytest.approx(
        2 * LATENCY.macs * 16 / 1e11 / 10e-3
    )


def test_the_ratio_of_int8_is_said() -> None:
    """fp32 over int8, both ours and in one runtime, with its interval."""
    assert list(tables.int8_lines(LATENCY)) == [
        "levit_256 int8 / fp32 in ONNX Runtime: 1.25 (1.25–1.25) times the speed, "
        "batch 16, 2 threads"
    ]


def test_ours_is_held_against_the_fastest_alternative() -> None:
    """Rows that were not run do not count, and variations of ours are no alternatives."""
    varied = replace(CELL, rows=(*CELL.rows, row("ours, tokens", "onnx", ms=1)))
    best = tables.best_alternative(varied, "onnx", "fp32")
    assert best is not None
    assert best.name == OPTIMUM["onnx"]
    best = tables.best_alternative(varied, "onnx", "int8")
    assert best is not None
    assert best.name == EAGER


def test_what_was_not_run_says_why() -> None:
    """The reason stands where the figures would."""
    assert "not run: not installed: no such package" in tables.show(LATENCY)


def test_noise_is_relative_to_the_median() -> None:
    """Interquartile range over median."""
    assert Row("x", seconds=(1.0, 2.0, 3.0, 4.0, 5.0)).noise == pytest.approx(2 / 3)


def test_the_share_of_both_alternatives() -> None:
    """Our three formats over the sum of their two commands, round by round."""
    assert tool.share(TOOL) == pytest.approx((0.275, 0.25, 0.3))
    assert tool.share(replace(TOOL, commands=TOOL.commands[:2])) is None


def test_what_a_sample_costs() -> None:
    """The slope between counts, without what a run costs anyway."""
    points = [Point("check", n, 0.3 + 0.002 * n) for n in (10, 100)]
    assert per_sample(points, "check") == pytest.approx(0.002)
    assert per_sample(points[:1], "check") is None


def test_rounds_are_interleaved_and_fast_calls_are_settled() -> None:
    """Every call is timed once a round; a fast one is called once more before it is timed."""
    said: list[str] = []
    calls = {0: lambda: said.append("a"), 1: lambda: said.append("b")}
    seconds = cell.interleaved(calls, budget_s=0.0)
    assert {key: len(values) for key, values in seconds.items()} == {
        0: cell.FEWEST,
        1: cell.FEWEST,
    }
    assert "".join(said).endswith("aabb" * cell.FEWEST)


def test_a_process_that_ended_is_no_error() -> None:
    """Memory is looked at while processes come and go."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    assert processes._tree(process.pid) == [process.pid]
    assert processes._resident(process.pid) == 0


def test_a_run_is_accounted_for() -> None:
    """Exit status and the memory of children, not of the process that started them."""
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', %r])"
    big = "x = bytearray(100 * 2**20); import time; time.sleep(0.3)"
    run = processes.run_once([sys.executable, "-c", f"{code % big}; sys.exit(3)"])
    assert run.status == 3
    if Path("/proc/self/statm").exists():
        assert run.peak_bytes > 100 * 2**20


def tree(root: Path) -> Path:
    """A repository with one model and one record."""
    about = root / "models" / "levit_256" / pages.ABOUT
    about.parent.mkdir(parents=True)
    about.write_text("# levit_256\n\nBy hand.\n", encoding="utf-8")
    (root / "README.md").write_text(
        f"# Name\n\n{pages.BEGIN}\nold\n{pages.END}\n\n## More\n", encoding="utf-8"
    )
    record.write(root / "models", LATENCY)
    return root


def test_pages_are_made_of_records(tmp_path: Path) -> None:
    """What is by hand stays, what was measured follows; pages that are made are up to date."""
    root = tree(tmp_path)
    stale = [path.relative_to(root).as_posix() for path in pages.outdated(root)]
    assert stale == ["models/levit_256/README.md", "models/levit_256/latency.svg", "README.md"]
    for path, text in pages.pages(root).items():
        path.write_text(text, encoding="utf-8")
    assert pages.outdated(root) == {}
    page = (root / "models" / "levit_256" / "README.md").read_text(encoding="utf-8")
    assert page.startswith("# levit_256\n\nBy hand.\n")
    assert "1.25 (1.25–1.25) times the speed" in page
    assert "aim" not in page
    shown, _, folded = page.partition("<details>")
    assert "![Latency of levit_256" in shown
    assert [line.split(" | ")[0] for line in shown.splitlines() if line.startswith("| ")][2:] == [
        "| PyTorch, fused",
        "| ours, onnx fp32",
        "| ours, onnx int8",
        "| optimum-onnx, onnx fp32",
    ]
    assert "GEMM share" in folded
    assert "(models/levit_256/latency.svg)" in (root / "README.md").read_text(encoding="utf-8")
    front = (root / "README.md").read_text(encoding="utf-8")
    assert "old" not in front
    assert "| levit_256 | 10.0 (optimum-onnx 12.5) |" not in front  # batch 16 is not batch 1
    assert front.endswith("## More\n")


def test_a_new_record_outdates_the_pages(tmp_path: Path) -> None:
    """--check notices a record that the pages do not show."""
    root = tree(tmp_path)
    for path, text in pages.pages(root).items():
        path.write_text(text, encoding="utf-8")
    one = replace(LATENCY, cells=(replace(CELL, batch=1),))
    record.write(root / "models", one)
    assert len(pages.outdated(root)) == 3
    assert "| levit_256 | 10.0 (optimum-onnx 12.5) |" in pages.pages(root)[root / "README.md"]


def test_the_plot_says_what_the_table_says() -> None:
    """Bars are as long as their values, each with its words, in both schemes."""
    root = ET.fromstring(tables.drawing(LATENCY))
    space = "{http://www.w3.org/2000/svg}"
    widths = [float(bar.get("width", "0")) for bar in root.iter(f"{space}rect")]
    assert widths == pytest.approx([360, 120, 96, 150], abs=0.1)
    kinds = [bar.get("class") for bar in root.iter(f"{space}rect")]
    assert kinds == ["other", "ours", "ours", "other"]
    words = [text.text for text in root.iter(f"{space}text")]
    assert words[0] == "levit_256: milliseconds a call, batch 16, 2 threads, a processor"
    assert words[1:5] == ["PyTorch, fused", "30.0 ms", "ours, onnx fp32", "10.0 ms"]
    assert "prefers-color-scheme: dark" in str(root[0].text)


def test_a_runtime_that_shrinks_a_lead_is_named() -> None:
    """Ratios are of images a second beside the article's; a pair that was not timed has none."""
    assert headline.leads(HEADLINE).strip() == (
        "LeViT-192 classifies 5 times as many images a second as EfficientNet B2 in the article; "
        "here, on one thread at batch 16 in float32: 6.0 in PyTorch, 2.5 in ONNX Runtime, 6.0 in "
        "OpenVINO. ONNX Runtime shrinks the gap."
    )


def test_speeds_stand_beside_published_accuracy() -> None:
    """A network's line: accuracy, the article's speed, each runtime; why one was not run."""
    shown = headline.show(HEADLINE)
    assert "| LeViT-192 | 80.0 | 65.0 | 160 | 200 | 400 | 178 |  |" in shown
    assert "| EfficientNet B2 | 80.1 | 13.1 | 26.7 | 80.0 |  | 29.6 |  |" in shown
    assert "LeViT-256 onnx int8 was not run: not enough memory" in shown
    assert "| ResNet-50 |" not in shown


def test_the_front_is_what_nothing_beats() -> None:
    """A point that another equals in one axis and beats in the other is not on it."""
    points = [plot.Point(label, x, y, "ours") for label, x, y in (
        ("slow", 1, 80), ("best", 2, 82), ("fast", 4, 79), ("as fast", 4, 78), ("tied", 3, 79)
    )]  # fmt: skip
    assert [point.label for point in plot.front(points)] == ["fast", "best"]


def test_the_plot_has_a_panel_for_each_runtime() -> None:
    """Points lie where their values are; no two names lie on one another; the front is said."""
    root = ET.fromstring(headline.drawing(HEADLINE))
    space = "{http://www.w3.org/2000/svg}"
    assert "ONNX Runtime: on the front 192, 256, B4." in str(root.get("aria-label"))
    groups = list(root.iter(f"{space}g"))
    assert len(groups) == 3
    for group in groups:
        circles = list(group.iter(f"{space}circle"))
        x = [float(circle.get("cx", "0")) for circle in circles]
        y = [float(circle.get("cy", "0")) for circle in circles]
        assert x[0] > x[1]  # LeViT-192 is faster than LeViT-256
        assert y[0] > y[1]  # and less accurate


def test_names_in_the_plot_are_apart() -> None:
    """Networks that are equally fast and nearly as accurate can still be told apart."""
    points = [plot.Point(f"n{number}", 10, 80 + number / 100, "other") for number in range(4)]
    root = ET.fromstring(plot.panels("title", ("x", "y"), {"other": "others"}, {"one": points}))
    names = {point.label for point in points}
    for side in ("start", "end"):
        said = [e for e in root.iter() if e.text in names and e.get("text-anchor") == side]
        heights = sorted(float(text.get("y", "0")) for text in said)
        assert len(heights) == 2
        assert all(b - a >= plot.LINE for a, b in pairwise(heights))


def test_simplifying_leaves_the_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """EfficientNet without BatchNorm answers as with it, but for float32's rounding of weights."""
    pytest.importorskip("transformers")
    scaling = headline.Scaling(0.5, 0.2, 64, 640)
    folded = headline.efficientnet(scaling).double()
    monkeypatch.setattr(headline, "simplified", lambda network: network)
    whole = headline.efficientnet(scaling).double()
    image = torch.rand(
        2, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    with torch.no_grad():
        before, after = whole(image)[0], folded(image)[0]
    assert any(isinstance(each, torch.nn.BatchNorm2d) for each in whole.modules())
    assert relative_error(after, before) < torch.finfo(torch.float32).eps
    assert float(before.std()) > 0


def test_an_efficientnet_has_its_published_size() -> None:
    """Parameters of B0, in millions, as its article and LeViT's have them."""
    pytest.importorskip("transformers")
    network = headline.efficientnet(headline.EFFICIENTNETS["efficientnet_b0"])
    count = sum(parameter.numel() for parameter in network.parameters())
    assert round(count / 1e6, 1) == 5.3


def test_a_cell_that_cannot_be_measured_fails_the_headline(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The other cells are kept, with a note, and the section still ends as a failure."""

    def measure(_: str, task: dict[str, object]) -> Cell:
        if task["threads"] != 1:
            raise processes.WorkerError("killed by signal 9")
        return replace(HEADLINE.cells[0], batch=task["batch"])

    monkeypatch.setattr(headline, "_prepare", lambda *_: [])
    monkeypatch.setattr(headline.latency, "measure", measure)
    monkeypatch.setattr(headline.latency, "all_threads", lambda: (1, 2))
    found = headline.run(tmp_path, ["levit_192"], None)
    kept = next(found)
    assert [(cell.batch, cell.threads) for cell in kept.cells] == [(1, 1), (16, 1)]
    assert kept.circumstances.notes[-1].startswith("killed by signal 9")
    with pytest.raises(processes.WorkerError, match="killed by signal 9"):
        next(found)


def test_the_headline_has_its_page(tmp_path: Path) -> None:
    """A record of several networks makes a page, a plot, and a sentence where models are shown."""
    root = tree(tmp_path)
    (root / "docs").mkdir()
    page = root / "docs" / "headline.md"
    page.write_text(f"# Speed\n\n{pages.BEGIN}\n{pages.END}\n\n## How\n", encoding="utf-8")
    record.write(root / "models", HEADLINE)
    found = pages.pages(root)
    assert "| LeViT-192 over EfficientNet B2, batch 16, 1 thread | 5 | 6.00" in found[page]
    assert found[page].endswith("## How\n")
    assert found[page.with_suffix(".svg")] == headline.drawing(HEADLINE)
    assert "6.0 in PyTorch, 2.5 in ONNX Runtime" in found[root / "README.md"]
    assert "(docs/headline.md)" in found[root / "README.md"]
    # The nearest in published accuracy was not timed; nothing is said of another.
    assert "EfficientNet B3" not in found[root / "models" / "levit_256" / "README.md"]


def test_a_front_page_needs_its_markers() -> None:
    """Figures are not put anywhere else."""
    with pytest.raises(ValueError, match="figures"):
        pages.with_figures("# Name\n", "text")


def test_the_repository_has_its_pages() -> None:
    """Pages of this repository are what its records make."""
    assert pages.outdated(ROOT) == {}
