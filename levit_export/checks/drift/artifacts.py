"""(iv) Files on disk, each run by its own runtime with its taps as further outputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from levit_export.checks import weights
from levit_export.checks.drift.comparing import Comparison
from levit_export.checks.drift.tolerances import Exact, Yardstick
from levit_export.checks.drift.values import DriftStage
from levit_export.core import constants
from levit_export.core.errors import LevitExportError
from levit_export.core.network import value_of_tap
from levit_export.core.values import PROBABILITIES, Artifact, RunOptions
from levit_export.formats import simulated_quantisation as simulated
from levit_export.formats import target

if TYPE_CHECKING:
    from levit_export.core.values import Session

AGAINST = "the captured network"


def stage(
    artifact: Artifact,
    run: RunOptions,
    exact: Exact,
    yardstick: Yardstick,
    tensors: Mapping[str, np.ndarray],
) -> DriftStage:
    """The rows of a file, and which of the weight ``tensors`` it does not hold.

    ``exact`` is the prepared module, which the program was found to be (iii). A file that cannot
    be read or run is a stage with a ``failure``, not an error: the chain goes on with the others.
    """
    name = artifact.id
    try:
        wrong = wrong_weights(artifact, tensors)
        kind = target(artifact.format)
        known = set(kind.values(artifact))
        values = {tap: value_of_tap(tap) for tap in _inner(exact)}
        values = {tap: value for tap, value in values.items() if value in known}
        fused = set(_inner(exact)) - set(values)
        with kind.open(artifact, run, tuple(values.values())) as session:
            runtime = session.runtime
            comparison = Comparison(exact, yardstick, fused | _behind_softmax(session, exact))
            _feed(session, exact, comparison, values)
    except LevitExportError as error:
        return DriftStage(name, "artifact", AGAINST, failure=str(error))
    return DriftStage(name, "artifact", AGAINST, comparison.rows(name), runtime, wrong)


def _inner(exact: Exact) -> tuple[str, ...]:
    return tuple(name for name in exact.names if name not in exact.outputs)


def _behind_softmax(session: Session, exact: Exact) -> set[str]:
    """The outputs that a Core ML classifier keeps to itself: it gives their probabilities."""
    given = {spec.name for spec in session.signature.outputs}
    return set(exact.outputs) - given if PROBABILITIES in given else set()


def _feed(
    session: Session, exact: Exact, comparison: Comparison, values: Mapping[str, str]
) -> None:
    """Give the comparison what the session computes, batch by batch."""
    index = 0
    names = {**values, **{name: name for name in exact.outputs}}
    spec = session.signature.inputs[0]
    for inputs, rows in exact.samples.batches(session.signature.batch or 1):
        found = session.run({spec.name: inputs})
        for row in range(rows):
            present = {
                tap: np.asarray(found[value])[row : row + 1]
                for tap, value in names.items()
                if value in found and len(found[value]) == len(inputs)
            }
            comparison.add(index, present)
            index += 1


def wrong_weights(artifact: Artifact, tensors: Mapping[str, np.ndarray]) -> tuple[str, ...]:
    """Which of ``tensors`` the file does not hold: bit for bit, or on its grid where quantised."""
    if not tensors:
        return ()
    stored = list(target(artifact.format).constants(artifact))
    digests = constants.fingerprints(tensors, artifact.precision)
    if artifact.precision in simulated.BITS:
        digests = weights.settled(tensors, stored, simulated.BITS[artifact.precision])
    return weights.audit(digests, stored, artifact.precision).missing
