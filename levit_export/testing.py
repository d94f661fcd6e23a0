"""For people who add a target or test a model: seeded weights, a target to imitate, its contract.

A third-party target is a class with the methods of :class:`levit_export.core.values.Target`,
registered under the entry-point group ``levit_export.targets``, whose tests call
:func:`assert_conforms`.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from levit_export.core.errors import ArtifactError, LevitExportError, RuntimeFailedError
from levit_export.core.network import Network, Op, Value
from levit_export.core.precisions import CALIBRATED, HINTED, UNIT_ROUNDOFF
from levit_export.core.quiet import first_line
from levit_export.core.values import (
    Arithmetic,
    Artifact,
    Availability,
    ExportOptions,
    Prepared,
    RunOptions,
    Session,
    Signature,
    Target,
    Tensors,
    TensorSpec,
)
from levit_export.models.architectures.random_weights import randomize_

__all__ = ["FakeTarget", "assert_conforms", "randomize_"]

GRAPH = "graph"
"""What the operators are called in a file of the fake target, beside the constants."""

CALIBRATION_IMAGES = 40
ASKED_AGAIN = 4
"""How many samples a session is given twice, and a second session as well."""


class FakeTarget:
    """The smallest target that conforms: a network as NumPy arrays, computed by PyTorch."""

    name = "npz"
    suffix = ".npz"
    precisions = ("fp32",)

    def computes_in_half(self, precision: str) -> bool:
        """No."""
        del precision
        return False

    def can_export(self) -> Availability:
        """Always."""
        return Availability(ok=True)

    can_run = can_export
    can_time = can_export

    def refuse(self, options: ExportOptions) -> None:
        """Nothing."""

    def export(self, model: Prepared, path: Path, options: ExportOptions) -> Artifact:
        """Write the constants as they are, and the operators as JSON beside them."""
        network = model.network
        graph = json.dumps({**asdict(network), "constants": None}).encode()
        arrays: dict[str, Any] = {GRAPH: np.frombuffer(graph, np.uint8), **network.constants}
        np.savez(path, **arrays)
        return Artifact(self.name, options.precision, path, model.signature)

    def inspect(self, path: Path) -> Artifact:
        """Signature of a file."""
        network = _read(path)
        outputs = [network.values[name] for name in network.outputs]
        return Artifact(
            self.name, "fp32", path, Signature(_specs(network.inputs), _specs(outputs))
        )

    def constants(self, artifact: Artifact) -> Iterator[np.ndarray]:
        """The arrays."""
        yield from _read(artifact.path).constants.values()

    def runs(self, options: RunOptions) -> tuple[RunOptions, ...]:
        """Once."""
        return (options,)

    def arithmetic(self, options: RunOptions) -> Arithmetic:
        """Float32."""
        del options
        return Arithmetic()

    def values(self, artifact: Artifact) -> list[str]:
        """The names of all values that operators give."""
        return [value.name for op in _read(artifact.path).ops for value in op.outputs]

    def remarks(self, artifact: Artifact, options: RunOptions) -> tuple[str, ...]:
        """None."""
        del artifact, options
        return ()

    @contextmanager
    def open(
        self, artifact: Artifact, options: RunOptions, taps: Sequence[str] = ()
    ) -> Iterator[Session]:
        """Load the file."""
        del options
        network = _read(artifact.path)
        yield _FakeSession(network, self.inspect(artifact.path).signature, tuple(taps))


@dataclass(frozen=True)
class _FakeSession:
    network: Network
    signature: Signature
    taps: tuple[str, ...]
    runtime: str = "PyTorch (.npz)"

    def run(self, inputs: Tensors) -> dict[str, np.ndarray]:
        """One forward call."""
        from levit_export.models.interpreter import evaluate

        for spec in self.signature.inputs:
            if spec.name not in inputs or not spec.admits(inputs[spec.name]):
                raise RuntimeFailedError(f"{spec.name} does not fit", remedy=f"It is {spec}.")
        return evaluate(self.network, inputs, also=self.taps)


def _read(path: Path) -> Network:
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
            constants = {name: arrays[name] for name in arrays.files if name != GRAPH}
            graph = json.loads(arrays[GRAPH].tobytes())
        return Network(
            _values(graph["inputs"]),
            tuple(graph["outputs"]),
            tuple(
                Op(
                    op["kind"],
                    tuple(op["inputs"]),
                    _values(op["outputs"]),
                    {
                        k: tuple(v) if isinstance(v, list) else v
                        for k, v in op["attributes"].items()
                    },
                    op["block"],
                )
                for op in graph["ops"]
            ),
            constants,
            graph["taps"],
        )
    except Exception as error:
        raise ArtifactError(
            f"{path} does not hold a network: {first_line(error)}", remedy="Export anew."
        ) from error


def _values(entries: Sequence[Mapping[str, Any]]) -> tuple[Value, ...]:
    return tuple(Value(e["name"], tuple(e["shape"]), e["dtype"]) for e in entries)


def _specs(values: Sequence[Value]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(value.name, value.shape, value.dtype) for value in values)


def assert_conforms(target: Target, folder: Path) -> None:
    """Raise ``AssertionError`` where ``target`` breaks the contract that the toolchain relies on.

    A small LeViT, randomised for fp32 and fp16 and trained for coarser precisions, is exported
    into ``folder`` in each of the target's precisions, laid out as its exports are, and run.
    Checked: the same bytes on re-export, self-description, names, shapes and types, equal answers
    on equal inputs and from two sessions at once, parity with PyTorch, and that misuse and damage
    raise errors of this package's own.
    """
    assert target.can_export().ok, f"cannot export here: {target.can_export().reason}"
    assert target.precisions, "has no precisions"
    fine = [p for p in target.precisions if p in UNIT_ROUNDOFF and p not in HINTED]
    coarse = [p for p in target.precisions if p not in fine]
    for precisions, seed in ((fine, 0), (coarse, None)):
        if precisions:
            _assert_conforms_in(target, folder, precisions, seed)


def _assert_conforms_in(
    target: Target, folder: Path, precisions: Sequence[str], random_seed: int | None
) -> None:
    from levit_export.checks import reference
    from levit_export.models import loading
    from levit_export.models.preparation import layout_of, prepare
    from levit_export.models.zoo import AUTO_LAYOUT

    checkpoint = loading.load(loading.ModelChoice("levit_digits", random_seed=random_seed))
    images = loading.calibration(checkpoint, None, count=CALIBRATION_IMAGES)
    by_default = target.arithmetic(RunOptions(by_default=True)).type
    # A processor need not compute as a file asks it to.
    computed = [p for p in precisions if p not in HINTED or p == by_default]
    expected = reference.make(checkpoint, checkpoint.describe(), computed, calibration=images)
    models: dict[str, Prepared] = {}
    for precision in precisions:
        layout = layout_of(AUTO_LAYOUT, target.name, precision, checkpoint.config, skip=())
        if layout not in models:
            models[layout] = prepare(checkpoint, batch=2, layout=layout)
        model = models[layout]
        options = ExportOptions(
            precision=precision,
            batch=2,
            calibration=images if precision in CALIBRATED else None,
        )
        target.refuse(options)
        artifact = _assert_same_bytes(target, model, folder / precision, options)
        described = target.inspect(artifact.path)
        assert described.signature == model.signature, "inspect() and export() disagree"
        assert described.precision == precision, f"says it is {described.precision}"
        if precision in computed:
            _assert_answers(target, artifact, expected)
            _assert_misuse_is_refused(target, artifact)
            _assert_damage_is_refused(target, artifact)


def _assert_same_bytes(
    target: Target, model: Prepared, folder: Path, options: ExportOptions
) -> Artifact:
    artifacts = []
    for turn in ("first", "second"):
        (folder / turn).mkdir(parents=True)
        path = folder / turn / f"model{target.suffix}"
        artifacts.append(target.export(model, path, options))
        assert path.exists(), f"export() wrote nothing at {path.name}"
    one, two = (
        {file.relative_to(folder / turn): file.read_bytes() for file in artifact.files}
        for turn, artifact in zip(("first", "second"), artifacts, strict=True)
    )
    assert one.keys() == two.keys(), (
        f"exporting twice gives {sorted(map(str, one))} and other files"
    )
    differing = [str(name) for name, content in one.items() if two[name] != content]
    assert not differing, f"exporting twice does not give the same bytes: {', '.join(differing)}"
    return artifacts[0]


def _assert_answers(target: Target, artifact: Artifact, expected: object) -> None:
    from levit_export.checks import parity
    from levit_export.checks.reference import Reference

    assert isinstance(expected, Reference)
    options = RunOptions()
    few = expected.samples.first(ASKED_AGAIN)
    with target.open(artifact, options) as one, target.open(artifact, options) as other:
        assert isinstance(one, Session), "open() does not give a Session"
        assert one.signature == artifact.signature, "the session has another signature"
        first = parity.collect(one, expected.samples)
        again, second = (parity.collect(session, few) for session in (one, other))
    for spec in artifact.signature.outputs:
        assert spec.name in first, f"output {spec.name!r} is missing"
        assert str(first[spec.name].dtype) == spec.dtype, f"gives {first[spec.name].dtype}"
        for answer in (again, second):
            assert np.array_equal(first[spec.name][: len(few)], answer[spec.name]), "answers vary"
    report = parity.compare_outputs(
        expected.outputs,
        first,
        expected.samples,
        expected.tolerances[artifact.precision],
        expected=expected.signature,
        runtime=one.runtime,
    )
    assert report.verdict == "pass", f"is another model: {report.reason}"


def _assert_misuse_is_refused(target: Target, artifact: Artifact) -> None:
    (spec,) = artifact.signature.inputs
    shape = [dimension or 1 for dimension in spec.shape]
    wrong = {
        "another name": {"no such input": np.zeros(shape, spec.dtype)},
        "another shape": {spec.name: np.zeros([*shape[:-1], shape[-1] + 1], spec.dtype)},
    }
    with target.open(artifact, RunOptions()) as session:
        for what, inputs in wrong.items():
            try:
                session.run(inputs)
            except LevitExportError:
                continue
            except Exception as error:
                raise AssertionError(f"{what}: lets {type(error).__name__} through") from error
            raise AssertionError(f"{what} of the input is accepted")


def _assert_damage_is_refused(target: Target, artifact: Artifact) -> None:
    """Cut every file in half, one after the other."""
    for file in artifact.files:
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) // 2])
        try:
            with target.open(artifact, RunOptions()) as session:
                session.run(
                    {
                        s.name: np.zeros([d or 1 for d in s.shape], s.dtype)
                        for s in session.signature.inputs
                    }
                )
        except LevitExportError:
            continue
        except Exception as error:
            raise AssertionError(
                f"half of {file.name}: lets {type(error).__name__} through"
            ) from error
        else:
            raise AssertionError(f"half of {file.name} is accepted")
        finally:
            file.write_bytes(whole)
