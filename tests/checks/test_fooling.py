"""A check cannot be talked into a pass: spoilt copies of honest artifacts, one run for all.

Each is held against the bundled checkpoint. Answers alone would let many of them pass.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import fooling
import fooling_matrix
import numpy as np
import onnx
import pytest
import subjects
from fooling_matrix import FEW, Outcome

from levit_export.checks.parity import ParityReport
from levit_export.checks.results import ArtifactReport
from levit_export.core.precisions import CALIBRATED
from levit_export.core.values import Artifact, ExportOptions
from levit_export.formats import target
from levit_export.models import checkpoints, loading
from levit_export.models.loading import ModelChoice
from levit_export.reports.report import Report
from levit_export.workflows import check
from levit_export.workflows.check import CheckRequest
from levit_export.workflows.drift import DriftRequest, trace

SEED = 5

TOLD = {
    "relabelled": "its metadata says w8, its graph is in",
    "no passes": "weight tensors are not in the file",
    "decoys": "weight tensors are not in the file",
    "labels": "labels: its metadata differs",
    "recipe": "preprocessing: its metadata differs",
    **dict.fromkeys(fooling_matrix.HIDDEN, "are not tensors of the checkpoint"),
}
"""What a file that lies is told, by the trick that was played on it."""


MOSTLY = (
    *("shrink1.attention", "shrink2.attention", "shrink2.mlp"),
    *("stage3.block0.attention", "stage3.block0.mlp"),
    *("stage3.block1.attention", "stage3.block1.mlp"),
)
"""Blocks of the bundled model with more than half of its weights."""


def in_float32(report: Report) -> list[ArtifactReport]:
    """The rows of a report without those of what a runtime computes in by default."""
    return [row for row in report.artifacts if "by default" not in row.parity.runtime]


@cache
def mixed(kind: str, precision: str) -> Artifact:
    """The bundled model with most of its weights left in float; do not change it."""
    images = None
    if precision in CALIBRATED:
        images = loading.calibration(checkpoints.bundled(), None, count=40, seed=0)
    options = ExportOptions(precision=precision, keep=MOSTLY, calibration=images)
    place = subjects.folder() / f"mixed-{kind}-{precision}"
    return subjects.export(subjects.digits(), place, kind, options)


def claims_all_kept(place: Path) -> Path:
    """A float32 file, a tensor 1 % off, that says it is int8 but for all of its blocks."""
    artifact = subjects.copy(subjects.artifact("onnx", "fp32"), place)
    fooling.scale_weights(artifact, np.random.default_rng(SEED), 1.01)
    every = json.dumps(list(dict.fromkeys(subjects.digits().blocks.values())))
    said = {f"{fooling.PREFIX}precision": "int8", f"{fooling.PREFIX}keep": every}
    fooling.say(artifact, lambda found: found.update(said))
    return artifact.path


def kept_tensor_off(place: Path) -> Path:
    """A mixed file of which a tensor that was kept in float is half a step of a grid off."""
    artifact = subjects.copy(mixed("onnx", "int8"), place)
    proto = onnx.load(artifact.path)
    tensor = max(
        (t for t in proto.graph.initializer if t.data_type == t.FLOAT), key=lambda t: t.ByteSize()
    )
    array = onnx.numpy_helper.to_array(tensor)
    tensor.CopyFrom(onnx.numpy_helper.from_array(array * np.float32(1.003), tensor.name))
    onnx.save(proto, artifact.path)
    return artifact.path


def forgets_what_was_kept(place: Path) -> Path:
    """A mixed file that does not say which blocks are in float."""
    artifact = subjects.copy(mixed("onnx", "int8"), place)
    fooling.say(artifact, lambda said: said.pop(f"{fooling.PREFIX}keep") and None)
    return artifact.path


MIXED = {
    "claims_all_kept": (claims_all_kept, "its metadata says int8, its graph is in fp32"),
    "kept_tensor_off": (kept_tensor_off, "1 of 86 weight tensors are not in the file"),
    "forgets_what_was_kept": (forgets_what_was_kept, "its metadata says int8"),
}


@cache
def judged_mixed() -> dict[str, ArtifactReport]:
    """What a check finds in mixed files, each on its own, by what it is called."""
    place = subjects.folder() / "fooling" / "mixed"
    paths = {kind: mixed(kind, precision).path for kind, precision in HONESTLY_MIXED}
    for name, (make, _) in MIXED.items():
        (place / name).mkdir(parents=True)
        paths[name] = make(place / name)
    choice = ModelChoice("levit_digits")
    request = CheckRequest(tuple(paths.values()), choice=choice, drift=False)
    with fooling.without_accuracy():
        report = check.check(request)
    return dict(zip(paths, in_float32(report), strict=True))


HONESTLY_MIXED = (("onnx", "int8"), ("openvino", "w8"), ("coreml", "w8"))
HALF = ("onnx", "openvino", "coreml")


@cache
def half_kept(kind: str) -> Artifact:
    """The bundled model in float16 with one block in float32; do not change it."""
    options = ExportOptions(precision="fp16", keep=MOSTLY[:1])
    return subjects.export(subjects.digits(), subjects.folder() / f"half-{kind}", kind, options)


def rounded_once_more(place: Path) -> Path:
    """The tensors that stay in float32 were rounded to float16."""
    artifact = subjects.copy(half_kept("onnx"), place)
    proto = onnx.load(artifact.path)
    for tensor in proto.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        if array.dtype == np.float32 and array.size > 1:
            half = array.astype(np.float16).astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(half, tensor.name))
    onnx.save(proto, artifact.path)
    return artifact.path


@cache
def judged_half() -> dict[str, ParityReport]:
    """What one check finds in float16 files with a block in float32."""
    place = subjects.folder() / "fooling" / "half"
    place.mkdir(parents=True, exist_ok=True)
    paths = {kind: half_kept(kind).path for kind in HALF}
    paths["rounded"] = rounded_once_more(place)
    choice = ModelChoice("levit_digits")
    request = CheckRequest(tuple(paths.values()), choice=choice, drift=False)
    with fooling.without_accuracy():
        report = check.check(request)
    return dict(zip(paths, (a.parity for a in in_float32(report)), strict=True))


@pytest.mark.parametrize("kind", HALF)
def test_a_block_in_float32_is_audited_in_float32(kind: str) -> None:
    """The kept tensors of an honest float16 file are found as they are, the others rounded."""
    found = judged_half()[kind]
    assert (found.verdict, found.reason) == ("pass", "")


def test_a_kept_block_that_was_rounded() -> None:
    """A tensor that is kept in float32 and was rounded to float16 is not in the file."""
    found = judged_half()["rounded"]
    assert found.verdict == "fail"
    assert "weight tensors are not in the file" in found.reason
    assert found.of("answers", "shape") == ()


@pytest.mark.parametrize(("kind", "precision"), HONESTLY_MIXED)
def test_a_bare_file_that_is_mostly_float_says_what_was_kept(kind: str, precision: str) -> None:
    """It is measured to be float, and passes in the precision of the blocks that are not kept."""
    made = mixed(kind, precision)
    measured = target(kind).inspect(made.path)
    assert measured.precision in {"fp32", "fp16"}
    assert measured.keep == MOSTLY
    found = judged_mixed()[kind]
    assert (found.parity.verdict, found.precision) == ("pass", precision)
    assert found.parity.weights is not None
    assert (found.parity.weights.missing, found.parity.weights.tensors) == ((), 86)


def test_drift_holds_a_bare_mixed_file_against_what_it_is() -> None:
    """Blocks that were not kept diverge as those of their precision do, which is no fault."""
    path = mixed("coreml", "w8").path
    request = DriftRequest((path,), choice=ModelChoice("levit_digits"), samples=1)
    assert trace(request).verdict == "pass"


@pytest.mark.parametrize("name", MIXED)
def test_a_claim_of_keep_buys_nothing(name: str) -> None:
    """What is said to stay in float is held bit for bit, and the rest must really be coarse."""
    found = judged_mixed()[name].parity
    assert found.verdict == "fail"
    assert MIXED[name][1] in found.reason


@cache
def judged() -> dict[tuple[str, str], Outcome]:
    """What one check says of files that were spoilt and lie about it, by format and trick."""
    tries = [
        each
        for kind in HALF
        for each in fooling_matrix.tries(kind, [SEED], FEW)
        if each.carrier == "file and metadata"
    ]
    return {(each.tried.kind, each.tried.trick): each for each in fooling_matrix.judged(tries)}


@pytest.mark.parametrize("trick", TOLD)
@pytest.mark.parametrize("kind", HALF)
def test_tricks_fail_by_what_is_wrong(kind: str, trick: str) -> None:
    """What a file says decides nothing in its favour; the failure says what is wrong.

    A factor that an inner value is multiplied by is named, however it is hidden.
    """
    found = judged()[kind, trick]
    if (kind, trick) == ("coreml", "hidden subgraph"):
        assert found.verdict == "refused"  # when it is read
        return
    assert found.verdict == "fail"
    assert TOLD[trick] in found.reason
    assert ("weight tensors" in found.reason) == (trick in {"relabelled", "no passes", "decoys"})
