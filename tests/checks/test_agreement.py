"""An asset and a package of one network held against each other: who is accused, and who not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from levit_export.checks import parity
from levit_export.checks.agreement import Witness, witnessed
from levit_export.checks.findings import Finding
from levit_export.checks.results import ArtifactReport
from levit_export.core.values import Signature, TensorSpec, Tolerance
from levit_export.inputs.samples import Samples

ROWS, CLASSES = 4, 3
LOGITS = np.array([[3.0, 0, -1], [0, 2, 1], [-1, 0, 4], [1, -2, 0]])
RTOL = 0.01


def answered(
    kind: str, shift: float, *, name: str = "logits", reference: np.ndarray = LOGITS
) -> Witness:
    """A file whose first number of every row is off by ``shift`` times its allowance."""
    answers = reference.copy()
    answers[:, 0] += shift * RTOL * np.abs(reference).max(axis=1)
    samples = Samples(
        tuple("abcd"), np.zeros((ROWS, 3, 2, 2), np.float32), np.arange(ROWS), pixels={}
    )
    found = parity.compare_outputs(
        {name: reference},
        {name: answers},
        samples,
        {name: Tolerance(0.0, (RTOL,) * ROWS, "derived")},
        expected=Signature((), (TensorSpec(name, (1, CLASSES)),)),
        runtime=f"the runtime of {kind}",
    )
    report = ArtifactReport(kind, "fp16", kind, 1, "0" * 64, found)
    return Witness(report, {name: answers})


def kinds(report: ArtifactReport) -> list[str]:
    """What was found of a file, by kind."""
    return [finding.kind for finding in report.parity.findings]


def test_agreement_is_said_of_the_asset() -> None:
    """Two sound files that agree: the asset's row says so, names both runtimes, and how near."""
    asset, package, other = witnessed(
        [answered("coreai", 0.5), answered("coreml", 0.25), answered("onnx", 0.0)]
    )
    (finding,) = asset.parity.findings
    assert finding.kind == "runtimes-agree"
    assert finding.output == "logits"
    assert finding.values["error"] == pytest.approx(0.25 * RTOL)
    assert finding.values["share"] == pytest.approx(100 * 0.25 / np.sqrt(2))
    assert (finding.values["same"], finding.values["rows"]) == (ROWS, ROWS)
    assert "the runtime of coreai and the runtime of coreml agree" in asset.parity.reason
    assert asset.parity.verdict == "pass"
    assert (kinds(package), kinds(other)) == ([], [])


def test_what_independent_roundings_may_be() -> None:
    """Two files may lie as far apart as the root of the sum of their squared allowances."""
    found = witnessed([answered("coreml", -0.7), answered("coreai", 0.7)])
    assert [kinds(each) for each in found] == [[], ["runtimes-agree"]]


def test_what_independent_roundings_cannot_be() -> None:
    """Each within its own tolerance, two files that lie farther apart than that both fail."""
    found = witnessed([answered("coreml", -0.72), answered("coreai", 0.72)])
    assert [kinds(each) for each in found] == [["runtimes-differ"]] * 2
    assert [each.parity.verdict for each in found] == ["fail", "fail"]
    assert "two roundings of one network at most" in found[0].parity.reason


def test_answers_that_are_not_numbers_differ() -> None:
    """Answers that are NaN do not agree, however they came through the checks before."""
    spoilt = {"logits": np.full((ROWS, CLASSES), np.nan)}
    asset = replace(answered("coreai", 0.0), answers=spoilt)
    found = witnessed([asset, answered("coreml", 0.0)])
    assert [kinds(each) for each in found] == [["runtimes-differ"]] * 2


@pytest.mark.parametrize(
    ("asset", "package"),
    [
        ({"precision": "fp32"}, {}),
        ({"precision": "w8"}, {"precision": "w8"}),
        ({"format": "onnx"}, {}),
    ],
    ids=["another precision", "quantised", "another format"],
)
def test_files_that_are_no_witnesses(asset: dict[str, Any], package: dict[str, Any]) -> None:
    """Of other pairs of files nothing is said."""
    one, other = answered("coreai", 0.5), answered("coreml", -0.9)
    reports = [replace(one.report, **asset), replace(other.report, **package)]
    witnesses = [Witness(reports[0], one.answers), Witness(reports[1], other.answers)]
    assert witnessed(witnesses) == reports


@pytest.mark.parametrize("silent", [0, 1])
def test_without_answers_nothing_is_said(silent: int) -> None:
    """A file that ran on a device left no answers here, so it is not compared with another."""
    witnesses = [answered("coreai", 0.5), answered("coreml", -0.9)]
    witnesses[silent] = Witness(witnesses[silent].report)
    assert witnessed(witnesses) == [each.report for each in witnesses]


def test_a_file_that_is_wrong_by_itself_accuses_nobody() -> None:
    """The sound one of two files is not blamed for what the other answers."""
    asset, package = witnessed([answered("coreai", 0.1), answered("coreml", 3.0)])
    assert kinds(asset) == []
    assert "runtimes-differ" not in kinds(package)


def test_only_files_that_pass_are_witnesses() -> None:
    """An asset of which nothing vouches for a file gets no agreement beside its other findings."""
    asset = answered("coreai", 0.5)
    doubt = Finding("unlisted-files", {"text": "nothing vouches for x"})
    doubted = replace(asset.report, parity=asset.report.parity.joined(doubt))
    asset = replace(asset, report=doubted)
    assert kinds(witnessed([asset, answered("coreml", 0.25)])[0]) == ["unlisted-files"]


def test_agreement_is_not_judged_again() -> None:
    """By another tolerance the share of the files' own is not said; that they differ stays."""
    agreed, _ = witnessed([answered("coreai", 0.5), answered("coreml", 0.25)])
    differing, _ = witnessed([answered("coreai", 0.72), answered("coreml", -0.72)])
    loose = Tolerance(0.0, (0.1,), "given")
    assert agreed.parity.rejudged(loose).findings == ()
    assert kinds(replace(differing, parity=differing.parity.rejudged(loose))) == [
        "runtimes-differ"
    ]


def test_answers_to_another_reference_are_not_compared() -> None:
    """Files of two models, and outputs of other names, are not held against each other."""
    asset = answered("coreai", 0.1)
    for other in (
        answered("coreml", 0.1, reference=LOGITS + 1),
        answered("coreml", 0.1, name="probabilities"),
    ):
        assert witnessed([asset, other]) == [asset.report, other.report]
