"""What holds for files of every format: their bytes, what they say, inner values, wrong inputs."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import subjects
from support import of_formats

from levit_export.core.errors import LevitExportError, UsageError
from levit_export.core.precisions import UNIT_ROUNDOFF
from levit_export.core.values import Artifact, RunOptions
from levit_export.formats import target
from levit_export.models import checkpoints

KINDS = (
    ("onnx", "fp32"),
    ("openvino", "fp32"),
    ("coreml", "fp32"),
    ("coreml", "fp16"),
    ("coreai", "fp32"),
)
RUN = RunOptions(threads=1)
SOFTMAX = "stage1_block0_attention_softmax"
APPLIED = ("fuse_batchnorm", "fold_attention_scale", "bake_attention_bias", "merge_heads")


@pytest.fixture(params=of_formats(KINDS))
def found(request: pytest.FixtureRequest) -> Artifact:
    """The bundled model; do not change its files."""
    return subjects.artifact(*request.param)


def image(batch: int = 1) -> dict[str, np.ndarray]:
    """Seeded inputs of the bundled model's size."""
    drawn = np.random.default_rng(0).standard_normal((batch, 3, 96, 96))
    return {"input": drawn.astype(np.float32)}


# --- what is written ------------------------------------------------------------------------


@pytest.mark.parametrize("each", subjects.SMALL, ids="-".join)
def test_same_bytes_in_another_process(each: tuple[str, ...]) -> None:
    """Another process, with another hash seed, writes the same files in each precision.

    That one process does so twice is a part of what every target conforms to.
    """
    available = target(each[0]).can_export()
    if not available.ok:
        pytest.skip(available.reason)
    here, (place, _) = subjects.tiny_artifact(*each), subjects.elsewhere()
    there = replace(here, path=place / "-".join(each) / here.path.name)
    assert subjects.contents(there) == subjects.contents(here)


def test_exports_print_and_leave_nothing() -> None:
    """No export prints a word or leaves a file where it was started, whatever it imports first."""
    place, said = subjects.elsewhere()
    assert said == ""
    assert list((place / "empty").iterdir()) == []


def test_no_place_and_no_clock(found: Artifact) -> None:
    """Nothing in the files tells of the machine, the user or the time they were made."""
    content = b"\n".join(subjects.contents(found).values())
    for place in (Path(checkpoints.__file__).parents[3], Path.home(), found.path.parent):
        assert len(str(place)) == 1 or str(place).encode() + b"/" not in content
    for word in (b"site-packages", b"levit.py", b"conversion_date", b"creationDate", b"resource_"):
        assert word not in content
    assert time.strftime("%Y-%m-%d").encode() not in content


def test_claims(found: Artifact) -> None:
    """A file says which model it is, how to feed it, and with what it was made."""
    read = target(found.format).inspect(found.path)
    info = subjects.digits().info
    said = read.claims
    assert said is not None
    assert (said["model"], said["licence"]) == ("levit_digits", "Apache-2.0")
    assert (said["precision"], read.precision) == (found.precision, found.precision)
    assert said["checkpoint_sha256"] == info.checkpoint_sha256
    assert json.loads(said["labels"]) == [str(digit) for digit in range(10)]
    assert json.loads(said["preprocessing"])["resize"] == [96, 96]
    laid_out = ("lay_out_maps",) if found.format == "coreai" else ()
    assert read.passes == (*APPLIED, *laid_out)
    assert {"levit-export", "torch"} < set(json.loads(said["versions"]))
    assert read.signature == found.signature == subjects.digits().signature


# --- what runs it ---------------------------------------------------------------------------


def test_taps(found: Artifact) -> None:
    """Inner values can be had beside the outputs, without a change to files or signature."""
    before = subjects.contents(found)
    with target(found.format).open(found, RUN, taps=(SOFTMAX,)) as session:
        tapped = session.run(image())
        assert session.signature == found.signature
    with target(found.format).open(found, RUN) as session:
        alone = session.run(image())["logits"]
    assert set(tapped) == {SOFTMAX, "logits"}
    assert tapped[SOFTMAX].shape == (1, 2, 36, 36)
    rows = tapped[SOFTMAX].astype(np.float64).sum(axis=-1)
    np.testing.assert_allclose(rows, 1, rtol=36 * UNIT_ROUNDOFF[found.precision])
    tolerance = subjects.digits_reference().tolerances[found.precision]["logits"]
    distance = np.abs(tapped["logits"] - alone).max()
    assert distance <= min(tolerance.rtol) * np.abs(alone).max()
    assert subjects.contents(found) == before


def test_a_tap_that_is_not_there_is_refused(found: Artifact) -> None:
    """A name that no value has is refused."""
    with (
        pytest.raises(UsageError, match="'no_such_value'") as raised,
        target(found.format).open(found, RUN, ("no_such_value",)) as session,
    ):
        session.run(image())
    assert raised.value.remedy


@pytest.mark.parametrize(
    "inputs",
    [
        image(2),
        {"image": image()["input"]},
        {"input": np.zeros((1, 3, 95, 96), np.float32)},
        {"input": np.zeros((1, 3, 96, 96))},
        {},
    ],
    ids=["batch", "name", "side", "type", "none"],
)
def test_wrong_inputs(found: Artifact, inputs: dict[str, np.ndarray]) -> None:
    """An input of another batch, name, shape or type is refused, and the next call is answered.

    OpenVINO and the evaluator of packages convert numbers to the type that a file takes.
    """
    is_double = any(array.dtype == np.float64 for array in inputs.values())
    if is_double and found.format in {"openvino", "coreml"}:
        return
    with target(found.format).open(found, RUN) as session:
        with pytest.raises(LevitExportError) as raised:
            session.run(inputs)
        assert raised.value.remedy
        assert found.format == "coreml" or found.path.name in raised.value.what
        assert np.isfinite(session.run(image())["logits"]).all()


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_open_batch(kind: str) -> None:
    """An open batch passes on batches of mixed sizes and takes any."""
    opened = subjects.artifact(kind, "fp32", None)
    signature = target(kind).inspect(opened.path).signature
    assert signature == opened.signature
    assert (signature.batch, signature.inputs[0].shape) == (None, (None, 3, 96, 96))
    report = subjects.judge(opened, subjects.digits_reference())
    assert (report.verdict, report.reason) == ("pass", "")
    with target(kind).open(opened, RUN) as session:
        for size in (1, 5, 17):
            assert session.run(image(size))["logits"].shape == (size, 10)
