"""Every registered target keeps the contract of levit_export.core.values.Target."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from levit_export.core.values import (
    Artifact,
    ExportOptions,
    Prepared,
    RunOptions,
    Session,
    Tensors,
)
from levit_export.formats import PREVIEWS, TARGETS, target
from levit_export.testing import FakeTarget, assert_conforms

ALONE = """
import sys
from pathlib import Path
from levit_export.formats import target
from levit_export.testing import assert_conforms
assert_conforms(target(sys.argv[1]), Path(sys.argv[2]))
"""


@pytest.mark.parametrize("name", [kind.name for kind in (*TARGETS, *PREVIEWS)])
def test_a_registered_target_conforms(name: str, tmp_path: Path) -> None:
    """Same bytes twice, right names and shapes, equal answers, own errors, parity.

    In a process of its own, as a command is: what other tests did to a converter's global state
    has no part in the contract. What stands on a pre-release need not be installed.
    """
    available = target(name).can_export()
    if name in {kind.name for kind in PREVIEWS} and not available.ok:
        pytest.skip(available.reason)
    done = subprocess.run(
        [sys.executable, "-c", ALONE, name, tmp_path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_fake_target_conforms(tmp_path: Path) -> None:
    """The target that newcomers are to imitate keeps the contract."""
    assert_conforms(FakeTarget(), tmp_path)


class ClockInBytes(FakeTarget):
    """Writes other bytes every time."""

    turn = 0

    def export(self, model: Prepared, path: Path, options: ExportOptions) -> Artifact:
        artifact = super().export(model, path, options)
        ClockInBytes.turn += 1
        path.write_bytes(path.read_bytes() + bytes([ClockInBytes.turn]))
        return artifact


class Altered:
    """A session that changes what another one answers."""

    def __init__(self, session: Session, shift: float, name: str) -> None:
        self._session, self._shift, self._name = session, shift, name
        self.signature, self.runtime = session.signature, session.runtime

    def run(self, inputs: Tensors) -> Tensors:
        logits = self._session.run(inputs)["logits"].copy()
        logits[:, 3] += np.float32(self._shift)
        return {self._name: logits}


class WrongAnswers(FakeTarget):
    """Computes one class wrong."""

    shift, output = 0.05, "logits"

    @contextmanager
    def open(
        self, artifact: Artifact, options: RunOptions, taps: Sequence[str] = ()
    ) -> Iterator[Session]:
        with super().open(artifact, options, taps) as session:
            yield Altered(session, self.shift, self.output)


class WrongName(WrongAnswers):
    """Calls its output something else."""

    shift, output = 0.0, "out"


class ForeignErrors(FakeTarget):
    """Lets the runtime's own exceptions through."""

    @contextmanager
    def open(
        self, artifact: Artifact, options: RunOptions, taps: Sequence[str] = ()
    ) -> Iterator[Session]:
        if artifact.path.stat().st_size < self.whole:
            raise ValueError("half a file")
        with super().open(artifact, options, taps) as session:
            yield session

    whole = 0

    def inspect(self, path: Path) -> Artifact:
        ForeignErrors.whole = path.stat().st_size
        return super().inspect(path)


@pytest.mark.parametrize(
    ("broken", "complaint"),
    [
        (ClockInBytes(), "same bytes"),
        (WrongAnswers(), "another model"),
        (WrongName(), "missing"),
        (ForeignErrors(), "ValueError"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_broken_target_is_found_out(broken: FakeTarget, complaint: str, tmp_path: Path) -> None:
    """The contract's own check fails for a target that breaks it, and says how."""
    with pytest.raises(AssertionError, match=complaint):
        assert_conforms(broken, tmp_path)
