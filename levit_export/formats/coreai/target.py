"""Core AI assets (``.aimodel``), run by Apple's own runtime, which exists for Linux too."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from levit_export.core.errors import (
    ArtifactError,
    ExportFailedError,
    LevitExportError,
    MissingDependencyError,
    RuntimeFailedError,
    UsageError,
)
from levit_export.core.packages import needs, versions
from levit_export.core.values import (
    Arithmetic,
    Artifact,
    Availability,
    ExportOptions,
    Prepared,
    RunOptions,
    Signature,
    Tensors,
)
from levit_export.formats.coreai import program
from levit_export.formats.metadata import inspected, metadata

PACKAGE = "coreai-core"
INSTALL = "pip install 'levit-export[coreai]'"
OLDEST_RUNTIME = "iOS 27, macOS 27 and later"
NOTE = (
    "checked by Apple's runtime for Linux, which computes on the CPU: it shows what the program "
    "says, and not what the kernels of a Neural Engine or a GPU do"
)


class CoreaiTarget:
    """See :class:`levit_export.core.values.Target`."""

    name = "coreai"
    suffix = ".aimodel"
    precisions = ("fp16", "fp32", "w8", "w6", "w4")

    def computes_in_half(self, precision: str) -> bool:
        """All but float32."""
        return precision != "fp32"

    def can_export(self) -> Availability:
        """Needs torch and coreai-core, which is a pre-release."""
        return _needs("torch", "coreai")

    def can_run(self) -> Availability:
        """Needs coreai-core."""
        return _needs("coreai")

    def can_time(self) -> Availability:
        """Say that nothing can be timed: Apple's runtime for Linux does not run on a device."""
        return Availability(
            ok=False,
            reason="Apple's runtime outside of its systems says nothing about their speed",
            fix="time it in an app on the device",
        )

    def refuse(self, options: ExportOptions) -> None:
        """Raise for an open batch."""
        if options.batch is None:
            raise UsageError(
                "a Core AI program is written for a fixed batch",
                remedy="Leave out --dynamic, or export --format onnx,openvino with it.",
            )

    def runs(self, options: RunOptions) -> tuple[RunOptions, ...]:
        """Once, on the CPU."""
        return (options,)

    def arithmetic(self, options: RunOptions) -> Arithmetic:
        """Float32: a program says itself what is float16."""
        del options
        return Arithmetic()

    def export(self, model: Prepared, path: Path, options: ExportOptions) -> Artifact:
        """Write an asset with a fixed batch, float32 input and output."""
        network, info = model.network, model.info
        network.refuse_unknown(options.keep)
        about = {
            "author": "levit-export",
            "license": info.licence,
            "model_description": f"{info.name}: {info.kind}. Input: "
            + info.preprocessing.in_words(embedded=model.embedded.preprocessing),
        }
        said = metadata(model, options, (PACKAGE,))
        wanted = program.Wanted(network, options.precision, options.keep, about, said)
        try:
            counts = program.ask(program.export, path, wanted)
        except RuntimeFailedError as error:
            raise ExportFailedError(
                f"Core AI could not write {info.name}: {error.what}",
                remedy="Report the model.",
            ) from error
        types = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
        return Artifact(
            self.name,
            options.precision,
            path,
            model.signature,
            (f"{sum(counts.values())} ops: {types}",),
            keep=options.keep,
            runs_on=OLDEST_RUNTIME,
        )

    def inspect(self, path: Path) -> Artifact:
        """Signature and precision of an asset."""
        found = _described(path)
        return inspected(self.name, path, found.signature, found.said, found.contents)

    def constants(self, artifact: Artifact) -> Iterator[np.ndarray]:
        """The numbers that the results depend on.

        Raises ``ArtifactError`` for a program with operations that are not written here.
        """
        found = _described(artifact.path)
        if found.strange:
            raise ArtifactError(
                f"{artifact.path} has a {found.strange} that this package does not write, and "
                "what numbers it makes is not known",
                remedy="Export it with levit-export.",
            )
        yield from (each.numbers for each in found.contents)

    def values(self, artifact: Artifact) -> tuple[str, ...]:
        """The names of the inner values, in the program's order."""
        return _described(artifact.path).values

    def remarks(self, artifact: Artifact, options: RunOptions) -> tuple[str, ...]:
        """What the runtime cannot show here."""
        del artifact, options
        return (NOTE,)

    @contextmanager
    def open(
        self, artifact: Artifact, options: RunOptions, taps: Sequence[str] = ()
    ) -> Iterator[CoreaiSession]:
        """Compile the asset in Core AI's process; ``taps`` are outputs of a copy of it."""
        del options
        signature = _described(artifact.path).signature
        number = program.read(artifact.path, program.opened, tuple(taps))
        try:
            yield CoreaiSession(artifact.path, number, signature)
        finally:
            with suppress(LevitExportError):  # its process may be gone
                program.ask(program.closed, number)


class CoreaiSession:
    """A program in Core AI's runtime as :class:`levit_export.core.values.Session`."""

    def __init__(self, path: Path, number: int, signature: Signature) -> None:
        self._path = path
        self._number = number
        self.signature = signature
        self.runtime = f"Core AI ({PACKAGE} {versions([PACKAGE]).get(PACKAGE, '?')}, CPU)"

    def run(self, inputs: Tensors) -> dict[str, np.ndarray]:
        """One call."""
        self.signature.refuse_absent(inputs, self._path.name)
        return program.ask(program.answered, self._path, self._number, dict(inputs))


def _described(path: Path) -> program.Described:
    """What is on disk, where Core AI can be asked."""
    available = _needs("coreai")
    if not available.ok:
        raise MissingDependencyError(
            f"{path} cannot be read here: {available.reason}", remedy=f"{available.fix}."
        )
    return program.read(path, program.described)


def _needs(*names: str) -> Availability:
    if tuple(sys.version_info) < (3, 11):
        return Availability(
            ok=False,
            reason=f"{PACKAGE} needs Python 3.11 or later",
            fix="use a newer Python",
        )
    available = needs(*names)
    if available.ok or "coreai" not in available.reason:
        return available
    return Availability(
        ok=False,
        reason=f"{PACKAGE} is not installed (a pre-release of Apple's, not part of `all`)",
        fix=INSTALL,
    )
