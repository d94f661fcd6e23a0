"""The report for people: what a cell says, and where colours go."""

from __future__ import annotations

import io
import sys
from dataclasses import replace
from pathlib import Path

import gate_reports
import pytest
from gate_reports import output

from levit_export.checks import parity, timing
from levit_export.checks.drift.values import Cause, DriftFinding, DriftMap, DriftRow, DriftStage
from levit_export.checks.findings import Finding
from levit_export.checks.parity import ParityReport
from levit_export.checks.results import Accuracy, ArtifactReport
from levit_export.checks.timing import TimingReport
from levit_export.core.machine import Machine
from levit_export.core.values import Availability, PassRecord
from levit_export.models.zoo import VARIANTS
from levit_export.reports import console
from levit_export.reports.report import Report

ESCAPE = "\x1b"
OUTPUT = replace(output(), max_rel=1.5e-6)
PASSED = ParityReport("onnxruntime 9", 26, (OUTPUT,))
TIMED = TimingReport(
    "pass", runtime="onnxruntime 9", threads=2, batch=1, efficiency=0.5, seconds=(0.002,) * 9
)
ARTIFACT = ArtifactReport("onnx", "fp32", "m.onnx", 2_500_000, "ab", PASSED)
MODEL = replace(
    gate_reports.MODEL,
    checkpoint="best[red].pth",
    checkpoint_sha256="0123456789abcdef",
    parameters=710_000,
    macs=9_000_000,
)
MACHINE = Machine("A CPU", 2, 8 * 2**30, ("avx2",), "Linux x86_64", "3.11.7")


def shown(
    capsys: pytest.CaptureFixture[str],
    *,
    ledger: bool = False,
    steps: tuple[tuple[str, ...], ...] = (),
    **changes: object,
) -> str:
    """What is printed of a report of one artifact with ``changes``; nothing goes to stderr."""
    given = {
        "verdict": "pass",
        "model": MODEL,
        "passes": (),
        "artifacts": (ARTIFACT,),
        "baselines": {},
        "machine": MACHINE,
        "toolchain": {},
        **changes,
    }
    screen = console.Screen(quiet=False)
    console.print_report(screen, Report(**given), ledger=ledger, steps=steps)  # type: ignore[arg-type]
    printed = capsys.readouterr()
    assert printed.err == ""
    return printed.out


def row_of(text: str, name: str = "onnx-fp32 ") -> str:
    """The line of a table that starts with ``name``."""
    (row,) = [line for line in text.splitlines() if line.startswith(name)]
    return row


def test_passed(capsys: pytest.CaptureFixture[str]) -> None:
    """A pass shows its error, the share of the tolerance it used, and the size."""
    text = shown(capsys)
    assert row_of(text).split("  ", 1)[1].strip().startswith("pass")
    assert row_of(text).split()[2:] == ["25", "%", "2.50", "MB", "1.5e-06"]
    assert "latency" not in text
    assert "top-1" not in text
    assert text.splitlines()[-1] == "pass"


def test_failed(capsys: pytest.CaptureFixture[str]) -> None:
    """A failure stands first with its reason in full; the place and the next step stand last."""
    values = {"error": 1e-2, "sample": "noise", "allowed": 1e-5}
    failed = PASSED.joined(Finding("too-far", values, "logits"))
    artifact = replace(ARTIFACT, parity=failed)
    output, step = Path("out.failed"), ("levit-export", "drift", "out.failed")
    text = shown(capsys, verdict="fail", artifacts=(artifact,), output=output, steps=(step,))
    assert "fail" in row_of(text)
    assert "pass" not in text
    reason = "logits: error 1.00e-02 on noise exceeds the tolerance 1.00e-05"
    assert text.splitlines()[1] == f"✗ onnx-fp32 parity: {reason}"
    assert text.splitlines()[-3:] == [
        "fail  out.failed",
        f"report: {output / 'report.html'}",
        "next: levit-export drift out.failed",
    ]


def test_equal_reasons_are_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    """A reason that several artifacts share stands once, with all of their names."""
    altered = ParityReport("", 0, findings=(Finding("altered-files", {"text": "m.onnx"}),))
    both = [replace(ARTIFACT, format=kind, parity=altered) for kind in ("onnx", "openvino")]
    text = shown(capsys, verdict="fail", artifacts=tuple(both))
    assert text.count("the directory was altered") == 1
    assert "✗ onnx-fp32, openvino-fp32 claims: the directory was altered" in text


def test_accuracy_below_its_limit_is_said_first(capsys: pytest.CaptureFixture[str]) -> None:
    """Points of accuracy that were lost beyond what is allowed are a failure with its figures."""
    accuracy = Accuracy("val", 100, 90, 95, 0.9, drop=5.0, max_drop=1.0)
    artifact = replace(ARTIFACT, parity=parity.NOT_ASKED, accuracy=accuracy)
    text = shown(capsys, verdict="fail", artifacts=(artifact,))
    assert text.splitlines()[1] == "✗ onnx-fp32 accuracy: 5.00 points are lost, and 1 may be"


def test_ways_to_execute_a_file_are_told_apart(capsys: pytest.CaptureFixture[str]) -> None:
    """Rows of one file bear the way in which each was executed, in the table and in the notes."""
    rows = [
        replace(ARTIFACT, parity=replace(PASSED, runtime=f"onnxruntime 9 ({way})"), notes=(way,))
        for way in ("CPU", "OpenVINO")
    ]
    text = shown(capsys, artifacts=tuple(rows))
    assert "pass" in row_of(text, "onnx-fp32 (CPU) ")
    assert "pass" in row_of(text, "onnx-fp32 (OpenVINO) ")
    assert "onnx-fp32 (OpenVINO): OpenVINO" in text
    accuracy = Accuracy("val", 9, 9, 9, 1.0)
    evaluated = [
        replace(
            ARTIFACT,
            parity=parity.NOT_ASKED,
            accuracy=replace(accuracy, runtime=f"openvino 9 ({way})"),
        )
        for way in ("CPU", "CPU, by default in bf16")
    ]
    text = shown(capsys, artifacts=tuple(evaluated))
    assert "9/9" in row_of(text, "onnx-fp32 (CPU, by default in bf16) ")


LATENCIES = (0.00078, 0.0123, 1.52807)


@pytest.mark.parametrize("width", [80, 100, 140])
def test_no_name_and_no_figure_is_cut(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    """At any usual width every name and figure of the tables is whole, and no line is longer."""
    monkeypatch.setenv("COLUMNS", str(width))
    accuracy = Accuracy(
        "val", 50_000, 40_123, 40_200, 0.99, 45_000, 500, 200, 123, 0.0001, 0.15, 0.5
    )
    accuracy = replace(accuracy, runtime="onnxruntime 9")
    rows = [
        replace(
            ARTIFACT,
            precision=precision,
            accuracy=accuracy,
            parity=replace(PASSED, runtime=f"onnxruntime 9 ({way})"),
            timing=replace(TIMED, seconds=(seconds, 2 * seconds, 3 * seconds), peak_bytes=9**9),
        )
        for precision, seconds in zip(("fp32", "int8", "w4"), LATENCIES, strict=True)
        for way in ("CPU", "OpenVINO")
    ]
    passes = (PassRecord("fold_attention_scale", "applied", "", 8, 0.0, (10, 9), (430, 422)),)
    text = shown(capsys, artifacts=tuple(rows), passes=passes, ledger=True)
    assert "…" not in text
    assert max(len(line.rstrip()) for line in text.splitlines()) <= width
    for name in ("onnx-fp32 (OpenVINO) ", "onnx-w4 (CPU) "):
        assert any(line.startswith(name) for line in text.splitlines()), name
    figures = (
        "80.25 % (79.9–80.6)",
        "90.00 %",
        "99.00 % (98.9–99.1)",
        "500 (-200 +123)",
        "369 MiB",
    )
    latencies = ("1.56 ms (0.78–2.34)", "24.60 ms (12.30–36.90)", "3056.14 ms (1528.07–4584.21)")
    for figure in (*figures, *latencies, "0.15 of 0.5", "2.50 MB", "430 → 422"):
        assert figure in text, figure


@pytest.mark.parametrize("width", [80, 100, 140])
def test_no_name_of_a_model_is_cut(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    """The zoo's names, which have to be typed, and all that is said of them are whole."""
    monkeypatch.setenv("COLUMNS", str(width))
    console.print_models(console.Screen(quiet=False), VARIANTS)
    text = capsys.readouterr().out
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    for known in VARIANTS:
        lines = [line for line in text.splitlines() if line.split()[0] == known.name]
        assert lines
        assert all(part in " ".join(lines) for part in (known.licence, known.top1_on))


def map_of(*shares: float, cause: Cause = "none", name: str = "onnx-int8") -> DriftMap:
    """A map of one file whose taps use ``shares`` of their tolerance."""
    rows = tuple(
        DriftRow(
            f"tap{place}",
            f"block{place}",
            name,
            "exceeds" if share > 1 else "ok",
            accumulated=share * 1e-3,
            introduced=share * 1e-3,
            tolerance=1e-3,
            of_tolerance=share,
        )
        for place, share in enumerate(shares)
    )
    stage = DriftStage(name, "artifact", "the prepared module", rows, "onnxruntime 9")
    finding = DriftFinding(name, cause, sentence="a sentence")
    return DriftMap("levit_digits", ("noise",), (stage,), (finding,))


@pytest.mark.parametrize(
    ("drift", "word", "colour"),
    [
        (map_of(0.5), "clean", "32"),
        (map_of(0.5, 3.0), "over the band, answers unchanged", "33"),
        (map_of(0.5, 3.0, cause="conversion"), "conversion", "31"),
    ],
)
def test_states_of_drift(
    monkeypatch: pytest.MonkeyPatch, drift: DriftMap, word: str, colour: str
) -> None:
    """The finding stands before the taps; red is what fails, and a coarse grid is not."""
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    console.print_drift(console.Screen(quiet=False), drift)
    text = terminal.getvalue()
    assert f"{ESCAPE}[1;{colour}m{word}" in text
    assert text.index("a sentence") < text.index("tap0")
    assert (f"{ESCAPE}[31m" in text) == (colour == "31")


def test_drift_shows_what_is_over_and_what_is_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    """Taps above tolerance come first, the rest is counted; all are printed on demand."""
    shares = (0.2, 0.9, *(float(share) for share in range(2, 9)))
    console.print_drift(console.Screen(quiet=False), map_of(*shares))
    text = capsys.readouterr().out
    taps = [line.split()[0] for line in text.splitlines() if line.startswith("tap")]
    assert taps == ["tap8", "tap7", "tap6", "tap5", "tap4", "tap1"]
    assert "2 more taps are above tolerance" in text
    assert "tap0" not in text
    console.print_drift(console.Screen(quiet=False), map_of(*shares), whole=True)
    assert "tap0" in capsys.readouterr().out


def test_clean_files_share_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    """Of files that stay within their tolerance one table has the nearest tap, a line for each."""
    maps = [map_of(0.2, 0.9, name="a"), map_of(0.5, 3.0, name="b"), map_of(0.7, 0.1, name="c")]
    together = replace(
        maps[0],
        stages=tuple(each.stages[0] for each in maps),
        findings=tuple(each.findings[0] for each in maps),
    )
    console.print_drift(console.Screen(quiet=False), together)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[:3] for line in lines if "accumulated" in line] == [
        ["b", "of", "tolerance"],
        ["file", "nearest", "tap"],
    ]
    assert [line[:3] for line in lines if line[0] in ("a", "c")] == [
        ["a", "tap1", "90"],
        ["c", "tap0", "70"],
    ]


def test_inconclusive(capsys: pytest.CaptureFixture[str]) -> None:
    """A check that decides nothing is called so, with what to do, and neither pass nor fail."""
    found = PASSED.joined(Finding("untrained", {"text": "2 of 2 branches are zero"}))
    artifact = replace(ARTIFACT, parity=found)
    text = shown(capsys, verdict="inconclusive", artifacts=(artifact,))
    assert "inconclusive" in row_of(text)
    assert "2 of 2 branches are zero; check trained weights" in text
    assert text.splitlines()[-1] == "inconclusive"


def test_weights_at_fault(capsys: pytest.CaptureFixture[str]) -> None:
    """Wrong weights beside right answers come out as what they are."""
    values = {"count": 1, "tensors": 3, "names": "head.bias"}
    failed = PASSED.joined(Finding("missing-weights", values))
    text = shown(capsys, verdict="fail", artifacts=(replace(ARTIFACT, parity=failed),))
    assert "fail (weights)" in row_of(text)


def test_not_run(capsys: pytest.CaptureFixture[str]) -> None:
    """What was not run says so and why, without a figure or the word pass."""
    artifact = replace(
        ARTIFACT,
        parity=parity.not_run("onnxruntime not installed: pip install 'x[onnx]'"),
        timing=timing.not_timed("needs [bold] macOS"),
    )
    text = shown(capsys, verdict="not-run", artifacts=(artifact,))
    assert "not-run" in row_of(text)
    assert "not run" in row_of(text)
    assert "onnx-fp32: not timed: needs [bold] macOS" in text
    reason = "onnxruntime not installed: pip install 'x[onnx]'"
    assert text.splitlines()[1] == f"○ onnx-fp32 parity not run: {reason}"
    assert "pass" not in text


@pytest.mark.parametrize(
    ("seconds", "expected"), [((0.002,) * 9, False), ((0.002, 0.003, 0.004), True)]
)
def test_timing(
    capsys: pytest.CaptureFixture[str], seconds: tuple[float, ...], *, expected: bool
) -> None:
    """Latencies come with interval and efficiency; a noisy one has a mark, which is explained."""
    artifact = replace(ARTIFACT, timing=replace(TIMED, seconds=seconds))
    baseline = replace(TIMED, seconds=(0.03125,) * 3, efficiency=None)
    text = shown(capsys, artifacts=(artifact,), baselines={"PyTorch eager": baseline})
    assert f"{1e3 * sorted(seconds)[len(seconds) // 2]:.2f} ms" in row_of(text)
    assert ("ms (2.00–4.00)*" in row_of(text)) is expected
    assert ("* noisy: " in text) is expected
    assert row_of(text).rstrip().endswith("0.50")
    assert "31.25 ms" in row_of(text, "PyTorch eager")
    assert row_of(text, "PyTorch eager").rstrip().endswith("–")
    assert "2 threads, batch 1" in text


def test_accuracy(capsys: pytest.CaptureFixture[str]) -> None:
    """Accuracy is shown with its counts, and a dash for an artifact without."""
    artifact = replace(ARTIFACT, accuracy=Accuracy("digits", 360, 357, 357, 1.0))
    other = replace(ARTIFACT, format="openvino")
    text = shown(capsys, artifacts=(artifact, other))
    assert "357/360" in row_of(text)
    assert "–" in row_of(text, "openvino-fp32 ")


def test_passes(capsys: pytest.CaptureFixture[str]) -> None:
    """The ledger shows matches, error, operators and bytes, and why a pass was left out."""
    records = (
        PassRecord(
            "fuse_batchnorm", "applied", "", 40, 5e-16, (10, 9), (573, 430), bytes_added=-70_000
        ),
        PassRecord("merge_heads", "not-applicable", "the model has one head"),
    )
    assert "fuse_batchnorm" not in shown(capsys, passes=records)
    text = shown(capsys, passes=records, ledger=True)
    for part in ("40", "5.0e-16", "573 → 430", "-0.07 MB"):
        assert part in row_of(text, "fuse_batchnorm ")
    assert "merge_heads: not applicable: the model has one head" in text


def test_brackets_are_text(capsys: pytest.CaptureFixture[str]) -> None:
    """Square brackets in file names are shown, not taken for markup."""
    text = shown(capsys, output=Path("out[bold]"), steps=(("levit-export", "drift", "out[bold]"),))
    assert "best[red].pth" in text
    assert "pass  out[bold]" in text
    assert "levit-export drift 'out[bold]'" in text


def test_notice(capsys: pytest.CaptureFixture[str]) -> None:
    """Notices go to standard error, brackets and all, and nowhere when quiet."""
    console.Screen(quiet=False).notice("a [b] notice")
    assert capsys.readouterr() == ("", "a [b] notice\n")
    console.Screen(quiet=True).notice("a notice")
    assert capsys.readouterr() == ("", "")


def test_no_escape_codes_off_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """Where the output is no terminal it holds no escape code, and rows do not wrap."""
    artifact = replace(
        ARTIFACT,
        accuracy=Accuracy("digits", 360, 357, 357, 1.0),
        timing=replace(TIMED, seconds=(0.002, 0.003, 0.004)),
    )
    text = shown(capsys, artifacts=(artifact,))
    assert ESCAPE not in text
    assert row_of(text).endswith("0.50")
    assert max(map(len, text.splitlines())) <= console.WIDE


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        """Yes."""
        return True


@pytest.mark.parametrize("no_colour", [False, True])
def test_colour(monkeypatch: pytest.MonkeyPatch, *, no_colour: bool) -> None:
    """A terminal shows verdicts in colour, unless NO_COLOR is set."""
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    if no_colour:
        monkeypatch.setenv("NO_COLOR", "1")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    report = Report("pass", MODEL, (), (ARTIFACT,), {}, MACHINE, {})
    console.print_report(console.Screen(quiet=False), report)
    assert (f"{ESCAPE}[32m" in terminal.getvalue()) is not no_colour
    assert "pass" in terminal.getvalue()


def test_progress_off_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """In a log progress is a numbered line for each stage, and nothing for its steps."""
    with console.Screen(quiet=False).progress() as progress:
        progress.plan(2)
        for stage in ("working", "resting"):
            progress.stage(stage)
            progress.steps(2)
            progress.advance()
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.rpartition(" (")[0] for line in err.splitlines()] == [
        "stage 1/2: working",
        "stage 2/2: resting",
    ]


@pytest.mark.parametrize("quiet", [False, True])
def test_progress_on_a_terminal(monkeypatch: pytest.MonkeyPatch, *, quiet: bool) -> None:
    """On a terminal the stage is shown on standard error, unless quiet was asked for."""
    monkeypatch.setenv("TERM", "xterm-256color")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with console.Screen(quiet=quiet).progress() as progress:
        progress.stage("fusing")
        progress.steps(1)
        progress.advance()
    assert ("fusing" in terminal.getvalue()) is not quiet


def test_models(capsys: pytest.CaptureFixture[str]) -> None:
    """The zoo's table has a line for each model with its published figures."""
    console.print_models(console.Screen(quiet=False), VARIANTS)
    text = capsys.readouterr().out
    for known in VARIANTS:
        row = row_of(text, f"{known.name} ")
        assert f" {float(known.parameters.removesuffix('M')):.1f} M " in row
        assert (f"{known.top1} %" if known.top1 else "untrained") in row


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    """The doctor says what is possible, and for the rest the reason and the remedy as given."""
    absent = Availability(ok=False, reason="torch not installed", fix="pip install 'x[onnx]'")
    abilities = {"onnx": {"export": absent, "run": Availability(ok=True), "time": absent}}
    providers = {"CPUExecutionProvider": "", "CUDAExecutionProvider": "no GPU"}
    screen = console.Screen(quiet=False)
    console.print_doctor(screen, MACHINE, {"torch": "2.13"}, abilities, providers)
    text = capsys.readouterr().out
    assert "A CPU, 2 cores, 8 GiB" in text
    assert "yes" in row_of(text, "onnx ")
    assert text.count("torch not installed; pip install 'x[onnx]'") == 2
    assert "CPUExecutionProvider, CUDAExecutionProvider (does not start: no GPU)" in text
    assert "torch 2.13" in text
