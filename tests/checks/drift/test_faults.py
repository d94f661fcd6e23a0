"""A few of the faults that scripts/fault-injection injects over all blocks, and clean files."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import faults
import numpy as np
import pytest
import subjects
from faults import Patient
from mutations import with_nan
from support import of_formats

from levit_export.checks import drift
from levit_export.checks.drift import chain, provenance
from levit_export.checks.drift.chain import DriftReference, Model
from levit_export.checks.drift.tolerances import samples_of
from levit_export.core.values import ExportOptions, RunOptions
from levit_export.models import checkpoints
from levit_export.models.preparation import prepare

KINDS = (("onnx", "fp32"), ("openvino", "fp32"), ("coreml", "fp16"), ("coreai", "fp16"))


@cache
def against() -> DriftReference:
    """The bundled model on noise and an image of noise."""
    samples = samples_of(subjects.digits_reference().samples, (0, 8))
    return DriftReference(Model(checkpoints.bundled(), samples))


@pytest.fixture(params=of_formats(KINDS))
def patient(request: pytest.FixtureRequest, tmp_path: Path) -> Patient:
    """A copy of each file, to be spoilt."""
    return Patient.of(subjects.copy(subjects.artifact(*request.param), tmp_path), against())


def test_faults_of_a_file_are_localised(patient: Patient) -> None:
    """One fault of every kind: block, stage and cause are named; the file is clean after."""
    one_of_each = {fault.expected.kind: fault for fault in faults.file_faults(patient)}
    assert len(one_of_each) >= 11
    for fault in one_of_each.values():
        finding = fault.run()
        assert fault.expected.is_named_by(finding), (str(fault.expected), finding.sentence)
    assert patient.judge().clean


def test_faults_of_stages_are_localised() -> None:
    """A fault of the module, of each pass or of the program is not blamed on what comes after."""
    found = list(faults.stage_faults(against().model, subjects.digits().network))
    one_of_each = {(fault.expected.stage, fault.expected.kind): fault for fault in found}
    assert {stage for stage, _ in one_of_each} == {
        chain.CHECKPOINT,
        chain.PROGRAM,
        "pass fuse_batchnorm",
        "pass bake_attention_bias",
        "pass fold_attention_scale",
    }
    for fault in one_of_each.values():
        finding = fault.run()
        assert fault.expected.is_named_by(finding), (str(fault.expected), finding.sentence)


def test_what_is_wrong_before_the_files_is_said_of_them(patient: Patient) -> None:
    """A file is not accused of what its checkpoint's module did."""
    spoilt = next(faults.stage_faults(against().model, subjects.digits().network)).run()
    run = RunOptions()
    stage = against().artifact(patient.artifact, run)
    finding = against().judge(patient.artifact, run, stage, spoilt)
    assert (finding.cause, finding.block, finding.stage) == ("checkpoint", "stem.0", "checkpoint")
    assert patient.artifact.id in finding.sentence


def test_introduced_tells_the_block_where_accumulated_does_not(patient: Patient) -> None:
    """Behind a fault every tap is off, and only the faulty block introduces more than rounding."""
    block = "stage2.block0.attention"
    name = "blocks.6.m.proj.1.weight"
    before = patient.weights[name].read()
    patient.weights[name].write(np.ascontiguousarray(before[:, ::-1]))
    stage = against().artifact(patient.artifact, RunOptions())
    rows = {row.tap: row for row in stage.rows}
    assert {row.block for row in stage.rows if row.is_fault} == {block}
    after = rows["stage3.block1.mlp.out"]
    assert after.accumulated is not None
    assert after.accumulated > 100 * (after.introduced or 0)
    assert stage.wrong_weights == (name,)


def test_a_file_laid_out_as_maps_is_looked_at_like_any_other(tmp_path: Path) -> None:
    """Taps of maps ``(B, C, H, W)`` are held against tokens: sound is clean, a fault is named."""
    prepared = prepare(checkpoints.bundled(), layout="maps")
    made = subjects.export(prepared, tmp_path / "maps", "onnx", ExportOptions())
    assert provenance.layouts([made]) == ("maps",)
    laid_out = Patient.of(made, against())
    assert laid_out.judge().clean
    fault = next(f for f in faults.graph_faults(laid_out) if "stage2" in f.expected.block)
    assert fault.expected.is_named_by(fault.run())
    model = replace(against().model, layouts=("maps",))
    stages = {
        stage.name: stage for stage in DriftReference(model).stages({"maps": prepared.network})
    }
    assert {"pass lay_out_maps", "program in maps"} < set(stages)
    assert not any(stage.first_fault for stage in stages.values())


def test_a_tap_that_is_gone_is_said_to_be_fused(tmp_path: Path) -> None:
    """A value that the file does not have is reported, and what is around it is judged."""
    sound = subjects.copy(subjects.artifact("onnx", "fp32"), tmp_path)
    content = sound.path.read_bytes()
    name = b"stage1_block0_attention_softmax"
    sound.path.write_bytes(content.replace(name, b"x" * len(name)))
    stage = against().artifact(sound, RunOptions())
    rows = {row.tap: row for row in stage.rows}
    tap = "stage1.block0.attention.softmax"
    assert rows[tap].status == "fused"
    assert rows["stage1.block0.attention.out"].fused_before == (tap,)
    assert rows["stage1.block0.attention.out"].status == "ok"


def test_a_file_that_cannot_be_run_is_a_finding(tmp_path: Path) -> None:
    """A damaged file does not end the map: its stage says why it failed."""
    damaged = subjects.copy(subjects.artifact("openvino", "fp32"), tmp_path)
    twin = damaged.path.with_suffix(".bin")
    twin.write_bytes(twin.read_bytes()[:1000])
    run = RunOptions()
    stage = against().artifact(damaged, run)
    finding = against().judge(damaged, run, stage, drift.DriftFinding("model", "none"))
    assert stage.failure
    assert (finding.cause, finding.clean) == ("conversion", False)


def test_what_is_not_finite_is_inherited_by_what_follows(tmp_path: Path) -> None:
    """NaN is a fault where it arises and not at every tap behind."""
    spoilt = Patient.of(subjects.copy(subjects.artifact("onnx", "fp32"), tmp_path), against())
    name = "blocks.3.m.2.bias"
    spoilt.weights[name].write(with_nan(spoilt.weights[name].read()))
    rows = against().artifact(spoilt.artifact, RunOptions()).rows
    assert [row.tap for row in rows if row.status == "not-finite"] == ["stage1.block1.mlp.out"]
    assert {row.status for row in rows[-3:]} == {"inherited"}


def test_samples_of_another_seed_raise_no_alarm(patient: Patient) -> None:
    """Clean files are clean on other inputs too."""
    from levit_export.inputs.samples import make

    subject = against().model
    for seed in (1, 2):
        other = make(subject.checkpoint.preprocessing, seed=seed)
        fresh = DriftReference(replace(subject, samples=samples_of(other, (1, 5))))
        finding = replace(patient, against=fresh).judge()
        assert finding.clean, finding.sentence
