"""The Core ML target on macOS, with Apple's runtime faked: what we ask of it and make of it.

Nothing here shows what Core ML itself computes. The fakes answer with the reference evaluator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import subjects

from levit_export.checks import execution
from levit_export.checks.execution import Row
from levit_export.checks.parity import ParityReport
from levit_export.checks.timing import TimingPlan
from levit_export.core import packages
from levit_export.core.errors import (
    ArtifactError,
    RuntimeFailedError,
    UnknownNameError,
    UsageError,
)
from levit_export.core.quiet import quiet
from levit_export.core.values import Artifact, RunOptions
from levit_export.formats import mil
from levit_export.formats.coreml import target as coreml
from levit_export.formats.coreml.target import CoremlTarget
from levit_export.models.loading import ModelChoice
from levit_export.reports import gate
from levit_export.reports.report import Report
from levit_export.workflows.check import CheckRequest, check

TARGET = CoremlTarget()
UNITS = ("cpu_only", "cpu_and_ne", "cpu_and_gpu", "all")
Answer = Callable[[dict[str, Any]], dict[str, Any]]


@dataclass
class CoreMl:
    """Fakes Core ML: what was loaded with which compute units, and what it answers."""

    loaded: list[tuple[str, str]] = field(default_factory=list)
    answer: Answer = dict

    def model(self, path: str, *, compute_units: Any) -> Any:
        """Fakes ``coremltools.models.MLModel``."""
        self.loaded.append((path, compute_units.name))
        program = mil.load(path)
        return SimpleNamespace(
            user_defined_metadata=program.metadata,
            predict=lambda inputs: self.answer(program.run(inputs)),
        )


@pytest.fixture
def core_ml(monkeypatch: pytest.MonkeyPatch) -> CoreMl:
    """A Mac whose Core ML is faked; the artifacts are made before, by the real coremltools."""
    subjects.artifact("coreml", "fp16")
    subjects.classifier()
    with quiet("coremltools"):
        tools = packages.coremltools()
    fake = CoreMl()
    monkeypatch.setattr(coreml, "on_macos", lambda: True)
    monkeypatch.setattr(tools.models, "MLModel", fake.model)
    return fake


@pytest.fixture(scope="session")
def half() -> Artifact:
    """The bundled model; do not change its files."""
    return subjects.artifact("coreml", "fp16")


def judge(artifact: Artifact, unit: str = "cpu_only") -> ParityReport:
    """The verdict on one compute unit."""
    row = Row(artifact, RunOptions(compute_units=(unit,)))
    return execution.check(row, subjects.digits_reference()).parity


def image() -> dict[str, np.ndarray]:
    """A seeded input of the bundled model's size."""
    drawn = np.random.default_rng(0).standard_normal((1, 3, 96, 96))
    return {"input": drawn.astype(np.float32)}


def test_one_row_for_each_unit(core_ml: CoreMl, half: Artifact) -> None:
    """With Core ML faked: every compute unit asked for is a row, loaded with it and named so."""
    rows = execution.rows([half], RunOptions(compute_units=UNITS))
    assert [row.run.compute_units for row in rows] == [(unit,) for unit in UNITS]
    reports = [execution.check(row, subjects.digits_reference()).parity for row in rows]
    assert [report.runtime for report in reports] == [f"Core ML ({unit})" for unit in UNITS]
    assert {report.verdict for report in reports} == {"pass"}
    assert core_ml.loaded == [(str(half.path), unit.upper()) for unit in UNITS]


@pytest.mark.usefixtures("core_ml")
def test_unknown_units_are_refused() -> None:
    """With Core ML faked: a compute unit that does not exist is refused on a Mac too."""
    with pytest.raises(UnknownNameError, match="'npu'"):
        TARGET.runs(RunOptions(compute_units=("cpu_only", "npu")))


def test_it_can_be_timed(core_ml: CoreMl, half: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    """With Core ML faked: latency is measured there, of every compute unit."""
    monkeypatch.setattr(execution, "gemm_seconds", lambda _: (1.0,))
    assert TARGET.can_time().ok
    rows = execution.rows([half], RunOptions(compute_units=("cpu_only", "all")))
    timed, _ = execution.time_rows(rows, 1, TimingPlan(warmup=0, iterations=2))
    assert [timed[row].verdict for row in rows] == ["pass", "pass"]
    assert [timed[row].runtime for row in rows] == ["Core ML (cpu_only)", "Core ML (all)"]
    assert len(core_ml.loaded) == 2


def _shifted(outputs: dict[str, Any]) -> dict[str, Any]:
    return {name: value + np.float32(0.5) for name, value in outputs.items()}


def _nan(outputs: dict[str, Any]) -> dict[str, Any]:
    return {name: value * np.float32("nan") for name, value in outputs.items()}


def _renamed(outputs: dict[str, Any]) -> dict[str, Any]:
    return dict(zip(("var_900",), outputs.values(), strict=True))


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (_shifted, "exceeds the tolerance"),
        (_nan, "NaN or infinity"),
        (_renamed, "output 'logits' is missing"),
    ],
)
def test_wrong_answers_fail(core_ml: CoreMl, half: Artifact, answer: Answer, words: str) -> None:
    """With Core ML faked: its answers are what is compared, so that wrong ones fail."""
    core_ml.answer = answer
    report = judge(half)
    assert report.verdict == "fail"
    assert words in report.reason


def _raise(outputs: dict[str, Any]) -> dict[str, Any]:
    raise RuntimeError(f"Failed to predict {sorted(outputs)}\nat line 7")


def test_a_prediction_that_fails(core_ml: CoreMl, half: Artifact) -> None:
    """With Core ML faked: what it raises fails the check, in its first line and with a remedy."""
    core_ml.answer = _raise
    report = judge(half, "cpu_and_ne")
    assert (report.verdict, report.runtime) == ("fail", "Core ML (cpu_and_ne)")
    said = "Core ML failed on m.mlpackage: Failed to predict ['logits']"
    assert report.reason.startswith(said)
    assert "Try --compute-units cpu_only" in report.reason
    assert "line 7" not in report.reason


def test_a_model_that_cannot_be_loaded(
    core_ml: CoreMl, half: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With Core ML faked: a package that it refuses is an ArtifactError with path and remedy."""

    def refuse(path: str, *, compute_units: Any) -> None:
        del path, compute_units
        raise RuntimeError("Unable to parse the model")

    monkeypatch.setattr(core_ml, "model", refuse)
    monkeypatch.setattr(packages.coremltools().models, "MLModel", refuse)
    with pytest.raises(ArtifactError, match="Unable to parse the model") as raised:
        judge(half)
    assert str(half.path) in raised.value.what
    assert "--deployment-target" in raised.value.remedy


def test_classifier_outputs(core_ml: CoreMl) -> None:
    """With Core ML faked: probabilities come in the order of the labels, the label is dropped."""

    def shuffled(outputs: dict[str, Any]) -> dict[str, Any]:
        return {
            name: dict(sorted(value.items(), key=lambda pair: pair[1]))
            if isinstance(value, dict)
            else value
            for name, value in outputs.items()
        }

    core_ml.answer = shuffled
    made = subjects.classifier()
    with TARGET.open(made, RunOptions()) as session:
        found = session.run(image())
        assert session.signature == made.signature
    (shares,) = (v for v in mil.load(made.path).run(image()).values() if isinstance(v, dict))
    assert set(found) == {"probabilities"}
    assert found["probabilities"].tolist() == [[shares[str(digit)] for digit in range(10)]]
    report = judge(made)
    assert (report.verdict, report.reason) == ("pass", "")


def test_a_classifier_without_one_of_its_labels(core_ml: CoreMl) -> None:
    """With Core ML faked: a probability that is absent fails the check by its label's name."""

    def poorer(outputs: dict[str, Any]) -> dict[str, Any]:
        for value in outputs.values():
            if isinstance(value, dict):
                value.pop("7")
        return outputs

    core_ml.answer = poorer
    with (
        TARGET.open(subjects.classifier(), RunOptions()) as session,
        pytest.raises(RuntimeFailedError, match="no probability for '7'"),
    ):
        session.run(image())
    assert judge(subjects.classifier()).verdict == "fail"


@pytest.mark.usefixtures("core_ml")
def test_taps_are_refused(half: Artifact) -> None:
    """With Core ML faked: inner values are refused with the one who can give them."""
    with (
        pytest.raises(UsageError, match="does not give out inner values") as raised,
        TARGET.open(half, RunOptions(), ("softmax",)),
    ):
        pytest.fail("Core ML gave out an inner value")
    assert "evaluator" in raised.value.remedy


# --- where ops would run --------------------------------------------------------------------


@dataclass
class Compiler:
    """Fakes coremltools' compiler and compute plan: ops by the device they would run on."""

    folder: Path
    devices: tuple[str, ...]
    units: list[str] = field(default_factory=list)
    error: Exception | None = None
    work: tuple[float, ...] = ()
    """The estimated share of the work of each op; without it nothing is estimated."""

    def compile(self, path: str) -> str:
        """Fakes ``coremltools.models.utils.compile_model``."""
        compiled = self.folder / f"{Path(path).stem}.mlmodelc"
        compiled.mkdir()
        return str(compiled)

    def plan(self, compiled: str, units: Any) -> Any:
        """Fakes ``MLComputePlan.load_from_path``; an empty device stands for a constant."""
        assert Path(compiled).is_dir()
        self.units.append(units.name)
        if self.error is not None:
            raise self.error
        kinds = packages.coremltools("models.compute_device")
        usages = [
            None
            if not device
            else SimpleNamespace(
                preferred_compute_device=object.__new__(getattr(kinds, f"ML{device}ComputeDevice"))
            )
            for device in self.devices
        ]
        block = SimpleNamespace(operations=list(range(len(usages))))
        program = SimpleNamespace(functions={"main": SimpleNamespace(block=block)})
        return SimpleNamespace(
            model_structure=SimpleNamespace(program=program),
            get_compute_device_usage_for_mlprogram_operation=lambda op: usages[op],
            get_estimated_cost_for_mlprogram_operation=lambda op: (
                SimpleNamespace(weight=self.work[op]) if self.work else None
            ),
        )


@pytest.fixture
def compiler(
    core_ml: CoreMl, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Compiler]:
    """A faked compiler, which must have been cleaned up after."""
    del core_ml
    devices = ("", "NeuralEngine", "CPU", "", "NeuralEngine", "GPU", "NeuralEngine")
    fake = Compiler(tmp_path, devices)
    plans = packages.coremltools("models.compute_plan")
    monkeypatch.setattr(packages.coremltools().models.utils, "compile_model", fake.compile)
    monkeypatch.setattr(plans.MLComputePlan, "load_from_path", fake.plan)
    yield fake
    assert list(tmp_path.iterdir()) == []


def test_placement_is_a_remark(compiler: Compiler, half: Artifact) -> None:
    """With Core ML faked: a remark counts the ops of each device, constants left out."""
    run = RunOptions(compute_units=("cpu_and_ne",))
    (remark,) = TARGET.remarks(half, run)
    assert remark == "op placement on cpu_and_ne: 3 on ane, 1 on gpu, 1 on cpu"
    assert compiler.units == ["CPU_AND_NE"]


def test_placement_that_is_not_known(compiler: Compiler, half: Artifact) -> None:
    """With Core ML faked: before macOS 14.4 a remark says that the placement is not known."""
    compiler.error = RuntimeError("Compute plan is not available\non this system")
    (remark,) = TARGET.remarks(half, RunOptions(compute_units=("all",)))
    assert remark == "op placement on all unknown: Compute plan is not available"


WORK = (0.0, 0.3, 0.2, 0.0, 0.3, 0.1, 0.1)
"""Of the compiler's ops: 0.7 on the Neural Engine, 0.2 on the CPU, 0.1 on the GPU."""


def asked(artifact: Artifact, least: float, *units: str) -> Report:
    """``check --min-ane`` of one package on some compute units."""
    request = CheckRequest(
        paths=(artifact.path,),
        choice=ModelChoice(model="levit_digits"),
        run=RunOptions(compute_units=units or ("cpu_only",)),
        min_ane=least,
        drift=False,
    )
    return check(request)


@pytest.mark.parametrize(("least", "verdict"), [(70.0, "pass"), (70.1, "fail")])
def test_share_of_the_neural_engine(
    compiler: Compiler, half: Artifact, least: float, verdict: str
) -> None:
    """With Core ML faked: less estimated work on the Neural Engine than asked for fails.

    The rows of units that leave it out are not asked.
    """
    compiler.work = WORK
    report = asked(half, least, "cpu_only", "cpu_and_ne")
    first, second = report.artifacts
    assert first.parity.of("placement") == ()
    (found,) = second.parity.of("placement")
    assert (found.verdict, report.verdict) == (verdict, verdict)
    assert "70.0 % of the estimated work is on the Neural Engine" in found.sentence
    (answer,) = [each for each in gate.of_report(report.artifacts) if each.name == "neural engine"]
    assert answer.verdict == verdict
    assert any("70% of the estimated work on ane" in note for note in second.notes)


def test_share_that_is_not_known(compiler: Compiler, half: Artifact) -> None:
    """With Core ML faked: without a plan, or without estimates, the share is not run."""
    compiler.error = RuntimeError("Compute plan is not available")
    for words in ("Compute plan is not available", "gives no work estimate"):
        report = asked(half, 10.0, "all")
        (found,) = report.artifacts[0].parity.of("placement")
        assert (found.verdict, report.verdict) == ("not-run", "not-run")
        assert words in found.sentence
        compiler.error = None


@pytest.mark.usefixtures("core_ml")
def test_share_without_the_neural_engine(half: Artifact) -> None:
    """With Core ML faked: a share is refused where no compute unit has the Neural Engine."""
    with pytest.raises(UsageError, match="leave the Neural Engine out"):
        asked(half, 10.0, "cpu_only", "cpu_and_gpu")


def test_share_elsewhere(half: Artifact) -> None:
    """Off macOS the share is not run, and without a Core ML package it is refused."""
    report = asked(half, 10.0)
    assert report.verdict == "not-run"
    assert "known on macOS only" in report.artifacts[0].parity.reason
    with pytest.raises(UsageError, match="none of what is checked is a Core ML package"):
        asked(subjects.artifact("onnx", "fp32"), 10.0)
