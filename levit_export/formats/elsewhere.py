"""Sessions of runtimes in other versions, each in a process of an environment of its own."""

from __future__ import annotations

import io
import json
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from levit_export.core.errors import NotRunError, RuntimeFailedError
from levit_export.core.processes import GRACE_S, last_words
from levit_export.core.values import Artifact, RunOptions, Signature, Tensors, TensorSpec
from levit_export.formats.environments import Version

ANSWERING = Path(__file__).with_name("answering.py")
"""The program that runs there."""


class ElsewhereSession:
    """A file in another version of its runtime, as :class:`levit_export.core.values.Session`."""

    def __init__(
        self, process: subprocess.Popen[bytes], printed: IO[bytes], version: Version
    ) -> None:
        self._process, self._printed, self._version = process, printed, version
        told = json.loads(self._received())
        if "absent" in told:
            raise NotRunError(
                f"{version} does not start: {told['absent']}",
                remedy="Try another release, or put an older Python on the search path.",
            )
        if "unable" in told:
            raise NotRunError(
                f"{version} cannot compute in bf16 here: {told['unable']}",
                remedy="Check it on a processor with AMX or AVX512-BF16.",
            )
        if "refused" in told:
            raise RuntimeFailedError(
                f"{version} does not take the file: {told['refused']}",
                remedy="The manifest says which runtimes can read it (runs_on).",
            )
        self.runtime = f"{version.package} {told['version']} (CPU, Python {told['python']})"
        self.signature = Signature(_specs(told["inputs"]), _specs(told["outputs"]))

    def run(self, inputs: Tensors) -> dict[str, np.ndarray]:
        """One inference call there."""
        self.signature.refuse_absent(inputs, str(self._version))
        packed = io.BytesIO()
        np.savez(packed, *(inputs[spec.name] for spec in self.signature.inputs))
        message, to = packed.getvalue(), cast("IO[bytes]", self._process.stdin)
        try:
            to.write(len(message).to_bytes(8, "little") + message)
            to.flush()
        except OSError as error:
            raise self._ended() from error
        failed = json.loads(self._received())["failed"]
        answer = self._received()
        if failed:
            raise RuntimeFailedError(
                f"{self._version} failed on the file: {failed}",
                remedy="Check it with the installed version.",
            )
        with np.load(io.BytesIO(answer)) as arrays:
            names = [spec.name for spec in self.signature.outputs]
            return dict(zip(names, (arrays[name] for name in arrays.files), strict=True))

    def _received(self) -> bytes:
        """The next message."""
        back = cast("IO[bytes]", self._process.stdout)
        size = int.from_bytes(head := back.read(8), "little")
        message = back.read(size)
        if len(head) < 8 or len(message) < size:
            raise self._ended()
        return message

    def _ended(self) -> RuntimeFailedError:
        """The error that says how the process ended, and what it printed last."""
        status = self._process.wait(GRACE_S)
        said = last_words(self._printed)
        return RuntimeFailedError(
            f"the process of {self._version} ended with status {status}{said}",
            remedy="Check the file with the installed version.",
        )


def _specs(ports: list[list[Any]]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name, tuple(shape), dtype) for name, shape, dtype in ports)


@contextmanager
def opened(
    artifact: Artifact, options: RunOptions, version: Version, python: Path
) -> Iterator[ElsewhereSession]:
    """Load an artifact into ``version`` by the interpreter of its environment.

    Raises ``NotRunError`` where that version does not start, and ``RuntimeFailedError`` where it
    does not take the file.
    """
    # Isolated (-I): this folder has an ``onnx`` and an ``openvino``, which would be found first.
    command = [str(python), "-I", str(ANSWERING), version.package]
    with (
        tempfile.TemporaryFile() as printed,
        subprocess.Popen(  # noqa: S603 - an environment of ours
            [*command, str(artifact.path), str(options.threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=printed,
        ) as process,
    ):
        try:
            yield ElsewhereSession(process, printed, version)
        finally:
            process.kill()
            for stream in (process.stdin, process.stdout):
                with suppress(OSError):  # what was left to be written has no reader any more
                    cast("IO[bytes]", stream).close()
