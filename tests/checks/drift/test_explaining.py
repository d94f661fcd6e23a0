"""What a failed check is explained by, and what keeps drift from explaining it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gate_reports as made
import numpy as np
import pytest
import subjects

from levit_export.checks import drift
from levit_export.checks.drift import provenance
from levit_export.checks.drift.chain import DriftReference, Model
from levit_export.checks.drift.tolerances import samples_of
from levit_export.checks.execution import Row
from levit_export.checks.findings import Finding
from levit_export.checks.parity import ParityReport
from levit_export.checks.results import ArtifactReport
from levit_export.core.errors import UsageError
from levit_export.core.values import RunOptions, TensorSpec
from levit_export.workflows import explain

KEPT = "stage1.block0.attention"


def failed(kind: str = "onnx") -> ArtifactReport:
    """An artifact that failed, on no sample more than on another."""
    found = Finding("altered-files", {"text": "altered"})
    return replace(made.artifact(kind), parity=ParityReport("", 0, findings=(found,)))


def row(kind: str, precision: str) -> Row:
    """A sound file of the bundled model."""
    return Row(subjects.artifact(kind, precision), RunOptions(threads=1))


def test_only_failures_are_looked_at() -> None:
    """What passed stays as it is, and nothing is loaded for it."""
    passed = made.artifact("onnx")
    found, drawn = explain.explained(
        [passed], [row("onnx", "fp32")], lambda: pytest.fail("asked for the checkpoint")
    )
    assert (found, drawn) == ((passed,), None)


def test_a_sound_file_is_not_accused() -> None:
    """Where file and checkpoint agree, it is the other side of the check that is doubted."""
    subject = explain.Subject(
        subjects.checkpoints.bundled(),
        subjects.digits_reference(),
        networks={"tokens": subjects.digits().network},
    )
    found, drawn = explain.explained([failed()], [row("onnx", "fp32")], lambda: subject)
    (explanation,) = [report.drift for report in found]
    assert explanation is not None
    assert (explanation.cause, explanation.block) == ("none", "")
    assert (
        "accuses no block of onnx-fp32: its answers are the checkpoint's" in explanation.sentence
    )
    assert isinstance(drawn, drift.DriftMap)


def test_a_file_that_is_gone_is_said_to_be(tmp_path: Path) -> None:
    """No checkpoint is read for a file that is not there."""
    lost = row("onnx", "fp32")
    lost = replace(lost, artifact=replace(lost.artifact, path=tmp_path / "gone.onnx"))
    (found,), _ = explain.explained([failed()], [lost], lambda: pytest.fail("asked"))
    assert found.drift is not None
    assert found.drift.sentence.endswith("the file is gone")


def test_what_a_graph_does_beside_the_network_is_refused() -> None:
    """Taps are those of the network: pixels in front of it and probabilities behind are others."""
    sound = subjects.artifact("onnx", "fp32")
    signature = sound.signature
    pixels = replace(signature, inputs=(replace(signature.inputs[0], dtype="uint8"),))
    softmax = replace(signature, outputs=(TensorSpec("probabilities", (1, 10)),))
    provenance.refuse_embedded(sound)
    with pytest.raises(UsageError, match="normalises by itself"):
        provenance.refuse_embedded(replace(sound, signature=pixels))
    with pytest.raises(UsageError, match="gives probabilities, not logits"):
        provenance.refuse_embedded(replace(sound, signature=softmax))


def test_the_samples_that_are_farthest_off_tell_most() -> None:
    """Those are taken whose errors use most of their tolerance, in order; NaN more than any."""
    report = made.artifact("onnx")
    (output,) = report.parity.outputs
    errors = (0.0, 5.0, 1.0, float("nan"), 2.0, 3.0)
    tolerance = replace(output.tolerance, atol=1.0, rtol=(0.0,))
    output = replace(output, errors=errors, scales=(1.0,) * 6, tolerance=tolerance)
    report = replace(report, parity=replace(report.parity, outputs=(output,)))
    assert explain.telling([report], 6) == [1, 3, 5]
    assert explain.telling([failed()], 26) == [0, 8, 16]


@pytest.mark.parametrize("precision", ["fp16", "w8"])
def test_kept_blocks_are_not_rounded_in_the_yardstick(precision: str) -> None:
    """A block in float32 is granted what float32 costs, not what the precision does."""
    samples = samples_of(subjects.tiny_reference().samples, (0, 8))
    against = DriftReference(Model(subjects.tiny_checkpoint(), samples))
    taps = [f"{KEPT}.scores", f"{KEPT}.out"]
    kept = against.yardstick(precision, (KEPT,)).introduced
    rounded = against.yardstick(precision).introduced
    for tap in taps:
        assert max(kept[tap].errors) < 1e-5
        assert max(rounded[tap].errors) > 1e-4
    other = "stage1.block0.mlp.out"
    assert np.allclose(kept[other].errors, rounded[other].errors, rtol=1)
