"""A check cannot be talked into a pass: spoilt copies of honest artifacts, one run for all.

Each is held against the bundled checkpoint. Answers alone would let many of them pass.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import fooling
import numpy as np
import pytest
import subjects

from levit_export import inspection
from levit_export.core import Artifact
from levit_export.inspection import InspectRequest
from levit_export.parity import ParityReport
from levit_export.reference import ModelChoice

KINDS = (("onnx", "fp32"), ("openvino", "fp32"), ("coreml", "fp32"))
SEED = 5


def relabelled(artifact: Artifact, draw: np.random.Generator) -> None:
    """A tensor 1 % off in a float32 file that says it is int8."""
    fooling.scale_weights(artifact, draw, 1.01)
    fooling.say(artifact, lambda said: said.update({f"{fooling.PREFIX}precision": "int8"}))


def without_passes(artifact: Artifact, draw: np.random.Generator) -> None:
    """The same, and the passes that made it are not named."""
    fooling.scale_weights(artifact, draw, 1.01)
    fooling.say(artifact, lambda said: said.pop(f"{fooling.PREFIX}passes") and None)


def anonymous_with_decoys(artifact: Artifact, draw: np.random.Generator) -> None:
    """Nothing is said at all, and dead quantised tensors lie about."""
    fooling.scale_weights(artifact, draw, 1.01)
    fooling.plant_decoys(artifact, draw)
    fooling.say(artifact, dict.clear)


def reversed_labels(artifact: Artifact, _: np.random.Generator) -> None:
    """Nothing is wrong but the order of the classes' names."""

    def change(said: dict[str, str]) -> None:
        key = f"{fooling.PREFIX}labels"
        said[key] = json.dumps(json.loads(said[key])[::-1])

    fooling.say(artifact, change)


def other_recipe(artifact: Artifact, _: np.random.Generator) -> None:
    """Nothing is wrong but the mean that devices are told to subtract."""

    def change(said: dict[str, str]) -> None:
        key = f"{fooling.PREFIX}preprocessing"
        said[key] = json.dumps({**json.loads(said[key]), "mean": [0.0, 0.0, 0.0]})

    fooling.say(artifact, change)


TRICKS = {
    trick.__name__: trick
    for trick in (
        relabelled,
        without_passes,
        anonymous_with_decoys,
        reversed_labels,
        other_recipe,
    )
}
WORDS = {
    "relabelled": "its graph computes in fp32",
    "without_passes": "weight tensors are not in the file",
    "anonymous_with_decoys": "weight tensors are not in the file",
    "reversed_labels": "labels: its metadata differs",
    "other_recipe": "preprocessing: its metadata differs",
}


def spoilt(kind: str, precision: str, name: str, seed: int = SEED) -> Path:
    """A copy on which a trick was played, or in which a factor was hidden."""
    place = subjects.folder() / "fooling" / f"{kind}-{precision}-{name}-{seed}" / "file"
    place.mkdir(parents=True)
    artifact = subjects.copy(subjects.artifact(kind, precision), place)
    draw = np.random.default_rng(seed)
    if name in TRICKS:
        TRICKS[name](artifact, draw)
    elif name != "honest":
        fooling.hide(artifact, draw, name, 1.004)
    return artifact.path


CASES = [
    (kind, precision, name)
    for kind, precision in KINDS
    for name in ("honest", *TRICKS, *fooling.WAYS)
    if (kind, name) != ("coreml", "subgraph")  # which is refused when it is read
]


@cache
def judged() -> dict[tuple[str, str, str], ParityReport]:
    """What one check of all of them finds."""
    paths = tuple(spoilt(*case) for case in CASES)
    choice = ModelChoice("levit_digits")
    report = inspection.check(InspectRequest(paths, choice=choice, drift=False))
    return dict(zip(CASES, (a.parity for a in report.artifacts), strict=True))


@pytest.mark.parametrize(("kind", "precision"), KINDS)
def test_an_honest_file_passes(kind: str, precision: str) -> None:
    """The same copy, not spoilt, passes with every weight accounted for."""
    found = judged()[kind, precision, "honest"]
    assert (found.verdict, found.reason) == ("pass", "")


@pytest.mark.parametrize("name", TRICKS)
@pytest.mark.parametrize(("kind", "precision"), KINDS)
def test_tricks_fail_by_what_is_wrong(kind: str, precision: str, name: str) -> None:
    """What a file says decides nothing in its favour; the failure says what is wrong."""
    found = judged()[kind, precision, name]
    assert found.verdict == "fail"
    assert WORDS[name] in found.reason


@pytest.mark.parametrize(("kind", "precision", "name"), [c for c in CASES if c[2] in fooling.WAYS])
def test_hidden_factors_are_seen_by_the_audit(kind: str, precision: str, name: str) -> None:
    """A factor that an inner value is multiplied by is named, however it is hidden."""
    found = judged()[kind, precision, name]
    assert found.verdict == "fail"
    assert found.weights is not None
    assert found.weights.strange
    assert found.weights.missing == ()
